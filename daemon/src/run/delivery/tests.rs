//! Against a double of the agent, over a real connection, and snapshots of a real authority.

use std::os::unix::fs::PermissionsExt as _;

use mecha_identity::testing::Ca;
use mecha_proto::delivery::delivery_server::{Delivery as Service, DeliveryServer};
use mecha_proto::delivery::{from_agent, from_sidecar};
use mecha_resources::Resource as _;
use mecha_resources::kinds::SwapPhase;
use prost::Message as _;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::snapshot::check;
use super::*;
use crate::cli::{Action, Env};

const LIMIT: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The agent as a test plays it: answers each stream with the set of the moment.
#[derive(Clone, Default)]
struct Agent(Arc<Desk>);

#[derive(Default)]
struct Desk {
    set: watch::Sender<Option<wire::DocumentSet>>,
    hellos: Mutex<Vec<wire::Hello>>,
    reports: Mutex<Vec<wire::Report>>,
    /// Ends every stream when it changes.
    cut: watch::Sender<u64>,
}

#[tonic::async_trait]
impl Service for Agent {
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
            let has = hello.digest.clone();
            desk.hellos.lock().push(hello);
            let (mut sets, mut cut) = (desk.set.subscribe(), desk.cut.subscribe());
            sets.mark_changed();
            loop {
                tokio::select! {
                    // A stream that was ended must not give the set that the next one is to give.
                    biased;
                    _ = cut.changed() => return,
                    _ = sets.changed() => {
                        let Some(set) = sets.borrow_and_update().clone() else { continue };
                        let message = if set.digest == has {
                            from_agent::Message::Unchanged(wire::Unchanged { sequence: set.sequence })
                        } else {
                            from_agent::Message::Set(set)
                        };
                        if sender.send(Ok(wire::FromAgent { message: Some(message) })).await.is_err() {
                            return;
                        }
                    }
                    report = incoming.message() => match report {
                        Ok(Some(wire::FromSidecar { message: Some(from_sidecar::Message::Report(report)) })) => {
                            desk.reports.lock().push(report);
                        }
                        _ => return,
                    },
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

impl Agent {
    /// Ends the server and every stream.
    async fn end(&self, server: tokio::task::JoinHandle<()>) {
        server.abort();
        let _ = server.await;
        self.0.cut.send_modify(|n| *n += 1);
    }

    /// Serves at `port`, or any.
    async fn serve(&self, port: u16) -> (u16, tokio::task::JoinHandle<()>) {
        let listener = loop {
            match TcpListener::bind(("127.0.0.1", port)).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let port = listener.local_addr().unwrap().port();
        let server = tonic::transport::Server::builder().add_service(DeliveryServer::new(self.clone()));
        let task = tokio::spawn(async move {
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        (port, task)
    }

    fn send(&self, sequence: u64, digest: &str, documents: Vec<wire::Document>) {
        let digest = digest.to_owned();
        let set = wire::DocumentSet { sequence, digest, documents, ..wire::DocumentSet::default() };
        self.0.set.send_replace(Some(set));
    }
}

fn resource(name: &str, value: &str) -> bytes::Bytes {
    let component = json!({
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"type": "state.in-memory", "version": "v1", "metadata": [
            {"name": "plain", "value": value},
            {"name": "secret", "value": "czNjcmV0", "secretKeyRef": {"name": "s", "key": "k"}},
        ]},
        "auth": {"secretStore": "kubernetes"},
    });
    component.to_string().into()
}

fn document(name: &str, value: &str) -> wire::Document {
    let (resource, kind) = (resource(name, value), "Component".to_owned());
    wire::Document { resource, kind, revision: 7, ..wire::Document::default() }
}

fn moving(name: &str, phase: wire::Phase) -> wire::Document {
    let (from, to) = ("a".to_owned(), "b".to_owned());
    let previous = resource(name, "before");
    let record = wire::Move { from, to, phase: phase.into(), previous, deadline: None };
    wire::Document { r#move: Some(record), ..document(name, "after") }
}

fn source(port: u16, keep: Option<Keep>) -> Delivery {
    let plane = ControlPlane::new(&format!("127.0.0.1:{port}"), "dapr-operator", None).unwrap();
    let args = ["--app-id", "cart"].map(str::to_owned);
    let Ok(Action::Run(options)) = cli::command(&args, Env::read(|_| None)) else { panic!("these are options") };
    let settings = Settings {
        plane: plane.clone(),
        namespace: "shop".into(),
        configurations: Vec::new(),
        instance: "cart-0".into(),
        keep,
        wait: Duration::from_millis(50),
        ask_again: Duration::from_millis(50),
    };
    Delivery::with(settings, Operator::new(&options, plane))
}

async fn changed(source: &Delivery) {
    tokio::time::timeout(LIMIT, source.changed()).await.expect("a change is noticed");
}

async fn names(source: &Delivery) -> Vec<String> {
    let set = source.list(Depth::Watched).await.unwrap();
    assert!(!set.loaded.has_errors(), "{:?}", set.loaded.diagnostics);
    set.loaded.components.iter().map(|c| c.value.name().to_owned()).collect()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + LIMIT;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "waited for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_set_replaces_the_one_before_and_survives_the_agent() {
    let agent = Agent::default();
    agent.send(1, "sha256:1", vec![document("a", "1"), document("b", "1")]);
    let (port, server) = agent.serve(0).await;
    let source = source(port, None);
    assert_eq!(names(&source).await, ["a", "b"]);
    agent.send(2, "sha256:2", vec![document("b", "1")]);
    while names(&source).await != ["b"] {
        changed(&source).await;
    }
    agent.end(server).await;
    assert_eq!(names(&source).await, ["b"]);
    agent.send(1, "sha256:3", vec![document("c", "1")]);
    let (_, _server) = agent.serve(port).await;
    while names(&source).await != ["c"] {
        changed(&source).await;
    }
    let hellos = agent.0.hellos.lock().clone();
    assert_eq!((hellos[0].digest.as_str(), hellos[1].digest.as_str()), ("", "sha256:2"));
    assert_eq!(hellos[0].instance, "cart-0");
}

#[tokio::test]
async fn a_move_comes_with_both_documents_and_their_secrets() {
    let agent = Agent::default();
    agent.send(1, "sha256:1", vec![moving("a", wire::Phase::Switch)]);
    let (port, _server) = agent.serve(0).await;
    let set = source(port, None).list(Depth::Watched).await.unwrap();
    let moving = &set.moves["a"];
    assert_eq!((moving.phase, moving.from.as_str(), moving.to.as_str()), (SwapPhase::Switch, "a", "b"));
    let text = |component: &mecha_resources::Component, name: &str| {
        let item = component.metadata.iter().find(|m| m.name == name).unwrap();
        match &item.value {
            mecha_resources::ValueSource::Plain(text) => text.expose().to_owned(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(text(&moving.previous, "plain"), "before");
    let new = &set.loaded.components[0].value;
    assert_eq!((text(new, "plain").as_str(), text(new, "secret").as_str()), ("after", "s3cret"));
}

#[tokio::test]
async fn a_document_without_its_secret_keeps_what_it_was() {
    let agent = Agent::default();
    agent.send(1, "sha256:1", vec![document("a", "1")]);
    let (port, _server) = agent.serve(0).await;
    let source = source(port, None);
    names(&source).await;
    let unresolved = |name: &str| {
        let unresolved = "Secret s is missing".to_owned();
        wire::Document { unresolved, revision: 8, ..document(name, "2") }
    };
    agent.send(2, "sha256:2", vec![unresolved("a"), unresolved("new")]);
    until("the second set", || source.shared.latest.lock().as_ref().is_some_and(|set| set.digest == "sha256:2")).await;
    assert_eq!(names(&source).await, ["a"]);
    let latest = source.shared.latest.lock().clone().unwrap();
    assert_eq!(latest.documents[0].revision, 7);
    let entries: Vec<_> = latest.entries.iter().map(|e| (e.name.as_str(), e.revision, e.unusable.as_str())).collect();
    assert_eq!(entries, [("a", 8, "Secret s is missing"), ("new", 8, "Secret s is missing")]);
}

#[tokio::test]
async fn reports_carry_the_number_of_the_stream_and_wait_for_the_set_they_are_about() {
    let agent = Agent::default();
    agent.send(5, "sha256:1", vec![document("a", "1")]);
    let (port, server) = agent.serve(0).await;
    let source = source(port, None);
    names(&source).await;
    let report = |digest: &str| wire::Report { digest: digest.to_owned(), ..wire::Report::default() };
    source.shared.report.send_replace(Some(report("sha256:old")));
    source.shared.report.send_replace(Some(report("sha256:1")));
    until("a report", || !agent.0.reports.lock().is_empty()).await;
    agent.end(server).await;
    // The next stream numbers anew and is told again, though nothing has changed.
    agent.send(1, "sha256:1", vec![document("a", "1")]);
    let (_, _server) = agent.serve(port).await;
    until("another report", || agent.0.reports.lock().len() > 1).await;
    let reports = agent.0.reports.lock().clone();
    assert!(reports.iter().all(|r| r.digest == "sha256:1"), "{reports:?}");
    assert_eq!((reports[0].sequence, reports.last().unwrap().sequence), (5, 1));
}

#[tokio::test]
async fn an_operator_that_does_not_know_the_protocol_is_followed_until_one_does() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // Any server without the service answers so.
    let (_reporter, health) = tonic_health::server::health_reporter();
    let server = tonic::transport::Server::builder().add_service(health);
    let task = tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let source = source(port, None);
    source.start();
    until("the fallback", || *source.shared.speaks.lock() == Speaks::Operator).await;
    task.abort();
    let _ = task.await;
    let agent = Agent::default();
    agent.send(1, "sha256:1", vec![document("a", "1")]);
    let (_, _server) = agent.serve(port).await;
    until("the agent", || *source.shared.speaks.lock() == Speaks::Ours).await;
    assert_eq!(names(&source).await, ["a"]);
}

const AGENT: &str = "spiffe://cluster.local/ns/mecha-system/dapr-operator";

fn terms() -> Terms {
    let signers = [AGENT, "spiffe://cluster.local/ns/mecha-system/mecha-agent"];
    let signers = signers.iter().map(|id| SpiffeId::parse(id).unwrap()).collect();
    Terms { namespace: "shop".into(), app_id: "cart".into(), signers, max_age: DAY }
}

fn bundle(ca: &Ca) -> Arc<Bundle> {
    Arc::new(Bundle::from_pem(&ca.root_pem()).unwrap())
}

fn signed(ca: &Ca, signer: &str, namespace: &str, issued_at: SystemTime) -> wire::SignedSnapshot {
    let identity = ca.identity(signer);
    let payload = wire::Snapshot {
        namespace: namespace.into(),
        app_id: "cart".into(),
        issued_at: Some(issued_at.into()),
        digest: "sha256:kept".into(),
        documents: vec![document("kept", "1")],
    }
    .encode_to_vec();
    let signature = identity.sign(&payload).unwrap().into();
    wire::SignedSnapshot { signature, payload: payload.into(), chain: identity.chain_pem().into() }
}

#[test]
fn a_snapshot_counts_only_whole_fresh_ours_and_signed_by_the_agent() {
    let (ca, other) = (Ca::new("root"), Ca::new("other"));
    let (anchors, terms, now) = (bundle(&ca), terms(), SystemTime::now());
    let judge = |snapshot: &wire::SignedSnapshot, now| check(snapshot, &terms, &anchors, now).map(|good| good.digest);
    let good = signed(&ca, AGENT, "shop", now);
    assert_eq!(judge(&good, now).unwrap(), "sha256:kept");
    let by_the_agent_s_other_name = "spiffe://cluster.local/ns/mecha-system/mecha-agent";
    assert!(judge(&signed(&ca, by_the_agent_s_other_name, "shop", now), now).is_ok());
    let refused = |snapshot: &wire::SignedSnapshot, at, why: &str| {
        let cause = judge(snapshot, at).unwrap_err();
        assert!(cause.contains(why), "{cause:?} should say {why:?}");
    };
    refused(&signed(&ca, "spiffe://public/ns/shop/cart", "shop", now), now, "signed by");
    refused(&signed(&other, AGENT, "shop", now), now, "trust");
    refused(&signed(&ca, AGENT, "bank", now), now, "not for cart in shop");
    refused(&good, now + DAY + Duration::from_secs(1), "old");
    refused(&good, now - Duration::from_secs(3600), "future");
    let mut changed = good.clone();
    let mut payload = changed.payload.to_vec();
    let at = payload.windows(4).position(|w| w == b"kept").unwrap();
    payload[at] = b'K';
    changed.payload = payload.into();
    refused(&changed, now, "does not fit");
    refused(&wire::SignedSnapshot { payload: good.payload.slice(..20), ..good.clone() }, now, "torn");
    refused(&wire::SignedSnapshot::default(), now, "when it was made");
}

#[test]
fn a_snapshot_is_written_whole_and_for_its_owner_alone() {
    let ca = Ca::new("root");
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path());
    assert!(place.read(&terms(), &bundle(&ca)).unwrap().is_none());
    for _ in 0..2 {
        // Left behind by one that was killed.
        std::fs::write(folder.path().join("documents.new"), b"half").unwrap();
        place.write(&signed(&ca, AGENT, "shop", SystemTime::now())).unwrap();
        let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        assert_eq!(files[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(place.read(&terms(), &bundle(&ca)).unwrap().unwrap().digest, "sha256:kept");
    }
    let file = folder.path().join("documents.snapshot");
    let whole = std::fs::read(&file).unwrap();
    for cut in [0, 1, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&file, &whole[..cut]).unwrap();
        place.read(&terms(), &bundle(&ca)).unwrap_err();
    }
}

#[tokio::test]
async fn a_start_without_the_agent_takes_the_snapshot_and_then_what_the_agent_says() {
    let ca = Ca::new("root");
    let folder = tempfile::tempdir().unwrap();
    let anchors = bundle(&ca);
    let keep = Keep { place: Place::new(folder.path()), terms: terms(), anchors: Arc::new(move || anchors.clone()) };
    keep.place.write(&signed(&ca, AGENT, "shop", SystemTime::now())).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let source = source(port, Some(keep));
    assert_eq!(names(&source).await, ["kept"]);
    assert!(source.shared.latest.lock().as_ref().unwrap().restored);
    let agent = Agent::default();
    let issued = SystemTime::now();
    let set = wire::DocumentSet {
        sequence: 1,
        digest: "sha256:1".into(),
        documents: vec![document("live", "1")],
        snapshot: Some(signed(&ca, AGENT, "shop", issued)),
        ..wire::DocumentSet::default()
    };
    agent.0.set.send_replace(Some(set));
    let (_, _server) = agent.serve(port).await;
    while names(&source).await != ["live"] {
        changed(&source).await;
    }
    assert!(!source.shared.latest.lock().as_ref().unwrap().restored);
    assert_eq!(agent.0.hellos.lock()[0].digest, "sha256:kept");
    until("the new snapshot", || *source.shared.kept_at.lock() == Some(issued)).await;
}
