//! The server behind a component is away when the daemon starts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mecha_tests::{
    DEADLINE, EventLedger, Fault, HttpApp, Item, Network, Sidecar, SidecarBuilder, StateLedger, component, eventually,
    wait_until,
};
use serde_json::Value;

use crate::load::{self, NAME, TOPIC};
use crate::table::{Block, Ground, ROWS, Row};

/// Patience with one component at start.
const INIT_TIMEOUT: &str = "1500ms";

/// Longest wait for a component whose server is there; the tries are up to 30 s apart.
const COMES_UP: Duration = Duration::from_secs(120);

/// A component whose server cannot be reached yet.
struct Early {
    ground: Ground,
    document: String,
    log_name: String,
}

impl Early {
    async fn new(row: Row, network: Network) -> Option<Self> {
        let mut ground = row.start().await?;
        ground.behind().proxy.set(network).await;
        let document = row.document(NAME, &ground.place());
        Some(Self { ground, document, log_name: row.log_name(NAME) })
    }

    /// A sidecar with this component, some lines more in its spec, and a store beside it.
    fn sidecar(&self, spec: &str) -> SidecarBuilder {
        let document = self.document.replace("spec:\n", &format!("spec:\n{}", mecha_tests::indent(spec, 2)));
        Sidecar::builder().component(document).component(component("beside", "state.in-memory", &[]))
    }
}

async fn beside_works(sidecar: &Sidecar) {
    for api in sidecar.apis().await {
        api.save("beside", &[Item::new("k", "1")]).await.unwrap();
        assert_eq!(api.get("beside", "k").await.unwrap().unwrap().text(), "1");
    }
}

/// What both fronts say to one who uses the component.
async fn errors(sidecar: &Sidecar, block: Block) -> Vec<Fault> {
    let mut faults = Vec::new();
    for api in sidecar.apis().await {
        let outcome = match block {
            Block::State => api.save(NAME, &[Item::new("k", "1")]).await,
            Block::PubSub => api.publish(NAME, TOPIC, "application/json", "1", &[]).await,
        };
        faults.extend(outcome.err());
    }
    faults
}

async fn failed_inits(sidecar: &Sidecar, row: Row) -> f64 {
    let metrics = sidecar.metrics().await;
    let of_row = |line: &&str| {
        line.starts_with("dapr_runtime_component_init_fail_total{") && line.contains(&format!("\"{}\"", row.kind()))
    };
    metrics.lines().find(of_row).and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_default()
}

fn degraded(metadata: &Value) -> Option<&str> {
    metadata["extended"][format!("mecha.degraded.{NAME}")].as_str()
}

/// Strict mode: it alone is degraded, everybody can see it, and it comes up by itself.
pub(crate) async fn strict(row: Row) {
    for network in [Network::Refuse, Network::Hang] {
        let Some(mut early) = Early::new(row, network).await else { return };
        let ledger = Arc::new(EventLedger::new());
        let app = load::app(&ledger).start().await;
        let began = Instant::now();
        let builder = early.sidecar(&format!("initTimeout: {INIT_TIMEOUT}")).switch("mecha-strict").app(&app);
        let sidecar = builder.start().await;
        println!("{}: {network:?} at a strict start: ready after {:.1?}", row.name, began.elapsed());
        beside_works(&sidecar).await;
        let faults = errors(&sidecar, row.block).await;
        assert_eq!(faults.len(), 2, "{faults:?}");
        for fault in faults {
            assert!(fault.http.is_none_or(|status| status >= 500), "{fault:?}");
            assert!(!fault.code.is_empty() && fault.message.contains(NAME), "{fault:?}");
        }
        let metadata = sidecar.metadata().await;
        let cause = degraded(&metadata).unwrap_or_else(|| panic!("{metadata}"));
        assert!(cause.contains(&early.log_name), "{cause}");
        sidecar.http().get("/v1.0/healthz").send().await.expect(204);
        let phase = sidecar.http().get("/v1.0-mecha/phase").send().await.expect(200).json();
        assert_eq!(phase["degraded"][0]["name"], NAME, "{phase}");
        assert_eq!(phase["degraded"][0]["cause"], cause, "{phase}");
        assert!(failed_inits(&sidecar, row).await >= 1.0);
        // The log says what is wrong and what comes next.
        sidecar.wait_log(&format!("Failed to init component {}", early.log_name)).await;
        sidecar.wait_log(&format!("component {} is still not ready, next try in ", early.log_name)).await;

        early.ground.behind().proxy.set(Network::Fine).await;
        let healed = Instant::now();
        works(&sidecar, row, &ledger).await;
        println!("{}: {network:?} at a strict start: works {:.1?} after it", row.name, healed.elapsed());
        let metadata = sidecar.metadata().await;
        assert_eq!(degraded(&metadata), None, "{metadata}");
        let listed = metadata["components"].as_array().unwrap().iter().any(|component| component["name"] == NAME);
        assert!(listed, "{metadata}");
        sidecar.wait_log(&format!("Component loaded: {}", early.log_name)).await;
        drop::<HttpApp>(app);
    }
}

/// The other blocks: each component is degraded alone, says so, and comes up by itself.
pub(crate) async fn others() {
    let row = |name: &str| *ROWS.iter().find(|row| row.name == name).unwrap();
    let (Some(mut redis), Some(mut postgres)) =
        (row("state.redis").start().await, row("state.postgresql/v1").start().await)
    else {
        return;
    };
    let (host, url) = {
        let port = |ground: &mut Ground| ground.behind().proxy.port();
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres", port(&mut postgres));
        (format!("127.0.0.1:{}", port(&mut redis)), url)
    };
    for ground in [&mut redis, &mut postgres] {
        ground.behind().proxy.set(Network::Refuse).await;
    }
    let kinds = [
        ("leases", "lock.redis", vec![("redisHost", &*host)]),
        ("settings", "configuration.redis", vec![("redisHost", &*host)]),
        ("entries", "bindings.redis", vec![("redisHost", &*host)]),
        ("rows", "bindings.postgresql", vec![("url", &*url)]),
        ("columns", "configuration.postgresql", vec![("connectionString", &*url), ("table", "settings")]),
    ];
    let mut builder = Sidecar::builder().switch("mecha-strict").component(component("beside", "state.in-memory", &[]));
    for (name, kind, metadata) in &kinds {
        builder = builder.component(component(name, kind, metadata));
    }
    let sidecar = builder.start().await;
    let http = sidecar.http();
    beside_works(&sidecar).await;
    http.get("/v1.0/healthz").send().await.expect(204);
    let lease = r#"{"resourceId":"r","lockOwner":"me","expiryInSeconds":60}"#;
    let entry = r#"{"operation":"create","data":"v","metadata":{"key":"k"}}"#;
    let table = r#"{"operation":"exec","metadata":{"sql":"CREATE TABLE IF NOT EXISTS settings (key VARCHAR NOT NULL, value VARCHAR NOT NULL, version VARCHAR NOT NULL, metadata JSON)"}}"#;
    let (metadata, metrics) = (sidecar.metadata().await, sidecar.metrics().await);
    let phase = http.get("/v1.0-mecha/phase").send().await.expect(200).json();
    for (name, kind, _) in &kinds {
        let cause = metadata["extended"][format!("mecha.degraded.{name}")].as_str();
        assert!(cause.is_some_and(|cause| cause.contains(&format!("{name} ({kind}/v1)"))), "{name}: {metadata}");
        let all = phase["degraded"].as_array().unwrap();
        assert!(all.iter().any(|d| d["name"] == *name && d["cause"].as_str() == cause), "{phase}");
        let failed = metrics.lines().any(|line| {
            line.starts_with("dapr_runtime_component_init_fail_total{") && line.contains(&format!("\"{kind}\""))
        });
        assert!(failed, "{kind} is not counted:\n{metrics}");
        sidecar.wait_log(&format!("Failed to init component {name} ({kind}/v1)")).await;
        sidecar.wait_log(&format!("component {name} ({kind}/v1) is still not ready, next try in ")).await;
    }
    for (path, body) in
        [("/v1.0-alpha1/lock/leases", lease), ("/v1.0/bindings/entries", entry), ("/v1.0/bindings/rows", table)]
    {
        let reply = http.post(path, body).send().await;
        assert!(reply.status >= 500 && !reply.text().is_empty(), "{path}: {} {}", reply.status, reply.text());
    }
    for ground in [&mut redis, &mut postgres] {
        ground.behind().proxy.set(Network::Fine).await;
    }
    let healed = Instant::now();
    for (path, body) in
        [("/v1.0/bindings/rows", table), ("/v1.0-alpha1/lock/leases", lease), ("/v1.0/bindings/entries", entry)]
    {
        wait_until(COMES_UP, path, || async { http.post(path, body).send().await.status < 300 }).await;
    }
    for path in ["/v1.0/configuration/settings?key=k", "/v1.0/configuration/columns?key=k"] {
        wait_until(COMES_UP, path, || async { http.get(path).send().await.status < 300 }).await;
    }
    println!("locks, configuration and bindings: all work {:.1?} after their servers do", healed.elapsed());
    let metadata = sidecar.metadata().await;
    let degraded = |name: &str| metadata["extended"][format!("mecha.degraded.{name}")].is_string();
    assert!(!kinds.iter().any(|(name, ..)| degraded(name)), "{metadata}");
}

/// State can be written and read on both fronts; events reach the app, whose subscription waited too.
async fn works(sidecar: &Sidecar, row: Row, events: &EventLedger) {
    eventually("the component to come up", || async { errors(sidecar, row.block).await.is_empty().then_some(()) })
        .await;
    let [http, grpc] = sidecar.apis().await;
    match row.block {
        Block::State => {
            let ledger = StateLedger::new();
            let ticket = ledger.write("k", Some("2"));
            http.save(NAME, &[Item::new("k", "2")]).await.unwrap();
            ledger.acked(ticket);
            load::read(&grpc, &ledger, &ledger.keys()).await;
            ledger.verdict().assert_kept();
        }
        Block::PubSub => {
            let ticket = events.publish("2");
            grpc.publish(NAME, TOPIC, "application/json", "2", &[]).await.unwrap();
            events.acked(ticket);
            wait_until(Duration::from_secs(60), "the event", || async { events.missing() == 0 }).await;
        }
    }
}

/// Bare mode: it ends the daemon.
pub(crate) async fn bare(row: Row) {
    let Some(early) = Early::new(row, Network::Refuse).await else { return };
    let ended = early.sidecar("").spawn().ended(DEADLINE).await;
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    let line = format!("Failed to init component {}: [INIT_COMPONENT_FAILURE]", early.log_name);
    assert!(ended.log.contains(&line), "{line:?} in\n{}", ended.log);
}

/// Bare mode with `initTimeout`: that long and no longer.
pub(crate) async fn bare_timeout(row: Row) {
    let Some(early) = Early::new(row, Network::Hang).await else { return };
    let began = Instant::now();
    let ended = early.sidecar("initTimeout: 300ms").spawn().ended(DEADLINE).await;
    println!("{}: a silent server and an initTimeout of 300ms: exit after {:.1?}", row.name, began.elapsed());
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    let line = format!("init timeout for component {} exceeded after 300ms", early.log_name);
    assert!(ended.log.contains(&line), "{line:?} in\n{}", ended.log);
}

/// Bare mode with `ignoreErrors`: the daemon runs without it, whatever is wrong.
pub(crate) async fn bare_ignored(row: Row) {
    for network in [Network::Refuse, Network::Hang] {
        let Some(mut early) = Early::new(row, network).await else { return };
        let sidecar = early.sidecar("initTimeout: 300ms\nignoreErrors: true").start().await;
        assert!(sidecar.log().contains("Ignoring error processing component: "), "{}", sidecar.log());
        beside_works(&sidecar).await;
        early.ground.behind().proxy.set(Network::Fine).await;
        // It stays away, as the contract says.
        assert_eq!(errors(&sidecar, row.block).await.len(), 2);
        assert!(!sidecar.metadata().await["components"].to_string().contains(NAME));
    }
}
