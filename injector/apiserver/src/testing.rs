//! What tests of the roles share: clients, a [`Role`], and waiting.

use std::fmt::Debug;
use std::future::Future;
use std::panic::Location;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use prometheus_client::encoding::text::encode;

use crate::{Readiness, Role, Tasks, Timing};

/// Longest wait for anything. Generous: the machine may be busy.
pub const LIMIT: Duration = Duration::from_secs(90);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Leadership that is fast enough for a test and slow enough for a busy machine.
pub const TIMING: Timing =
    Timing { duration: Duration::from_secs(6), give_up: Duration::from_secs(4), retry: Duration::from_millis(200) };

/// A client for the user of a kubeconfig, or for `account`, whom that user plays.
///
/// # Panics
/// When the kubeconfig makes no client.
pub async fn client(kubeconfig: &Path, account: Option<&str>) -> Client {
    client_as(kubeconfig, |user| user.impersonate = account.map(str::to_owned)).await
}

/// A client for the server of a kubeconfig that shows `token` and nothing else, as in a pod.
///
/// # Panics
/// When the kubeconfig makes no client.
pub async fn client_with_token(kubeconfig: &Path, token: &str) -> Client {
    client_as(kubeconfig, |user| *user = AuthInfo { token: Some(token.to_owned().into()), ..AuthInfo::default() }).await
}

async fn client_as(kubeconfig: &Path, edit: impl FnOnce(&mut AuthInfo)) -> Client {
    let client = async {
        let file = Kubeconfig::read_from(kubeconfig).map_err(|e| e.to_string())?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
        let mut config = config.map_err(|e| e.to_string())?;
        edit(&mut config.auth_info);
        Client::try_from(config).map_err(|e| e.to_string())
    };
    client.await.unwrap_or_else(|e| panic!("{} makes no client: {e}", kubeconfig.display()))
}

/// What a role of the control part in `namespace` is started with.
#[must_use]
pub fn role(client: Client, namespace: &str, instance: &str) -> Role {
    Role {
        client,
        namespace: namespace.to_owned(),
        instance: instance.to_owned(),
        tasks: Tasks::new(),
        metrics: Arc::default(),
        ready: Readiness::default(),
    }
}

/// The value of a metric, as a scrape names it with its labels; 0 when there is none.
///
/// # Panics
/// When the metrics cannot be written.
#[must_use]
pub fn metric(role: &Role, series: &str) -> f64 {
    let mut text = String::new();
    assert!(encode(&mut text, &role.metrics.lock()).is_ok(), "metrics cannot be written");
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_default()
}

/// What is there instead of what is waited for.
#[derive(Debug)]
struct Nothing;

/// What `look` finds, as soon as it finds something.
///
/// # Panics
/// When that takes longer than [`LIMIT`], with `what` and the place of the call.
#[track_caller]
pub fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> impl Future<Output = T> {
    eventually_ok(what, async move || look().await.ok_or(Nothing))
}

/// As [`eventually`], where `look` says what it found instead.
///
/// # Panics
/// When that takes longer than [`LIMIT`], with what `look` said last.
#[track_caller]
pub fn eventually_ok<T, E: Debug>(what: &str, mut look: impl AsyncFnMut() -> Result<T, E>) -> impl Future<Output = T> {
    let caller = Location::caller();
    async move {
        let began = Instant::now();
        loop {
            match look().await {
                Ok(found) => return found,
                Err(last) if began.elapsed() > LIMIT => {
                    panic!("{what} did not come within {LIMIT:?} (asked for at {caller}) but {last:?}")
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}
