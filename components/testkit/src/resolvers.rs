//! Cases of [`NameResolver`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use async_trait::async_trait;
use mecha_components_api::{CancellationToken, ErrorKind, Instance, NameResolver, Result, Target};
use tokio::task::JoinHandle;

use crate::case::{Case, Failure, Outcome, PATIENCE, check, check_eq, fresh_name, refused, table, wait_until};

/// What a resolver declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResolverProfile {
    /// Instances become known by announcing themselves; otherwise addresses follow from names.
    pub announces: bool,
    /// An app nobody announced is `NotFound` (a resolver by rule has an answer for every name).
    pub knows_absence: bool,
}

/// A resolver to which several sidecars can be connected.
#[async_trait]
pub trait ResolverBench: Send + Sync + 'static {
    /// The resolver of one more sidecar.
    async fn member(&self) -> Result<Arc<dyn NameResolver>>;
}

/// All cases.
pub const CASES: &[Case<dyn ResolverBench, ResolverProfile>] = table![|bench| bench;
    an_unknown_app_is_not_found: |p| p.knows_absence,
    an_announced_instance_is_found: |p| p.announces,
    it_is_found_by_other_sidecars: |p| p.announces,
    every_instance_is_found: |p| p.announces,
    apps_are_not_mixed_up: |p| p.announces,
    an_ipv6_address_is_in_brackets: |p| p.announces,
    a_stopped_instance_is_not_found: |p| p.announces,
    one_of_two_may_stop: |p| p.announces,
    announcing_ends_when_told: |_| true,
    an_instance_can_come_back: |p| p.announces,
    a_dropped_lookup_leaves_the_resolver_usable: |p| p.announces,
];

/// Ports that no two announcements of a run share, as no two listeners would.
static PORT: AtomicU16 = AtomicU16::new(20_000);

struct Announced {
    stop: CancellationToken,
    task: JoinHandle<Result<()>>,
    address: String,
}

async fn announce(resolver: &Arc<dyn NameResolver>, app: &str, host: &str) -> Result<Announced, Failure> {
    let port = PORT.fetch_add(1, Ordering::SeqCst);
    let me = Instance {
        app_id: app.to_owned(),
        namespace: String::new(),
        host: host.to_owned(),
        port,
        instance_id: fresh_name(),
    };
    let (stop, up) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
    let task = tokio::spawn({
        let (resolver, stop, up) = (Arc::clone(resolver), stop.clone(), Arc::clone(&up));
        let called = move || {
            up.fetch_add(1, Ordering::SeqCst);
        };
        async move { resolver.announce(me, Box::new(called), stop).await }
    });
    wait_until(PATIENCE, "the instance is known", || async { up.load(Ordering::SeqCst) > 0 || task.is_finished() })
        .await?;
    check!(!task.is_finished(), "announcing ended by itself: {:?}", task.await);
    let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    Ok(Announced { stop, task, address })
}

impl Announced {
    async fn stop(self) -> Outcome {
        self.stop.cancel();
        match tokio::time::timeout(PATIENCE, self.task).await {
            Ok(Ok(Ok(()))) => Ok(()),
            other => Err(Failure::new(format!("announcing did not end well: {other:?}"))),
        }
    }
}

fn target(app_id: &str) -> Target<'_> {
    Target { app_id, namespace: "" }
}

async fn addresses(resolver: &Arc<dyn NameResolver>, app: &str) -> Result<Vec<String>> {
    let mut found: Vec<String> = resolver.resolve(target(app)).await?.iter().map(|a| a.to_string()).collect();
    found.sort();
    Ok(found)
}

/// Waits until `app` has exactly these addresses; others may see a change a little later.
async fn found(resolver: &Arc<dyn NameResolver>, app: &str, expected: &[&Announced]) -> Outcome {
    let mut expected: Vec<String> = expected.iter().map(|a| a.address.clone()).collect();
    expected.sort();
    let same = || async { addresses(resolver, app).await.is_ok_and(|a| a == expected) };
    let waited = wait_until(PATIENCE, "the addresses", same).await;
    if waited.is_err() {
        return Err(Failure::new(format!("{app}: expected {expected:?}, found {:?}", addresses(resolver, app).await)));
    }
    Ok(())
}

async fn not_found(resolver: &Arc<dyn NameResolver>, app: &str) -> Outcome {
    let gone = || async { resolver.resolve(target(app)).await.is_err_and(|e| e.kind() == ErrorKind::NotFound) };
    wait_until(PATIENCE, "the app is not found any more", gone).await
}

async fn an_unknown_app_is_not_found(b: Arc<dyn ResolverBench>) -> Outcome {
    let resolver = b.member().await?;
    refused(resolver.resolve(target(&fresh_name())).await, &[ErrorKind::NotFound], "unknown app")
}

async fn an_announced_instance_is_found(b: Arc<dyn ResolverBench>) -> Outcome {
    let (resolver, app) = (b.member().await?, fresh_name());
    let instance = announce(&resolver, &app, "127.0.0.1").await?;
    found(&resolver, &app, &[&instance]).await?;
    instance.stop().await
}

async fn it_is_found_by_other_sidecars(b: Arc<dyn ResolverBench>) -> Outcome {
    let (callee, caller, app) = (b.member().await?, b.member().await?, fresh_name());
    let instance = announce(&callee, &app, "127.0.0.1").await?;
    found(&caller, &app, &[&instance]).await?;
    instance.stop().await
}

async fn every_instance_is_found(b: Arc<dyn ResolverBench>) -> Outcome {
    let (one, two, app) = (b.member().await?, b.member().await?, fresh_name());
    let first = announce(&one, &app, "127.0.0.1").await?;
    let second = announce(&two, &app, "127.0.0.1").await?;
    found(&one, &app, &[&first, &second]).await?;
    first.stop().await?;
    second.stop().await
}

async fn apps_are_not_mixed_up(b: Arc<dyn ResolverBench>) -> Outcome {
    let (resolver, app) = (b.member().await?, fresh_name());
    let longer = format!("{app}-2");
    let (first, second) =
        (announce(&resolver, &app, "127.0.0.1").await?, announce(&resolver, &longer, "127.0.0.1").await?);
    found(&resolver, &app, &[&first]).await?;
    found(&resolver, &longer, &[&second]).await?;
    first.stop().await?;
    second.stop().await
}

async fn an_ipv6_address_is_in_brackets(b: Arc<dyn ResolverBench>) -> Outcome {
    let (resolver, app) = (b.member().await?, fresh_name());
    let instance = announce(&resolver, &app, "::1").await?;
    found(&resolver, &app, &[&instance]).await?;
    instance.stop().await
}

async fn a_stopped_instance_is_not_found(b: Arc<dyn ResolverBench>) -> Outcome {
    let (callee, caller, app) = (b.member().await?, b.member().await?, fresh_name());
    let instance = announce(&callee, &app, "127.0.0.1").await?;
    found(&caller, &app, &[&instance]).await?;
    instance.stop().await?;
    not_found(&caller, &app).await
}

async fn one_of_two_may_stop(b: Arc<dyn ResolverBench>) -> Outcome {
    let (resolver, app) = (b.member().await?, fresh_name());
    let first = announce(&resolver, &app, "127.0.0.1").await?;
    let second = announce(&resolver, &app, "127.0.0.1").await?;
    found(&resolver, &app, &[&first, &second]).await?;
    first.stop().await?;
    found(&resolver, &app, &[&second]).await?;
    second.stop().await
}

async fn announcing_ends_when_told(b: Arc<dyn ResolverBench>) -> Outcome {
    announce(&b.member().await?, &fresh_name(), "127.0.0.1").await?.stop().await
}

async fn an_instance_can_come_back(b: Arc<dyn ResolverBench>) -> Outcome {
    let (resolver, app) = (b.member().await?, fresh_name());
    announce(&resolver, &app, "127.0.0.1").await?.stop().await?;
    let again = announce(&resolver, &app, "127.0.0.1").await?;
    found(&resolver, &app, &[&again]).await?;
    again.stop().await
}

async fn a_dropped_lookup_leaves_the_resolver_usable(b: Arc<dyn ResolverBench>) -> Outcome {
    let (resolver, app) = (b.member().await?, fresh_name());
    let instance = announce(&resolver, &app, "127.0.0.1").await?;
    for i in 0..20_u64 {
        let _ = tokio::time::timeout(std::time::Duration::from_micros(i * i), resolver.resolve(target(&app))).await;
    }
    check_eq!(addresses(&resolver, &app).await?, vec![instance.address.clone()], "addresses");
    instance.stop().await
}
