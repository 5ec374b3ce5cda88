use std::collections::HashMap;

use mecha_components_api::{
    BuildCx, ConfigErrors, Consistency, DeleteState, Error, GetState, Hold, Item, Metadata, Prepared, Registration,
    Result, SetState, StateCaps, StateStore, SystemClock, async_trait,
};
use mecha_resources::Loaded;
use parking_lot::Mutex;

use super::*;
use crate::app::Body;
use crate::health::Health;
use crate::invoke::{Endpoint, Head, Invoke, InvokeParts, Peer, Transport, TransportError};
use crate::metrics::Metrics;
use crate::swap::{Outcome, Receipt};
use crate::trace::Tracer;
use crate::{CoreParts, Cx, Front, Identity};

/// Instances that are open, by the resource they hold.
static OPEN: Mutex<Option<HashMap<String, usize>>> = Mutex::new(None);

fn open(resource: &str) -> usize {
    OPEN.lock().as_ref().and_then(|open| open.get(resource).copied()).unwrap_or_default()
}

fn count(resource: &str, by: isize) {
    let mut open = OPEN.lock();
    let slot = open.get_or_insert_default().entry(resource.to_owned()).or_default();
    *slot = slot.saturating_add_signed(by);
}

/// A store that holds `resource`, alone where `exclusive` says so.
#[derive(Clone, Debug)]
struct Fake {
    resource: String,
    exclusive: bool,
    broken: bool,
    silent: bool,
    /// Seconds that a build takes.
    slow: i64,
    version: String,
}

fn prepare(md: &Metadata, _: &str) -> Result<Box<dyn Prepared<dyn StateStore>>, ConfigErrors> {
    let mut errors = ConfigErrors::new();
    let fake = Fake {
        resource: errors.required(md, "resource"),
        exclusive: errors.bool(md, "exclusive", false),
        broken: errors.bool(md, "broken", false),
        silent: errors.bool(md, "silent", false),
        slow: errors.int(md, "slow", 0),
        version: errors.text(md, "version", "1"),
    };
    errors.finish(Box::new(fake) as Box<dyn Prepared<dyn StateStore>>)
}

#[async_trait]
impl Prepared<dyn StateStore> for Fake {
    fn holds(&self) -> Option<Hold> {
        Some(Hold { resource: self.resource.clone(), alone: self.exclusive })
    }

    async fn build(self: Box<Self>, _: &BuildCx) -> Result<Arc<dyn StateStore>> {
        tokio::time::sleep(Duration::from_secs(self.slow.unsigned_abs())).await;
        if self.broken {
            return Err(Error::unavailable("it is not there"));
        }
        if self.exclusive && open(&self.resource) > 0 {
            return Err(Error::unavailable("somebody else holds it"));
        }
        count(&self.resource, 1);
        Ok(Arc::new(*self))
    }
}

#[async_trait]
impl mecha_components_api::Component for Fake {
    async fn ping(&self) -> Result<()> {
        if self.silent { Err(Error::unavailable("it does not answer")) } else { Ok(()) }
    }

    async fn close(&self) {
        count(&self.resource, -1);
    }
}

#[async_trait]
impl StateStore for Fake {
    fn caps(&self) -> StateCaps {
        StateCaps { etag: true, ..StateCaps::default() }
    }

    async fn get(&self, _: GetState<'_>) -> Result<Option<Item>> {
        Ok(Some(Item { value: self.version.clone().into(), etag: Some("1".into()), ..Item::default() }))
    }

    async fn set(&self, _: SetState<'_>) -> Result<()> {
        Ok(())
    }

    async fn delete(&self, _: DeleteState<'_>) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct Nowhere;

#[async_trait]
impl Transport for Nowhere {
    async fn call_peer(&self, _: Peer<'_>, _: &Head, _: Body) -> Result<http::Response<Body>, TransportError> {
        unreachable!("nobody invokes here")
    }

    async fn call_endpoint(
        &self,
        _: &Endpoint,
        _: http::Request<Body>,
    ) -> Result<http::Response<Body>, TransportError> {
        unreachable!("nobody invokes here")
    }

    fn drop_connections(&self, _: &str) {}
}

struct Rig {
    core: Arc<Core>,
    loader: Arc<Loader>,
}

impl Rig {
    fn new(strict: bool) -> Self {
        let identity = Identity { app_id: "app".into(), namespace: "".into(), pod_name: "".into() };
        let metrics = Arc::new(Metrics::disabled());
        let invoke = Arc::new(Invoke::new(InvokeParts {
            identity: identity.clone(),
            host_address: String::new(),
            host_name: String::new(),
            app: None,
            transport: Arc::new(Nowhere),
            metrics: metrics.clone(),
            declared_urls_only: false,
            close_internal_routes: false,
            max_body: 1024,
        }));
        let core = Arc::new(Core::new(CoreParts {
            identity,
            health: Arc::new(Health::new("app".into(), Vec::new())),
            metrics: metrics.clone(),
            tracer: Tracer::off(),
            app: None,
            invoke,
        }));
        let mut registry = Registry::new();
        registry.state.push(Registration {
            kind: "state.fake",
            aliases: &[],
            versions: &["v1"],
            summary: "",
            fields: &[],
            prepare,
        });
        let (policies, _) = Policies::compile(&[], metrics);
        let cx = LoaderCx {
            strict,
            scoped_secrets: false,
            strict_components: false,
            home: std::env::temp_dir(),
            clock: Arc::new(SystemClock),
            env: Arc::new(|_| None),
            default_secret_store: String::new(),
            denied: Vec::new(),
            left_out: |_| None,
        };
        let loader = Arc::new(Loader::new(core.clone(), registry, Arc::new(policies), cx));
        Self { core, loader }
    }

    async fn value(&self, store: &str) -> Result<String, String> {
        let none = Metadata::new();
        let found = self.core.state.get(&Cx::new(Front::Http), store, "k", Consistency::Eventual, &none).await;
        let item = found.map_err(|e| e.message().to_owned())?.ok_or("absent")?;
        Ok(String::from_utf8_lossy(&item.value).into_owned())
    }

    /// The receipts once nothing drains any more.
    async fn receipts(&self) -> Vec<Receipt> {
        loop {
            let all = self.core.swaps.list();
            if all.iter().all(|r| r.outcome != Outcome::Draining) {
                return all;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn one_open(&self, resource: &str) {
        while open(resource) != 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// A Component document of the fake with these metadata items.
fn fake(name: &str, items: &[(&str, &str)]) -> Component {
    use std::fmt::Write as _;
    let mut text = format!(
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {{name: {name}}}\nspec:\n  type: state.fake\n  \
         version: v1\n  metadata:\n"
    );
    for (key, value) in items {
        let _ = writeln!(text, "  - {{name: {key}, value: '{value}'}}");
    }
    let mut loaded = Loaded::default();
    loaded.read_text("fake.yaml", &text);
    loaded.components.remove(0).value
}

#[tokio::test(start_paused = true)]
async fn the_new_one_is_there_before_the_old_one_goes() {
    let rig = Rig::new(true);
    rig.loader.load_all(vec![fake("s", &[("resource", "a"), ("version", "1")])]).await.unwrap();
    let held = rig.core.store.snapshot().state["s"].clone();
    let report = rig.loader.reconcile(vec![fake("s", &[("resource", "a"), ("version", "2")])]).await;
    assert_eq!((report.changed, rig.value("s").await.unwrap().as_str(), open("a")), (1, "2", 2));
    // A call holds the old one: it is closed when the call ends.
    let seen = rig.core.swaps.list();
    assert_eq!((seen[0].in_flight, seen[0].outcome), (1, Outcome::Draining));
    drop(held);
    let receipts = rig.receipts().await;
    assert_eq!((receipts[0].outcome, receipts[0].finished, receipts[0].data_moved), (Outcome::Applied, 1, Some(false)));
    assert_eq!(open("a"), 1);
}

#[tokio::test(start_paused = true)]
async fn strict_keeps_what_runs_until_the_new_one_works() {
    let rig = Rig::new(true);
    rig.loader.load_all(vec![fake("s", &[("resource", "b"), ("version", "1")])]).await.unwrap();
    let wrong: [&[(&str, &str)]; 3] =
        [&[("version", "2")], &[("resource", "b"), ("broken", "true")], &[("resource", "b"), ("silent", "true")]];
    for items in wrong {
        let report = rig.loader.reconcile(vec![fake("s", items)]).await;
        assert!(report.fatal.is_none());
        assert_eq!((rig.value("s").await.unwrap().as_str(), open("b")), ("1", 1));
        assert_eq!(rig.core.swaps.refused()[0].name, "s");
    }
    // The last one may get better by itself: it is tried again, at its time.
    let report = rig.loader.retry().await;
    assert!(report.next_try.is_some() && report.changed == 0);
    rig.loader.reconcile(vec![fake("s", &[("resource", "b"), ("version", "3")])]).await;
    assert_eq!((rig.value("s").await.unwrap().as_str(), rig.core.swaps.refused().len()), ("3", 0));
}

#[tokio::test(start_paused = true)]
async fn bare_does_what_the_document_says_about_failures() {
    let rig = Rig::new(false);
    rig.loader.load_all(vec![fake("s", &[("resource", "c")])]).await.unwrap();
    let mut broken = fake("s", &[("resource", "c"), ("broken", "true")]);
    assert!(rig.loader.reconcile(vec![broken.clone()]).await.fatal.is_some());
    broken.ignore_errors = true;
    assert!(rig.loader.reconcile(vec![broken]).await.fatal.is_none());
    assert!(rig.value("s").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn what_excludes_each_other_is_switched_in_the_short_order() {
    let rig = Rig::new(true);
    let with = |more: &[(&'static str, &'static str)]| {
        fake("s", &[&[("resource", "d"), ("exclusive", "true")], more].concat())
    };
    rig.loader.load_all(vec![with(&[("version", "1")])]).await.unwrap();
    let report = rig.loader.reconcile(vec![with(&[("version", "2")])]).await;
    assert_eq!((report.changed, rig.value("s").await.unwrap().as_str(), open("d")), (1, "2", 1));
    // The new one fails: the old one is back.
    rig.loader.reconcile(vec![with(&[("version", "3"), ("broken", "true")])]).await;
    assert_eq!((rig.value("s").await.unwrap().as_str(), open("d")), ("2", 1));
    assert_eq!(rig.receipts().await.last().unwrap().outcome, Outcome::Refused);
}

#[tokio::test(start_paused = true)]
async fn the_same_content_changes_nothing_and_others_are_not_touched() {
    let rig = Rig::new(true);
    let (one, two) = (fake("one", &[("resource", "e")]), fake("two", &[("resource", "f")]));
    rig.loader.load_all(vec![one.clone(), two.clone()]).await.unwrap();
    let before = rig.core.store.snapshot();
    // Another order, and scopes that still hold this app.
    let mut scoped = two.clone();
    scoped.meta.scopes = vec!["app".into()];
    assert_eq!(rig.loader.reconcile(vec![scoped, one.clone()]).await.changed, 0);
    let report = rig.loader.reconcile(vec![one, fake("three", &[("resource", "g")])]).await;
    let after = rig.core.store.snapshot();
    assert_eq!((report.changed, rig.core.swaps.generation()), (2, 2));
    assert!(Arc::ptr_eq(&before.state["one"], &after.state["one"]));
    assert!(rig.value("two").await.is_err() && rig.value("three").await.is_ok());
    drop(before);
    rig.receipts().await;
    rig.one_open("e").await;
    assert_eq!((open("e"), open("f"), open("g")), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_long_build_holds_up_nothing_else_and_comes_into_force_once_it_has_ended() {
    let rig = Rig::new(true);
    let other = |version| fake("other", &[("resource", "h"), ("version", version)]);
    let store = |version, slow| fake("store", &[("resource", "i"), ("version", version), ("slow", slow)]);
    rig.loader.load_all(vec![other("1"), store("1", "0")]).await.unwrap();
    let report = rig.loader.reconcile(vec![other("2"), store("2", "3")]).await;
    assert!(report.building);
    assert_eq!((report.changed, report.next_try), (1, None));
    let report = rig.loader.reconcile(vec![other("3"), store("2", "3")]).await;
    assert!(report.building, "it is the same build");
    assert_eq!((rig.value("other").await.unwrap().as_str(), rig.value("store").await.unwrap().as_str()), ("3", "1"));
    rig.loader.built().await;
    let report = rig.loader.retry().await;
    assert_eq!((report.building, report.changed, rig.value("store").await.unwrap().as_str()), (false, 1, "2"));
    let receipts = rig.receipts().await;
    assert!(receipts.iter().all(|r| r.outcome == Outcome::Applied), "{receipts:?}");
    assert!(receipts.iter().rfind(|r| r.name == "store").unwrap().switch_ms >= 3000.0);

    // What is edited again meanwhile, taken back, or removed is not built in vain for ever.
    rig.loader.reconcile(vec![store("3", "3")]).await;
    rig.loader.reconcile(vec![store("4", "0")]).await;
    assert_eq!(rig.value("store").await.unwrap(), "4");
    rig.loader.reconcile(vec![store("5", "3")]).await;
    let report = rig.loader.reconcile(vec![store("4", "0")]).await;
    assert_eq!((report.building, report.changed), (false, 0));
    rig.loader.reconcile(vec![store("6", "3")]).await;
    // Nobody has looked yet at what was built.
    rig.loader.built().await;
    assert_eq!(open("i"), 2);
    rig.loader.reconcile(Vec::<Component>::new()).await;
    rig.receipts().await;
    while open("i") != 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(rig.core.swaps.refused().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_long_build_that_fails_is_refused_and_tried_again_at_its_time() {
    let rig = Rig::new(true);
    rig.loader.load_all(vec![fake("s", &[("resource", "j"), ("version", "1")])]).await.unwrap();
    let broken = fake("s", &[("resource", "j"), ("broken", "true"), ("slow", "1")]);
    assert!(rig.loader.reconcile(vec![broken.clone()]).await.building);
    for tries in 1..=3 {
        rig.loader.built().await;
        let report = rig.loader.retry().await;
        let next = report.next_try.expect("it may get better");
        assert!(!report.building && next > tokio::time::Instant::now());
        assert_eq!((rig.value("s").await.unwrap().as_str(), rig.core.swaps.refused().len()), ("1", 1), "{tries}");
        tokio::time::sleep_until(next).await;
        let report = rig.loader.retry().await;
        assert!(!report.building, "what was tried before keeps nobody waiting");
        assert_eq!(report.next_try, None, "it is under way");
    }
    assert_eq!(rig.receipts().await.len(), 1, "one receipt for one reason");
    rig.loader.reconcile(vec![fake("s", &[("resource", "j"), ("version", "2")])]).await;
    assert_eq!((rig.value("s").await.unwrap().as_str(), rig.core.swaps.refused().len()), ("2", 0));
}

#[path = "moving_tests.rs"]
mod moving;
