//! Which tests there are, and which there are not.

use std::collections::BTreeSet;
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
    closers: Vec<Closer>,
}

/// What is left to do once the tests ran.
pub(crate) struct After {
    runtime: Arc<Runtime>,
    absent: Vec<(String, String)>,
    outside: Vec<(String, Vec<&'static str>)>,
    closers: Vec<Closer>,
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
        entry: &str,
        cases: impl Iterator<Item = &'static Case<C, K>>,
        profile: &K,
        instance: &Shared<C>,
    ) where
        C: ?Sized + Send + Sync + 'static,
        K: 'static,
    {
        let mut outside = Vec::new();
        for case in cases {
            if !(case.needs)(profile) {
                outside.push(case.name);
                continue;
            }
            let (instance, run) = (instance.clone(), case.run);
            self.test(format!("{entry}/{}", case.name), move || {
                Box::pin(async move {
                    let instance = instance.get().await.map_err(|e| format!("it does not start: {e}"))?;
                    run(instance).await.map_err(|failure| failure.to_string())
                })
            });
        }
        if !outside.is_empty() {
            self.outside.push((entry.to_owned(), outside));
        }
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
            mecha_components_api::Lookup::Found(_) => format!("{} is not set", missing.join(", ")),
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
        let Self { runtime, trials, absent, outside, closers, .. } = self;
        (trials, After { runtime, absent, outside, closers })
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
        let lines: Vec<String> = absent.chain(outside).collect();
        if !lines.is_empty() {
            eprintln!("Not run:\n  {}", lines.join("\n  "));
        }
    }
}
