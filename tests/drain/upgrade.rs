//! `mecha upgrade`: the sidecar of a running `mecha run` is replaced, the run goes on.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use mecha_tests::{HttpApp, eventually, mechad};
use parking_lot::Mutex;
use serde_json::Value;

use crate::load::{Ask, Load, To};

/// `mecha` of the same build as the sidecar, else one that cargo builds.
fn mecha() -> PathBuf {
    if let Some(named) = std::env::var_os("MECHA").filter(|named| !named.is_empty()) {
        return named.into();
    }
    let beside = mechad().with_file_name("mecha");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--package", "mecha", "--bin", "mecha"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .unwrap();
    assert!(built.success() && beside.is_file(), "`cargo build -p mecha` gave no {}", beside.display());
    beside
}

struct Run {
    child: Child,
    home: PathBuf,
    output: Arc<Mutex<String>>,
}

impl Run {
    fn start(folder: &Path, app: &HttpApp) -> Self {
        let home = folder.join("home");
        let mut child = command(&home)
            .args(["run", "--app-id", "orders", "--app-port", &app.port().to_string()])
            .current_dir(folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = Arc::new(Mutex::new(String::new()));
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        for stream in [Box::new(stdout) as Box<dyn std::io::Read + Send>, Box::new(stderr)] {
            let output = Arc::clone(&output);
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    output.lock().push_str(&(line + "\n"));
                }
            });
        }
        Self { child, home, output }
    }

    async fn record(&self) -> Value {
        eventually("the run file", || async {
            let entries = std::fs::read_dir(self.home.join("run")).ok()?;
            let file = entries.flatten().find(|e| e.path().extension().is_some_and(|e| e == "json"))?;
            serde_json::from_slice(&std::fs::read(file.path()).ok()?).ok()
        })
        .await
    }

    fn mecha(&self, args: &[&str]) -> Output {
        command(&self.home).args(args).output().unwrap()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- mecha run ---\n{}---", self.output.lock());
        }
    }
}

fn command(home: &Path) -> Command {
    let mut command = Command::new(mecha());
    command.env("MECHA_HOME", home).env("MECHA_MECHAD", mechad()).env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mecha_upgrade_replaces_a_sidecar_under_load() {
    let folder = tempfile::tempdir().unwrap();
    let app = HttpApp::builder().start().await;
    let mut run = Run::start(folder.path(), &app);
    let before = run.record().await;
    let port = u16::try_from(before["httpPort"].as_u64().unwrap()).unwrap();
    let mut load = Load::default();
    let ask = Ask::get("/v1.0/state/statestore/none", 204);
    load.keep_alive("kept", To::Tcp(port), Duration::from_millis(5), vec![ask.clone()]);
    load.fresh("new", To::Tcp(port), Duration::from_millis(5), ask);
    load.progress(20).await;

    let upgraded = run.mecha(&["upgrade", "orders"]);
    assert!(upgraded.status.success(), "{}", text(&upgraded));
    assert!(text(&upgraded).contains("upgraded orders: process"), "{}", text(&upgraded));
    let after = run.record().await;
    assert_ne!(after["sidecarPid"], before["sidecarPid"]);
    load.progress(20).await;

    // A program that is no sidecar changes nothing.
    let broken = run.mecha(&["upgrade", "orders", "--mechad", "/bin/false"]);
    assert_eq!(broken.status.code(), Some(1), "{}", text(&broken));
    assert!(text(&broken).contains("the new sidecar of orders exited with status 1"), "{}", text(&broken));
    assert_eq!(run.record().await["sidecarPid"], after["sidecarPid"]);
    load.progress(20).await;
    load.finish().await;
    assert!(run.child.try_wait().unwrap().is_none(), "the run goes on");

    let stopped = run.mecha(&["stop", "orders"]);
    assert!(stopped.status.success(), "{}", text(&stopped));
    assert_eq!(run.child.wait().unwrap().code(), Some(0));
    assert!(
        std::fs::read_dir(run.home.join("run"))
            .unwrap()
            .flatten()
            .all(|e| { !e.file_name().to_string_lossy().starts_with("orders-") })
    );
}

#[test]
fn what_does_not_run_cannot_be_upgraded() {
    let folder = tempfile::tempdir().unwrap();
    let output = command(folder.path()).args(["upgrade", "orders"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("no app with the id \"orders\" runs here"), "{}", text(&output));
}
