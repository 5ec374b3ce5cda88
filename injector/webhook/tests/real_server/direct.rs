//! What somebody gets who asks the webhook directly.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::harness::{Cluster, LIMIT, eventually, localhost, pod};

/// A connector that trusts what an API server trusts: the registered roots.
fn connector(cluster: &Cluster) -> TlsConnector {
    let registration = cluster.registration();
    let bundle = registration["webhooks"][0]["clientConfig"]["caBundle"].as_str().unwrap();
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(&STANDARD.decode(bundle).unwrap()) {
        roots.add(root.unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

async fn connect(tls: &TlsConnector, port: u16) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(localhost(port)).await.unwrap();
    tls.connect(ServerName::try_from("127.0.0.1").unwrap(), stream).await.unwrap()
}

/// Sends a request with `length` announced, and gives status and body of the answer.
async fn ask(mut stream: TlsStream<TcpStream>, head: &str, body: &[u8], length: usize) -> (u16, String) {
    let head = format!("{head} HTTP/1.1\r\nhost: webhook\r\nconnection: close\r\ncontent-length: {length}\r\n");
    stream.write_all(format!("{head}content-type: application/json\r\n\r\n").as_bytes()).await.unwrap();
    let _ = stream.write_all(body).await;
    let _ = stream.flush().await;
    answer(stream).await
}

async fn answer(mut stream: TlsStream<TcpStream>) -> (u16, String) {
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut bytes)).await.unwrap();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    (head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0), body.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_direct_question_gets_no_secret_and_a_wrong_one_a_reason() {
    let Some(cluster) = Cluster::start().await else { return };
    let injector = cluster.injector("a", cluster.options()).await;
    let (port, tls) = (injector.port, connector(&cluster));
    cluster.server.kubectl(&["create", "secret", "generic", "cloud", "--from-literal=key=canary-4711"]);
    let object = pod(
        "orders",
        json!({
            "dapr.io/enabled": "true", "dapr.io/env-from-secret": "KEY=cloud:key", "dapr.io/api-token-secret": "cloud",
        }),
    );
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {"uid": "forged", "operation": "CREATE", "namespace": "default",
            "kind": {"group": "", "version": "v1", "kind": "Pod"}, "object": object},
    })
    .to_string();
    let (status, body) = ask(connect(&tls, port).await, "POST /mutate", review.as_bytes(), review.len()).await;
    assert_eq!(status, 200, "{body}");
    let body: Value = serde_json::from_str(&body).unwrap();
    let patch = String::from_utf8(STANDARD.decode(body["response"]["patch"].as_str().unwrap()).unwrap()).unwrap();
    assert!(patch.contains("secretKeyRef"), "references only");
    for secret in ["canary-4711", cluster.server.admin_token(), "PRIVATE KEY"] {
        assert!(!patch.contains(secret) && !body.to_string().contains(secret));
    }

    let old = review.replace("admission.k8s.io/v1", "admission.k8s.io/v1beta1");
    for (head, body, status, reason) in [
        ("POST /mutate", old.as_str(), 400, "admissionReviewVersions"),
        ("POST /mutate", "rubbish", 400, "JSON"),
        ("POST /validate", review.as_str(), 404, "/mutate"),
        ("GET /mutate", "", 405, "POST"),
    ] {
        let (got, said) = ask(connect(&tls, port).await, head, body.as_bytes(), body.len()).await;
        assert_eq!(got, status, "{head}: {said}");
        assert!(said.contains(reason), "{head}: {said}");
    }
    let (status, _) = ask(connect(&tls, port).await, "POST /mutate", b"{", 4 << 20).await;
    assert_eq!(status, 413);
    let mut stream = connect(&tls, port).await;
    let head = "POST /mutate HTTP/1.1\r\nhost: w\r\nconnection: close\r\ncontent-length: 2\r\ncontent-type: text/yaml\r\n\r\n{}";
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(answer(stream).await.0, 415);

    // Bodies that do not come: they end by themselves, and what is too much meanwhile is refused at once.
    let slow = "POST /mutate HTTP/1.1\r\nhost: w\r\ncontent-length: 9\r\nconnection: close\r\ncontent-type: application/json\r\n\r\n{";
    let mut stream = connect(&tls, port).await;
    stream.write_all(slow.as_bytes()).await.unwrap();
    assert_eq!(answer(stream).await.0, 408);
    eventually("too many at a time", async || {
        let mut streams = Vec::new();
        for _ in 0..70 {
            streams.push(connect(&tls, port).await);
        }
        for stream in &mut streams {
            let _ = stream.write_all(slow.as_bytes()).await;
        }
        let mut answers = JoinSet::new();
        streams.into_iter().for_each(|stream| drop(answers.spawn(answer(stream))));
        let answers = answers.join_all().await;
        answers
            .iter()
            .find(|(status, _)| *status == 503)
            .map(|(_, said)| assert!(said.contains("create this one again")))
    })
    .await;
    assert!(injector.metric("mecha_injector_admissions_total{result=\"shed\"}") > 0.0);
    let (status, _) = eventually("room again", async || {
        let answer = ask(connect(&tls, port).await, "POST /mutate", review.as_bytes(), review.len()).await;
        (answer.0 == 200).then_some(answer)
    })
    .await;
    assert_eq!(status, 200);
    tokio::time::timeout(Duration::from_secs(60), injector.stop()).await.unwrap();
}
