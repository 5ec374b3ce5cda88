//! Many sidecars move together: a double of the agent leads them through the phases of a move while
//! publishers and callers go on. No call fails, nothing acknowledged is lost, in both directions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mecha_proto::delivery::delivery_server::{Delivery, DeliveryServer};
use mecha_proto::delivery::{self as wire, Phase, from_agent, from_sidecar};
use mecha_testkit::servers::{Redis, absent};
use mecha_tests::{Authority, HttpApp, Sidecar, SidecarBuilder, eventually, wait_until};
use parking_lot::Mutex;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use crate::load::{Events, Load, state};
use crate::support::{LIMIT, metric, swaps};

/// What a sidecar that was killed took and did not settle comes again within a minute or so.
const REDELIVERY: Duration = Duration::from_secs(200);

/// The agent as a test plays it: the same set for everybody.
#[derive(Clone)]
struct Agent(Arc<Desk>);

/// Makes what a sidecar may start from.
type Signer = Box<dyn Fn(&wire::DocumentSet) -> wire::SignedSnapshot + Send + Sync>;

struct Desk {
    set: watch::Sender<wire::DocumentSet>,
    /// The last report of each instance.
    reports: Mutex<BTreeMap<String, wire::Report>>,
    /// What the sidecars may start from, by whoever signs it.
    sign: Option<Signer>,
}

#[tonic::async_trait]
impl Delivery for Agent {
    type FollowStream = ReceiverStream<Result<wire::FromAgent, Status>>;

    async fn follow(
        &self,
        request: Request<Streaming<wire::FromSidecar>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let (sender, receiver) = mpsc::channel(1);
        let (desk, mut incoming) = (self.0.clone(), request.into_inner());
        tokio::spawn(async move {
            let Ok(Some(wire::FromSidecar { message: Some(from_sidecar::Message::Hello(hello)) })) =
                incoming.message().await
            else {
                return;
            };
            let mut sets = desk.set.subscribe();
            sets.mark_changed();
            loop {
                tokio::select! {
                    _ = sets.changed() => {
                        let mut set = sets.borrow_and_update().clone();
                        set.snapshot = desk.sign.as_ref().map(|sign| sign(&set));
                        let message = Some(from_agent::Message::Set(set));
                        if sender.send(Ok(wire::FromAgent { message })).await.is_err() {
                            return;
                        }
                    }
                    report = incoming.message() => match report {
                        Ok(Some(wire::FromSidecar { message: Some(from_sidecar::Message::Report(report)) })) => {
                            desk.reports.lock().insert(hello.instance.clone(), report);
                        }
                        _ => return,
                    },
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// A backend as a component document.
#[derive(Clone)]
struct Backend {
    kind: &'static str,
    metadata: Vec<(&'static str, String)>,
}

impl Backend {
    fn resource(&self, name: &str) -> bytes::Bytes {
        let metadata: Vec<_> = self.metadata.iter().map(|(k, v)| json!({"name": k, "value": v})).collect();
        let component = json!({
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"type": self.kind, "version": "v1", "metadata": metadata},
        });
        component.to_string().into()
    }

    fn document(&self, name: &str) -> wire::Document {
        let (resource, kind) = (self.resource(name), "Component".to_owned());
        wire::Document { resource, kind, ..wire::Document::default() }
    }
}

/// A component on its way.
struct Claim {
    name: &'static str,
    old: Backend,
    new: Backend,
}

impl Agent {
    fn new(sign: Option<Signer>) -> Self {
        let set = watch::Sender::new(wire::DocumentSet::default());
        Self(Arc::new(Desk { set, reports: Mutex::default(), sign }))
    }

    async fn serve(&self) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tonic::transport::Server::builder().add_service(DeliveryServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        port
    }

    /// Gives out a set; what claims have besides are subscriptions.
    fn give(&self, claims: Vec<wire::Document>) {
        let subscription = |name: &str, topic: &str, route: &str, dead: Option<&str>| {
            let mut spec = json!({"pubsubname": "bus", "topic": topic, "routes": {"default": route}});
            if let Some(dead) = dead {
                spec["deadLetterTopic"] = dead.into();
            }
            let resource = json!({
                "metadata": {"name": name, "namespace": "shop"}, "spec": spec, "scopes": ["consumer"],
            });
            let (resource, kind) = (resource.to_string().into(), "Subscription".to_owned());
            wire::Document { resource, kind, ..wire::Document::default() }
        };
        self.0.set.send_modify(|set| {
            set.sequence += 1;
            set.digest = format!("sha256:{}", set.sequence);
            set.documents = claims;
            set.documents.push(subscription("orders", "orders", "/events", Some("dead")));
            set.documents.push(subscription("dead", "dead", "/dead", None));
        });
    }

    fn settle(&self, backends: &[(&str, &Backend)]) {
        self.give(backends.iter().map(|(name, backend)| backend.document(name)).collect());
    }

    fn lead(&self, claims: &[Claim], phase: Phase) {
        let revision = i64::try_from(self.0.set.borrow().sequence).unwrap() + 1;
        let document = |claim: &Claim| {
            let (from, to) = ("before".to_owned(), "after".to_owned());
            let record =
                wire::Move { from, to, phase: phase.into(), previous: claim.old.resource(claim.name), deadline: None };
            wire::Document { r#move: Some(record), revision, ..claim.new.document(claim.name) }
        };
        self.give(claims.iter().map(document).collect());
    }

    /// The entries of all components in the latest reports; `None` until all `of` have reported on this set.
    fn entries(&self, of: usize) -> Option<Vec<wire::Entry>> {
        let (digest, reports) = (self.0.set.borrow().digest.clone(), self.0.reports.lock());
        let current: Vec<_> = reports.values().filter(|r| r.digest == digest).collect();
        let entries = current.iter().flat_map(|r| r.entries.iter().filter(|e| e.kind == "Component").cloned());
        (current.len() == of).then(|| entries.collect())
    }

    async fn all(&self, what: &str, of: usize, within: Duration, right: impl Fn(&wire::Entry) -> bool) {
        let began = Instant::now();
        loop {
            let entries = self.entries(of);
            if let Some(entries) = &entries
                && !entries.is_empty()
                && entries.iter().all(&right)
            {
                println!("{what}: {} entries after {:.1?}", entries.len(), began.elapsed());
                return;
            }
            assert!(began.elapsed() < within, "waited for {what}: {entries:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Leads to a phase, and waits until everybody is there.
    async fn to(&self, claims: &[Claim], phase: Phase, of: usize) {
        self.lead(claims, phase);
        let what = format!("{phase:?}");
        self.all(&what, of, LIMIT, |e| e.reached && e.phase == phase as i32 && !e.failed).await;
    }

    /// Waits until nothing is left at the side without new work.
    async fn emptied(&self, of: usize, within: Duration) {
        self.all("the other side to be empty", of, within, |e| e.reached && e.pending == 0).await;
    }
}

/// Three consumers of one app, and a publisher without one.
struct Fleet {
    agent: Agent,
    events: Events,
    consumers: Vec<Sidecar>,
    publisher: Sidecar,
    _app: HttpApp,
}

const OF: usize = 4;

fn member(builder: SidecarBuilder, port: u16, instance: &str) -> SidecarBuilder {
    builder
        .without("resources-path")
        .flag("mode", "kubernetes")
        .switch("enable-mtls=false")
        .switch("mecha-strict")
        .flag("control-plane-address", format!("127.0.0.1:{port}"))
        .env("NAMESPACE", "shop")
        .env("POD_NAME", instance)
}

impl Fleet {
    async fn start(backends: &[(&str, &Backend)]) -> Self {
        let agent = Agent::new(None);
        agent.settle(backends);
        let port = agent.serve().await;
        let (events, app) = Events::app(HttpApp::builder());
        let app = app.start().await;
        let mut consumers = Vec::new();
        for number in 0..3 {
            let builder = Sidecar::builder().app_id("consumer").app(&app);
            consumers.push(member(builder, port, &format!("consumer-{number}")).start().await);
        }
        let publisher = member(Sidecar::builder().app_id("publisher"), port, "publisher-0").start().await;
        let fleet = Self { agent, events, consumers, publisher, _app: app };
        fleet.agent.all("the start", OF, LIMIT, |e| e.reached).await;
        fleet
    }

    fn all(&self) -> impl Iterator<Item = &Sidecar> {
        self.consumers.iter().chain([&self.publisher])
    }

    /// The receipt of the only move of `name`, at each sidecar.
    async fn receipts(&self, name: &str) -> Vec<Value> {
        let mut receipts = Vec::new();
        for sidecar in self.all() {
            let receipt = eventually("the receipt of the move", async || {
                let all = swaps(&sidecar.http()).await["swaps"].as_array().unwrap().clone();
                let moves: Vec<_> = all.into_iter().filter(|r| r["name"] == name && !r["move"].is_null()).collect();
                assert!(moves.len() <= 1, "{moves:#?}");
                let ended = |r: &Value| !["draining", "preparing"].contains(&r["outcome"].as_str().unwrap());
                moves.into_iter().next().filter(ended)
            })
            .await;
            receipts.push(receipt);
        }
        receipts
    }
}

fn phases(receipt: &Value) -> Vec<&str> {
    receipt["move"]["phases"].as_array().unwrap().iter().map(|p| p["phase"].as_str().unwrap()).collect()
}

fn embedded(folder: &tempfile::TempDir) -> Backend {
    Backend { kind: "pubsub.mecha", metadata: vec![("path", folder.path().join("broker").display().to_string())] }
}

fn streams(redis: &Redis) -> Backend {
    Backend { kind: "pubsub.redis", metadata: vec![("redisHost", redis.address())] }
}

fn memory() -> Backend {
    Backend { kind: "state.in-memory", metadata: Vec::new() }
}

fn sqlite(folder: &tempfile::TempDir) -> Backend {
    let file = folder.path().join("state.db").display().to_string();
    Backend { kind: "state.sqlite", metadata: vec![("connectionString", file)] }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_moves_its_broker_and_its_store_and_nobody_notices() {
    let Some(redis) = Redis::start() else {
        return absent("redis-server", Redis::missing().unwrap_or_default());
    };
    let folder = tempfile::tempdir().unwrap();
    let claims = [
        Claim { name: "bus", old: embedded(&folder), new: streams(&redis) },
        Claim { name: "store", old: memory(), new: sqlite(&folder) },
    ];
    let fleet = Fleet::start(&[("bus", &claims[0].old), ("store", &claims[1].old)]).await;
    let port = fleet.publisher.http_port();
    let calls = Load::start(port, 200, state("store"));
    let messages = fleet.events.publish(port, 100, "bus", "orders");
    messages.more(100).await;
    for phase in [Phase::Prepare, Phase::Switch, Phase::Drain] {
        fleet.agent.to(&claims, phase, OF).await;
        messages.more(100).await;
    }
    assert!(metric(&fleet.publisher, "mecha_moves", &["phase=\"Drain\""]).await > 1.0);
    fleet.agent.emptied(OF, LIMIT).await;
    fleet.agent.to(&claims, Phase::Finalize, OF).await;
    fleet.agent.settle(&[("bus", &claims[0].new), ("store", &claims[1].new)]);
    fleet.agent.all("the end of the move", OF, LIMIT, |e| e.reached && e.phase == 0).await;
    messages.more(100).await;
    calls.end("state calls over a move of a fleet").await;
    messages.end("publishers over a move of a fleet").await;
    fleet.events.all_arrived("a move of a fleet").await;
    for name in ["bus", "store"] {
        for receipt in fleet.receipts(name).await {
            assert_eq!((&receipt["outcome"], &receipt["failed"]), (&json!("applied"), &json!(0)), "{receipt:#}");
            assert_eq!(phases(&receipt), ["Prepare", "Switch", "Drain", "Finalize"], "{receipt:#}");
        }
    }
    for receipt in fleet.receipts("store").await {
        assert_eq!(receipt["dataMoved"], false, "{receipt:#}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_that_goes_back_loses_nothing_of_what_went_to_the_new_broker() {
    let Some(redis) = Redis::start() else {
        return absent("redis-server", Redis::missing().unwrap_or_default());
    };
    let folder = tempfile::tempdir().unwrap();
    let claims = [Claim { name: "bus", old: embedded(&folder), new: streams(&redis) }];
    let fleet = Fleet::start(&[("bus", &claims[0].old)]).await;
    let messages = fleet.events.publish(fleet.publisher.http_port(), 100, "bus", "orders");
    messages.more(100).await;
    for phase in [Phase::Prepare, Phase::Switch, Phase::RollBack] {
        fleet.agent.to(&claims, phase, OF).await;
        messages.more(100).await;
    }
    fleet.agent.emptied(OF, LIMIT).await;
    fleet.agent.settle(&[("bus", &claims[0].old)]);
    fleet.agent.all("the end of the move", OF, LIMIT, |e| e.reached && e.phase == 0).await;
    messages.more(100).await;
    messages.end("publishers over a move that goes back").await;
    fleet.events.all_arrived("a move that goes back").await;
    for receipt in fleet.receipts("bus").await {
        assert_eq!(receipt["outcome"], "rolledBack", "{receipt:#}");
        assert_eq!(phases(&receipt), ["Prepare", "Switch", "RollBack"], "{receipt:#}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_dies_in_the_middle_of_a_move_comes_back_into_it() {
    let Some(redis) = Redis::start() else {
        return absent("redis-server", Redis::missing().unwrap_or_default());
    };
    let folder = tempfile::tempdir().unwrap();
    let claims = [Claim { name: "bus", old: streams(&redis), new: embedded(&folder) }];
    let mut fleet = Fleet::start(&[("bus", &claims[0].old)]).await;
    let messages = fleet.events.publish(fleet.publisher.http_port(), 100, "bus", "orders");
    messages.more(100).await;
    for phase in [Phase::Prepare, Phase::Switch] {
        fleet.agent.to(&claims, phase, OF).await;
        messages.more(50).await;
    }
    fleet.consumers[0].kill().await;
    fleet.agent.0.reports.lock().remove("consumer-0");
    messages.more(50).await;
    fleet.consumers[0].again().await;
    fleet.agent.to(&claims, Phase::Drain, OF).await;
    fleet.agent.emptied(OF, REDELIVERY).await;
    fleet.agent.to(&claims, Phase::Finalize, OF).await;
    fleet.agent.settle(&[("bus", &claims[0].new)]);
    fleet.agent.all("the end of the move", OF, LIMIT, |e| e.reached && e.phase == 0).await;
    messages.end("publishers while a consumer dies").await;
    fleet.events.all_arrived("a move with a death in it").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_side_that_does_not_open_is_reported_and_shows_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let mut broken = streams_nowhere();
    broken.metadata.push(("redisPassword", "hunter2".to_owned()));
    let claims = [Claim { name: "bus", old: embedded(&folder), new: broken }];
    let fleet = Fleet::start(&[("bus", &claims[0].old)]).await;
    let messages = fleet.events.publish(fleet.publisher.http_port(), 50, "bus", "orders");
    fleet.agent.lead(&claims, Phase::Prepare);
    fleet.agent.all("the failure", OF, LIMIT, |e| e.failed && !e.reached && !e.message.is_empty()).await;
    let said = format!("{:?}", fleet.agent.entries(OF));
    assert!(!said.contains("hunter2"), "{said}");
    messages.more(50).await;
    fleet.agent.lead(&claims, Phase::RollBack);
    fleet.agent.all("the way back", OF, LIMIT, |e| e.reached && !e.failed && e.pending == 0).await;
    fleet.agent.settle(&[("bus", &claims[0].old)]);
    fleet.agent.all("the end of the move", OF, LIMIT, |e| e.reached && e.phase == 0).await;
    messages.end("publishers beside a broker that is not there").await;
    fleet.events.all_arrived("a move that never began").await;
}

/// A broker at a port where nobody listens.
fn streams_nowhere() -> Backend {
    Backend { kind: "pubsub.redis", metadata: vec![("redisHost", "127.0.0.1:1".to_owned())] }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_starts_from_its_snapshot_while_the_agent_is_away() {
    let authority = Authority::start().await;
    let ca = authority.ca();
    let sign = move |set: &wire::DocumentSet| {
        let identity = ca.identity("spiffe://cluster.local/ns/mecha-system/dapr-operator");
        let payload = wire::Snapshot {
            namespace: "shop".into(),
            app_id: "me".into(),
            issued_at: Some(SystemTime::now().into()),
            digest: set.digest.clone(),
            documents: set.documents.clone(),
        }
        .encode_to_vec();
        let signature = identity.sign(&payload).unwrap().into();
        wire::SignedSnapshot { signature, payload: payload.into(), chain: identity.chain_pem().into() }
    };
    let agent = Agent::new(Some(Box::new(sign)));
    agent.settle(&[("store", &memory())]);
    let (port, server) = authority.serve_part("dapr-operator", DeliveryServer::new(agent.clone())).await;
    let kept = tempfile::tempdir().unwrap();
    let builder = Sidecar::builder().app_id("me").without("resources-path").flag("mode", "kubernetes");
    let builder = builder
        .switch("mecha-strict")
        .flag("control-plane-address", format!("127.0.0.1:{port}"))
        .env("NAMESPACE", "shop")
        .env("POD_NAME", "me-0")
        .env("MECHA_SNAPSHOT_FOLDER", kept.path().display().to_string())
        .env("MECHA_SNAPSHOT_WAIT", "1s");
    let mut sidecar = authority.secure(builder).start().await;
    let shows = async |sidecar: &Sidecar, source: &str| {
        let phase = sidecar.http().get("/v1.0-mecha/phase").send().await.expect(200).json();
        phase["documents"]["source"] == source && phase["documents"]["snapshot"].is_string()
    };
    wait_until(LIMIT, "the snapshot to be kept", async || shows(&sidecar, "agent").await).await;
    sidecar.kill().await;
    server.abort();
    let _ = server.await;
    sidecar.again().await;
    wait_until(LIMIT, "the snapshot to be shown", async || shows(&sidecar, "snapshot").await).await;
    let state = sidecar.http().get("/v1.0/state/store/none").send().await;
    state.expect(204);
    sidecar.wait_log("starting from the snapshot of").await;
    assert!(metric(&sidecar, "mecha_delivery_restored", &[]).await > 0.0);
    assert_eq!(sidecar.metadata().await["extended"]["mecha.documents.source"], "snapshot");
    // A snapshot of somebody else is refused, and said why; the sidecar waits for the agent then.
    let file = kept.path().join("documents.snapshot");
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.windows(4).position(|w| w == b"shop").unwrap();
    bytes[at] = b'c';
    std::fs::write(&file, bytes).unwrap();
    sidecar.kill().await;
    sidecar.spawn_again();
    sidecar.wait_log("the snapshot of the documents does not count: the signature does not fit").await;
}
