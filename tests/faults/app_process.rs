//! An app in a process of its own, so that it can be killed.
//!
//! It writes a line to its file for each event it gets and another one before it answers: what is in the
//! file survives kill -9.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mecha_tests::{Answer, Call, EventLedger, HttpApp, free_port, wait_until};
use serde_json::json;

use crate::load::{NAME, ROUTE, TOPIC};

/// Tells this program that it is the app; the value is its port.
const PORT: &str = "FAULTS_APP_PORT";
const JOURNAL: &str = "FAULTS_APP_JOURNAL";
const DEAD_LETTERS: &str = "FAULTS_APP_DEAD_LETTERS";
/// The dead-letter topic and where the app gets what is in it.
const DEAD: &str = "dead";
const DEAD_ROUTE: &str = "/dead";
/// How long an event takes.
const WORK: Duration = Duration::from_millis(40);
const START: Duration = Duration::from_secs(30);

/// The app as its starter sees it.
pub(crate) struct App {
    port: u16,
    journal: PathBuf,
    dead_letters: bool,
    process: Option<(Child, ChildStdin)>,
}

/// If this process is to be the app: runs until the starter is gone.
pub(crate) fn main() -> Option<ExitCode> {
    let port = std::env::var(PORT).ok()?.parse().unwrap();
    let journal = PathBuf::from(std::env::var_os(JOURNAL).unwrap());
    let dead_letters = std::env::var_os(DEAD_LETTERS).is_some();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let _app = start(port, &journal, dead_letters).await;
        // Ends with the starter, which holds the other end.
        let _ = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await;
    });
    Some(ExitCode::SUCCESS)
}

async fn start(port: u16, journal: &Path, dead_letters: bool) -> HttpApp {
    let note: Arc<dyn Fn(&str) + Send + Sync> = {
        let file = open(journal);
        let me = std::process::id();
        // One write per line: appending is atomic, whoever else writes.
        Arc::new(move |text: &str| (&file).write_all(format!("{text} {me}\n").as_bytes()).unwrap())
    };
    let mut subscription = json!({"pubsubname": NAME, "topic": TOPIC, "route": ROUTE});
    let mut subscriptions = Vec::new();
    if dead_letters {
        subscription["deadLetterTopic"] = DEAD.into();
        subscriptions.push(json!({"pubsubname": NAME, "topic": DEAD, "route": DEAD_ROUTE}));
    }
    subscriptions.push(subscription);
    let (buried, number) = (Arc::clone(&note), AtomicUsize::new(0));
    HttpApp::builder()
        .port(port)
        .subscribe(&json!(subscriptions))
        .on_call(&format!("POST {ROUTE}"), move |call: Call| {
            let (note, number) = (Arc::clone(&note), number.fetch_add(1, Ordering::Relaxed));
            async move {
                let id = call.json()["data"].to_string();
                note(&format!("got {id} {number}"));
                tokio::time::sleep(WORK).await;
                note(&format!("done {id} {number}"));
                Answer::status(200)
            }
        })
        .on_call(&format!("POST {DEAD_ROUTE}"), move |call: Call| {
            buried(&format!("dead {} 0", call.json()["data"]));
            async { Answer::status(200) }
        })
        .start()
        .await
}

fn open(journal: &Path) -> File {
    OpenOptions::new().append(true).create(true).open(journal).unwrap()
}

impl App {
    /// One that is not running yet.
    pub(crate) fn new(folder: &Path, dead_letters: bool) -> Self {
        let journal = folder.join("journal");
        open(&journal);
        Self { port: free_port(), journal, dead_letters, process: None }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Starts it and waits until it listens.
    pub(crate) async fn start(&mut self) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(PORT, self.port.to_string()).env(JOURNAL, &self.journal).stdin(Stdio::piped());
        if self.dead_letters {
            command.env(DEAD_LETTERS, "yes");
        }
        let mut child = command.spawn().unwrap();
        let leash = child.stdin.take().unwrap();
        self.process = Some((child, leash));
        let port = self.port;
        wait_until(START, "the app to listen", || async {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
    }

    /// Ends it without notice.
    pub(crate) fn kill(&mut self) {
        if let Some((mut child, _)) = self.process.take() {
            child.kill().unwrap();
            child.wait().unwrap();
            open(&self.journal).write_all(b"fault 0 0 0\n").unwrap();
        }
    }

    fn lines(&self) -> Vec<[String; 4]> {
        let text = std::fs::read_to_string(&self.journal).unwrap();
        let words = text.lines().map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        words.map(|words| <[String; 4]>::try_from(words).unwrap()).collect()
    }

    fn count(&self, what: &str) -> usize {
        self.lines().iter().filter(|[kind, ..]| kind == what).count()
    }

    /// Events that it got so far, how often they may have come.
    pub(crate) fn got(&self) -> usize {
        self.count("got")
    }

    /// Events that it was in the middle of.
    pub(crate) fn in_hand(&self) -> usize {
        self.got() - self.count("done")
    }

    /// Dead letters that it got.
    pub(crate) fn dead(&self) -> usize {
        self.count("dead")
    }

    /// Whether it has handled this event.
    pub(crate) fn has_done(&self, id: &str) -> bool {
        self.lines().iter().any(|[kind, of, ..]| kind == "done" && of == id)
    }

    /// Puts everything it did into the ledger.
    pub(crate) fn tell(&self, ledger: &EventLedger) {
        let lines = self.lines();
        for [kind, id, number, process] in &lines {
            match kind.as_str() {
                "fault" => ledger.fault(),
                "got" => {
                    let end = ["done", id, number, process];
                    ledger.delivered(id, lines.iter().any(|line| line.each_ref().map(String::as_str) == end));
                }
                _ => {}
            }
        }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        if let Some((child, _)) = &mut self.process {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
