//! Everything that the control part stands on breaks while an app is under load: watches go silent, the API server
//! restarts with its history gone, the webhook is away, the way to the API server is slow. Work goes on after, and no
//! call of the app notices.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use mecha_testkit::servers::Kubernetes;
use mecha_tests::{FaultProxy, Http, Network, Signal, wait_until};
use serde_json::{Value, json};

use crate::guide::{Load, PATIENCE, Shop, port_of};
use crate::install::{NAMESPACE, install};
use crate::roles::{ControlPart, INJECTOR};

/// Between two questions to kubectl, which takes a part of a core that the roles need.
const BETWEEN: Duration = Duration::from_millis(300);

/// Changes what the injector's ConfigMap says about images.
fn image(server: &Kubernetes, image: &str) {
    let map = server.kubectl(&["-n", NAMESPACE, "get", "configmap", "mecha-injector", "-o", "json"]);
    let map: Value = serde_json::from_str(&map).unwrap();
    let lines = map["data"]["config.yaml"].as_str().unwrap().lines();
    let changed =
        lines.map(|line| if line.starts_with("image:") { format!("image: {image}") } else { line.to_owned() });
    let patch = json!({"data": {"config.yaml": changed.collect::<Vec<_>>().join("\n")}}).to_string();
    server.kubectl(&["-n", NAMESPACE, "patch", "configmap", "mecha-injector", "--type=merge", "-p", &patch]);
}

/// Tries pods without storing them.
struct Pods {
    api: Api<DynamicObject>,
}

impl Pods {
    async fn new(server: &Kubernetes) -> Self {
        let file = Kubeconfig::read_from(server.kubeconfig()).unwrap();
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
        let resource = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
        Self { api: Api::namespaced_with(Client::try_from(config).unwrap(), "default", &resource) }
    }

    /// What becomes of a pod; `enabled` is what it says about a sidecar.
    async fn create(&self, enabled: &str) -> Result<Value, String> {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"generateName": "tried-", "annotations": {"dapr.io/enabled": enabled}},
            "spec": {"serviceAccountName": "default", "containers": [{"name": "app", "image": "app:1"}]},
        });
        let params = PostParams { dry_run: true, ..PostParams::default() };
        let made = self.api.create(&params, &serde_json::from_value(pod).unwrap()).await;
        made.map(|made| serde_json::to_value(made).unwrap()).map_err(|e| e.to_string())
    }

    /// The image of the sidecar that a pod gets now; `None` where it gets none.
    async fn sidecar(&self) -> Option<String> {
        let made = self.create("true").await.inspect_err(|why| eprintln!("no pod yet: {why}")).ok()?;
        let containers = made["spec"]["initContainers"].as_array()?;
        let sidecar = containers.iter().find(|container| container["name"] == "daprd")?;
        Some(sidecar["image"].as_str()?.to_owned())
    }

    async fn get_theirs(&self) {
        wait_until(PATIENCE, "pods to get their sidecars", async || self.sidecar().await.is_some()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_that_went_silent_are_made_again_and_what_was_edited_meanwhile_is_done() {
    let Some(shop) = Shop::open().await else { return };
    let pods = Pods::new(&shop.server).await;
    assert_eq!(shop.save("a", "1").await, 204);
    let load = Load::start(shop.api());
    load.goes_on(20).await;

    // Every connection of hub, agent and injector is half open: nobody tells them, and nothing comes any more.
    shop.road.strand().await;
    let began = Instant::now();
    shop.selects("green");
    image(&shop.server, "mechad:edited");
    shop.bound_to("redis-green").await;
    wait_until(PATIENCE, "the injector's edited configuration", async || {
        pods.sidecar().await.as_deref() == Some("mechad:edited")
    })
    .await;
    println!("edits in the silence were acted upon after {:?}", began.elapsed());
    load.goes_on(20).await;
    load.end().await;
    assert_eq!(shop.save("b", "2").await, 204);
}

/// Says to etcd that nobody needs its history any more; the place of every watch is gone with it.
async fn forget_history(server: &Kubernetes) {
    let etcd = port_of(&server.etcd_url());
    let any = json!({"key": "AA==", "range_end": "AA==", "count_only": true});
    let header = Http::tcp(etcd).post_json("/v3/kv/range", &any).send().await.expect(200).json();
    let revision = &header["header"]["revision"];
    let compaction = json!({"revision": revision, "physical": true});
    Http::tcp(etcd).post_json("/v3/kv/compaction", &compaction).send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_restarts_without_its_history_amid_bindings_and_amid_a_move() {
    let Some(mut shop) = Shop::open().await else { return };
    assert_eq!(shop.save("a", "1").await, 204);
    let load = Load::start(shop.api());
    let names: Vec<String> = (0..8).map(|n| format!("claim-{n}")).collect();
    let claim = |name: &String| {
        format!(
            "apiVersion: mecha.dev/v1alpha1\nkind: CapabilityClaim\nmetadata: {{name: {name}}}\n\
             spec: {{kind: state, features: [etag], scopes: [nobody]}}\n"
        )
    };
    shop.apply(&names.iter().map(claim).collect::<Vec<_>>().join("---\n"));
    shop.server.kill_apiserver();
    load.goes_on(20).await;
    forget_history(&shop.server).await;
    shop.server.restart_apiserver();
    let entries = |shop: &Shop| -> Vec<Value> {
        let printed = shop.server.kubectl(&["-n", "mecha-cluster-local", "get", "capabilitybindings", "-o", "json"]);
        let bindings: Value = serde_json::from_str(&printed).unwrap();
        let bindings = bindings["items"].as_array().unwrap().clone();
        assert!(bindings.len() <= 1, "one environment in one cluster is one binding: {}", bindings.len());
        bindings.iter().flat_map(|binding| binding["spec"]["entries"].as_array().unwrap().clone()).collect()
    };
    let phases = |shop: &Shop| -> BTreeMap<String, String> {
        let printed = shop.server.kubectl(&["-n", &shop.home, "get", "capabilityclaims", "-o", "json"]);
        let claims: Value = serde_json::from_str(&printed).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let claims = claims["items"].as_array().unwrap().iter();
        claims.map(|claim| (text(&claim["metadata"]["name"]), text(&claim["status"]["phase"]))).collect()
    };
    wait_until(PATIENCE, "every claim to be bound", async || {
        tokio::time::sleep(BETWEEN).await;
        let phases = phases(&shop);
        phases.len() == names.len() + 1 && phases.values().all(|phase| phase == "Bound")
    })
    .await;
    let once = |entries: &[Value]| {
        let mut claims: Vec<&str> = entries.iter().map(|entry| entry["claim"].as_str().unwrap()).collect();
        claims.sort_unstable();
        claims.dedup();
        claims.len() == entries.len() && claims.len() == names.len() + 1
    };
    assert!(once(&entries(&shop)), "each claim is bound once");

    // A move of all of them.
    shop.selects("green");
    wait_until(PATIENCE, "the move to begin", async || {
        let entries = entries(&shop);
        entries.iter().any(|entry| entry["swap"].is_object() || entry["backend"] == "redis-green")
    })
    .await;
    shop.server.kill_apiserver();
    load.goes_on(20).await;
    forget_history(&shop.server).await;
    shop.server.restart_apiserver();
    wait_until(PATIENCE, "the move to end", async || {
        tokio::time::sleep(BETWEEN).await;
        let entries = entries(&shop);
        entries.iter().all(|entry| entry["backend"] == "redis-green" && !entry["swap"].is_object())
    })
    .await;
    assert!(once(&entries(&shop)), "each claim is bound once");
    shop.bound_to("redis-green").await;
    load.goes_on(20).await;
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_is_frozen_or_dead_holds_up_only_who_asks_for_it_and_a_slow_api_server_does_not_hold_it_up() {
    let Some(server) = Kubernetes::start() else { return };
    install(&server);
    let road = FaultProxy::start(port_of(&server.url())).await;
    let mut roles = ControlPart::start_on(&server, Some(road.port())).await;
    let pods = Pods::new(&server).await;
    pods.get_theirs().await;

    // What the injector asks takes four seconds and more; its answers come from memory.
    road.set(Network::Latency(Duration::from_secs(2))).await;
    let mut fastest = Duration::MAX;
    for _ in 0..20 {
        let began = Instant::now();
        assert!(pods.sidecar().await.is_some());
        fastest = fastest.min(began.elapsed());
    }
    assert!(fastest < Duration::from_secs(2), "a pod takes {fastest:?}");
    road.set(Network::Fine).await;

    for frozen in [true, false] {
        if frozen {
            roles.signal(INJECTOR, Signal::Stop)
        } else {
            roles.kill(INJECTOR)
        }
        let plain = pods.create("false").await.unwrap();
        assert!(plain["spec"]["initContainers"].is_null());
        let began = Instant::now();
        let refused = pods.create("true").await.unwrap_err();
        assert!(refused.contains("failed calling webhook \"pods.injector.mecha.dev\""), "{refused}");
        // Three seconds, and what a busy machine needs beside them.
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        if frozen {
            roles.signal(INJECTOR, Signal::Continue)
        } else {
            roles.launch(&server, INJECTOR)
        }
        pods.get_theirs().await;
    }
}
