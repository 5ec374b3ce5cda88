//! The real daemon under bytes nobody thought of: it answers on, and what it keeps stays.

use std::time::Duration;

use libtest_mimic::{Failed, Trial};
use mecha_tests::{HttpApp, Protocol, Sidecar, component};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::engine::{Dice, corpus, long, mutated, seed};

/// Requests in the gate, and in the long form.
const REQUESTS: (usize, usize) = (1_500, 200_000);
/// Requests between two looks at what must still hold.
const BETWEEN: usize = 100;
/// A daemon that says nothing to half a request is right; nobody waits for it.
const PATIENCE: Duration = Duration::from_millis(40);
/// What the daemon may grow by.
const GROWTH_KIB: u64 = 64 << 10;

const HTTP_WORDS: &[&str] = &[
    "GET ",
    "POST ",
    "PUT ",
    "DELETE ",
    "PATCH ",
    " HTTP/1.1\r\n",
    "\r\n",
    "\r\n\r\n",
    "content-length: ",
    "transfer-encoding: chunked\r\n",
    "0\r\n\r\n",
    "connection: close\r\n",
    "dapr-app-id: app\r\n",
    "expect: 100-continue\r\n",
    "content-type: application/json\r\n",
    "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n",
    "/v1.0/state/store",
    "/v1.0/publish/bus/t",
    "/v1.0/invoke/app/method/",
    "%00",
    "%2F",
    "..",
    "?metadata.ttlInSeconds=",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "{\"key\":",
    "[",
    "}",
];
const GRPC_WORDS: &[&str] =
    &["store", "bus", "canary", "\n\u{5}store", "\u{12}\u{3}key", "\u{1a}", "\0", "\u{8}\u{1}", "topic"];

/// Methods that the bytes of a gRPC request are tried on.
const METHODS: &[&str] = &[
    "GetState",
    "SaveState",
    "DeleteState",
    "GetBulkState",
    "ExecuteStateTransaction",
    "PublishEvent",
    "BulkPublishEvent",
    "InvokeBinding",
    "GetSecret",
    "GetMetadata",
    "SetMetadata",
    "InvokeService",
    "QueryStateAlpha1",
    "TryLockAlpha1",
    "SubscribeTopicEventsAlpha1",
    "GetConfiguration",
    "NoSuchMethod",
];

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("daemon-http", || run(Kind::Http).map_err(Failed::from)),
        Trial::test("daemon-grpc", || run(Kind::Grpc).map_err(Failed::from)),
        Trial::test("daemon-peer", || run(Kind::Peer).map_err(Failed::from)),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Http,
    Grpc,
    Peer,
}

fn run(kind: Kind) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let app = HttpApp::builder().start().await;
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let root = folder.path().to_string_lossy().into_owned();
        let mut sidecar = Sidecar::builder()
            .app(&app)
            .component(component("store", "state.in-memory", &[]))
            .component(component("bus", "pubsub.in-memory", &[]))
            .component(component("env", "secretstores.local.env", &[]))
            .component(component("files", "bindings.localstorage", &[("rootPath", &root)]))
            .start()
            .await;
        let save = sidecar.http().post("/v1.0/state/store", r#"[{"key":"canary","value":"alive"}]"#).send().await;
        if save.status != 204 {
            return Err(format!("the canary is not stored: {save:?}"));
        }
        let (name, words) = match kind {
            Kind::Http => ("daemon-http", HTTP_WORDS),
            Kind::Grpc => ("daemon-grpc", GRPC_WORDS),
            Kind::Peer => ("peer-request", GRPC_WORDS),
        };
        let seeds = corpus(name);
        if seeds.is_empty() {
            return Err(format!("tests/fuzz/corpus/{name} holds no seed"));
        }
        let mut dice = Dice::new(seed());
        let requests = if long() { REQUESTS.1 } else { REQUESTS.0 };
        let mut before = 0;
        for number in 0..requests {
            let bytes = seeds.get(number).cloned().unwrap_or_else(|| mutated(&seeds, words, &mut dice));
            match kind {
                Kind::Http => raw(sidecar.http_port(), &bytes).await,
                Kind::Grpc => {
                    let method = METHODS[dice.below(METHODS.len())];
                    framed(&sidecar.http_of(kind), &format!("/dapr.proto.runtime.v1.Dapr/{method}"), &bytes, &mut dice)
                        .await;
                }
                Kind::Peer => {
                    let method = ["CallLocal", "CallLocalStream"][dice.below(2)];
                    let path = format!("/dapr.proto.internals.v1.ServiceInvocation/{method}");
                    framed(&sidecar.http_of(kind), &path, &bytes, &mut dice).await;
                }
            }
            if number % BETWEEN == 0 || number + 1 == requests {
                healthy(&mut sidecar, number).await?;
                if number == BETWEEN {
                    before = sidecar.resident_kib();
                }
            }
        }
        let after = sidecar.resident_kib();
        println!("{name}: {requests} requests, resident {before} KiB, then {after} KiB");
        if after > before + GROWTH_KIB {
            return Err(format!("it grew from {before} to {after} KiB"));
        }
        Ok(())
    })
}

trait Ports {
    fn http_of(&self, kind: Kind) -> mecha_tests::Http;
}

impl Ports for Sidecar {
    fn http_of(&self, kind: Kind) -> mecha_tests::Http {
        let port = if kind == Kind::Peer { self.internal_port() } else { self.grpc_port() };
        mecha_tests::Http::tcp(port).speaking(Protocol::H2c)
    }
}

/// Sends bytes as they are, and reads what comes within a moment.
async fn raw(port: u16, bytes: &[u8]) {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let talk = async {
        stream.write_all(bytes).await?;
        let mut answer = [0; 4096];
        stream.read(&mut answer).await
    };
    let _ = tokio::time::timeout(PATIENCE, talk).await;
}

/// Sends bytes as a gRPC message, sometimes with a prefix that lies.
async fn framed(client: &mecha_tests::Http, path: &str, bytes: &[u8], dice: &mut Dice) {
    let length = match dice.below(8) {
        0 => dice.next() as u32,
        _ => u32::try_from(bytes.len()).unwrap_or(u32::MAX),
    };
    let flag = u8::from(dice.below(16) == 0);
    let body = [&[flag][..], &length.to_be_bytes(), bytes].concat();
    let request = client.post(path, body).header("content-type", "application/grpc").header("te", "trailers");
    let _ = tokio::time::timeout(PATIENCE, request.try_send()).await;
}

/// The next good request succeeds, and nothing panicked.
async fn healthy(sidecar: &mut Sidecar, number: usize) -> Result<(), String> {
    let log = sidecar.log();
    if !sidecar.runs() || log.contains("panicked") {
        return Err(format!("after request {number}:\n{log}"));
    }
    let health = sidecar.http().get("/v1.0/healthz").try_send().await?;
    if health.status != 204 {
        return Err(format!("after request {number} health is {health:?}"));
    }
    let canary = sidecar.http().get("/v1.0/state/store/canary").try_send().await?;
    // A lucky input may delete or write it; it cannot break it.
    if !matches!(canary.status, 200 | 204) {
        return Err(format!("after request {number} a read gives {canary:?}"));
    }
    Ok(())
}
