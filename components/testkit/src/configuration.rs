//! Cases of [`ConfigurationStore`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use mecha_components_api::{CancellationToken, Changes, ConfigItem, ConfigurationStore, Metadata, Result};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::case::{Case, Failure, Outcome, PATIENCE, check, check_eq, fresh_name, table};

/// Time in which something that must not happen would have happened.
const QUIET: Duration = Duration::from_millis(300);
/// How often the probe of a new watch is written.
const PROBE_EVERY: Duration = Duration::from_millis(50);

/// What a configuration store declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigurationProfile {
    /// Every single change reaches a watcher, not only the last of several.
    pub every_change: bool,
}

/// A store, and a way to change what it holds.
#[async_trait]
pub trait ConfigurationBench: Send + Sync + 'static {
    /// The store.
    fn store(&self) -> Arc<dyn ConfigurationStore>;

    /// Writes a key the way the store's users do.
    async fn put(&self, key: &str, value: &str, version: &str) -> Outcome;

    /// Removes a key.
    async fn remove(&self, key: &str) -> Outcome;
}

/// All cases.
pub const CASES: &[Case<dyn ConfigurationBench, ConfigurationProfile>] = table![Desk::new;
    a_value_is_read_with_its_version: any,
    an_absent_key_is_left_out: any,
    named_keys_alone_are_read: any,
    no_names_mean_all_keys: any,
    text_is_read_exactly: any,
    a_removed_key_is_left_out: any,
    a_watch_sends_no_snapshot: any,
    a_change_reaches_the_watcher: any,
    a_new_key_reaches_the_watcher: any,
    a_removed_key_is_an_empty_item: any,
    a_key_that_comes_back_reaches_the_watcher: any,
    other_keys_do_not_reach_the_watcher: any,
    a_watch_of_all_keys_sees_new_ones: any,
    a_change_is_sent_once: any,
    the_last_of_many_changes_arrives: any,
    versions_never_go_back: any,
    no_change_is_skipped: |p| p.every_change,
    every_watcher_gets_the_change: any,
    a_slow_receiver_gets_the_last_value: any,
    a_stopped_watch_ends: any,
    a_watch_without_receiver_ends: any,
];

fn any(_: &ConfigurationProfile) -> bool {
    true
}

/// A bench, and keys that nobody else uses.
struct Desk {
    bench: Arc<dyn ConfigurationBench>,
    prefix: String,
}

/// A running watch that is known to be in place.
struct Watching {
    prefix: String,
    changes: mpsc::Receiver<Changes>,
    stop: CancellationToken,
    task: JoinHandle<Result<()>>,
}

impl Desk {
    fn new(bench: Arc<dyn ConfigurationBench>) -> Self {
        Self { bench, prefix: format!("{}-", fresh_name()) }
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    async fn put(&self, name: &str, value: &str, version: u32) -> Outcome {
        self.bench.put(&self.key(name), value, &version.to_string()).await
    }

    async fn remove(&self, name: &str) -> Outcome {
        self.bench.remove(&self.key(name)).await
    }

    /// Name, value and version of the keys.
    async fn get(&self, names: &[&str]) -> Result<BTreeMap<String, (String, String)>> {
        let keys: Vec<String> = names.iter().map(|n| self.key(n)).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let found = self.bench.store().get(&keys, &Metadata::new()).await?;
        Ok(mine(&self.prefix, found))
    }

    /// A watch of these keys, of all when there are none.
    async fn watch(&self, names: &[&str]) -> Result<Watching, Failure> {
        self.watch_with_room(names, 64).await
    }

    async fn watch_with_room(&self, names: &[&str], room: usize) -> Result<Watching, Failure> {
        let (out, changes) = mpsc::channel(room);
        let stop = CancellationToken::new();
        // Nothing says that a watch is in place, so a key of its own is written until that is seen.
        let probe = format!("probe-{}", fresh_name());
        let mut keys: Vec<String> = names.iter().map(|n| self.key(n)).collect();
        if !keys.is_empty() {
            keys.push(self.key(&probe));
        }
        let task = tokio::spawn({
            let (store, stop) = (self.bench.store(), stop.clone());
            async move { store.watch(keys, Metadata::new(), out, stop).await }
        });
        let mut watching = Watching { prefix: self.prefix.clone(), changes, stop, task };
        let deadline = Instant::now() + PATIENCE;
        let mut version = 0;
        loop {
            version += 1;
            self.put(&probe, &version.to_string(), version).await?;
            let key = self.key(&probe);
            let waited = tokio::time::timeout(PROBE_EVERY, async {
                while let Some(changes) = watching.changes.recv().await {
                    if changes.get(&key).is_some_and(|item| item.value == version.to_string()) {
                        return true;
                    }
                }
                false
            });
            match waited.await {
                Ok(true) => return Ok(watching),
                Ok(false) => return Err(Failure::new(format!("the watch ended: {:?}", watching.task.await))),
                Err(_) if Instant::now() < deadline => {}
                Err(_) => return Err(Failure::new("the watch was never in place")),
            }
        }
    }
}

/// The entries below `prefix`, without it and without probes.
fn mine(prefix: &str, found: Changes) -> BTreeMap<String, (String, String)> {
    let mine = found.into_iter().filter_map(|(key, item)| {
        let name = key.strip_prefix(prefix).filter(|n| !n.starts_with("probe-"))?.to_owned();
        let ConfigItem { value, version, .. } = item;
        Some((name, (value, version)))
    });
    mine.collect()
}

impl Watching {
    /// The next change of the case's keys.
    async fn next(&mut self) -> Result<BTreeMap<String, (String, String)>, Failure> {
        self.next_within(PATIENCE).await?.ok_or_else(|| Failure::new(format!("no change within {PATIENCE:?}")))
    }

    /// The next change of the case's keys, if there is one in time.
    async fn next_within(&mut self, within: Duration) -> Result<Option<BTreeMap<String, (String, String)>>, Failure> {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            match tokio::time::timeout_at(deadline, self.changes.recv()).await {
                Ok(Some(changes)) => {
                    let mine = mine(&self.prefix, changes);
                    if !mine.is_empty() {
                        return Ok(Some(mine));
                    }
                }
                Ok(None) => return Err(Failure::new("the watch ended by itself")),
                Err(_) => return Ok(None),
            }
        }
    }

    async fn nothing_more(&mut self) -> Outcome {
        let more = self.next_within(QUIET).await?;
        check!(more.is_none(), "another change: {more:?}");
        Ok(())
    }

    /// Waits until `name` has this value, and gives all values it had on the way.
    async fn until(&mut self, name: &str, value: &str) -> Result<Vec<(String, String)>, Failure> {
        let mut seen = Vec::new();
        loop {
            if let Some(item) = self.next().await?.remove(name) {
                let done = item.0 == value;
                seen.push(item);
                if done {
                    return Ok(seen);
                }
            }
        }
    }

    async fn stop(self) -> Outcome {
        self.stop.cancel();
        ended(self.task).await
    }
}

async fn ended(task: JoinHandle<Result<()>>) -> Outcome {
    match tokio::time::timeout(Duration::from_secs(10), task).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(e))) => Err(Failure::new(format!("the watch ended with {e}"))),
        Ok(Err(e)) => Err(Failure::new(format!("the watch panicked: {e}"))),
        Err(_) => Err(Failure::new("the watch did not end")),
    }
}

fn one(name: &str, value: &str, version: &str) -> BTreeMap<String, (String, String)> {
    BTreeMap::from([(name.to_owned(), (value.to_owned(), version.to_owned()))])
}

async fn a_value_is_read_with_its_version(d: Desk) -> Outcome {
    d.put("k", "on", 3).await?;
    check_eq!(d.get(&["k"]).await?, one("k", "on", "3"), "key");
    Ok(())
}

async fn an_absent_key_is_left_out(d: Desk) -> Outcome {
    d.put("k", "on", 1).await?;
    check_eq!(d.get(&["absent"]).await?, BTreeMap::new(), "absent key");
    check_eq!(d.get(&["absent", "k"]).await?, one("k", "on", "1"), "absent key beside another");
    Ok(())
}

async fn named_keys_alone_are_read(d: Desk) -> Outcome {
    for name in ["k", "k2", "K"] {
        d.put(name, name, 1).await?;
    }
    check_eq!(d.get(&["k"]).await?, one("k", "k", "1"), "one of several keys");
    Ok(())
}

async fn no_names_mean_all_keys(d: Desk) -> Outcome {
    for name in ["a", "b", "c"] {
        d.put(name, name, 1).await?;
    }
    let names: Vec<String> = d.get(&[]).await?.into_keys().collect();
    check_eq!(names, ["a", "b", "c"], "keys of the case");
    Ok(())
}

async fn text_is_read_exactly(d: Desk) -> Outcome {
    for text in ["", " ", "é漢🦀", "a|b", "{\"a\": 1}", "line\nline", "it's \"quoted\""] {
        d.put("k", text, 1).await?;
        check_eq!(d.get(&["k"]).await?, one("k", text, "1"), "value");
    }
    Ok(())
}

async fn a_removed_key_is_left_out(d: Desk) -> Outcome {
    d.put("k", "on", 1).await?;
    d.remove("k").await?;
    check_eq!(d.get(&["k"]).await?, BTreeMap::new(), "removed key");
    Ok(())
}

async fn a_watch_sends_no_snapshot(d: Desk) -> Outcome {
    d.put("k", "on", 1).await?;
    let mut watching = d.watch(&["k"]).await?;
    watching.nothing_more().await?;
    watching.stop().await
}

async fn a_change_reaches_the_watcher(d: Desk) -> Outcome {
    d.put("k", "on", 1).await?;
    let mut watching = d.watch(&["k", "other"]).await?;
    d.put("k", "off", 2).await?;
    check_eq!(watching.next().await?, one("k", "off", "2"), "change");
    watching.stop().await
}

async fn a_new_key_reaches_the_watcher(d: Desk) -> Outcome {
    let mut watching = d.watch(&["k"]).await?;
    d.put("k", "on", 1).await?;
    check_eq!(watching.next().await?, one("k", "on", "1"), "change");
    watching.stop().await
}

async fn a_removed_key_is_an_empty_item(d: Desk) -> Outcome {
    d.put("k", "on", 1).await?;
    let mut watching = d.watch(&["k"]).await?;
    d.remove("k").await?;
    check_eq!(watching.next().await?, one("k", "", ""), "change");
    watching.stop().await
}

async fn a_key_that_comes_back_reaches_the_watcher(d: Desk) -> Outcome {
    d.put("k", "on", 1).await?;
    let mut watching = d.watch(&["k"]).await?;
    d.remove("k").await?;
    watching.next().await?;
    d.put("k", "on", 1).await?;
    check_eq!(watching.next().await?, one("k", "on", "1"), "change");
    watching.stop().await
}

async fn other_keys_do_not_reach_the_watcher(d: Desk) -> Outcome {
    let mut watching = d.watch(&["k"]).await?;
    for name in ["k2", "K", "kk", "k*", ""] {
        d.put(name, "x", 1).await?;
    }
    d.put("k", "on", 1).await?;
    check_eq!(watching.next().await?, one("k", "on", "1"), "change");
    watching.nothing_more().await?;
    watching.stop().await
}

async fn a_watch_of_all_keys_sees_new_ones(d: Desk) -> Outcome {
    let mut watching = d.watch(&[]).await?;
    d.put("new", "on", 1).await?;
    check_eq!(watching.next().await?, one("new", "on", "1"), "change");
    d.remove("new").await?;
    check_eq!(watching.next().await?, one("new", "", ""), "removal");
    watching.stop().await
}

async fn a_change_is_sent_once(d: Desk) -> Outcome {
    let mut watching = d.watch(&["k"]).await?;
    d.put("k", "on", 1).await?;
    watching.next().await?;
    watching.nothing_more().await?;
    watching.stop().await
}

async fn the_last_of_many_changes_arrives(d: Desk) -> Outcome {
    let mut watching = d.watch(&["k"]).await?;
    for version in 1..=50 {
        d.put("k", &version.to_string(), version).await?;
    }
    watching.until("k", "50").await?;
    watching.nothing_more().await?;
    watching.stop().await
}

async fn versions_never_go_back(d: Desk) -> Outcome {
    let mut watching = d.watch(&["k"]).await?;
    for version in 1..=50 {
        d.put("k", &version.to_string(), version).await?;
    }
    let seen = watching.until("k", "50").await?;
    let versions: Vec<u32> = seen.iter().filter_map(|(_, version)| version.parse().ok()).collect();
    check!(versions.is_sorted_by(|a, b| a < b), "versions {versions:?}");
    watching.stop().await
}

async fn no_change_is_skipped(d: Desk) -> Outcome {
    let mut watching = d.watch(&["k"]).await?;
    for version in 1..=20 {
        d.put("k", &version.to_string(), version).await?;
    }
    let seen = watching.until("k", "20").await?;
    check_eq!(seen.len(), 20, "changes");
    watching.stop().await
}

async fn every_watcher_gets_the_change(d: Desk) -> Outcome {
    let mut one_of_them = d.watch(&["k"]).await?;
    let mut another = d.watch(&["k", "x"]).await?;
    d.put("k", "on", 1).await?;
    for watching in [&mut one_of_them, &mut another] {
        check_eq!(watching.next().await?, one("k", "on", "1"), "change");
    }
    one_of_them.stop().await?;
    d.put("k", "off", 2).await?;
    check_eq!(another.next().await?, one("k", "off", "2"), "change after the other one stopped");
    another.stop().await
}

async fn a_slow_receiver_gets_the_last_value(d: Desk) -> Outcome {
    let mut watching = d.watch_with_room(&["k"], 1).await?;
    // More than fits on the way, while nobody takes anything.
    for version in 1..=100 {
        d.put("k", &version.to_string(), version).await?;
    }
    tokio::time::sleep(QUIET).await;
    watching.until("k", "100").await?;
    watching.stop().await
}

async fn a_stopped_watch_ends(d: Desk) -> Outcome {
    let watching = d.watch(&["k"]).await?;
    let before = Instant::now();
    watching.stop().await?;
    check!(before.elapsed() < Duration::from_secs(20), "it took {:?}", before.elapsed());
    Ok(())
}

async fn a_watch_without_receiver_ends(d: Desk) -> Outcome {
    let Watching { changes, task, .. } = d.watch(&["k"]).await?;
    drop(changes);
    d.put("k", "on", 1).await?;
    ended(task).await
}
