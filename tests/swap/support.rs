use std::path::PathBuf;
use std::time::{Duration, Instant};

use mecha_tests::{Http, Sidecar, eventually, wait_until};
use serde_json::Value;

/// Reached only when something is broken: servers start, brokers rebalance, machines are loaded.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Whether the long sizes run.
pub(crate) fn long() -> bool {
    std::env::var("MECHA_TEST_LONG").is_ok_and(|v| v == "1")
}

/// The documents of a running sidecar.
pub(crate) struct Documents {
    folder: PathBuf,
}

impl Documents {
    pub(crate) fn of(sidecar: &Sidecar) -> Self {
        Self { folder: sidecar.resources() }
    }

    /// Writes a document as an editor does that writes a file beside it and renames it.
    pub(crate) fn write(&self, file: &str, text: &str) {
        let beside = self.folder.join(format!(".{file}.new"));
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(beside, self.folder.join(file)).unwrap();
    }

    pub(crate) fn remove(&self, file: &str) {
        std::fs::remove_file(self.folder.join(file)).unwrap();
    }
}

/// What the sidecar says of changes.
pub(crate) async fn swaps(http: &Http) -> Value {
    http.get("/v1.0-mecha/swaps").send().await.expect(200).json()
}

/// Number of the latest change.
pub(crate) async fn generation(http: &Http) -> u64 {
    swaps(http).await["generation"].as_u64().unwrap()
}

/// The first receipt after `generation` of this document that is not a draining one.
pub(crate) async fn ended(http: &Http, generation: u64, kind: &str, name: &str) -> Value {
    // An old broker is read for a while.
    let deadline = Instant::now() + LIMIT * 3;
    loop {
        let all = swaps(http).await;
        match receipt(&all, generation, kind, name) {
            Some(receipt) if receipt["outcome"] != "draining" => return receipt,
            _ if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(20)).await,
            _ => panic!("waited for the end of a change of {kind} {name} after generation {generation}: {all:#}"),
        }
    }
}

/// The first receipt after `generation` of this document, and how long after the call it was seen.
pub(crate) async fn switched(http: &Http, generation: u64, kind: &str, name: &str) -> (Value, Duration) {
    let began = Instant::now();
    let what = format!("a change of {kind} {name} after generation {generation}");
    let found = eventually(&what, async || receipt(&swaps(http).await, generation, kind, name)).await;
    (found, began.elapsed())
}

fn receipt(swaps: &Value, generation: u64, kind: &str, name: &str) -> Option<Value> {
    let all = swaps["swaps"].as_array().unwrap();
    let mine = |r: &&Value| r["generation"].as_u64() > Some(generation) && r["kind"] == kind && r["name"] == name;
    all.iter().find(mine).cloned()
}

/// Waits until the sidecar says that a document is refused, and returns why.
pub(crate) async fn refused(http: &Http, kind: &str, name: &str) -> String {
    eventually(&format!("{kind} {name} to be refused"), async || {
        let health = http.get("/v1.0-mecha/phase").send().await.expect(200).json();
        let all = health["refused"].as_array().unwrap().clone();
        let one = all.into_iter().find(|r| r["kind"] == kind && r["name"] == name)?;
        Some(one["reason"].as_str().unwrap().to_owned())
    })
    .await
}

/// Waits until nothing is refused any more.
pub(crate) async fn nothing_refused(http: &Http) {
    wait_until(LIMIT, "every document to be in force", async || {
        http.get("/v1.0-mecha/phase").send().await.expect(200).json()["refused"] == serde_json::json!([])
    })
    .await;
}

/// Value of a series, summed over the label sets that hold every one of `labels`.
pub(crate) async fn metric(sidecar: &Sidecar, name: &str, labels: &[&str]) -> f64 {
    let text = sidecar.metrics().await;
    let lines = text.lines().filter(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    lines
        .filter(|l| labels.iter().all(|label| l.contains(label)))
        .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}
