//! The process: flags, exit codes, what it prints and where.

use std::process::{Command, Output};
use std::time::Duration;

use mecha_tests::{Sidecar, component, free_port, mechad};

/// Far more than any of these takes.
const SOON: Duration = Duration::from_secs(20);

/// Runs the binary to its end, with nothing in its environment.
fn run(args: &[&str]) -> Output {
    Command::new(mechad()).args(args).env_clear().current_dir(std::env::temp_dir()).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn version_and_build_info() {
    let version = run(&["--version"]);
    assert_eq!(version.status.code(), Some(0));
    let first = text(&version);
    let number = first.lines().next().unwrap();
    assert!(number == "edge" || number.starts_with("1.18."), "{first}");
    let info = run(&["--build-info"]);
    assert_eq!(info.status.code(), Some(0));
    let shown = text(&info);
    let starts: Vec<&str> = shown.lines().map(|line| line.split_inclusive(':').next().unwrap()).collect();
    assert_eq!(starts, ["Version:", "Git Commit:", "Git Version:"], "{shown}");
}

#[test]
fn help_lists_the_flags() {
    let help = text(&run(&["--help"]));
    for flag in
        ["--app-id", "--dapr-http-port", "--resources-path", "--config", "--mecha-strict", "--unix-domain-socket"]
    {
        assert!(help.contains(flag), "{flag} in\n{help}");
    }
}

#[test]
fn mistakes_on_the_command_line_are_told() {
    let cases: [(&[&str], &str); 10] = [
        (&["--app-id", "x", "--app-idd", "y"], "app-idd"),
        (&["--app-id", "x", "--dapr-http-port", "many"], "dapr-http-port"),
        (&["--app-id", "x", "--dapr-http-port", "70000"], "dapr-http-port"),
        (&["--app-id", "x", "--log-level", "loud"], "loud"),
        (&["--app-id", "x", "--app-protocol", "smtp"], "smtp"),
        (&["--app-id", "x", "--mode", "cloud"], "cloud"),
        (&["--app-id", "x", "--max-body-size", "big"], "max-body-size"),
        (&["--app-id", "x", "--enable-mtls=perhaps"], "perhaps"),
        (&[], "parameter app-id cannot be empty"),
        (&["--app-id", "a.b"], "app-id"),
    ];
    for (args, expected) in cases {
        let output = run(args);
        assert!(!output.status.success(), "{args:?}");
        assert!(output.status.code().is_some(), "{args:?} ended by a signal");
        let shown = text(&output);
        assert!(shown.contains(expected), "{args:?}: {shown}");
        assert!(!shown.contains("panicked"), "{args:?}: {shown}");
    }
    // A near miss gets a hint.
    assert!(text(&run(&["--app-idd", "x"])).contains("app-id"));
}

#[tokio::test]
async fn flags_are_taken_in_every_spelling() {
    let port = free_port();
    let sidecar = Sidecar::builder()
        .app_id("spelled")
        .without("dapr-http-port")
        .switch(&format!("dapr-http-port={port}"))
        .switch("log-as-json=true")
        .switch("enable-api-logging")
        .spawn();
    let client = mecha_tests::Http::tcp(port);
    mecha_tests::eventually("health", || async {
        client.get("/v1.0/healthz").try_send().await.ok().filter(|reply| reply.status == 204)
    })
    .await;
    // Lines are written in the background.
    let first =
        mecha_tests::eventually("a line in the log", || async { sidecar.log().lines().next().map(str::to_owned) });
    assert!(first.await.starts_with('{'), "{}", sidecar.log());
    let single = Command::new(mechad()).args(["-version"]).env_clear().output().unwrap();
    assert_eq!(single.status.code(), Some(0));
}

#[tokio::test]
async fn a_taken_port_is_a_clear_error_at_once() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for flag in ["dapr-http-port", "dapr-grpc-port", "dapr-internal-grpc-port", "metrics-port"] {
        let sidecar = Sidecar::builder().flag(flag, &port).spawn();
        let ended = sidecar.ended(SOON).await;
        assert_eq!(ended.code, Some(1), "{flag}: {}", ended.log);
        assert!(ended.log.contains(&port) && ended.log.contains(flag), "{flag}: {}", ended.log);
    }
}

#[tokio::test]
async fn the_app_s_port_must_be_another_one() {
    let port = free_port().to_string();
    let sidecar = Sidecar::builder().flag("app-port", &port).flag("dapr-http-port", &port).spawn();
    let ended = sidecar.ended(SOON).await;
    assert_ne!(ended.code, Some(0));
    assert!(ended.log.contains("app-port"), "{}", ended.log);
}

#[tokio::test]
async fn missing_documents_end_the_start() {
    let cases = [("config", "/nowhere/config.yaml"), ("resources-path", "/nowhere/resources")];
    for (flag, path) in cases {
        let ended = Sidecar::builder().flag(flag, path).spawn().ended(SOON).await;
        assert_eq!(ended.code, Some(1), "{flag}: {}", ended.log);
        assert!(ended.log.contains(path), "{flag}: {}", ended.log);
        assert!(ended.log.contains("level=fatal"), "{}", ended.log);
    }
}

#[tokio::test]
async fn a_component_that_fails_ends_a_bare_sidecar() {
    let broken = component("broken", "state.sqlite", &[]);
    let ended = Sidecar::builder().component(broken).spawn().ended(SOON).await;
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    for expected in [
        "Failed to init component broken (state.sqlite/v1): [INIT_COMPONENT_FAILURE]: initialization error occurred for \
         broken (state.sqlite/v1): ",
        "missing connection string",
        "process component broken error: ",
    ] {
        assert!(ended.log.contains(expected), "{expected:?} in\n{}", ended.log);
    }
}

#[tokio::test]
async fn unknown_types_are_named() {
    let cases = [
        ("state.nothing", "couldn't find state store state.nothing/v1"),
        ("pubsub.nothing", "couldn't find message bus pubsub.nothing/v1"),
        ("nonsense.thing", "incorrect type nonsense.thing"),
        ("workflow.mine", "workflow"),
    ];
    for (kind, expected) in cases {
        let ended = Sidecar::builder().component(component("c", kind, &[])).spawn().ended(SOON).await;
        assert_eq!(ended.code, Some(1), "{kind}: {}", ended.log);
        assert!(ended.log.contains(expected), "{kind}: {expected:?} in\n{}", ended.log);
    }
}

#[tokio::test]
async fn the_log_may_go_to_a_file() {
    let builder = Sidecar::builder();
    let file = builder.folder().join("daemon.log");
    std::fs::write(&file, "kept\n").unwrap();
    let sidecar = builder.flag("log-file", file.to_str().unwrap()).start().await;
    mecha_tests::eventually("the lines", || async {
        let written = std::fs::read_to_string(&file).unwrap();
        (written.starts_with("kept\n") && written.contains("dapr initialized")).then_some(())
    })
    .await;
    assert_eq!(sidecar.log(), "", "stdout stays empty");
}

#[tokio::test]
async fn it_listens_on_unix_sockets_instead_of_tcp() {
    let sidecar =
        Sidecar::builder().app_id("socketed").sockets().component(crate::support::memory_store("store")).start().await;
    let folder = sidecar.folder().join("sockets");
    for name in ["dapr-socketed-http.socket", "dapr-socketed-grpc.socket"] {
        assert!(folder.join(name).exists(), "{name}");
    }
    assert!(std::net::TcpStream::connect(("127.0.0.1", sidecar.http_port())).is_err());
    assert!(sidecar.log().contains("HTTP server listening on UNIX socket: "));
    for api in sidecar.apis().await {
        api.save("store", &[mecha_tests::Item::new("k", "1")]).await.unwrap();
        assert_eq!(api.get("store", "k").await.unwrap().unwrap().text(), "1");
    }
    let h2c = sidecar.http().speaking(mecha_tests::Protocol::H2c);
    h2c.get("/v1.0/healthz").send().await.expect(204);
    sidecar.signal(mecha_tests::Signal::Term);
    let copy = tempfile::tempdir().unwrap();
    // The files go with the process; look before the folder goes with the sidecar.
    mecha_tests::eventually("the sockets to go away", || async {
        (!folder.join("dapr-socketed-http.socket").exists()).then_some(())
    })
    .await;
    drop(copy);
    assert_eq!(sidecar.ended(SOON).await.code, Some(0));
}

#[tokio::test]
async fn wait_ends_when_the_sidecar_is_ready() {
    let sidecar = Sidecar::builder().start().await;
    let port = sidecar.http_port().to_string();
    let output = tokio::task::spawn_blocking(move || run(&["--app-id", "x", "--dapr-http-port", &port, "--wait"]));
    let output = output.await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
}

#[tokio::test]
async fn the_peer_port_is_the_same_after_a_restart() {
    let port = |log: &str| -> u16 {
        let line = log.lines().rev().find(|line| line.contains("Internal gRPC server is running on ")).unwrap();
        let rest = line.split("Internal gRPC server is running on ").nth(1).unwrap();
        rest.split('"').next().unwrap().rsplit(':').next().unwrap().parse().unwrap()
    };
    // Somebody else may hold the port of one id, which then gets any free one.
    for attempt in 0..5 {
        let id = format!("stable{attempt}");
        let mut sidecar = Sidecar::builder().app_id(&id).without("dapr-internal-grpc-port").start().await;
        let first = port(&sidecar.log());
        sidecar.kill().await;
        sidecar.again().await;
        if first >= 47300 && port(&sidecar.log()) == first {
            return;
        }
    }
    panic!("no id kept its port");
}

#[tokio::test]
async fn it_starts_quickly() {
    let begun = std::time::Instant::now();
    let _sidecar = Sidecar::builder().component(crate::support::memory_store("store")).start().await;
    // Far above what it takes, far below what a waiting loop somewhere would cost.
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}
