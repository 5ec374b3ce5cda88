use std::process::Command;

use mecha_components_api::{ErrorKind, Metadata};
use mecha_testkit::servers::{self, Postgres, PostgresOptions};

use crate::support::{open, put};

/// Key and certificate for 127.0.0.1, signed by itself.
fn identity() -> Option<(String, String)> {
    if !servers::is_installed("openssl") {
        servers::absent("openssl", "apt-get install -y --no-install-recommends openssl");
        return None;
    }
    let dir = tempfile::TempDir::new().unwrap();
    let (key, cert) = (dir.path().join("key.pem"), dir.path().join("cert.pem"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
    openssl.args(["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"]).arg(&key).arg("-out").arg(&cert);
    let output = openssl.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some((std::fs::read_to_string(key).unwrap(), std::fs::read_to_string(cert).unwrap()))
}

fn server(more: &str) -> Option<(Postgres, String)> {
    let (key, cert) = identity()?;
    let options = PostgresOptions::new().file("server.key", &key).file("server.crt", &cert);
    let options =
        options.set("ssl", "on").set("ssl_key_file", "{dir}/server.key").set("ssl_cert_file", "{dir}/server.crt");
    Some((options.hba(more).start()?, cert))
}

fn encrypted(server: &Postgres) -> String {
    server.sql(
        "SELECT string_agg(DISTINCT ssl::text, ',') FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
         WHERE application_name = 'mechad'",
    )
}

#[tokio::test]
async fn the_certificate_is_verified() {
    let Some((server, cert)) = server("hostnossl all small 127.0.0.1/32 reject") else { return };
    server.sql("CREATE ROLE small LOGIN SUPERUSER");
    let file = server.dir().join("ca.pem");
    std::fs::write(&file, &cert).unwrap();
    let url = |host: &str, mode: &str| {
        format!("host={host} hostaddr=127.0.0.1 port={} user=postgres dbname=postgres {mode}", server.port())
    };
    let file = file.to_string_lossy().into_owned();
    let good = [
        (url("127.0.0.1", "sslmode=verify-full"), file.as_str(), "true"),
        (url("127.0.0.1", "sslmode=require"), cert.as_str(), "true"),
        (url("db.example", "sslmode=verify-ca"), file.as_str(), "true"),
        (url("db.example", "sslmode=prefer"), "", "true"),
        (url("127.0.0.1", ""), "", "true"),
        (url("127.0.0.1", "sslmode=disable"), "", "false"),
        (url("127.0.0.1", "sslmode=require user=small"), file.as_str(), "true"),
    ];
    for (url, root, wanted) in good {
        let store = open("v2", &[("url", &url), ("sslRootCert", root)]).await.unwrap_or_else(|e| panic!("{url}: {e}"));
        store.set(put(&Metadata::new(), "k", "1")).await.unwrap();
        assert_eq!(encrypted(&server), wanted, "{url}");
        store.close().await;
        drop(store);
        crate::support::until("the session ends", async || encrypted(&server).is_empty()).await;
    }
    let bad = [
        (url("127.0.0.1", "sslmode=verify-full"), ""),
        (url("127.0.0.1", "sslmode=require"), ""),
        (url("db.example", "sslmode=verify-full"), file.as_str()),
        (url("db.example", "sslmode=verify-ca"), ""),
        // Nothing named, and the server is not on this machine as far as its name tells.
        (url("db.example", ""), ""),
    ];
    for (url, root) in bad {
        let e = open("v2", &[("url", &url), ("sslRootCert", root), ("timeout", "1s")])
            .await
            .err()
            .unwrap_or_else(|| panic!("{url}"));
        assert_eq!(e.kind(), ErrorKind::Unavailable, "{url}: {e}");
        assert!(e.to_string().contains("certificate") && e.to_string().contains("sslRootCert"), "{url}: {e}");
    }
    let url = url("db.example", "sslmode=require");
    open("v2", &[("url", &url), ("mecha.insecureSkipTLSVerify", "true")]).await.unwrap();
    for (root, part) in [("/nosuch.pem", "sslRootCert"), ("-----BEGIN nonsense", "sslRootCert")] {
        let e = open("v2", &[("url", &url), ("sslRootCert", root)]).await.unwrap_err();
        assert!(e.kind() == ErrorKind::InvalidArgument && e.message().contains(part), "{e}");
    }
}

#[tokio::test]
async fn encryption_that_is_required_is_not_left_out() {
    let Some(server) = Postgres::start() else { return };
    let url = format!("{}?sslmode=require", server.url());
    let e = open("v2", &[("url", &url), ("timeout", "1s")]).await.unwrap_err();
    assert!(e.to_string().contains("does not support TLS"), "{e}");
}
