//! Secrets: who gets their values, how fast, and where they are never found.

use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1;
use kube::Api;
use kube::api::{Patch, PatchParams};
use mecha_proto::operator::*;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;

use crate::cluster::{Cluster, LIMIT, binding, component, entry, eventually, read};
use crate::sets::{Sidecar, hello};

fn ask() -> ListComponentsRequest {
    ListComponentsRequest { namespace: "shop".to_owned() }
}

fn secret(namespace: &str, name: &str, key: &str, value: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace},
        "stringData": {key: value},
    })
}

fn password(component: &[u8]) -> String {
    let value = &read(component)["spec"]["metadata"][0]["value"];
    String::from_utf8(STANDARD.decode(value.as_str().unwrap()).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_come_resolved_and_rotated_ones_at_once() {
    let Some(cluster) = Cluster::start().await else { return };
    let reference = json!([{"name": "password", "secretKeyRef": {"name": "redis", "key": "password"}}]);
    cluster.apply(&component("shop", "cache", &["cart"], reference));
    // Of this name in another namespace: not the sidecar's business.
    cluster.apply(&secret("other", "redis", "password", "of-another-namespace"));
    let (agent, role) = cluster.agent("a").await;
    let mut cart = cluster.stock(&agent, "shop", "cart").await;

    let waiting = cart.list_components(ask()).await.unwrap_err();
    assert_eq!(waiting.code(), Code::Unavailable);
    assert!(waiting.message().contains("Secret redis is missing in namespace shop"), "{waiting}");
    let request = ComponentUpdateRequest { namespace: "shop".into() };
    let mut updates = cart.component_update(request).await.unwrap().into_inner();
    cluster.apply(&secret("shop", "redis", "passwd", "first"));
    let waiting = eventually("the key is named", || {
        let mut cart = cart.clone();
        async move { cart.list_components(ask()).await.err().filter(|e| e.message().contains("key password")) }
    });
    assert_eq!(waiting.await.code(), Code::Unavailable);
    cluster.apply(&secret("shop", "redis", "password", "first"));
    let created = timeout(LIMIT, updates.message()).await.expect("it comes").unwrap().unwrap();
    assert_eq!(created.r#type(), ResourceEventType::Created);
    assert_eq!(password(&created.component), "first");
    let listed = cart.list_components(ask()).await.unwrap().into_inner().components;
    assert_eq!(password(&listed[0]), "first");
    assert_eq!(read(&listed[0])["spec"]["metadata"][0]["secretKeyRef"]["name"], "redis");

    let secrets: Api<v1::Secret> = Api::namespaced(cluster.admin.clone(), "shop");
    for turn in 0..5 {
        let value = format!("rotated-{turn}");
        let rotated = Instant::now();
        let patch = Patch::Merge(json!({"stringData": {"password": value}}));
        secrets.patch("redis", &PatchParams::default(), &patch).await.unwrap();
        let event = timeout(LIMIT, updates.message()).await.expect("a rotated value comes").unwrap().unwrap();
        assert_eq!(password(&event.component), value);
        eprintln!("a rotated value was there after {:?}, with the write", rotated.elapsed());
    }
    // A Secret that goes away takes nothing from who has its value.
    cluster.server.kubectl(&["-n", "shop", "delete", "secret", "redis"]);
    cluster.apply(&component("shop", "extra", &["cart"], json!([])));
    let event = timeout(LIMIT, updates.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(read(&event.component)["metadata"]["name"], "extra");

    let mut metrics = String::new();
    prometheus_client::encoding::text::encode(&mut metrics, &role.metrics.lock()).unwrap();
    assert!(metrics.contains("mecha_agent_secret_reads_total{result=\"missing\"}"), "{metrics}");
    assert!(!metrics.contains("rotated"), "{metrics}");
}

/// Everything that etcd holds, by key.
async fn everything(etcd: &str) -> Vec<(String, Vec<u8>)> {
    let address = etcd.strip_prefix("http://").unwrap();
    let body = json!({"key": STANDARD.encode([0]), "range_end": STANDARD.encode([0])}).to_string();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("POST /v3/kv/range HTTP/1.0\r\nHost: etcd\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let start = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let answer: Value = serde_json::from_slice(&answer[start..]).unwrap();
    let decode = |value: &Value| STANDARD.decode(value.as_str().unwrap_or_default()).unwrap();
    let pairs = answer["kvs"].as_array().unwrap().iter();
    pairs.map(|kv| (String::from_utf8(decode(&kv["key"])).unwrap(), decode(&kv["value"]))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_is_found_in_its_secret_and_nowhere_else() {
    const CANARY: &str = "canary-3f9c1b7e";
    let logs = crate::logs();
    let Some(cluster) = Cluster::start().await else { return };
    cluster.apply(&secret("shop", "pg", "uri", CANARY));
    let reference = json!([{"name": "uri", "secretKeyRef": {"name": "pg", "key": "uri"}},
                           {"name": "gone", "secretKeyRef": {"name": "gone", "key": "uri"}}]);
    let mut orders = component("shop", "orders", &["cart"], reference.clone());
    cluster.apply(&binding(1, json!([entry("orders", 1, &orders)])));
    let (agent, role) = cluster.agent("a").await;
    let mut cart = Sidecar::connect(&cluster, &agent, "shop", "cart", hello("cart-1", "")).await;
    let set = cart.set().await;
    assert!(set.documents[0].unresolved.contains("Secret gone"), "{:?}", set.documents[0]);
    // A sidecar that gives it away in its own words.
    cart.report_failure(&set, "orders", 1, &format!("cannot connect to {CANARY}")).await;
    cluster
        .status("shop", "what is missing is named", |s| s.entries[0].message.starts_with("Secret gone is missing"))
        .await;
    // Once nothing is missing any more, the words of the sidecar are what is told.
    orders["spec"]["metadata"].as_array_mut().unwrap().pop();
    cluster.apply(&binding(2, json!([entry("orders", 2, &orders)])));
    let set = cart.set().await;
    assert_eq!(set.documents[0].unresolved, "");
    cart.report_failure(&set, "orders", 2, &format!("cannot connect to {CANARY}")).await;
    let told = cluster.status("shop", "its words", |status| status.entries[0].message.contains("cannot connect")).await;
    assert_eq!(told.entries[0].message, "cart-1: cannot connect to ***");
    let missing = || async {
        let events = cluster.server.kubectl(&["-n", "mecha-cluster-local", "get", "events", "-o", "json"]);
        (events.contains("SecretMissing") && events.contains("SidecarFailed")).then_some(events)
    };
    eventually("events", missing).await;
    timeout(LIMIT, role.tasks.drain()).await.expect("the agent drains");

    let encoded = STANDARD.encode(CANARY);
    let holds = |bytes: &[u8]| {
        [CANARY.as_bytes(), encoded.as_bytes()].iter().any(|c| bytes.windows(c.len()).any(|window| window == *c))
    };
    let keys = everything(&cluster.server.etcd_url()).await;
    let found: Vec<_> = keys.iter().filter(|(_, value)| holds(value)).map(|(key, _)| key.as_str()).collect();
    assert_eq!(found, ["/registry/secrets/shop/pg"], "the search looks in the right place, and finds it there only");
    let logs = logs.lock();
    assert!(logs.windows(5).any(|window| window == b"mecha"), "logs are looked at");
    assert!(!holds(&logs), "{}", String::from_utf8_lossy(&logs));
}
