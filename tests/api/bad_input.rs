//! Every case of `bad_input.toml` on every transport: the same answer everywhere, nothing stored, nothing
//! at the app, and the next good request works.

use std::fmt::Write as _;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use mecha_tests::{Answer, Api, Fault, Http, HttpApp, Item, Op, Protocol, Sidecar, SidecarBuilder, component};
use serde::Deserialize;
use serde_json::json;

use crate::support::memory_store;

const CASES: &str = include_str!("bad_input.toml");

#[derive(Debug, Deserialize)]
struct File {
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    http: String,
    #[serde(default)]
    on: Place,
    #[serde(default)]
    headers: Vec<String>,
    #[serde(default)]
    body: String,
    base64: Option<String>,
    status: u16,
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
    grpc: Option<Twin>,
}

/// Which sidecar a case is for.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Place {
    #[default]
    Full,
    Empty,
}

/// The same request as a gRPC call.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Twin {
    call: String,
    store: String,
    key: String,
    etag: Option<String>,
    ttl: Option<String>,
    code: String,
    message: String,
}

fn cases() -> Vec<Case> {
    let file: File = toml::from_str(CASES).unwrap();
    assert!(file.cases.len() >= 200, "{} cases", file.cases.len());
    file.cases
}

fn full(app: &HttpApp) -> SidecarBuilder {
    let builder = Sidecar::builder().app(app);
    let root = builder.folder().join("files");
    let secrets = builder.folder().join("secrets.json");
    std::fs::write(&secrets, json!({"known": "value", "denied": "value"}).to_string()).unwrap();
    builder
        .configuration("secrets:\n  scopes:\n    - storeName: vault\n      deniedSecrets: [denied]\n")
        .component(memory_store("store"))
        .component(component(
            "events",
            "pubsub.in-memory",
            &[("publishingScopes", "app=t,u"), ("protectedTopics", "forbidden")],
        ))
        .component(component("files", "bindings.localstorage", &[("rootPath", root.to_str().unwrap())]))
        .component(component("vault", "secretstores.local.file", &[("secretsFile", secrets.to_str().unwrap())]))
}

/// The sidecars of one transport.
struct Pair {
    app: HttpApp,
    full: Sidecar,
    empty: Sidecar,
}

impl Pair {
    async fn start(change: fn(SidecarBuilder) -> SidecarBuilder) -> Self {
        let app = HttpApp::builder().on("/*", Answer::text("reached")).start().await;
        let full = change(full(&app)).start().await;
        let empty = change(Sidecar::builder()).start().await;
        let [api, _] = full.apis().await;
        api.save("store", &[Item::new("kept", "1")]).await.unwrap();
        app.forget();
        Self { app, full, empty }
    }

    fn client(&self, place: Place, protocol: Protocol) -> Http {
        let sidecar = if place == Place::Full { &self.full } else { &self.empty };
        sidecar.http().speaking(protocol)
    }

    /// Nothing was stored, nothing reached the app, and both sidecars are well.
    async fn unharmed(&self) {
        let [api, _] = self.full.apis().await;
        assert_eq!(api.get("store", "kept").await.unwrap().unwrap().text(), "1");
        for key in ["k", "never", "a||b"] {
            assert!(
                api.get("store", key).await.is_ok_and(|got| got.is_none()) || key.contains("||"),
                "{key} was stored"
            );
        }
        assert!(self.app.all_calls().is_empty(), "the app was reached: {:?}", self.app.all_calls());
        for sidecar in [&self.full, &self.empty] {
            sidecar.http().get("/v1.0/healthz").send().await.expect(204);
            assert!(!sidecar.log().contains("panicked"), "{}", sidecar.log());
        }
    }
}

/// What differs from the case, as text; empty when nothing does.
fn differences(case: &Case, fault: &Fault) -> String {
    let mut text = String::new();
    if fault.http != Some(case.status) {
        let _ = write!(text, " status {:?}, not {}", fault.http, case.status);
    }
    if !case.code.is_empty() && fault.code != case.code {
        let _ = write!(text, " code {:?}, not {:?}", fault.code, case.code);
    }
    if !fault.message.contains(&case.message) {
        let _ = write!(text, " message without {:?}", case.message);
    }
    if !text.is_empty() {
        let _ = write!(text, "; the answer was {:.400}", fault.body);
    }
    text
}

async fn run(case: &Case, http: &Http) -> String {
    let (verb, path) = case.http.split_once(' ').unwrap();
    let mut request = http.request(verb, path);
    for header in &case.headers {
        let (name, value) = header.split_once(": ").unwrap();
        request = request.header(name, value);
    }
    let body = match &case.base64 {
        Some(text) => Bytes::from(base64::engine::general_purpose::STANDARD.decode(text).unwrap()),
        None => Bytes::from(case.body.clone()),
    };
    match request.body(body).try_send().await {
        Ok(reply) => differences(case, &Fault::of_reply(&reply)),
        Err(text) => format!(" no answer: {text}"),
    }
}

async fn all(pair: &Pair, protocol: Protocol) {
    let mut failures = Vec::new();
    for case in cases() {
        let http = pair.client(case.on, protocol);
        let first = run(&case, &http).await;
        if !first.is_empty() {
            failures.push(format!("{} ({}):{first}", case.name, case.http));
            continue;
        }
        // The same each time.
        let second = run(&case, &http).await;
        if !second.is_empty() {
            failures.push(format!("{}, the second time:{second}", case.name));
        }
    }
    assert!(failures.is_empty(), "{} cases differ:\n{}", failures.len(), failures.join("\n"));
    pair.unharmed().await;
}

#[tokio::test]
async fn over_http1() {
    let pair = Pair::start(|builder| builder).await;
    all(&pair, Protocol::Http1).await;
}

#[tokio::test]
async fn over_h2c() {
    let pair = Pair::start(|builder| builder).await;
    all(&pair, Protocol::H2c).await;
}

#[tokio::test]
async fn over_a_unix_socket() {
    let pair = Pair::start(SidecarBuilder::sockets).await;
    all(&pair, Protocol::Http1).await;
}

async fn call(api: &Api, twin: &Twin) -> Result<(), Fault> {
    let mut item = Item::new(&twin.key, "1");
    if let Some(etag) = &twin.etag {
        item = item.etag(etag);
    }
    if let Some(ttl) = &twin.ttl {
        item = item.metadata("ttlInSeconds", ttl);
    }
    let (store, key) = (twin.store.as_str(), twin.key.as_str());
    match twin.call.as_str() {
        "get" => api.get(store, key).await.map(drop),
        "save" => api.save(store, &[item]).await,
        "delete" => api.delete(store, key, twin.etag.as_deref()).await,
        "bulk_get" => api.bulk_get(store, &[key]).await.map(drop),
        "transact" => api.transact(store, &[Op::Upsert(item)]).await,
        "publish" => api.publish(store, key, "text/plain", "x", &[]).await,
        "binding" => api.binding(store, key, "", &[]).await.map(drop),
        "secret" => api.secret(store, key).await.map(drop),
        "secrets" => api.secrets(store).await.map(drop),
        other => panic!("no call {other:?}"),
    }
}

#[tokio::test]
async fn over_grpc() {
    let pair = Pair::start(|builder| builder).await;
    let [_, full] = pair.full.apis().await;
    let [_, empty] = pair.empty.apis().await;
    let mut failures = Vec::new();
    let mut count = 0;
    for case in cases() {
        let Some(twin) = &case.grpc else { continue };
        count += 1;
        let api = if case.on == Place::Full { &full } else { &empty };
        let outcome = tokio::time::timeout(Duration::from_secs(20), call(api, twin)).await.expect("an answer");
        match outcome {
            Ok(()) => failures.push(format!("{}: OK", case.name)),
            Err(fault) => {
                let code = format!("{:?}", fault.grpc.unwrap());
                if code != twin.code || !fault.message.contains(&twin.message) {
                    failures.push(format!(
                        "{}: {code} {:?}, not {} {:?}",
                        case.name, fault.message, twin.code, twin.message
                    ));
                }
            }
        }
    }
    assert!(count >= 30, "{count} twins");
    assert!(failures.is_empty(), "{} cases differ:\n{}", failures.len(), failures.join("\n"));
    pair.unharmed().await;
}
