//! Sidecars that `../stage.py` starts, and what all tests share.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dapr::Client;
use dapr::client::{ClientOptions, TonicClientWithAuth};
use dapr::dapr::proto::runtime::v1::dapr_client::DaprClient;
use dapr::error::Error;
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tonic::transport::Channel;

use crate::app::App;

/// Reached only when something is broken.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub type Sdk = Client<TonicClientWithAuth>;

/// A running sidecar.
#[derive(Clone)]
pub struct Sidecar {
    pub grpc: u64,
}

impl Sidecar {
    /// Starts a sidecar without an app and waits until it is ready.
    pub async fn run(app_id: &str, env: Value) -> Self {
        Self::start(json!({ "appId": app_id, "env": env, "wait": true })).await
    }

    async fn start(request: Value) -> Self {
        let answer = ask("/sidecars", request).await;
        Self { grpc: answer["grpc"].as_u64().expect("a port") }
    }

    fn options(&self) -> ClientOptions {
        ClientOptions::new().with_address(format!("http://127.0.0.1:{}", self.grpc))
    }

    pub async fn client(&self) -> Sdk {
        Sdk::from_options(self.options()).await.expect("a client")
    }

    pub async fn client_with_token(&self, token: &str) -> Sdk {
        Sdk::from_options(self.options().with_api_token(token)).await.expect("a client")
    }

    /// The generated client.
    pub async fn raw(&self) -> DaprClient<Channel> {
        DaprClient::connect(format!("http://127.0.0.1:{}", self.grpc)).await.expect("a client")
    }
}

/// A gRPC app in this process and a tester, each with a sidecar of its own. The app has a runtime of its own, as each
/// test has.
pub struct Stage {
    pub app: Arc<App>,
    pub tester: Sidecar,
}

pub async fn stage() -> &'static Stage {
    static STAGE: OnceCell<Stage> = OnceCell::const_new();
    STAGE
        .get_or_init(|| async {
            let (app, port) = App::serve();
            let flags = json!(["--app-port", port.to_string(), "--app-protocol", "grpc"]);
            Sidecar::start(json!({ "appId": "grpc-app", "flags": flags })).await;
            let tester = Sidecar::run("tester", json!({})).await;
            ask("/ready", json!({ "appId": "grpc-app" })).await;
            Stage { app, tester }
        })
        .await
}

/// A client of the tester.
pub async fn sdk() -> Sdk {
    stage().await.tester.client().await
}

pub async fn raw() -> DaprClient<Channel> {
    stage().await.tester.raw().await
}

/// What stands behind the components: a folder of the resources.
fn backend_name() -> String {
    std::env::var("MECHA_SDK_BACKEND").unwrap_or_else(|_| "embedded".to_owned())
}

/// What backend.json says of it.
pub fn backend() -> Value {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../resources");
    let text = std::fs::read_to_string(format!("{folder}/{}/backend.json", backend_name())).expect("backend.json");
    serde_json::from_str(&text).expect("JSON")
}

/// Writes or reads configuration through the binding of its server; the answer, and what it has to be.
pub async fn setting(what: &str, key: &str, value: &str, version: &str) -> (String, String) {
    let call = &backend()[what];
    let text = |of: &Value| {
        let text = of.as_str().unwrap_or_default();
        text.replace("{key}", key).replace("{value}", value).replace("{version}", version)
    };
    let metadata = call["metadata"].as_object().expect("metadata").iter().map(|(name, of)| (name.clone(), text(of)));
    let (data, operation) = (text(&call["data"]).into_bytes(), text(&call["operation"]));
    let answer = sdk().await.invoke_binding("settings", data, operation.as_str(), Some(metadata.collect())).await;
    (String::from_utf8(answer.expect("an answer").data).expect("text"), text(&call["answer"]))
}

/// Posts to the stage.
pub async fn ask(path: &str, request: Value) -> Value {
    let address = std::env::var("MECHA_SDK_STAGE").expect("run these tests with tests/sdk/run.sh");
    let host = address.trim_start_matches("http://").to_owned();
    let body = request.to_string();
    let text = format!("POST {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let answer = tokio::task::spawn_blocking(move || {
        let mut connection = TcpStream::connect(host)?;
        connection.set_read_timeout(Some(DEADLINE * 2))?;
        connection.write_all(text.as_bytes())?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        std::io::Result::Ok(answer)
    })
    .await
    .expect("a task")
    .expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    assert!(head.contains(" 200 "), "{path}: {body}");
    serde_json::from_str(body).expect("JSON")
}

/// Asks until the answer is there.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Checks code and message of an error; the SDK shows its status only as text.
#[track_caller]
pub fn fails<T: std::fmt::Debug>(answer: Result<T, Error>, code: &str, message: &str) {
    match answer {
        Err(error @ Error::GrpcError(_)) => {
            let text = error.to_string();
            assert!(text.contains(&format!("code: {code}")) || text.contains(&format!("code: '{code}'")), "{text}");
            assert!(text.contains(message), "{text}");
        }
        other => panic!("{other:?}"),
    }
}

/// An id that nothing else has.
pub fn new_id() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("id-{}-{}-", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub fn metadata(key: &str, value: &str) -> Option<HashMap<String, String>> {
    Some(HashMap::from([(key.to_owned(), value.to_owned())]))
}
