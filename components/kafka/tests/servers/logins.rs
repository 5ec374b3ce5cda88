//! Passwords and certificates.

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mecha_components_api::ErrorKind;
use mecha_testkit::servers::{self, Kafka, KafkaOptions};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::{publish, pubsub};

/// Key and certificate for 127.0.0.1, signed by itself.
fn identity() -> Option<(String, String)> {
    if !servers::is_installed("openssl") {
        servers::absent("openssl", "apt-get install -y --no-install-recommends openssl");
        return None;
    }
    let dir = tempfile::TempDir::new().unwrap();
    let (key, cert) = (dir.path().join("key.pem"), dir.path().join("cert.pem"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]);
    openssl.args(["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout"]);
    let output = openssl.arg(&key).arg("-out").arg(&cert).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some((std::fs::read_to_string(key).unwrap(), std::fs::read_to_string(cert).unwrap()))
}

/// Tries to publish with these settings.
async fn tried(kafka: &Kafka, pairs: &[(&str, &str)]) -> Result<(), (ErrorKind, String)> {
    let address = kafka.address();
    let told = |e: mecha_components_api::Error| (e.kind(), e.to_string());
    let broker = pubsub("app", &[&[("brokers", address.as_str())], pairs].concat()).await.map_err(told)?;
    publish(&*broker, "t", "x").await.map_err(told)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_lets_in_and_a_wrong_one_does_not() {
    let Some(kafka) = KafkaOptions::new().user("joe", "hunter2").start() else { return };
    let login = |password, mechanism| {
        [
            ("authType", "password"),
            ("saslUsername", "joe"),
            ("saslPassword", password),
            ("saslMechanism", mechanism),
            ("disableTls", "true"),
        ]
    };
    for mechanism in ["PLAINTEXT", "SHA-256"] {
        tried(&kafka, &login("hunter2", mechanism)).await.unwrap();
        let (kind, text) = tried(&kafka, &login("hunter3", mechanism)).await.unwrap_err();
        assert_eq!(kind, ErrorKind::Unauthenticated, "{text}");
        assert!(!text.contains("hunter"), "{text}");
    }
    assert!(tried(&kafka, &[]).await.is_err(), "without a login");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_certificate_is_verified() {
    let Some((key, cert)) = identity() else { return };
    let Some(kafka) = KafkaOptions::new().tls(&key, &cert, None).start() else { return };
    tried(&kafka, &[("authType", "certificate"), ("caCert", &cert)]).await.unwrap();
    tried(&kafka, &[("authType", "mtls"), ("skipVerify", "true")]).await.unwrap();
    let (kind, text) = tried(&kafka, &[("authType", "mtls")]).await.unwrap_err();
    assert_eq!(kind, ErrorKind::Unavailable, "{text}");
    assert!(text.contains("certificate"), "{text}");
    let Some((_, other)) = identity() else { return };
    assert!(tried(&kafka, &[("authType", "certificate"), ("caCert", &other)]).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_shows_its_own_certificate() {
    let (Some((key, cert)), Some((client_key, client_cert))) = (identity(), identity()) else { return };
    let Some(kafka) = KafkaOptions::new().tls(&key, &cert, Some(&client_cert)).start() else { return };
    let mine = [("clientCert", client_cert.as_str()), ("clientKey", client_key.as_str())];
    tried(&kafka, &[&[("authType", "mtls"), ("caCert", cert.as_str())], &mine[..]].concat()).await.unwrap();
    assert!(tried(&kafka, &[("authType", "mtls"), ("caCert", &cert)]).await.is_err(), "without a certificate");
}

/// An identity provider that gives unsigned tokens which end soon. Counts what it was asked.
struct Provider {
    url: String,
    forms: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Provider {
    async fn start(wanted: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/token", listener.local_addr().unwrap());
        let forms: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&forms);
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut text = String::new();
                while !whole(&text) {
                    let mut bytes = [0; 4096];
                    let n = stream.read(&mut bytes).await.unwrap();
                    text.push_str(&String::from_utf8_lossy(&bytes[..n]));
                }
                let (status, body) = if text.contains(wanted) {
                    ("200 OK", format!("{{\"access_token\":\"{}\",\"expires_in\":5}}", token()))
                } else {
                    ("401 Unauthorized", "{\"error\":\"invalid_client\"}".to_owned())
                };
                seen.lock().unwrap().push(text);
                let length = body.len();
                let answer =
                    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Self { url, forms, task }
    }

    fn asked(&self) -> usize {
        self.forms.lock().unwrap().len()
    }
}

/// Whether the request has come to its end.
fn whole(text: &str) -> bool {
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(0)
}

fn token() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let part = |text: String| URL_SAFE_NO_PAD.encode(text);
    let claims = format!("{{\"sub\":\"joe\",\"iat\":{now},\"exp\":{}}}", now + 5);
    format!("{}.{}.", part("{\"alg\":\"none\"}".to_owned()), part(claims))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_an_identity_provider_let_in_and_are_renewed() {
    let Some(kafka) = KafkaOptions::new().unsigned_tokens().start() else { return };
    // Base64 of joe:hunter2.
    let provider = Provider::start("Basic am9lOmh1bnRlcjI=").await;
    let login = |secret| {
        [
            ("authType", "oidc"),
            ("oidcTokenEndpoint", provider.url.as_str()),
            ("oidcClientID", "joe"),
            ("oidcClientSecret", secret),
            ("oidcScopes", "openid,kafka"),
            ("disableTls", "true"),
        ]
    };
    let (kind, text) = tried(&kafka, &login("hunter3")).await.unwrap_err();
    assert_eq!(kind, ErrorKind::Unauthenticated, "{text}");
    assert!(text.contains("invalid_client") && !text.contains("hunter"), "{text}");

    let address = kafka.address();
    let settings = [&[("brokers", address.as_str())], &login("hunter2")[..]].concat();
    let broker = pubsub("app", &settings).await.unwrap();
    publish(&*broker, "t", "first").await.unwrap();
    assert!(provider.forms.lock().unwrap().last().unwrap().contains("scope=openid%20kafka"));
    let before = provider.asked();
    let again = async || provider.asked() >= before + 3;
    mecha_testkit::wait_until(Duration::from_secs(60), "tokens that end in 5 s are fetched again", again)
        .await
        .unwrap();
    publish(&*broker, "t", "with a later token").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_assertion_takes_the_place_of_a_secret() {
    let Some(kafka) = KafkaOptions::new().unsigned_tokens().start() else { return };
    let Some((key, _)) = identity() else { return };
    let provider = Provider::start("client_assertion=").await;
    let login = [
        ("authType", "oidc_private_key_jwt"),
        ("oidcTokenEndpoint", provider.url.as_str()),
        ("oidcClientID", "joe"),
        ("oidcClientAssertionKey", key.as_str()),
        ("oidcKid", "k1"),
        ("disableTls", "true"),
    ];
    tried(&kafka, &login).await.unwrap();
    let forms = provider.forms.lock().unwrap();
    let form = forms[0].split_once("\r\n\r\n").unwrap().1;
    let assertion = form.split('&').find_map(|pair| pair.strip_prefix("client_assertion=")).unwrap();
    // Only letters and digits stand for themselves in the form.
    let assertion = assertion.replace("%2E", ".").replace("%2D", "-").replace("%5F", "_");
    let mut parts =
        assertion.split('.').map(|part| String::from_utf8_lossy(&URL_SAFE_NO_PAD.decode(part).unwrap()).into_owned());
    let (header, claims) = (parts.next().unwrap(), parts.next().unwrap());
    assert!(header.contains("\"RS256\"") && header.contains("\"k1\""), "{header}");
    assert!(claims.contains("\"iss\":\"joe\"") && claims.contains(&provider.url), "{claims}");
}
