//! The server behind a component is away when the daemon starts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mecha_tests::{
    DEADLINE, EventLedger, Fault, HttpApp, Item, Network, Sidecar, SidecarBuilder, StateLedger, component, eventually,
    wait_until,
};
use serde_json::Value;

use crate::load::{self, NAME, TOPIC};
use crate::table::{Block, Ground, Row};

/// Patience with one component at start.
const INIT_TIMEOUT: &str = "1500ms";

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
