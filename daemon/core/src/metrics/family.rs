//! All series of one metric, found by their label values.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::Arc;

use parking_lot::RwLock;
use regex::Regex;

use super::names::{Desc, Kind};
use super::series::{Cell, Series};

/// The value every label of the overflow series has, except `app_id`.
pub(super) const OVERFLOW: &str = "overflow";

/// Rewrites the values of one label.
#[derive(Clone, Debug)]
pub(super) struct Rewrite {
    /// Index into the family's sorted labels.
    pub(super) label: usize,
    pub(super) pattern: Regex,
    pub(super) replacement: Box<str>,
}

#[derive(Debug)]
pub(super) struct Family {
    pub(super) name: Box<str>,
    pub(super) desc: Desc,
    /// Sorted, with `app_id` among them.
    pub(super) labels: Box<[&'static str]>,
    app_id_at: usize,
    app_id: Box<str>,
    pub(super) bounds: Arc<[f64]>,
    rewrites: Box<[Rewrite]>,
    cap: usize,
    hasher: RandomState,
    table: RwLock<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// By hash of the label values; collisions share a short list.
    series: HashMap<u64, Vec<Arc<Series>>, BuildHasherDefault<Hashed64>>,
    len: usize,
    overflow: Option<Arc<Series>>,
}

/// Takes a key for its own hash: it is one already.
#[derive(Debug, Default)]
struct Hashed64(u64);

impl Hasher for Hashed64 {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// What a lookup found.
pub(super) struct Found {
    pub(super) series: Arc<Series>,
    /// The cap on label sets was reached, so this is the overflow series.
    pub(super) overflowed: bool,
}

impl Family {
    pub(super) fn new(
        desc: Desc,
        labels: Box<[&'static str]>,
        app_id: &str,
        bounds: Arc<[f64]>,
        rewrites: Box<[Rewrite]>,
        cap: usize,
    ) -> Self {
        let app_id_at = labels.iter().position(|label| *label == "app_id").unwrap_or(0);
        Self {
            name: desc.scraped_name().into(),
            desc,
            labels,
            app_id_at,
            app_id: app_id.into(),
            bounds,
            rewrites,
            cap,
            hasher: RandomState::new(),
            table: RwLock::default(),
        }
    }

    /// Whether every series of `other` would be made the same way here.
    pub(super) fn continues(&self, other: &Family) -> bool {
        self.app_id == other.app_id
            && self.bounds == other.bounds
            && self.cap == other.cap
            && self.rewrites.len() == other.rewrites.len()
            && self.rewrites.iter().zip(&other.rewrites).all(|(a, b)| {
                a.label == b.label && a.pattern.as_str() == b.pattern.as_str() && a.replacement == b.replacement
            })
    }

    /// Goes on with the series of `old` that `still` wants and whose label values the rules of
    /// this family leave as they are; with none where the buckets are others.
    pub(super) fn take_over(&self, old: &Family, still: impl Fn(&Series) -> bool) {
        if self.bounds != old.bounds {
            return;
        }
        let width = self.labels.len();
        let made_here = |series: &Series| {
            (0..width).all(|at| {
                let value = if at == self.app_id_at { &self.app_id } else { series.at(at) };
                self.rewrite(at, value) == series.at(at)
            })
        };
        let before = old.table.read();
        let mut table = self.table.write();
        for series in before.series.values().flatten() {
            if table.len < self.cap && made_here(series) && still(series) {
                let hash = self.hasher.hash_one(Hashed { labels: &**series, width });
                table.series.entry(hash).or_default().push(Arc::clone(series));
                table.len += 1;
            }
        }
        table.overflow.clone_from(&before.overflow);
    }

    /// Value of a label of one of its series; empty where it has no such label.
    pub(super) fn value<'a>(&self, series: &'a Series, label: &str) -> &'a str {
        self.labels.iter().position(|name| *name == label).map_or("", |at| series.at(at))
    }

    /// Finds or makes the series for `values`: one value per label of the
    /// metric without `app_id`. Missing values count as empty, surplus ones
    /// are ignored.
    pub(super) fn series(&self, values: &[&str]) -> Found {
        debug_assert_eq!(values.len(), self.desc.labels.len(), "{}", self.desc.path);
        if self.rewrites.is_empty() {
            let full = Labels { family: self, values };
            return self.find(&full);
        }
        let rewritten: Vec<String> = {
            let plain = Labels { family: self, values };
            (0..self.labels.len()).map(|at| self.rewrite(at, plain.at(at))).collect()
        };
        // The rewritten set already has `app_id` in its place.
        self.find(&Full(&rewritten))
    }

    fn rewrite(&self, at: usize, value: &str) -> String {
        let mut value = value.to_owned();
        // An unset label stays unset: a rule describes values that exist.
        if value.is_empty() {
            return value;
        }
        for rule in self.rewrites.iter().filter(|rule| rule.label == at) {
            if let std::borrow::Cow::Owned(new) = rule.pattern.replace_all(&value, &*rule.replacement) {
                value = new;
            }
        }
        value
    }

    fn find(&self, labels: &dyn LabelValues) -> Found {
        let width = self.labels.len();
        let hash = self.hasher.hash_one(Hashed { labels, width });
        let same = |series: &&Arc<Series>| (0..width).all(|at| *series.labels[at] == *labels.at(at));
        {
            let table = self.table.read();
            if let Some(series) = table.series.get(&hash).and_then(|list| list.iter().find(same)) {
                return Found { series: Arc::clone(series), overflowed: false };
            }
            if table.len >= self.cap
                && let Some(series) = &table.overflow
            {
                return Found { series: Arc::clone(series), overflowed: true };
            }
        }
        let mut table = self.table.write();
        if let Some(series) = table.series.get(&hash).and_then(|list| list.iter().find(same)) {
            return Found { series: Arc::clone(series), overflowed: false };
        }
        if table.len >= self.cap {
            let series = table.overflow.get_or_insert_with(|| {
                self.make((0..width).map(|at| if at == self.app_id_at { &*self.app_id } else { OVERFLOW }))
            });
            return Found { series: Arc::clone(series), overflowed: true };
        }
        let series = self.make((0..width).map(|at| labels.at(at)));
        table.series.entry(hash).or_default().push(Arc::clone(&series));
        table.len += 1;
        Found { series, overflowed: false }
    }

    fn make<'a>(&self, labels: impl Iterator<Item = &'a str>) -> Arc<Series> {
        let cell = match self.desc.kind {
            Kind::Counter => Cell::counter(),
            Kind::Gauge => Cell::gauge(),
            Kind::Histogram(_) => Cell::histogram(&self.bounds),
        };
        Arc::new(Series { labels: labels.map(Box::from).collect(), cell })
    }

    /// The series that have a value, sorted by label values.
    pub(super) fn touched(&self) -> Vec<Arc<Series>> {
        let mut all: Vec<Arc<Series>> = {
            let table = self.table.read();
            table.series.values().flatten().chain(&table.overflow).filter(|s| s.is_touched()).cloned().collect()
        };
        all.sort_by(|a, b| a.labels.cmp(&b.labels));
        all
    }
}

/// Label values in the family's order.
trait LabelValues {
    fn at(&self, at: usize) -> &str;
}

struct Labels<'a> {
    family: &'a Family,
    values: &'a [&'a str],
}

impl LabelValues for Labels<'_> {
    fn at(&self, at: usize) -> &str {
        use std::cmp::Ordering::{Equal, Greater, Less};
        match at.cmp(&self.family.app_id_at) {
            Equal => &self.family.app_id,
            Less => self.values.get(at).copied().unwrap_or_default(),
            Greater => self.values.get(at - 1).copied().unwrap_or_default(),
        }
    }
}

impl LabelValues for Series {
    fn at(&self, at: usize) -> &str {
        self.labels.get(at).map(|value| &**value).unwrap_or_default()
    }
}

struct Full<'a>(&'a [String]);

impl LabelValues for Full<'_> {
    fn at(&self, at: usize) -> &str {
        self.0.get(at).map(String::as_str).unwrap_or_default()
    }
}

struct Hashed<'a> {
    labels: &'a dyn LabelValues,
    width: usize,
}

impl std::hash::Hash for Hashed<'_> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        for at in 0..self.width {
            self.labels.at(at).hash(state);
        }
    }
}
