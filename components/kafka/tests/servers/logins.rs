//! Passwords and certificates.

use std::process::Command;

use mecha_components_api::ErrorKind;
use mecha_testkit::servers::{self, Kafka, KafkaOptions};

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
