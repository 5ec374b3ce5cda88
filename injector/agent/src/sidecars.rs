//! The sidecars of this agent and what each has reported last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mecha_resources::kinds::{MoveCounts, SwapPhase};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::desk::Caller;

/// A sidecar whose stream broke counts for so long: it comes back sooner, to this agent or another.
pub(crate) const LINGER: Duration = Duration::from_secs(15);
/// Sidecars of one app in one namespace.
const MAX_OF_APP: usize = 2000;

/// What a sidecar says about one component.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Reported {
    pub(crate) revision: i64,
    pub(crate) phase: Option<SwapPhase>,
    pub(crate) reached: bool,
    pub(crate) failed: bool,
    pub(crate) pending: u64,
    pub(crate) message: String,
    pub(crate) counts: MoveCounts,
}

/// One sidecar, as others look at it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Sidecar {
    pub(crate) app_id: String,
    pub(crate) instance: String,
    /// Whether its stream is up.
    pub(crate) connected: bool,
    /// Whether its last report is about an older set than the last one sent.
    pub(crate) behind: bool,
    /// By name of the component.
    pub(crate) reported: BTreeMap<String, Reported>,
    /// What is missing for it, by name of the component.
    pub(crate) missing: BTreeMap<String, String>,
}

/// All sidecars of this agent.
pub(crate) struct Sidecars {
    state: Mutex<State>,
    version: watch::Sender<u64>,
    limit: usize,
}

#[derive(Default)]
struct State {
    streams: u64,
    /// By namespace, app id and instance.
    known: BTreeMap<(String, String, String), Known>,
    /// Streams of sidecars that speak Dapr's protocol only, by namespace and app id.
    stock: BTreeMap<(String, String), usize>,
}

struct Known {
    stream: u64,
    /// When its stream ended.
    left: Option<Instant>,
    /// Digest of the set that was sent last.
    sent: String,
    /// Digest of the set that its reports are about.
    digest: String,
    sidecar: Sidecar,
    replaced: CancellationToken,
}

/// Too many.
#[derive(Debug, thiserror::Error)]
#[error("this agent serves no more than {0} sidecars, and no more than {MAX_OF_APP} of one app")]
pub(crate) struct Full(usize);

/// A sidecar's place for as long as its stream lasts.
pub(crate) struct Place {
    sidecars: Arc<Sidecars>,
    key: (String, String, String),
    stream: u64,
    replaced: CancellationToken,
}

/// A stock sidecar's place for as long as its stream lasts.
pub(crate) struct StockPlace {
    sidecars: Arc<Sidecars>,
    key: (String, String),
}

impl Sidecars {
    pub(crate) fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), version: watch::Sender::new(0), limit }
    }

    /// Changes whenever a sidecar comes, goes or reports.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn touch(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// A place for `instance`; a stream that it had before ends. Its last reports stay when they are about the set
    /// of `digest`, which it says it still runs by.
    pub(crate) fn join(self: &Arc<Self>, caller: &Caller, instance: &str, digest: &str) -> Result<Place, Full> {
        let key = (caller.namespace.clone(), caller.app_id.clone(), instance.to_owned());
        let replaced = CancellationToken::new();
        let mut state = self.state.lock();
        state.forget();
        state.streams += 1;
        let stream = state.streams;
        if !state.known.contains_key(&key) {
            let of_app = state.known.keys().filter(|(n, a, _)| *n == key.0 && *a == key.1).count();
            if state.known.len() >= self.limit || of_app >= MAX_OF_APP {
                return Err(Full(self.limit));
            }
        }
        let before = state.known.remove(&key);
        let (digest, sidecar) = match before {
            Some(before) => {
                before.replaced.cancel();
                if before.digest == digest { (before.digest, before.sidecar) } else { Default::default() }
            }
            None => Default::default(),
        };
        let sidecar = Sidecar { app_id: key.1.clone(), instance: key.2.clone(), ..sidecar };
        let known = Known { stream, left: None, sent: digest.clone(), digest, sidecar, replaced: replaced.clone() };
        state.known.insert(key.clone(), known);
        drop(state);
        self.touch();
        Ok(Place { sidecars: self.clone(), key, stream, replaced })
    }

    /// A place for a sidecar that speaks Dapr's protocol only.
    pub(crate) fn stock(self: &Arc<Self>, caller: &Caller) -> Result<StockPlace, Full> {
        let key = (caller.namespace.clone(), caller.app_id.clone());
        let mut state = self.state.lock();
        let count = state.stock.entry(key.clone()).or_default();
        if *count >= MAX_OF_APP {
            return Err(Full(self.limit));
        }
        *count += 1;
        drop(state);
        self.touch();
        Ok(StockPlace { sidecars: self.clone(), key })
    }

    /// Namespaces with sidecars.
    pub(crate) fn namespaces(&self) -> BTreeSet<String> {
        let state = self.state.lock();
        let known = state.known.keys().map(|(namespace, _, _)| namespace.clone());
        known.chain(state.stock.keys().map(|(namespace, _)| namespace.clone())).collect()
    }

    /// The sidecars of a namespace, and the number of stock ones by app id.
    pub(crate) fn within(&self, namespace: &str) -> (Vec<Sidecar>, BTreeMap<String, usize>) {
        let mut state = self.state.lock();
        state.forget();
        let from = (namespace.to_owned(), String::new(), String::new());
        let known = state.known.range(from..).take_while(|((n, _, _), _)| n == namespace);
        let sidecars = known.map(|(_, known)| known.shown()).collect();
        let from = (namespace.to_owned(), String::new());
        let stock = state.stock.range(from..).take_while(|((n, _), _)| n == namespace);
        let stock = stock.map(|((_, app), count)| (app.clone(), *count)).collect();
        (sidecars, stock)
    }
}

impl Known {
    fn shown(&self) -> Sidecar {
        Sidecar { connected: self.left.is_none(), behind: self.digest != self.sent, ..self.sidecar.clone() }
    }
}

impl State {
    fn forget(&mut self) {
        self.known.retain(|_, known| known.left.is_none_or(|left| left.elapsed() < LINGER));
    }
}

impl Place {
    /// Fires when a newer stream of the same sidecar has come.
    pub(crate) fn replaced(&self) -> &CancellationToken {
        &self.replaced
    }

    /// Takes a report on the set of `digest`.
    pub(crate) fn report(&self, digest: &str, reported: BTreeMap<String, Reported>) {
        self.change(|known| {
            let same = known.sidecar.reported == reported && known.digest == digest;
            digest.clone_into(&mut known.digest);
            known.sidecar.reported = reported;
            !same
        });
    }

    /// Notes the set that is sent, and what is missing for the sidecar in it.
    pub(crate) fn sent(&self, digest: &str, missing: &BTreeMap<String, String>) {
        self.change(|known| {
            let same = known.sidecar.missing == *missing && known.sent == digest;
            digest.clone_into(&mut known.sent);
            known.sidecar.missing.clone_from(missing);
            !same
        });
    }

    fn change(&self, change: impl FnOnce(&mut Known) -> bool) {
        let mut state = self.sidecars.state.lock();
        let known = state.known.get_mut(&self.key).filter(|known| known.stream == self.stream);
        let changed = known.is_some_and(change);
        drop(state);
        if changed {
            self.sidecars.touch();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.change(|known| {
            known.left = Some(Instant::now());
            true
        });
    }
}

impl Drop for StockPlace {
    fn drop(&mut self) {
        let mut state = self.sidecars.state.lock();
        if let Some(count) = state.stock.get_mut(&self.key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                state.stock.remove(&self.key);
            }
        }
        drop(state);
        self.sidecars.touch();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(app_id: &str) -> Caller {
        Caller { namespace: "shop".into(), app_id: app_id.into() }
    }

    fn report() -> BTreeMap<String, Reported> {
        BTreeMap::from([("orders".to_owned(), Reported { reached: true, ..Reported::default() })])
    }

    #[test]
    fn a_newer_stream_of_a_sidecar_ends_the_older_and_what_that_still_says_counts_no_more() {
        let sidecars = Arc::new(Sidecars::new(10));
        let first = sidecars.join(&caller("cart"), "cart-1", "").unwrap();
        first.report("sha256:a", report());
        let second = sidecars.join(&caller("cart"), "cart-1", "sha256:a").unwrap();
        assert!(first.replaced().is_cancelled() && !second.replaced().is_cancelled());
        let shown = sidecars.within("shop").0.remove(0);
        assert_eq!(shown.reported, report(), "it still runs what it reported on");
        assert!(!shown.behind);
        first.report("sha256:a", BTreeMap::new());
        drop(first);
        assert_eq!(sidecars.within("shop").0[0].reported, report());
        // One that starts anew has reported nothing.
        let _third = sidecars.join(&caller("cart"), "cart-1", "").unwrap();
        assert!(sidecars.within("shop").0[0].reported.is_empty());
        assert!(sidecars.within("shop2").0.is_empty() && sidecars.within("sho").0.is_empty());
    }

    #[test]
    fn a_report_on_an_older_set_is_known_as_such() {
        let sidecars = Arc::new(Sidecars::new(10));
        let place = sidecars.join(&caller("cart"), "cart-1", "").unwrap();
        place.sent("sha256:a", &BTreeMap::new());
        assert!(sidecars.within("shop").0[0].behind);
        place.report("sha256:a", report());
        assert!(!sidecars.within("shop").0[0].behind);
        place.sent("sha256:b", &BTreeMap::new());
        assert!(sidecars.within("shop").0[0].behind);
    }

    #[test]
    fn there_is_room_for_so_many_and_those_that_left_count_for_a_while() {
        let sidecars = Arc::new(Sidecars::new(2));
        let _first = sidecars.join(&caller("cart"), "cart-1", "").unwrap();
        let second = sidecars.join(&caller("cart"), "cart-2", "").unwrap();
        assert!(sidecars.join(&caller("cart"), "cart-3", "").is_err());
        drop(second);
        assert_eq!(sidecars.within("shop").0.len(), 2);
        assert!(sidecars.join(&caller("cart"), "cart-2", "").is_ok());
    }

    #[test]
    fn stock_sidecars_are_counted_while_they_are_there() {
        let sidecars = Arc::new(Sidecars::new(2));
        let stock = sidecars.stock(&caller("cart")).unwrap();
        assert_eq!(sidecars.within("shop").1, BTreeMap::from([("cart".to_owned(), 1)]));
        drop(stock);
        assert!(sidecars.within("shop").1.is_empty());
    }
}
