//! `mecha run` as a user meets it: order of start, output, ends of every kind, and nothing left behind.

use crate::support::{Place, Running, runs, signal, wait_until};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

fn record(place: &Place) -> Value {
    let files = place.run_files();
    assert_eq!(files.len(), 1, "{files:?}");
    serde_json::from_slice(&fs::read(&files[0]).unwrap()).unwrap()
}

fn pid(record: &Value, key: &str) -> i32 {
    i32::try_from(record[key].as_i64().unwrap()).unwrap()
}

#[test]
fn an_app_gets_its_sidecar_and_its_output_is_prefixed() {
    let place = Place::new();
    let script = r#"echo "id=$APP_ID port=$APP_PORT protocol=$APP_PROTOCOL"; echo "http=$DAPR_HTTP_ENDPOINT" >&2
        case "$DAPR_HTTP_ENDPOINT" in *":$DAPR_HTTP_PORT") ;; *) exit 9;; esac
        case "$DAPR_GRPC_ENDPOINT" in *":$DAPR_GRPC_PORT") ;; *) exit 8;; esac
        printf 'caf\351\n'; printf 'no newline'"#;
    let output = place
        .mecha(["run", "--app-id", "orders", "--app-port", "6001", "--app-protocol", "grpc", "--", "sh", "-c", script])
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert!(stdout.contains("== APP == id=orders port=6001 protocol=grpc\n"), "{stdout}");
    assert!(stdout.contains("== APP == http=http://127.0.0.1:"), "{stdout}");
    assert!(stdout.contains("== APP == no newline\n"), "{stdout}");
    assert!(output.stdout.windows(4).any(|bytes| bytes == b"caf\xe9"), "bytes pass as they are");
    assert!(!stdout.contains('\u{1b}'), "no colours without a terminal");
    assert!(stdout.contains("== SIDECAR == time=\"2026-01-01T00:00:00Z\" level=warning"), "{stdout}");
    assert!(!stdout.contains("level=info"), "the sidecar's chatter stays in its log: {stdout}");
    assert!(place.run_files().is_empty());
}

#[test]
fn without_resources_the_defaults_are_written_and_used() {
    let place = Place::new();
    let mut run = place.start(&["run", "-a", "orders", "--log-level", "info", "--", "sleep", "60"]);
    let arguments = run.wait_for("arguments: ");
    let home = place.home();
    assert!(arguments.contains(&format!("--resources-path {}", home.join("components").display())), "{arguments}");
    assert!(arguments.contains(&format!("--config {}", home.join("config.yaml").display())), "{arguments}");
    assert!(arguments.contains("--mecha-strict") && arguments.contains("--app-id orders"), "{arguments}");
    run.wait_for(&format!("MECHA_HOME={}", home.display()));
    run.wait_for(&format!("MECHA_NAME_REGISTRY={}", home.join("run/names.db").display()));
    run.wait_for("up and running");
    let record = record(&place);
    assert_eq!(record["appId"], "orders");
    assert_eq!(record["command"], serde_json::json!(["sleep", "60"]));
    assert_eq!(fs::metadata(&place.run_files()[0]).unwrap().permissions().mode() & 0o777, 0o600);
    for file in ["components/statestore.yaml", "components/pubsub.yaml"] {
        assert!(home.join(file).exists(), "{file}");
    }
    run.signal("TERM");
    assert_eq!(run.finish().0.code(), Some(0));
}

#[test]
fn resources_beside_the_app_are_used_when_none_are_named() {
    let place = Place::new();
    fs::create_dir_all(place.work().join(".dapr/resources")).unwrap();
    fs::write(place.work().join(".dapr/config.yaml"), "").unwrap();
    let output = place.ok(&["run", "-a", "orders", "--log-level", "info", "--", "true"]);
    let work = place.work().canonicalize().unwrap();
    assert!(output.contains(&format!("--resources-path {}", work.join(".dapr/resources").display())), "{output}");
    assert!(output.contains(&format!("--config {}", work.join(".dapr/config.yaml").display())), "{output}");
}

#[test]
fn the_exit_status_is_the_apps_and_its_crash_is_reported() {
    let place = Place::new();
    let output = place.output(&["run", "-a", "orders", "--", "sh", "-c", "echo almost; exit 3"]);
    assert_eq!(output.status.code(), Some(3));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("error[app-failed]: the app orders exited with status 3"), "{stderr}");
    let output = place.output(&["run", "-a", "orders", "--", "sh", "-c", "kill -9 $$"]);
    assert_eq!(output.status.code(), Some(137));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("ended by signal 9 (SIGKILL)"), "{stderr}");
}

#[test]
fn a_command_that_does_not_exist_starts_nothing() {
    let place = Place::new();
    let output = place.output(&["run", "-a", "orders", "--", "pyton3", "app.py"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("error[app-command]") && stderr.contains("pyton3"), "{stderr}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("starting the sidecar"));
}

#[test]
fn a_sidecar_that_does_not_start_is_explained_with_its_last_lines() {
    let place = Place::new();
    let output =
        place.mecha(["run", "-a", "orders", "--", "echo", "app ran"]).env("FAKE_SIDECAR", "crash").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("error[sidecar-start]") && stderr.contains("exited with status 7"), "{stderr}");
    assert!(stderr.contains("component X is broken"), "{stderr}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("app ran"));
}

#[test]
fn a_sidecar_that_never_gets_ready_is_given_up() {
    let place = Place::new();
    let output = place
        .mecha(["run", "-a", "orders", "--start-timeout-seconds", "1", "--", "true"])
        .env("FAKE_SIDECAR", "silent")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("was not ready within 1s") && stderr.contains("a warning of the sidecar"), "{stderr}");
}

#[test]
fn a_missing_sidecar_program_is_named_with_what_to_do() {
    let place = Place::new();
    let output =
        place.mecha(["run", "-a", "orders", "--", "true"]).env("MECHA_MECHAD", "/nowhere/mechad").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("error[no-sidecar]") && stderr.contains("MECHA_MECHAD"), "{stderr}");
}

#[test]
fn a_sidecar_that_crashes_takes_its_app_along() {
    let place = Place::new();
    let mut run = place.start(&["run", "-a", "orders", "--", "sleep", "60"]);
    run.wait_for("up and running");
    let app = pid(&record(&place), "appPid");
    signal(pid(&record(&place), "sidecarPid"), "KILL");
    let (status, output) = run.finish();
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("error[sidecar-crashed]") && output.contains("signal 9 (SIGKILL)"), "{output}");
    assert!(output.contains("a warning of the sidecar"), "its last lines: {output}");
    assert!(!runs(app));
}

#[test]
fn interrupting_lets_the_app_finish_and_ends_with_zero() {
    let place = Place::new();
    let script = "trap 'echo tidying; exit 0' INT; echo ready; while :; do sleep 0.05; done";
    let mut run = place.start(&["run", "-a", "orders", "--", "sh", "-c", script]);
    run.wait_for("== APP == ready");
    run.wait_for("up and running");
    let sidecar = pid(&record(&place), "sidecarPid");
    run.signal("INT");
    let (status, output) = run.finish();
    assert_eq!(status.code(), Some(0), "{output}");
    assert!(output.contains("== APP == tidying"), "{output}");
    assert!(!runs(sidecar));
    assert!(place.run_files().is_empty());
}

#[test]
fn an_app_that_ignores_the_end_is_killed_with_its_children() {
    let place = Place::new();
    let script = "trap '' INT TERM; sh -c 'trap \"\" INT TERM; echo child=$$; while :; do sleep 0.05; done' & while :; do sleep 0.05; done";
    let mut run = place.start(&["run", "-a", "orders", "--stop-grace-seconds", "1", "--", "sh", "-c", script]);
    let line = run.wait_for("child=");
    let child: i32 = line.trim().rsplit('=').next().unwrap().parse().unwrap();
    run.wait_for("up and running");
    run.signal("TERM");
    let (status, output) = run.finish();
    assert_eq!(status.code(), Some(0), "{output}");
    assert!(!runs(child));
}

#[test]
fn a_second_interrupt_ends_everything_at_once() {
    let place = Place::new();
    let script = "trap '' INT TERM; echo ready; while :; do sleep 0.05; done";
    let mut run = place.start(&["run", "-a", "orders", "--stop-grace-seconds", "600", "--", "sh", "-c", script]);
    run.wait_for("== APP == ready");
    run.wait_for("up and running");
    run.signal("INT");
    run.wait_for("once more");
    run.signal("INT");
    assert_eq!(run.finish().0.code(), Some(0));
}

#[test]
fn killing_mecha_leaves_no_orphan() {
    let place = Place::new();
    let script = "sh -c 'trap \"\" TERM; echo child=$$; while :; do sleep 0.05; done' & wait";
    let mut run = place.start(&["run", "-a", "orders", "--", "sh", "-c", script]);
    let line = run.wait_for("child=");
    let child: i32 = line.trim().rsplit('=').next().unwrap().parse().unwrap();
    run.wait_for("up and running");
    let record = record(&place);
    run.signal("KILL");
    for pid in [child, pid(&record, "appPid"), pid(&record, "sidecarPid")] {
        wait_until("everything ended", || !runs(pid));
    }
    assert_eq!(place.ok(&["list", "-o", "json"]).trim(), "[]", "the stale run file is swept");
    assert!(place.run_files().is_empty());
}

#[test]
fn a_reader_that_goes_away_ends_the_run() {
    let place = Place::new();
    let mut command = place.mecha(["run", "-a", "orders", "--", "sh", "-c", "while :; do echo x; sleep 0.05; done"]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    wait_until("the app runs", || !place.run_files().is_empty());
    drop(child.stdout.take());
    wait_until("mecha ended", || child.try_wait().unwrap().is_some());
    assert!(place.run_files().is_empty());
}

#[test]
fn a_run_under_nohup_outlives_its_terminal() {
    let place = Place::new();
    let mut command = std::process::Command::new("nohup");
    let run = place.mecha(["run", "-a", "orders", "--", "sleep", "60"]);
    command.arg(run.get_program()).args(run.get_args()).current_dir(place.work());
    command.envs(run.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let mut run = Running::start(command);
    run.wait_for("up and running");
    run.signal("HUP");
    run.signal("TERM");
    let (status, output) = run.finish();
    assert!(status.success(), "{output}");
    assert!(!output.contains("ending everything"), "the hangup counted: {output}");
}

#[test]
fn much_output_arrives_complete_and_in_order() {
    let place = Place::new();
    let script = "i=0; while [ $i -lt 20000 ]; do echo \"line $i of many\"; i=$((i+1)); done";
    let output = place.ok(&["run", "-a", "orders", "--", "sh", "-c", script]);
    let lines: Vec<&str> = output.lines().filter_map(|line| line.strip_prefix("== APP == line ")).collect();
    assert_eq!(lines.len(), 20_000);
    assert!(lines.iter().enumerate().all(|(n, line)| *line == format!("{n} of many")));
    let log = place.ok(&["logs", "orders", "-n", "1"]);
    assert_eq!(log, "line 19999 of many\n");
}

#[test]
fn a_sidecar_alone_runs_until_it_is_stopped() {
    let place = Place::new();
    let mut run = place.start(&["run", "--app-id", "tools"]);
    run.wait_for("without an app");
    run.signal("TERM");
    assert_eq!(run.finish().0.code(), Some(0));
}

#[test]
fn two_runs_at_once_get_different_ports() {
    let place = Place::new();
    let mut runs: Vec<Running> =
        (0..4).map(|n| place.start(&["run", "-a", &format!("app{n}"), "--", "sleep", "60"])).collect();
    for run in &mut runs {
        run.wait_for("up and running");
    }
    let list: Value = serde_json::from_str(&place.ok(&["list", "-o", "json"])).unwrap();
    let mut ports: Vec<i64> = list.as_array().unwrap().iter().map(|app| app["httpPort"].as_i64().unwrap()).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 4, "{list}");
    place.ok(&["stop", "--all"]);
    for run in runs {
        assert_eq!(run.finish().0.code(), Some(0));
    }
}

fn shop(place: &Place, stock: &str) {
    for app in ["orders", "stock"] {
        fs::create_dir_all(place.work().join(app)).unwrap();
    }
    let text = format!(
        "version: 1\ncommon:\n  env: {{ SHOP: books }}\napps:\n  - appID: orders\n    appDirPath: orders\n    \
         command: [\"sh\", \"-c\", \"echo shop=$SHOP in ${{PWD##*/}}; exec sleep 60\"]\n  - appDirPath: stock\n    \
         appPort: 6002\n    command: [\"sh\", \"-c\", {stock:?}]\n    appLogDestination: file\n"
    );
    fs::write(place.work().join("dapr.yaml"), text).unwrap();
}

#[test]
fn a_multi_app_file_runs_all_its_apps() {
    let place = Place::new();
    shop(&place, "echo hidden; exec sleep 60");
    let mut run = place.start(&["run", "-f", "."]);
    run.wait_for("== APP - orders == shop=books in orders");
    run.wait_for("orders is up and running");
    run.wait_for("stock is up and running");
    let list: Value = serde_json::from_str(&place.ok(&["list", "-o", "json"])).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 2, "{list}");
    assert!(list[0]["runFile"].as_str().unwrap().ends_with("/dapr.yaml"), "{list}");
    let logs = place.work().join("stock/.dapr/logs");
    let app_log = || {
        fs::read_dir(&logs)
            .unwrap()
            .flatten()
            .find(|entry| entry.file_name().to_string_lossy().starts_with("stock_app_"))
    };
    wait_until("the app's log file has its output", || {
        app_log().is_some_and(|entry| fs::read_to_string(entry.path()).unwrap() == "hidden\n")
    });
    assert_eq!(place.ok(&["logs", "stock"]), "hidden\n");

    place.ok(&["stop", "--app-id", "stock"]);
    let list: Value = serde_json::from_str(&place.ok(&["list", "-o", "json"])).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 1, "the others run on: {list}");
    place.ok(&["stop", "-f", "dapr.yaml"]);
    let (status, output) = run.finish();
    assert_eq!(status.code(), Some(0), "{output}");
    assert!(!output.contains("== APP - stock =="), "{output}");
}

#[test]
fn of_several_apps_the_first_failure_is_the_status_and_the_others_run_on() {
    let place = Place::new();
    shop(&place, "exit 5");
    let mut run = place.start(&["run", "-f", "dapr.yaml"]);
    run.wait_for("the app stock exited with status 5");
    run.wait_for("orders is up and running");
    run.signal("INT");
    assert_eq!(run.finish().0.code(), Some(5));
}

#[test]
fn a_broken_multi_app_file_starts_nothing() {
    let place = Place::new();
    fs::write(place.work().join("dapr.yaml"), "version: 1\napps:\n  - appDirPath: .\n    comand: [\"true\"]\n")
        .unwrap();
    let output = place.output(&["run", "-f", "."]);
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("dapr.yaml:4:5") && stderr.contains("did you mean 'command'?"), "{stderr}");
}
