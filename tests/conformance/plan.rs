//! Which tests there are, and which there are not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Failed, Trial};
use mecha_components_api::{Registration, Registry};
use mecha_testkit::{BoxFuture, Case};
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;

use crate::manifest::Recipe;

/// No case takes nearly as long; one that does hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// Longest wait for a component to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(30);

/// Closes what a block built.
type Closer = Box<dyn FnOnce() -> BoxFuture<'static, ()>>;

/// The tests of one run.
pub(crate) struct Plan {
    runtime: Arc<Runtime>,
    required: BTreeSet<String>,
    all_required: bool,
    pub(crate) trials: Vec<Trial>,
    absent: Vec<(String, String)>,
    outside: Vec<(String, Vec<&'static str>)>,
    left_out: Vec<(String, &'static str, &'static str)>,
    closers: Vec<Closer>,
}

/// What is left to do once the tests ran.
pub(crate) struct After {
    runtime: Arc<Runtime>,
    absent: Vec<(String, String)>,
    outside: Vec<(String, Vec<&'static str>)>,
    left_out: Vec<(String, &'static str, &'static str)>,
    closers: Vec<Closer>,
}

/// Where the cases of a block are run: the name in front of theirs, and what is left out.
pub(crate) struct Place<'a> {
    pub(crate) title: &'a str,
    pub(crate) without: &'a dyn Fn(&str) -> Option<&'static str>,
}

/// An instance that is made when the first test needs it, once.
pub(crate) struct Shared<C: ?Sized>(Arc<SharedInner<C>>);

struct SharedInner<C: ?Sized> {
    cell: OnceCell<Result<Arc<C>, String>>,
    make: Box<dyn Fn() -> BoxFuture<'static, Result<Arc<C>, String>> + Send + Sync>,
}

impl<C: ?Sized> Clone for Shared<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C: ?Sized + Send + Sync + 'static> Shared<C> {
    pub(crate) fn new(make: impl Fn() -> BoxFuture<'static, Result<Arc<C>, String>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(SharedInner { cell: OnceCell::new(), make: Box::new(make) }))
    }

    /// The instance.
    pub(crate) async fn get(&self) -> Result<Arc<C>, String> {
        self.0.cell.get_or_init(|| (self.0.make)()).await.clone()
    }

    /// The instance, if a test made it.
    pub(crate) fn made(&self) -> Option<Arc<C>> {
        self.0.cell.get().and_then(|made| made.as_ref().ok()).cloned()
    }
}

/// What a case has for itself.
pub(crate) trait Ending: Send + Sync + 'static {
    /// Ends what it started, whoever still holds a part of it.
    fn end(&self);
}

/// Ends it also when the case panics or takes too long.
struct Ends<M: Ending>(Arc<M>);

impl<M: Ending> Drop for Ends<M> {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Plan {
    pub(crate) fn new(runtime: Arc<Runtime>) -> Self {
        let named = std::env::var("REQUIRE").unwrap_or_default();
        Self {
            runtime,
            required: named.split(',').map(|n| n.trim().to_owned()).filter(|n| !n.is_empty()).collect(),
            all_required: std::env::var("CI").is_ok_and(|v| v == "true"),
            trials: Vec::new(),
            absent: Vec::new(),
            outside: Vec::new(),
            left_out: Vec::new(),
            closers: Vec::new(),
        }
    }

    /// One test by hand.
    pub(crate) fn test(
        &mut self,
        name: String,
        body: impl FnOnce() -> BoxFuture<'static, Result<(), String>> + Send + 'static,
    ) {
        let runtime = Arc::clone(&self.runtime);
        self.trials.push(Trial::test(name, move || {
            let outcome = runtime.block_on(async { tokio::time::timeout(LIMIT, body()).await });
            match outcome {
                Ok(outcome) => outcome.map_err(Failed::from),
                Err(_) => Err(Failed::from(format!("no end after {LIMIT:?}"))),
            }
        }));
    }

    /// The cases of a table that apply to `profile`, on one instance.
    pub(crate) fn cases<C, K>(
        &mut self,
        place: &Place<'_>,
        cases: impl Iterator<Item = &'static Case<C, K>>,
        profile: &K,
        instance: &Shared<C>,
    ) where
        C: ?Sized + Send + Sync + 'static,
        K: 'static,
    {
        for case in self.applying(place, cases, profile) {
            let (instance, run) = (instance.clone(), case.run);
            self.test(format!("{}/{}", place.title, case.name), move || {
                Box::pin(async move {
                    let instance = instance.get().await.map_err(|e| format!("it does not start: {e}"))?;
                    run(instance).await.map_err(|failure| failure.to_string())
                })
            });
        }
    }

    /// The cases of a table that apply to `profile`, each on an instance of its own, which
    /// ends with the case.
    pub(crate) fn cases_apart<C, K, M>(
        &mut self,
        place: &Place<'_>,
        cases: impl Iterator<Item = &'static Case<C, K>>,
        profile: &K,
        make: impl Fn() -> Arc<M> + Clone + Send + Sync + 'static,
        share: fn(Arc<M>) -> Arc<C>,
    ) where
        C: ?Sized + Send + Sync + 'static,
        K: 'static,
        M: Ending,
    {
        for case in self.applying(place, cases, profile) {
            let (make, run) = (make.clone(), case.run);
            self.test(format!("{}/{}", place.title, case.name), move || {
                Box::pin(async move {
                    let made = make();
                    let ends = Ends(Arc::clone(&made));
                    let outcome = run(share(made)).await;
                    drop(ends);
                    outcome.map_err(|failure| failure.to_string())
                })
            });
        }
    }

    /// The cases to run; the others are noted.
    fn applying<C, K>(
        &mut self,
        place: &Place<'_>,
        cases: impl Iterator<Item = &'static Case<C, K>>,
        profile: &K,
    ) -> Vec<&'static Case<C, K>>
    where
        C: ?Sized,
    {
        let (mut apply, mut outside) = (Vec::new(), Vec::new());
        for case in cases {
            if !(case.needs)(profile) {
                outside.push(case.name);
            } else if let Some(why) = (place.without)(case.name) {
                self.left_out.push((place.title.to_owned(), why, case.name));
            } else {
                apply.push(case);
            }
        }
        if !outside.is_empty() {
            self.outside.push((place.title.to_owned(), outside));
        }
        apply
    }

    /// Runs when all tests are done.
    pub(crate) fn finally(&mut self, closer: impl FnOnce() -> BoxFuture<'static, ()> + 'static) {
        self.closers.push(Box::new(closer));
    }

    /// Whether the entry can be tried here. If not, that is noted, and a failure where it is required.
    pub(crate) fn present<C: ?Sized>(&mut self, block: &str, recipe: &Recipe, list: &[Registration<C>]) -> bool {
        let missing = recipe.missing();
        let why = match Registry::find(list, &recipe.kind, &recipe.version) {
            mecha_components_api::Lookup::Found(_) if missing.is_empty() => return true,
            mecha_components_api::Lookup::Found(_) => missing.join(", "),
            mecha_components_api::Lookup::WrongVersion(_) => {
                format!("{} has no version {}", recipe.kind, recipe.version)
            }
            mecha_components_api::Lookup::Unknown => format!("{} is not registered in this build", recipe.kind),
        };
        let entry = format!("{block}/{}", recipe.name);
        if self.all_required || self.required.contains(&recipe.name) || self.required.contains(&entry) {
            let why = why.clone();
            self.test(format!("{entry}/is_available"), move || {
                Box::pin(async move { Err(format!("required, but {why}")) })
            });
        }
        self.absent.push((entry, why));
        false
    }

    /// Every registered component of a block has an entry.
    pub(crate) fn complete<C: ?Sized>(&mut self, block: &str, list: &[Registration<C>], listed: Vec<String>) {
        let kinds: Vec<&'static str> = list.iter().map(|r| r.kind).collect();
        let missing: Vec<&str> =
            kinds.into_iter().filter(|k| !listed.iter().any(|l| l.eq_ignore_ascii_case(k))).collect();
        self.test(format!("{block}/every_component_is_in_the_manifest"), move || {
            Box::pin(async move {
                if missing.is_empty() {
                    Ok(())
                } else {
                    Err(format!("add to tests/conformance/manifest.toml: {missing:?}"))
                }
            })
        });
    }

    /// The tests, and what is to be done after them.
    pub(crate) fn split(self) -> (Vec<Trial>, After) {
        let Self { runtime, trials, absent, outside, left_out, closers, .. } = self;
        (trials, After { runtime, absent, outside, left_out, closers })
    }
}

impl After {
    /// Closes what was built and says what did not run, and why; on stderr, so that the
    /// result stays the last line of stdout. With a filter, only of what it asks for.
    pub(crate) fn run(self, filter: Option<&str>) {
        for closer in self.closers {
            if self.runtime.block_on(async { tokio::time::timeout(CLOSE_LIMIT, closer()).await }).is_err() {
                eprintln!("a component did not close within {CLOSE_LIMIT:?}");
            }
        }
        let asked = |entry: &str| filter.is_none_or(|f| entry.contains(f) || f.starts_with(entry));
        let absent = self
            .absent
            .into_iter()
            .filter(|(entry, _)| asked(entry))
            .map(|(entry, why)| format!("{entry}: absent, {why}"));
        let outside = self.outside.into_iter().filter(|(entry, _)| asked(entry));
        let outside =
            outside.map(|(entry, cases)| format!("{entry}: does not declare what these need: {}", cases.join(", ")));
        let mut left_out: BTreeMap<(String, &str), Vec<&str>> = BTreeMap::new();
        for (entry, why, case) in self.left_out.into_iter().filter(|(entry, ..)| asked(entry)) {
            left_out.entry((entry, why)).or_default().push(case);
        }
        let left_out =
            left_out.into_iter().map(|((entry, why), cases)| format!("{entry}: left out, {why}: {}", cases.join(", ")));
        let lines: Vec<String> = absent.chain(outside).chain(left_out).collect();
        if !lines.is_empty() {
            eprintln!("Not run:\n  {}", lines.join("\n  "));
        }
    }
}
