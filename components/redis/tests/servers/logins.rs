use std::net::{TcpListener, TcpStream};
use std::process::Command;

use mecha_components_api::{ErrorKind, Metadata};
use mecha_testkit::servers::{self, Redis, RedisOptions};

use crate::support::{get, put, state};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_is_asked_for_and_never_told() {
    let Some(redis) = RedisOptions::new().password("hunter2").start() else { return };
    let address = redis.address();
    for wrong in [&[("redisHost", address.as_str())][..], &[("redisHost", &address), ("redisPassword", "hunter3")]] {
        let e = state(wrong).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unauthenticated, "{e}");
        assert!(!format!("{e} {e:?}").contains("hunter"), "{e:?}");
    }
    let store = state(&[("redisHost", &address), ("redisPassword", "hunter2")]).await.unwrap();
    store.set(put(&Metadata::new(), "k", "1")).await.unwrap();
    assert!(!format!("{store:?}").contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_may_do_what_the_server_allows() {
    let Some(redis) = Redis::start() else { return };
    redis.command(&["ACL", "SETUSER", "joe", "on", ">hunter2", "~mine*", "+@all"]);
    let settings =
        [("redisHost", redis.address()), ("redisUsername", "joe".into()), ("redisPassword", "hunter2".into())];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let store = state(&settings).await.unwrap();
    let md = Metadata::new();
    store.set(put(&md, "mine", "1")).await.unwrap();
    let e = store.set(put(&md, "yours", "1")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::PermissionDenied, "{e}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_database_of_the_document_is_used() {
    let Some(redis) = Redis::start() else { return };
    let store = state(&[("redisHost", &redis.address()), ("redisDB", "3")]).await.unwrap();
    store.set(put(&Metadata::new(), "k", "1")).await.unwrap();
    assert_eq!((redis.command(&["-n", "3", "EXISTS", "k"]), redis.command(&["EXISTS", "k"])), ("1".into(), "0".into()));
}

/// Key and certificate for 127.0.0.1, signed by itself.
fn identity(dir: &std::path::Path) -> bool {
    if !servers::is_installed("openssl") {
        servers::absent("openssl", "apt-get install -y --no-install-recommends openssl");
        return false;
    }
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
    openssl.args(["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"]).arg(dir.join("key.pem"));
    let output = openssl.arg("-out").arg(dir.join("cert.pem")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_certificate_is_verified() {
    let dir = tempfile::TempDir::new().unwrap();
    if !identity(dir.path()) {
        return;
    }
    let file = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let port = servers::free_port();
    let options =
        RedisOptions::new().arg("--tls-port").arg(port.to_string()).arg("--tls-cert-file").arg(file("cert.pem"));
    let options = options.arg("--tls-key-file").arg(file("key.pem")).arg("--tls-ca-cert-file").arg(file("cert.pem"));
    let Some(_redis) = options.arg("--tls-auth-clients").arg("yes").start() else { return };
    let (cert, key) =
        (std::fs::read_to_string(file("cert.pem")).unwrap(), std::fs::read_to_string(file("key.pem")).unwrap());
    let host = format!("127.0.0.1:{port}");
    let identity = [("clientCert", cert.as_str()), ("clientKey", key.as_str())];
    let tls = [("redisHost", host.as_str()), ("enableTLS", "true"), ("dialTimeout", "2s")];

    let unknown = [&tls[..], &identity].concat();
    let e = state(&unknown).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
    assert!(e.to_string().to_lowercase().contains("certificate"), "{e}");

    let trusted = [&unknown[..], &[("mecha.caCert", cert.as_str())]].concat();
    let store = state(&trusted).await.unwrap();
    store.set(put(&Metadata::new(), "k", "1")).await.unwrap();

    let careless = [&unknown[..], &[("insecureSkipTLSVerify", "true")]].concat();
    state(&careless).await.unwrap();

    // The server asks for a client certificate.
    let anonymous = [&tls[..], &[("mecha.caCert", cert.as_str())]].concat();
    assert!(state(&anonymous).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_knows_only_the_old_protocol_will_do() {
    let Some(redis) = RedisOptions::new().arg("--rename-command").arg("HELLO").arg("").start() else { return };
    let store = state(&[("redisHost", &redis.address())]).await.unwrap();
    let md = Metadata::new();
    store.set(put(&md, "k", "1")).await.unwrap();
    assert_eq!(get(&*store, "k").await.unwrap().unwrap().0, "1");
}

/// Some proxies hang up on commands that they do not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_knows_only_the_old_protocol_will_do() {
    let Some(redis) = Redis::start() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, server) = (listener.local_addr().unwrap().to_string(), redis.address());
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let server = server.clone();
            std::thread::spawn(move || {
                let mut first = [0; 64];
                let read = client.peek(&mut first).unwrap_or(0);
                if String::from_utf8_lossy(&first[..read]).contains("HELLO") {
                    return;
                }
                let server = TcpStream::connect(server).unwrap();
                let (mut up, mut down) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut up, &mut &server));
                let _ = std::io::copy(&mut down, &mut &client);
            });
        }
    });
    let store = state(&[("redisHost", &address)]).await.unwrap();
    let md = Metadata::new();
    store.set(put(&md, "k", "1")).await.unwrap();
    assert_eq!(get(&*store, "k").await.unwrap().unwrap().0, "1");
}
