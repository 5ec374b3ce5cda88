//! From an edit to the sidecar that works with another backend, and to the receipt of the move.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::future::{try_join, try_join_all};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use mecha_apiserver::{CapabilityClaim, EnvironmentClass, Selection, Tasks, follow};
use mecha_testkit::servers::free_port;
use serde::Serialize;
use serde_json::json;

use super::{LIMIT, backend_of, create, make_environments, namespace_of, rule, until};
use crate::process::{Process, wait_until};
use crate::sidecar::{get, request};

/// Class and environment of this measurement alone, and the beginning of the names of its claims and apps.
const NAME: &str = "edits";
/// How often one sidecar is asked whether it has switched; many are asked more rarely, so that asking is not what is
/// measured.
const ASK: Duration = Duration::from_millis(5);
/// So many are asked that often.
const ASKED: usize = 4;
/// Time between two moves: no edit profits from what the one before has woken.
const REST: Duration = Duration::from_millis(700);

/// Runs a command where the token lies as a kubelet puts it; only that file counts as one of a pod.
const MOUNTED: &str = r#"set -e
mount -t tmpfs tmpfs /var/run
mkdir -p /var/run/secrets/dapr.io/sentrytoken
cp "$1" /var/run/secrets/dapr.io/sentrytoken/token
shift
exec "$@""#;

/// Milliseconds from the moment at which the API server has accepted an edit.
#[derive(Debug, Serialize)]
pub(super) struct Edits {
    edits: usize,
    /// Each with a claim of its own; one edit moves them all.
    sidecars: usize,
    /// To the first answer of a sidecar that comes from the other backend; exact to five milliseconds for up to four
    /// sidecars.
    switched_p50_ms: f64,
    switched_p99_ms: f64,
    /// To the receipt in the status of the claim.
    receipt_p50_ms: f64,
    receipt_p99_ms: f64,
}

/// Moves the claims of `count` sidecars to and fro.
pub(super) async fn measure(
    client: &Client,
    tasks: &Tasks,
    daemon: &Path,
    agent: &BTreeMap<&'static str, SocketAddr>,
    edits: usize,
    count: usize,
) -> io::Result<Edits> {
    let classes: Api<EnvironmentClass> = Api::all(client.clone());
    let environments = make_environments(client, tasks, NAME, 1).await?;
    let namespace = environments.first().map(|e| namespace_of(e).to_owned()).unwrap_or_default();
    let names: Vec<String> = (0..count).map(|number| format!("{NAME}-{number}")).collect();
    for name in &names {
        let claim = json!({
            "apiVersion": "mecha.dev/v1alpha1", "kind": "CapabilityClaim", "metadata": {"name": name},
            "spec": {"kind": "state", "scopes": [name]},
        });
        create(&Api::<CapabilityClaim>::namespaced(client.clone(), &namespace), claim).await?;
    }
    let own = Selection { namespace: Some(namespace.clone()), ..Selection::default() };
    let claims = follow::<CapabilityClaim>(client.clone(), &own, tasks);
    let all = |is: &dyn Fn(&CapabilityClaim) -> bool| {
        let those = claims.all();
        those.len() == count && those.iter().all(|claim| is(claim))
    };
    until(&claims, "the claims are bound", |_| all(&|claim| backend_of(claim) == Some("blue"))).await?;

    let folder = tempfile::tempdir()?;
    let mut sidecars = Vec::with_capacity(count);
    for name in &names {
        let own = folder.path().join(name);
        std::fs::create_dir(&own)?;
        let ask = ASK * u32::try_from(count.div_ceil(ASKED)).unwrap_or(1);
        sidecars.push(Sidecar::start(client, &namespace, name, daemon, agent, &own, ask).await?);
    }
    let (mut switched, mut receipts) = (Vec::new(), Vec::new());
    for edit in 0..edits {
        let (from, to) = if edit % 2 == 0 { ("blue", "green") } else { ("green", "blue") };
        until(&claims, "the claims rest", |_| all(&|claim| rests(claim, from))).await?;
        tokio::time::sleep(REST).await;
        try_join_all(sidecars.iter().map(Sidecar::mark)).await?;
        let change = json!({"spec": {"capabilities": [rule(to)]}});
        classes.patch(NAME, &PatchParams::default(), &Patch::Merge(&change)).await.map_err(io::Error::other)?;
        let began = Instant::now();
        let switching = try_join_all(sidecars.iter().map(|sidecar| async {
            sidecar.unmarked().await?;
            Ok::<_, io::Error>(began.elapsed())
        }));
        let ending = try_join_all(names.iter().map(|name| {
            let (claims, namespace) = (&claims, &namespace);
            async move {
                let moved = || claims.get(namespace, name).is_some_and(|claim| last(&claim) == Some(to));
                until(claims, "the receipt of the move", |_| moved()).await?;
                Ok::<_, io::Error>(began.elapsed())
            }
        }));
        let (there, ended) = try_join(switching, ending).await?;
        switched.extend(there);
        receipts.extend(ended);
    }
    let (switched_p50_ms, switched_p99_ms) = quantiles(switched);
    let (receipt_p50_ms, receipt_p99_ms) = quantiles(receipts);
    Ok(Edits { edits, sidecars: count, switched_p50_ms, switched_p99_ms, receipt_p50_ms, receipt_p99_ms })
}

/// Whether the claim is served by `backend` and its sidecar has said so.
fn rests(claim: &CapabilityClaim, backend: &str) -> bool {
    let bound =
        claim.status.as_ref().is_some_and(|s| s.phase.is_some_and(|p| p.as_str() == "Bound") && s.summary == "1/1");
    bound && backend_of(claim) == Some(backend) && last(claim).is_none_or(|to| to == backend)
}

/// Where the last move that has ended went to.
fn last(claim: &CapabilityClaim) -> Option<&str> {
    claim.status.as_ref()?.history.first().map(|receipt| receipt.to.as_str())
}

fn quantiles(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort();
    let at = |share: f64| {
        let index = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len().max(1)) - 1;
        times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
    };
    (at(0.5), at(0.99))
}

/// A sidecar of a pod, with the identity that the agent's issuer gives to that pod.
struct Sidecar {
    name: String,
    http: SocketAddr,
    ask: Duration,
    _process: Process,
}

impl Sidecar {
    async fn start(
        client: &Client,
        namespace: &str,
        name: &str,
        daemon: &Path,
        agent: &BTreeMap<&'static str, SocketAddr>,
        folder: &Path,
        ask: Duration,
    ) -> io::Result<Self> {
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
        create(&accounts, account).await?;
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name,
                "annotations": {"dapr.io/enabled": "true", "dapr.io/app-id": name},
                "labels": {"dapr.io/app-id": name, "dapr.io/sidecar-injected": "true"},
            },
            "spec": {"serviceAccountName": name, "containers": [{"name": "app", "image": "app:1"}]},
        });
        let pod = serde_json::from_value(pod)?;
        let pod = pods.create(&PostParams::default(), &pod).await.map_err(io::Error::other)?;
        let runs = json!({"status": {"phase": "Running"}});
        let params = PatchParams::default();
        pods.patch_status(name, &params, &Patch::Merge(&runs)).await.map_err(io::Error::other)?;
        let request: TokenRequest = serde_json::from_value(json!({
            "spec": {"audiences": ["dapr.io/sentry"], "expirationSeconds": 7200, "boundObjectRef": {
                "apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod.metadata.uid,
            }},
        }))?;
        let token = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .map_err(io::Error::other)?
            .status
            .map(|status| status.token)
            .unwrap_or_default();
        let (token_file, roots_file) = (folder.join("token"), folder.join("ca.crt"));
        std::fs::write(&token_file, serde_json::from_value::<String>(json!(token))?)?;
        std::fs::write(&roots_file, roots(client, namespace).await?)?;
        let [http, grpc, internal, public] = [free_port(), free_port(), free_port(), free_port()];
        let address = |part: &str| agent.get(part).map(ToString::to_string).unwrap_or_default();
        let mut command = Command::new("unshare");
        command
            .args(["--map-root-user", "--mount", "sh", "-c", MOUNTED, "sh"])
            .arg(&token_file)
            .arg(daemon)
            .args(["--mode", "kubernetes", "--app-id", name, "--log-level", "error", "--enable-mtls"])
            .args(["--enable-metrics=false", "--dapr-listen-addresses", "127.0.0.1"])
            .args(["--dapr-http-port", &http.to_string(), "--dapr-grpc-port", &grpc.to_string()])
            .args(["--dapr-internal-grpc-port", &internal.to_string(), "--dapr-public-port", &public.to_string()])
            .args(["--control-plane-address", &address("documents"), "--sentry-address", &address("certificates")])
            .env("NAMESPACE", namespace)
            .env("POD_NAME", name)
            .env("DAPR_HOST_IP", "127.0.0.1")
            .env("DAPR_CONTROLPLANE_TRUST_DOMAIN", "cluster.local")
            .env("DAPR_CONTROLPLANE_NAMESPACE", "mecha-system")
            .env("MECHA_TRUST_ANCHORS_FILE", &roots_file)
            .env("MECHA_HOME", folder.join("home"))
            .stdin(Stdio::null());
        let process = Process::spawn(&mut command)?;
        let http = SocketAddr::from((Ipv4Addr::LOCALHOST, http));
        let sidecar = Self { name: name.to_owned(), http, ask, _process: process };
        let ready = move || Ok(get(http, "/v1.0/healthz").is_ok_and(|(status, _)| status == 204));
        tokio::task::spawn_blocking(move || wait_until(LIMIT, "the sidecar is ready", ready)).await??;
        Ok(sidecar)
    }

    /// Puts something into the backend of the moment; the other one begins empty.
    async fn mark(&self) -> io::Result<()> {
        let path = format!("/v1.0/state/{}", self.name);
        let body = json!([{"key": "mark", "value": 1}]).to_string();
        self.ask("POST", path, body).await.map(drop)
    }

    /// Returns when the mark is not found.
    async fn unmarked(&self) -> io::Result<()> {
        let deadline = Instant::now() + LIMIT;
        while self.ask("GET", format!("/v1.0/state/{}/mark", self.name), String::new()).await? != 204 {
            if Instant::now() > deadline {
                return Err(io::Error::other("the sidecar does not switch"));
            }
            tokio::time::sleep(self.ask).await;
        }
        Ok(())
    }

    async fn ask(&self, method: &'static str, path: String, body: String) -> io::Result<u16> {
        let http = self.http;
        tokio::task::spawn_blocking(move || {
            let (status, text) = request(http, method, &path, &body)?;
            if status < 300 { Ok(status) } else { Err(io::Error::other(format!("{method} {path}: {status} {text}"))) }
        })
        .await?
    }
}

/// The roots that the agent publishes in the namespace of every injected pod.
async fn roots(client: &Client, namespace: &str) -> io::Result<String> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let deadline = Instant::now() + LIMIT;
    loop {
        let map = maps.get_opt("mecha-trust-bundle").await.map_err(io::Error::other)?;
        if let Some(roots) = map.and_then(|map| map.data?.get("ca.crt").cloned()) {
            return Ok(roots);
        }
        if Instant::now() > deadline {
            return Err(io::Error::other("the agent publishes no roots"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_what_was_measured() {
        let times = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(quantiles(times), (50.0, 99.0));
        assert_eq!(quantiles(vec![Duration::from_millis(7)]), (7.0, 7.0));
    }
}
