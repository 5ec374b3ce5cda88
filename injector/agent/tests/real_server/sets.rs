//! What a sidecar of our own protocol gets.

use std::time::{Instant, SystemTime};

use kube::Api;
use mecha_agent::Agent;
use mecha_apiserver::{CapabilityBinding, apply};
use mecha_identity::{SpiffeId, verify};
use mecha_proto::delivery::*;
use prost::Message as _;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::cluster::{AGENT, BINDINGS, Cluster, LIMIT, binding, component, entry, names, read};

/// A sidecar with its stream.
pub(crate) struct Sidecar {
    reports: mpsc::Sender<FromSidecar>,
    answers: Streaming<FromAgent>,
}

pub(crate) fn hello(instance: &str, digest: &str) -> Hello {
    Hello {
        instance: instance.to_owned(),
        version: "test".to_owned(),
        protocol_min: 1,
        protocol_max: 1,
        configurations: vec!["main".to_owned()],
        digest: digest.to_owned(),
    }
}

impl Sidecar {
    pub(crate) async fn connect(cluster: &Cluster, agent: &Agent, namespace: &str, app_id: &str, hello: Hello) -> Self {
        let (reports, receiver) = mpsc::channel(16);
        let mut client = cluster.delivery(agent, namespace, app_id).await;
        let answers = client.follow(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        let sidecar = Self { reports, answers };
        sidecar.send(from_sidecar::Message::Hello(hello)).await;
        sidecar
    }

    pub(crate) async fn send(&self, message: from_sidecar::Message) {
        self.reports.send(FromSidecar { message: Some(message) }).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Result<from_agent::Message, Status> {
        let answer = timeout(LIMIT, self.answers.message()).await.expect("an answer comes")?;
        Ok(answer.expect("the stream goes on").message.unwrap())
    }

    pub(crate) async fn set(&mut self) -> DocumentSet {
        match self.next().await.unwrap() {
            from_agent::Message::Set(set) => set,
            from_agent::Message::Unchanged(_) => panic!("unchanged, and a set was expected"),
        }
    }

    /// Reports on components of `set`.
    pub(crate) async fn report(&self, set: &DocumentSet, entries: Vec<Entry>) {
        let report = Report { sequence: set.sequence, digest: set.digest.clone(), entries };
        self.send(from_sidecar::Message::Report(report)).await;
    }

    pub(crate) async fn report_failure(&self, set: &DocumentSet, name: &str, revision: i64, message: &str) {
        let failed = Entry { failed: true, message: message.to_owned(), ..reached(name, revision, Phase::Unspecified) };
        self.report(set, vec![Entry { reached: false, ..failed }]).await;
    }
}

/// An entry about a component that is as it should be.
pub(crate) fn reached(name: &str, revision: i64, phase: Phase) -> Entry {
    Entry {
        kind: "Component".to_owned(),
        name: name.to_owned(),
        revision,
        phase: phase.into(),
        reached: true,
        ..Entry::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_gets_complete_sets_and_comes_back_to_what_it_has() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.apply(&component("shop", "cache", &[], json!([])));
    cluster.apply(&component("shop", "ledger", &["billing"], json!([])));
    cluster.apply(&json!({"apiVersion": "dapr.io/v1alpha1", "kind": "Configuration",
                          "metadata": {"name": "main", "namespace": "shop"}, "spec": {}}));
    cluster.apply(&json!({"apiVersion": "dapr.io/v1alpha1", "kind": "Configuration",
                          "metadata": {"name": "unused", "namespace": "shop"}, "spec": {}}));
    let mut orders = entry("orders", 4, &component("shop", "orders", &["cart"], json!([])));
    orders["previousDocument"] = component("shop", "orders", &["cart"], json!([])).to_string().into();
    orders["swap"] = json!({"from": "a", "to": "b", "strategy": "Drain", "phase": "Drain",
                            "startedAt": "2026-11-21T03:00:00Z", "deadline": "2026-11-21T04:00:00Z"});
    cluster.apply(&binding(7, json!([orders])));
    let (agent, _role) = cluster.agent("a").await;

    let mut cart = Sidecar::connect(&cluster, &agent, "shop", "cart", hello("cart-1", "")).await;
    let first = cart.set().await;
    let what: Vec<_> = first.documents.iter().map(|d| (d.kind.as_str(), names([&d.resource]).remove(0))).collect();
    let what: Vec<_> = what.iter().map(|(kind, name)| (*kind, name.as_str())).collect();
    assert_eq!(what, [("Component", "cache"), ("Component", "orders"), ("Configuration", "main")]);
    let moving = &first.documents[1];
    assert_eq!((first.documents[0].revision, moving.revision), (0, 4));
    let record = moving.r#move.as_ref().unwrap();
    assert_eq!((record.from.as_str(), record.to.as_str(), record.phase()), ("a", "b", Phase::Drain));
    assert_eq!(read(&record.previous)["metadata"]["name"], "orders");
    assert_eq!(record.deadline.unwrap().seconds, 1_795_233_600);

    // What it may start from without the agent is signed, for it alone.
    let signed = first.snapshot.as_ref().unwrap();
    let agent_id = SpiffeId::parse(AGENT).unwrap();
    verify(&signed.payload, &signed.signature, &signed.chain, &cluster.bundle(), &agent_id, SystemTime::now()).unwrap();
    let snapshot = Snapshot::decode(signed.payload.clone()).unwrap();
    assert_eq!((snapshot.namespace.as_str(), snapshot.app_id.as_str()), ("shop", "cart"));
    assert_eq!((&snapshot.digest, &snapshot.documents), (&first.digest, &first.documents));

    // Each set is complete, and what is none of its business makes none.
    cluster.apply(&component("shop", "books", &["billing"], json!([])));
    cluster.server.kubectl(&["-n", "shop", "delete", "components.dapr.io", "cache"]);
    let second = cart.set().await;
    assert_eq!((second.sequence, second.documents.len()), (first.sequence + 1, 2));
    assert_ne!(second.digest, first.digest);

    // A newer stream of the same instance ends the older one.
    let mut again = Sidecar::connect(&cluster, &agent, "shop", "cart", hello("cart-1", &second.digest)).await;
    assert!(matches!(again.next().await.unwrap(), from_agent::Message::Unchanged(_)));
    assert_eq!(cart.next().await.unwrap_err().code(), Code::Aborted);
    cluster.apply(&component("shop", "cache", &[], json!([])));
    assert_eq!(again.set().await.digest, first.digest, "the same documents have the same digest");
    let mut behind = Sidecar::connect(&cluster, &agent, "shop", "cart", hello("cart-2", &second.digest)).await;
    assert_eq!(behind.set().await.digest, first.digest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_reads_slowly_gets_the_newest_set_and_not_all_of_them() {
    const EDITS: usize = 60;
    let Some(cluster) = Cluster::start().await else { return };
    // So large that few of them fit on the way.
    let filling = "x".repeat(400_000);
    let version = |n: usize| {
        let metadata = json!([{"name": "n", "value": n.to_string()}, {"name": "filling", "value": filling}]);
        component("shop", "cache", &[], metadata)
    };
    cluster.apply(&version(0));
    let (agent, role) = cluster.agent("a").await;
    let mut slow = Sidecar::connect(&cluster, &agent, "shop", "cart", hello("cart-1", "")).await;
    let mut quick = Sidecar::connect(&cluster, &agent, "shop", "cart", hello("cart-2", "")).await;
    let number = |set: &DocumentSet| -> usize {
        read(&set.documents[0].resource)["spec"]["metadata"][0]["value"].as_str().unwrap().parse().unwrap()
    };
    assert_eq!(number(&quick.set().await), 0);
    for n in 1..=EDITS {
        cluster.apply(&version(n));
        // The other one is not held up by it.
        while number(&quick.set().await) < n {}
    }
    let mut sets = 0;
    while number(&slow.set().await) < EDITS {
        sets += 1;
        assert!(sets < EDITS / 2, "more than half of all sets have waited to be sent");
    }
    let mut metrics = String::new();
    prometheus_client::encoding::text::encode(&mut metrics, &role.metrics.lock()).unwrap();
    assert!(metrics.contains("mecha_agent_streams{protocol=\"mecha\"} 2"), "{metrics}");
    assert!(metrics.contains("mecha_agent_to_sent_seconds_count"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_keep_to_the_protocol_is_told_why() {
    let Some(cluster) = Cluster::start().await else { return };
    let (agent, _role) = cluster.agent("a").await;
    let newer = Hello { protocol_min: 2, protocol_max: 3, ..hello("cart-1", "") };
    for (said, code) in [(newer, Code::FailedPrecondition), (hello("", ""), Code::InvalidArgument)] {
        let mut sidecar = Sidecar::connect(&cluster, &agent, "shop", "cart", said).await;
        let refused = sidecar.next().await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
    }
    let mut twice = Sidecar::connect(&cluster, &agent, "shop", "cart", hello("cart-1", "")).await;
    twice.set().await;
    twice.send(from_sidecar::Message::Hello(hello("cart-1", ""))).await;
    assert_eq!(twice.next().await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_from_an_edit_to_its_set() {
    let Some(cluster) = Cluster::start().await else { return };
    let (agent, _role) = cluster.agent("a").await;
    let mut cart = Sidecar::connect(&cluster, &agent, "shop", "cart", hello("cart-1", "")).await;
    cart.set().await;
    let bindings: Api<CapabilityBinding> = Api::namespaced(cluster.admin.clone(), BINDINGS);
    let mut times = Vec::new();
    for revision in 1..=20 {
        let orders = entry("orders", revision, &component("shop", "orders", &["cart"], json!([])));
        let edit = Instant::now();
        apply(&bindings, "shop", "mecha-hub", &binding(revision, json!([orders]))).await.unwrap();
        assert_eq!(cart.set().await.documents[0].revision, revision);
        times.push(edit.elapsed());
    }
    times.sort();
    eprintln!("from the edit to the set, with the write: median {:?}, worst {:?}", times[10], times[19]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_api_server_sidecars_are_served_with_what_is_known() {
    let Some(mut cluster) = Cluster::start().await else { return };
    let reference = json!([{"name": "password", "secretKeyRef": {"name": "redis", "key": "password"}}]);
    let secret = |value: &str| {
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "redis", "namespace": "shop"},
               "stringData": {"password": value}})
    };
    cluster.apply(&secret("first"));
    cluster.apply(&component("shop", "cache", &["cart"], reference));
    let (agent, _role) = cluster.agent("a").await;
    let mut one = Sidecar::connect(&cluster, &agent, "shop", "cart", hello("cart-1", "")).await;
    let before = one.set().await;
    cluster.server.kill_apiserver();
    let mut two = Sidecar::connect(&cluster, &agent, "shop", "cart", hello("cart-2", "")).await;
    let meanwhile = two.set().await;
    assert_eq!(meanwhile.digest, before.digest, "values too, as long as another sidecar uses them");
    cluster.server.restart_apiserver();
    cluster.apply(&secret("second"));
    for sidecar in [&mut one, &mut two] {
        let after = sidecar.set().await;
        let value = &read(&after.documents[0].resource)["spec"]["metadata"][0]["value"];
        assert_eq!(value, "c2Vjb25k");
    }
}
