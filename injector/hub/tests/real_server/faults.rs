//! Killed between any two writes, frozen, deposed, cut off: it converges, and nothing is written late.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Method, Request, Response};
use kube::Client;
use kube::api::PostParams;
use kube::client::Body;
use mecha_apiserver::Timing;
use mecha_hub::Options;
use mecha_resources::kinds::{ClaimConditionType, ClaimReason, MoveOutcome};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::harness::{ACCOUNT, Cluster, EVENTS, Hub, ORDERS, client, eventually, platform};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A way to the API server that ends after so many writes. The answer to the last one is lost. Leases and events
/// pass: they decide nothing.
#[derive(Clone)]
struct Cut {
    inner: Client,
    left: Arc<AtomicI64>,
}

impl tower_service::Service<Request<Body>> for Cut {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let counts = request.method() != Method::GET && !path.contains("/leases") && !path.contains("/events");
        let left = if counts { self.left.fetch_sub(1, Ordering::SeqCst) } else { i64::MAX };
        let inner = self.inner.clone();
        Box::pin(async move {
            if left <= 0 {
                return Err("killed".into());
            }
            let answer = inner.send(request).await;
            if left == 1 { Err("killed before the answer".into()) } else { Ok(answer?) }
        })
    }
}

/// A way to the API server that can be held: what is sent meanwhile is on its way and arrives when it is let go,
/// whether or not anybody still waits for the answer. Watches that stand go on.
#[derive(Clone)]
struct Held {
    inner: Client,
    hold: watch::Receiver<bool>,
    /// Method, path and status of what was on its way.
    late: Arc<Mutex<Vec<(Method, String, u16)>>>,
    waiting: Arc<AtomicI64>,
}

impl tower_service::Service<Request<Body>> for Held {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { inner, mut hold, late, waiting } = self.clone();
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let held = *hold.borrow();
        if held && method != Method::GET && !path.contains("/leases") {
            waiting.fetch_add(1, Ordering::SeqCst);
        }
        let sent = tokio::spawn(async move {
            hold.wait_for(|hold| !hold).await?;
            let answer = inner.send(request).await?;
            if held && method != Method::GET {
                late.lock().push((method, path, answer.status().as_u16()));
                waiting.fetch_sub(1, Ordering::SeqCst);
            }
            Ok::<_, BoxError>(answer)
        });
        Box::pin(async move { sent.await? })
    }
}

/// Runs hubs that are killed after one write and after two in turns, until one has nothing to write but its epoch.
/// `agent` acts between them.
async fn converge(cluster: &Cluster, agent: impl AsyncFn()) -> usize {
    let lease = Timing {
        duration: Duration::from_secs(2),
        give_up: Duration::from_millis(1500),
        retry: Duration::from_millis(50),
    };
    let options = Options { lease, resync: Duration::from_millis(200), ..Cluster::options() };
    let inner = client(&cluster.server, Some(ACCOUNT)).await;
    for killed in 0..200 {
        agent().await;
        let budget = 1 + i64::try_from(killed % 2).unwrap();
        let left = Arc::new(AtomicI64::new(budget));
        let cut = Cut { inner: inner.clone(), left: left.clone() };
        let hub = Hub::start(Client::new(cut, "default"), &format!("hub-{killed}"), options.clone());
        let looked = || hub.metric("mecha_hub_reconcile_seconds_count");
        eventually("a write, or enough looks without one", async || {
            (left.load(Ordering::SeqCst) < 1 || looked() > 4.0).then_some(())
        })
        .await;
        let done = left.load(Ordering::SeqCst) >= 1;
        hub.stop().await;
        if done && budget == 2 {
            return killed;
        }
    }
    panic!("two hundred hubs did not come to an end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_after_every_single_write_it_comes_to_the_same_end() {
    let Some((cluster, hub)) = Cluster::shop("kafka", "postgres").await else { return };
    hub.quiet(2).await;
    hub.stop().await;
    cluster.apply(&format!("{EVENTS}---{ORDERS}"));
    let killed = converge(&cluster, async || {}).await;
    assert!(killed >= 5, "finalizers, binding and statuses are single writes: {killed}");
    assert_eq!((cluster.bound("orders").await, cluster.bound("events").await), ("pg-eu".into(), "kafka".into()));

    // The same through a whole move, with an agent that answers whatever phase it finds.
    cluster.apply(&platform("redis", "postgres"));
    let killed = converge(&cluster, async || {
        if cluster.entry("events").await.is_some_and(|entry| entry.swap.is_some()) {
            cluster.report("events", |_| {}).await;
        }
    })
    .await;
    assert!(killed >= 9, "five writes of the binding and the statuses between them: {killed}");
    let entry = cluster.settled("events", "streams").await;
    assert!(entry.previous_document.is_none());
    let status = cluster.claim("events").await.status.unwrap();
    assert_eq!(status.history.len(), 1, "one move, one receipt: {:?}", status.history);
    assert_eq!((status.history[0].outcome, status.history[0].sidecars), (MoveOutcome::Completed, 2));
    cluster.claim_is("events", ClaimConditionType::SwapPending, ClaimReason::Settled).await;

    // And out again.
    cluster.server.kubectl(&["-n", cluster.space(), "delete", "capabilityclaim", "events", "orders", "--wait=false"]);
    cluster.server.kubectl(&["-n", "team-a", "delete", "environment", "team-a-dev-env", "--wait=false"]);
    converge(&cluster, async || {}).await;
    assert!(!cluster.exists("environment", "team-a", "team-a-dev-env"));
    assert!(!cluster.exists("capabilityclaim", cluster.space(), "events"));
    assert!(!cluster.exists("capabilitybinding", "mecha-cluster-local", cluster.space()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_hub_takes_over_and_what_the_first_still_sends_is_refused() {
    let Some((cluster, first)) = Cluster::shop("kafka", "postgres").await else { return };
    cluster.apply(EVENTS);
    cluster.bound("events").await;
    first.quiet(2).await;
    let second = cluster.hub("b").await;
    eventually("the second is ready", async || second.role.ready.waiting().is_empty().then_some(())).await;
    assert_eq!((first.metric("mecha_hub_leader"), second.metric("mecha_hub_leader")), (1.0, 0.0));
    let before = cluster.binding().await;
    first.stop().await;
    let after = eventually("the second has put its epoch in", async || {
        let binding = cluster.binding().await;
        (binding.spec.leader_epoch > before.spec.leader_epoch).then_some(binding)
    })
    .await;
    assert_eq!((after.spec.revision, &after.spec.entries), (before.spec.revision, &before.spec.entries));
    // A write of the first that was on its way, by the version it had read, and forced on the present one.
    let late = cluster.bindings().replace(cluster.space(), &PostParams::default(), &before).await.unwrap_err();
    assert!(matches!(&late, kube::Error::Api(status) if status.code == 409), "{late}");
    let mut forced = before.clone();
    forced.metadata.resource_version.clone_from(&after.metadata.resource_version);
    forced.spec.revision += 1;
    let refused = cluster.bindings().replace(cluster.space(), &PostParams::default(), &forced).await.unwrap_err();
    assert!(refused.to_string().contains("no longer the leader"), "{refused}");
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_frozen_leader_had_on_its_way_changes_nothing_after_its_successor_has_begun() {
    let Some((cluster, hub)) = Cluster::shop("kafka", "postgres").await else { return };
    cluster.apply(EVENTS);
    cluster.bound("events").await;
    hub.quiet(2).await;
    hub.stop().await;
    let (freeze, hold) = watch::channel(false);
    let inner = client(&cluster.server, Some(ACCOUNT)).await;
    let held = Held { inner, hold, late: Arc::default(), waiting: Arc::default() };
    let (late, waiting) = (held.late.clone(), held.waiting.clone());
    let frozen = Hub::start(Client::new(held, "default"), "frozen", Cluster::options());
    eventually("it leads", async || (frozen.metric("mecha_hub_leader") == 1.0).then_some(())).await;
    frozen.quiet(2).await;
    let epoch = cluster.binding().await.spec.leader_epoch;

    freeze.send(true).unwrap();
    cluster.apply(&platform("redis", "postgres"));
    eventually("it has sent what nobody has got", async || (waiting.load(Ordering::SeqCst) > 0).then_some(())).await;
    let next = cluster.hub("next").await;
    let entry = cluster.phase("events", "Prepare").await;
    next.quiet(2).await;
    let before = cluster.binding().await;
    assert!(before.spec.leader_epoch > epoch);
    let versions = cluster.versions();

    freeze.send(false).unwrap();
    eventually("all of it has arrived", async || (waiting.load(Ordering::SeqCst) == 0).then_some(())).await;
    let late = late.lock().clone();
    let written = late.iter().filter(|(_, path, _)| !path.contains("/leases") && !path.contains("/events"));
    let taken: Vec<_> = written.clone().filter(|(_, _, status)| *status < 300).collect();
    assert!(written.count() > 0 && taken.is_empty(), "{late:?}");
    next.quiet(2).await;
    assert_eq!(cluster.versions(), versions);
    assert_eq!(cluster.phase("events", "Prepare").await, entry);
    assert_eq!((frozen.metric("mecha_hub_leader"), next.metric("mecha_hub_leader")), (0.0, 1.0));
    frozen.stop().await;
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_api_server_is_away_nothing_is_lost_and_work_goes_on_after() {
    let Some((mut cluster, hub)) = Cluster::shop("kafka", "postgres").await else { return };
    cluster.apply(EVENTS);
    cluster.bound("events").await;
    hub.quiet(1).await;
    let before = cluster.binding().await.spec.entries;
    cluster.server.kill_apiserver();
    cluster.server.restart_apiserver();
    eventually("the server answers", async || cluster.claims().list(&Default::default()).await.ok().map(|_| ())).await;
    cluster.apply(ORDERS);
    cluster.bound("orders").await;
    let after = cluster.binding().await.spec.entries;
    assert!(before.iter().all(|entry| after.contains(entry)));
    hub.stop().await;
}
