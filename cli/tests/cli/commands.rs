//! The commands that talk to a running sidecar, and the ones that need none.

use crate::support::{Place, Running};
use serde_json::{Value, json};
use std::fs;

/// An app called `orders` that runs.
fn orders() -> (Place, Running) {
    let place = Place::new();
    let mut run = place.start(&["run", "--app-id", "orders", "--", "sh", "-c", "echo hello; exec sleep 60"]);
    run.wait_for("up and running");
    (place, run)
}

#[test]
fn list_shows_what_runs_in_every_format() {
    let (place, mut run) = orders();
    run.wait_for("== APP == hello");
    let table = place.ok(&["list"]);
    assert!(table.starts_with("APP ID") && table.contains("\norders"), "{table}");
    let json: Value = serde_json::from_str(&place.ok(&["list", "-o", "json"])).unwrap();
    assert_eq!(json[0]["appId"], "orders");
    let yaml: Value = serde_saphyr::from_str(&place.ok(&["list", "-o", "yaml"])).unwrap();
    assert_eq!(yaml, json);
    assert_eq!(place.ok(&["logs", "--app-id", "orders", "--tail", "1"]), "hello\n");
    assert!(place.ok(&["logs", "orders", "--sidecar"]).contains("--app-id orders"));

    assert_eq!(place.ok(&["stop", "--app-id", "orders"]), "stopped orders\n");
    assert_eq!(run.finish().0.code(), Some(0));
    assert_eq!(place.ok(&["list"]), "nothing runs here\n");
    assert_eq!(place.ok(&["logs", "orders"]), "hello\n", "also after the end");
    let output = place.output(&["stop", "orders"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("error[app-not-running]"));
}

#[test]
fn a_wrong_flag_is_not_taken_for_the_apps_command() {
    let place = Place::new();
    for args in [&["run", "--app-idd", "orders", "--", "true"][..], &["run", "--nope"]] {
        let output = place.output(args);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("unexpected argument") && text.contains(args[1]), "{text}");
    }
    // What follows the command is the command's, with and without the two dashes.
    for args in
        [&["run", "-a", "x", "sh", "-c", "exit 3", "--app-idd"][..], &["run", "-a", "x", "--", "sh", "-c", "exit 3"]]
    {
        assert_eq!(place.output(args).status.code(), Some(3), "{args:?}");
    }
}

#[test]
fn following_a_log_ends_with_the_app() {
    let place = Place::new();
    let script = "echo one; while [ ! -e go ]; do sleep 0.02; done; echo two";
    let mut run = place.start(&["run", "-a", "orders", "--", "sh", "-c", script]);
    run.wait_for("up and running");
    let mut logs = place.start(&["logs", "orders", "--follow"]);
    logs.wait_for("one");
    fs::write(place.work().join("go"), "").unwrap();
    logs.wait_for("two");
    assert!(logs.finish().0.success());
    assert!(run.finish().0.success());
}

#[test]
fn invoke_passes_verb_path_headers_and_body() {
    let (place, _run) = orders();
    let answer = place.ok(&["invoke", "--app-id", "orders", "--method", "a/b?x=1", "--verb", "get"]);
    assert!(answer.starts_with("GET /v1.0/invoke/orders/method/a/b?x=1 "), "{answer}");
    let answer = place.ok(&["invoke", "-a", "orders", "-m", "pay", "-d", "{\"n\":1}", "--header", "x-tenant: blue"]);
    assert!(answer.contains("POST /v1.0/invoke/orders/method/pay content-type=application/json"), "{answer}");
    assert!(answer.contains("x-tenant=blue body={\"n\":1}"), "{answer}");
    fs::write(place.work().join("body"), "plain").unwrap();
    let command = ["invoke", "-a", "orders", "-m", "pay", "-f", "body"];
    let answer = place.mecha(command).env("DAPR_API_TOKEN", "secret").output().unwrap();
    let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(
        answer.contains("content-type=text/plain dapr-api-token=secret") && answer.contains("body=plain"),
        "{answer}"
    );

    let output = place.output(&["invoke", "-a", "ordres", "-m", "x"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("did you mean \"orders\"?"), "{stderr}");
}

#[test]
fn publish_goes_through_the_apps_sidecar() {
    let (place, run) = orders();
    let command = ["publish", "-i", "orders", "-p", "pubsub", "-t", "placed", "-d", "{\"id\":1}"];
    assert_eq!(place.ok(&command), "published to placed of pubsub\n");
    let output = place.output(&[&command[..], &["--metadata", "{"]].concat());
    assert_eq!(output.status.code(), Some(2));
    drop(run);
}

#[test]
fn state_is_read_and_written() {
    let (place, _run) = orders();
    assert_eq!(place.ok(&["state", "get", "--app-id", "orders", "known"]), "{\"a\":1}");
    let json: Value =
        serde_json::from_str(&place.ok(&["state", "get", "-a", "orders", "known", "-o", "json"])).unwrap();
    assert_eq!(json, json!({ "key": "known", "value": { "a": 1 }, "etag": "\"7\"" }));
    let output = place.output(&["state", "get", "-a", "orders", "unknown"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("error[no-value]"));
    let output = place.output(&["state", "get", "-a", "orders", "-s", "nowhere", "known"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("ERR_STATE_STORE_NOT_FOUND: state store nowhere is not found"), "{stderr}");
    assert_eq!(place.ok(&["state", "set", "-a", "orders", "k", "v", "--ttl", "1m"]), "stored k\n");
    assert_eq!(place.ok(&["state", "delete", "-a", "orders", "k", "--etag", "7"]), "deleted k\n");
}

#[test]
fn components_and_metadata_are_shown() {
    let (place, _run) = orders();
    let table = place.ok(&["components"]);
    assert!(table.contains("orders  statestore  state.sqlite  v1       ETAG,TTL"), "{table}");
    let json: Value = serde_json::from_str(&place.ok(&["components", "-a", "orders", "-o", "json"])).unwrap();
    assert_eq!(json[0]["type"], "state.sqlite");
    assert_eq!(place.ok(&["components", "-n", "other", "-o", "json"]).trim(), "[]");
    let yaml: Value = serde_saphyr::from_str(&place.ok(&["metadata", "-a", "orders", "-o", "yaml"])).unwrap();
    assert_eq!(yaml["runtimeVersion"], "1.18.0");
}

#[test]
fn a_sidecar_that_mecha_did_not_start_is_reached_by_its_port() {
    let (place, _run) = orders();
    let list: Value = serde_json::from_str(&place.ok(&["list", "-o", "json"])).unwrap();
    let port = list[0]["httpPort"].to_string();
    let answer = place.ok(&["invoke", "-a", "elsewhere", "-m", "x", "--dapr-http-port", &port]);
    assert!(answer.starts_with("POST /v1.0/invoke/elsewhere/method/x"), "{answer}");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let output = place.output(&["metadata", "--dapr-http-port", &free]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("error[sidecar-unreachable]"));
}

#[test]
fn lint_names_every_slip_with_its_line() {
    let place = Place::new();
    let folder = place.work().join("components");
    fs::create_dir(&folder).unwrap();
    let component = |extra: &str| {
        format!(
            "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata:\n  name: store\nspec:\n  type: state.in-memory\n  \
             version: v1\n{extra}"
        )
    };
    fs::write(folder.join("a.yaml"), component("")).unwrap();
    assert_eq!(place.ok(&["lint", "components"]), "no findings in 1 documents\n");
    fs::write(folder.join("b.yaml"), component("  metdata: []\n")).unwrap();
    let output = place.output(&["lint", "components", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let slip = findings.iter().find(|finding| finding["line"] == 8).unwrap_or_else(|| panic!("{findings:?}"));
    assert_eq!(slip["suggestion"], "metadata");
    let twice = findings.iter().find(|finding| finding["path"] == "metadata.name");
    assert!(twice.is_some_and(|finding| finding["file"] == "components/b.yaml"), "{findings:?}");

    fs::write(place.work().join("dapr.yaml"), "version: 1\napps:\n  - appDirPath: .\n    apPort: 1\n").unwrap();
    let output = place.output(&["lint", "dapr.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("error: dapr.yaml:4:5: apps[0].apPort") && text.contains("did you mean 'appPort'?"),
        "{text}"
    );
    let output = place.output(&["lint", "nowhere.yaml"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn version_doctor_completion_and_help_need_nothing_running() {
    let place = Place::new();
    let version: Value = serde_json::from_str(&place.ok(&["version", "-o", "json"])).unwrap();
    assert_eq!(version["mecha"], env!("CARGO_PKG_VERSION"));
    assert_eq!(version["mechad"], "1.18.0-fake");
    let doctor = place.ok(&["doctor"]);
    assert!(doctor.contains("sidecar program") && !doctor.contains("failed"), "{doctor}");
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(place.ok(&["completion", shell]).contains("mecha"), "{shell}");
    }
    for command in [
        "run",
        "list",
        "stop",
        "logs",
        "invoke",
        "publish",
        "state",
        "components",
        "metadata",
        "lint",
        "version",
        "completion",
    ] {
        let help = place.ok(&[command, "--help"]);
        assert!(help.contains("Example"), "{command} --help shows no example:\n{help}");
    }
    let output = place.output(&["lsit"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("'list'"), "{output:?}");
}
