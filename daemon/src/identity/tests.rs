//! Connections over mTLS, against peers of a known and of an unknown authority.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mecha_identity::testing::Ca;
use mecha_identity::{Bundle, Identity};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::cli::{self, Action, Env};
use crate::peer::{Connected, Dial, Dialled, Pool, PoolSettings};

const ORDERS: &str = "spiffe://public/ns/default/orders";
const STOCK: &str = "spiffe://public/ns/default/stock";

fn options(args: &[&str], env: &[(&str, &str)]) -> Options {
    let lookup = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    match cli::command(&args, Env::read(lookup)) {
        Ok(Action::Run(options)) => *options,
        other => panic!("{other:?}"),
    }
}

fn settings() -> Settings {
    let args = ["--app-id", "stock", "--enable-mtls", "--sentry-address", "127.0.0.1:1"];
    Settings::from_options(&options(&args, &[("DAPR_TRUST_ANCHORS", "roots")])).unwrap().unwrap()
}

/// A workload with an identity that nobody renews.
fn workload(roots: &Ca, identity: Identity) -> Arc<Workload> {
    let settings = settings();
    let live = Live::new(Bundle::from_pem(&roots.root_pem()).unwrap());
    live.set_identity(identity);
    Arc::new(Workload {
        live,
        anchors: Anchors::new(Some(&roots.root_pem()), None).unwrap(),
        sentry: Sentry::new(&settings).unwrap(),
        settings,
        kept: None,
        distrusted: Arc::default(),
        failure: Mutex::default(),
        counted: AtomicBool::new(false),
        metrics: ArcSwapOption::empty(),
        tasks: Tasks::new(),
    })
}

/// Accepts one connection as `workload`, says a word over it, and tells who was there.
async fn server(workload: Arc<Workload>) -> (String, tokio::task::JoinHandle<Option<Connected>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (mut stream, connected) = accept(acceptor(&workload), stream).await?;
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        Some(connected)
    });
    (address, task)
}

fn to<'a>(address: &'a str, app_id: &'a str) -> Dialled<'a> {
    Dialled { address, app_id, namespace: "" }
}

#[tokio::test]
async fn a_caller_reaches_the_app_it_means_and_is_known_there() {
    let ca = Ca::new("root");
    let (address, served) = server(workload(&ca, ca.identity(ORDERS))).await;
    let dial = PeerDial(workload(&ca, ca.identity(STOCK)));
    let mut stream = dial.dial(to(&address, "orders")).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
    let identity = served.await.unwrap().unwrap().identity.unwrap();
    assert_eq!((identity.trust_domain.as_str(), identity.app_id.as_str()), ("public", "stock"));
    assert_eq!(identity.namespace, "default");
}

#[tokio::test]
async fn another_app_at_the_address_gets_no_call() {
    let ca = Ca::new("root");
    let (address, served) = server(workload(&ca, ca.identity(ORDERS))).await;
    let dial = PeerDial(workload(&ca, ca.identity(STOCK)));
    let error = dial.dial(to(&address, "payments")).await.err().unwrap().to_string();
    assert_eq!(error, format!("the peer is {ORDERS}, expected was app payments in namespace default"));
    assert!(served.await.unwrap().is_none());
}

#[tokio::test]
async fn an_open_connection_proves_nothing_of_another_app_at_its_address() {
    let ca = Ca::new("root");
    let server = workload(&ca, ca.identity(ORDERS));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            open.push(accept(acceptor(&server), stream).await);
        }
    });
    let tasks = Tasks::new();
    let dial = Arc::new(PeerDial(workload(&ca, ca.identity(STOCK))));
    let pool = Pool::new(dial, PoolSettings::default(), tasks.clone());
    for _ in 0..2 {
        drop(pool.lease(to(&address, "orders")).await.unwrap());
    }
    assert_eq!(pool.connections(), 1);
    let error = pool.lease(to(&address, "payments")).await.unwrap_err();
    assert!(error.message.contains(&format!("the peer is {ORDERS}")), "{error}");
    drop(pool.lease(to(&address, "orders")).await.unwrap());
    assert_eq!(pool.connections(), 1);
    tasks.shut_down().await;
    serving.abort();
}

#[tokio::test]
async fn plain_text_and_strangers_stay_outside() {
    let (ca, other) = (Ca::new("root"), Ca::new("root"));
    let (address, served) = server(workload(&ca, ca.identity(ORDERS))).await;
    let mut plain = TcpStream::connect(&address).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    assert!(served.await.unwrap().is_none());

    let (address, served) = server(workload(&ca, ca.identity(ORDERS))).await;
    let error = PeerDial(workload(&other, other.identity(STOCK))).dial(to(&address, "orders")).await.err().unwrap();
    assert_eq!(error.to_string(), "the peer's certificate leads to no root of our trust bundle");
    assert!(served.await.unwrap().is_none());
}

#[tokio::test]
async fn an_expired_certificate_is_named_as_the_cause() {
    let ca = Ca::new("root");
    let workload = workload(&ca, ca.ended(STOCK));
    *workload.failure.lock() = Some("the authority at 127.0.0.1:1 gave no answer".to_owned());
    let error = PeerDial(workload.clone()).dial(to("127.0.0.1:1", "orders")).await.err().unwrap().to_string();
    let text = format!(
        "the certificate of {STOCK} has expired and was not renewed: the authority at 127.0.0.1:1 gave no answer"
    );
    assert_eq!(error, text);
    let plane = ControlPlane::new("127.0.0.1:1", "dapr-operator", Some(workload)).unwrap();
    assert_eq!(plane.connect().await.unwrap_err(), text);
}

#[tokio::test]
async fn the_control_plane_has_to_be_the_one_of_the_flags() {
    let ca = Ca::new("root");
    let stock = workload(&ca, ca.identity(STOCK));
    for (found, fits) in [
        ("spiffe://localhost/ns/default/dapr-operator", true),
        ("spiffe://localhost/ns/default/dapr-sentry", false),
        ("spiffe://public/ns/default/dapr-operator", false),
    ] {
        let (address, _served) = server(workload(&ca, ca.identity(found))).await;
        let plane = ControlPlane::new(&address, "dapr-operator", Some(stock.clone())).unwrap();
        assert!(plane.is_secure());
        let refusal = format!("the peer is {found}, expected was spiffe://localhost/ns/default/dapr-operator");
        // The right one speaks no HTTP/2 here, which is found out later.
        let error = plane.connect().await.err().unwrap_or_default();
        assert_eq!(!error.contains(&refusal), fits, "{error}");
    }
}

#[test]
fn an_identity_is_asked_for_where_mtls_or_kubernetes_with_anchors_is() {
    let wanted = |args: &[&str], env: &[(&str, &str)]| {
        let args = [&["--app-id", "a", "--sentry-address", "s:1"], args].concat();
        Settings::from_options(&options(&args, env))
    };
    let anchors = ("DAPR_TRUST_ANCHORS", "roots");
    assert!(wanted(&[], &[anchors]).unwrap().is_none());
    assert!(wanted(&["--enable-mtls"], &[anchors]).unwrap().unwrap().peers);
    assert!(wanted(&["--mode", "kubernetes"], &[anchors]).unwrap().unwrap().peers);
    assert!(!wanted(&["--mode", "kubernetes", "--enable-mtls=false"], &[anchors]).unwrap().unwrap().peers);
    assert!(wanted(&["--mode", "kubernetes", "--enable-mtls=false"], &[]).unwrap().is_none());
    for args in [&["--enable-mtls"][..], &["--mode", "kubernetes"]] {
        assert!(wanted(args, &[]).unwrap_err().starts_with("trust anchors are required"));
    }
    let file = wanted(&["--enable-mtls"], &[("MECHA_TRUST_ANCHORS_FILE", "/f")]).unwrap().unwrap();
    assert_eq!(file.anchors_file, Some("/f".into()));
    let named = wanted(&["--enable-mtls"], &[anchors, ("SENTRY_LOCAL_IDENTITY", "ns:me")]).unwrap().unwrap();
    assert_eq!((named.id.as_str(), named.app_id.as_str()), ("ns:me", "a"));
    let none = options(&["--app-id", "a", "--enable-mtls"], &[anchors]);
    assert!(Settings::from_options(&none).unwrap_err().contains("--sentry-address"));
}

#[tokio::test]
async fn a_start_without_authority_says_where_it_looked() {
    let ca = Ca::new("root");
    let pace = Pace { tries: 2, between: Duration::from_millis(1), ..Pace::default() };
    let mut settings = Settings { anchors: Some(ca.root_pem()), pace, ..settings() };
    let error = Workload::start(settings.clone()).await.unwrap_err();
    assert!(error.starts_with("failed to retrieve the initial identity: no connection to the authority"), "{error}");
    assert!(error.contains("127.0.0.1:1"), "{error}");
    settings.anchors = Some("no roots".to_owned());
    assert!(Workload::start(settings).await.unwrap_err().contains("DAPR_TRUST_ANCHORS"));
}

#[test]
fn what_is_left_is_in_the_metrics() {
    let ca = Ca::new("root");
    let workload = workload(&ca, ca.lasting(STOCK, Duration::from_secs(600)));
    let metrics = Arc::new(Metrics::new(mecha_core::metrics::MetricsConfig::new("stock", "")).unwrap());
    workload.report_to(metrics.clone());
    workload.report_to(metrics.clone());
    let text = metrics.encode();
    assert!(text.contains("dapr_runtime_mtls_init_total{app_id=\"stock\"} 1\n"), "{text}");
    let left = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{"))).unwrap();
        line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
    };
    assert!((590.0..=600.0).contains(&left("mecha_identity_certificate_seconds_left")));
    assert!((3590.0..=3600.0).contains(&left("mecha_identity_trust_anchors_seconds_left")));
    assert!(workload.live().identity().unwrap().not_after() > SystemTime::now());
}
