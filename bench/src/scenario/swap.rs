//! From the edit of a component's file until the sidecar works with the other backend, under load.
//!
//! The edit is the rename of a file that was written beside it. What is told apart:
//! - by the receipt: until the sidecar noticed, and until it says that callers met the new one;
//! - from outside, for a store: until the first write that is found in the new one was acknowledged. One client writes
//!   key after key; once a key that only the old store has is not found any more, it looks which keys the new one has;
//! - from outside, for a broker: until the first event that lies in the new one was acknowledged to its publisher, and
//!   until the app had it. Other clients of Redis and Kafka read what came there since the edit.

mod places;
mod steady;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use mecha_testkit::servers::{Kafka, KafkaOptions};
use serde::Serialize;
use serde_json::Value;
use tokio::time::sleep;

use self::places::{Place, Reader};
use self::steady::{Caller, Crowd, Events, Load, Told};
use super::component;
use crate::backends::Backends;
use crate::facts::Facts;
use crate::sidecar::{Binary, Setup, Sidecar};

/// Calls of a store, and events, each second.
const CALLS: u32 = 500;
const EVENTS: u32 = 200;
/// Component that moves, and the one that does not.
const MOVES: &str = "moves";
const STAYS: &str = "stays";
const TOPIC: &str = "orders";
/// Longest wait for anything; an old broker is read for a while.
const LIMIT: Duration = Duration::from_secs(180);
/// Time between two edits: none profits from what the one before has woken.
const REST: Duration = Duration::from_millis(300);
/// So many edits of stores for each of a broker, which is read to its end each time.
const STORES_FOR_A_BROKER: usize = 5;
/// So many for each new cluster, which has to start.
const STORES_FOR_A_CLUSTER: usize = 20;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Swaps {
    pub(crate) facts: Facts,
    pub(crate) calls_per_second: u32,
    pub(crate) events_per_second: u32,
    pub(crate) runs: Vec<Run>,
}

/// One sidecar whose component is edited again and again.
#[derive(Debug, Serialize)]
pub(crate) struct Run {
    pub(crate) daemon: String,
    pub(crate) title: &'static str,
    pub(crate) pairs: Vec<Pair>,
    /// Of the store: calls, failed ones, the slowest.
    pub(crate) calls: Told,
    /// Publishes.
    pub(crate) publishes: Told,
    /// Events that were acknowledged to the publisher and never came to the app.
    pub(crate) lost: usize,
    /// Events that came more than once, as they may.
    pub(crate) again: u64,
}

/// Milliseconds from the edit, over all edits of one kind.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Pair {
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
    pub(crate) edits: usize,
    /// Of these, old brokers that were not read to their end in time.
    pub(crate) cut_off: usize,
    /// Until the change was begun: the file was noticed, nothing more was written, everything was read.
    pub(crate) begun: Spread,
    /// Until callers met the new one, as the receipt says.
    pub(crate) switched: Spread,
    /// Until the first write or event that is in the new one was acknowledged.
    pub(crate) first: Spread,
    /// Until the app had the first event that came by the new one.
    pub(crate) arrived: Option<Spread>,
    /// Until the old one was closed, as the receipt says; old brokers are read until they are silent.
    pub(crate) ended: Spread,
}

/// Quantiles, by nearest rank.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
}

/// What one edit showed, in milliseconds from it.
#[derive(Clone, Copy, Debug)]
struct Edit {
    begun: f64,
    switched: f64,
    first: f64,
    arrived: Option<f64>,
    ended: f64,
    cut_off: bool,
}

/// Measures every daemon that tells of its changes; the others are left out. What comes later may fail, so `keep` gets
/// what is there after each run.
///
/// # Errors
/// A sidecar that does not start, or a change that it refuses.
pub(crate) fn run(
    binaries: &[Binary],
    backends: &Backends,
    folder: &Path,
    edits: usize,
    keep: &dyn Fn(&Swaps) -> io::Result<()>,
) -> io::Result<Swaps> {
    let mut out = Swaps { facts: Facts::now(), calls_per_second: CALLS, events_per_second: EVENTS, runs: Vec::new() };
    for binary in binaries {
        let help = Command::new(&binary.path).arg("--help").output()?;
        if !String::from_utf8_lossy(&help.stdout).contains("--mecha-strict") {
            eprintln!("{} has no receipts of its changes: its swaps are not measured", binary.name);
            continue;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        out.runs.push(runtime.block_on(stores(binary, backends, folder, edits))?);
        keep(&out)?;
        out.runs.extend(runtime.block_on(brokers(binary, backends, folder, edits.div_ceil(STORES_FOR_A_BROKER)))?);
        keep(&out)?;
        let clusters = edits.div_ceil(STORES_FOR_A_CLUSTER);
        out.runs.extend(runtime.block_on(new_clusters(binary, backends, folder, clusters))?);
    }
    out.facts.finish();
    keep(&out)?;
    Ok(out)
}

/// SQLite, Redis, PostgreSQL, and from the beginning.
async fn stores(binary: &Binary, backends: &Backends, folder: &Path, edits: usize) -> io::Result<Run> {
    let own = folder.join("swap-stores.db");
    let mut places = vec![Place::store("sqlite", "state.sqlite", &[("connectionString", &own.to_string_lossy())])];
    if let Some(redis) = &backends.redis {
        places.push(Place::store("redis", "state.redis", &[("redisHost", &redis.address())]));
    }
    if let Some(postgres) = &backends.postgres {
        places.push(Place::store("postgres", "state.postgresql", &[("connectionString", &postgres.url())]));
    }
    let title = "a store moves under load";
    let mut bench = Bench::start(title, binary, folder, "swap-stores", &places[0], true).await?;
    let round: Vec<usize> = (1..places.len()).chain([0]).collect();
    bench.rounds(&places, &round, edits).await?;
    bench.end().await
}

/// The embedded broker, Kafka, streams of Redis, Kafka again, and back: the group is known at Kafka in each of them.
async fn brokers(binary: &Binary, backends: &Backends, folder: &Path, edits: usize) -> io::Result<Option<Run>> {
    let (Some(redis), Some(_)) = (&backends.redis, &backends.kafka) else { return Ok(None) };
    let Some(kafka) = usual_kafka() else { return Ok(None) };
    let path = folder.join("swap-broker");
    let places = [
        Place::broker("embedded", "pubsub.mecha", &[("path", &path.to_string_lossy())], Reader::Nobody),
        Place::kafka("kafka", &kafka),
        Place::broker("redis streams", "pubsub.redis", &[("redisHost", &redis.address())], Reader::Redis(redis)),
    ];
    let title = "a broker moves under load, the group is known at Kafka";
    let mut bench = Bench::start(title, binary, folder, "swap-brokers", &places[0], false).await?;
    bench.rounds(&places, &[1, 2, 1, 0], edits).await?;
    let run = bench.end().await?;
    // The next sidecar's group reads from the beginning, and its events have the same numbers.
    redis.command(&["DEL", TOPIC]);
    Ok(Some(run))
}

/// From streams of Redis to a cluster that has never seen a client, again and again.
async fn new_clusters(binary: &Binary, backends: &Backends, folder: &Path, edits: usize) -> io::Result<Option<Run>> {
    let (Some(redis), Some(_)) = (&backends.redis, &backends.kafka) else { return Ok(None) };
    let streams =
        Place::broker("redis streams", "pubsub.redis", &[("redisHost", &redis.address())], Reader::Redis(redis));
    let title = "a broker moves under load to a new cluster of Kafka";
    let mut bench = Bench::start(title, binary, folder, "swap-clusters", &streams, false).await?;
    for _ in 0..edits {
        let Some(kafka) = usual_kafka() else { return Ok(None) };
        let places = [Place::kafka("new kafka", &kafka), streams.clone()];
        for to in &places {
            bench.edit(to, true).await?;
        }
    }
    let run = bench.end().await?;
    // As above: another daemon may be next.
    redis.command(&["DEL", TOPIC]);
    Ok(Some(run))
}

/// A broker with the settings of Kafka's own that a first consumer waits for; tests do without.
fn usual_kafka() -> Option<Kafka> {
    KafkaOptions::new()
        .set("group.initial.rebalance.delay.ms", "3000")
        .set("offsets.topic.num.partitions", "50")
        .start()
}

/// A sidecar under load, and what its edits showed.
struct Bench {
    title: &'static str,
    daemon: String,
    sidecar: Sidecar,
    file: PathBuf,
    at: &'static str,
    store: bool,
    caller: Caller,
    calls: Load,
    publishes: Load,
    events: Events,
    _crowd: Crowd,
    edits: usize,
    seen: Vec<(&'static str, &'static str, Edit)>,
}

impl Bench {
    /// Starts a sidecar whose store or broker is at `place`, and the load.
    async fn start(
        title: &'static str,
        binary: &Binary,
        folder: &Path,
        app_id: &str,
        place: &Place<'_>,
        store: bool,
    ) -> io::Result<Self> {
        eprintln!("{title}, {}", binary.name);
        let crowd = Crowd::start()?;
        let events = Events::start(&crowd)?;
        let other = if store { "pubsub.in-memory" } else { "state.in-memory" };
        let (calls, publishes) = if store { (MOVES, STAYS) } else { (STAYS, MOVES) };
        let subscription = super::pubsub::subscription(publishes, TOPIC, steady::ROUTE, "");
        let documents = [
            ("moves.yaml", place.document.clone()),
            ("stays.yaml", component(STAYS, other, &[])),
            ("subscription.yaml", subscription),
        ];
        let setup = Setup { app_id, app: Some((events.address(), "http")), documents: &documents };
        let (sidecar, own) = binary.start_with(folder, &setup, &["--mecha-strict"])?;
        let mut caller = Caller::new(sidecar.http);
        let published = format!("/v1.0/publish/{publishes}/{TOPIC}");
        events.first(&mut caller, &published).await?;
        let calls = Load::calls(&crowd, sidecar.http, CALLS, calls);
        let publishes = Load::publishes(&crowd, sidecar.http, EVENTS, published, &events);
        let file = own.join("resources/moves.yaml");
        Ok(Self {
            title,
            daemon: binary.name.clone(),
            sidecar,
            file,
            at: place.name,
            store,
            caller,
            calls,
            publishes,
            events,
            _crowd: crowd,
            edits: 0,
            seen: Vec::new(),
        })
    }

    /// Goes round so often that each pair has this many edits; a first round does not count, so that tables and groups
    /// are there.
    async fn rounds(&mut self, places: &[Place<'_>], round: &[usize], edits: usize) -> io::Result<()> {
        for counted in 0..=edits {
            for at in round {
                self.edit(&places[*at], counted > 0).await?;
            }
        }
        Ok(())
    }

    async fn edit(&mut self, to: &Place<'_>, counts: bool) -> io::Result<()> {
        sleep(REST).await;
        let from = std::mem::replace(&mut self.at, to.name);
        self.edits += 1;
        let shown = if self.store { self.edit_store(to).await } else { self.edit_broker(to).await };
        let shown =
            shown.map_err(|e| io::Error::new(e.kind(), format!("{}, {from} to {}: {e}", self.title, to.name)))?;
        if let (true, Some(shown)) = (counts, shown) {
            self.seen.push((from, to.name, shown));
        }
        Ok(())
    }

    async fn edit_store(&mut self, to: &Place<'_>) -> io::Result<Option<Edit>> {
        let mark = format!("mark-{}", self.edits);
        self.save(&mark).await?;
        let before = self.generation().await?;
        let edit = self.write(to)?;
        let key = |edits: usize, n: usize| format!("probe-{edits}-{n}");
        let mut acknowledged = Vec::new();
        let mut missing = false;
        loop {
            self.save(&key(self.edits, acknowledged.len())).await?;
            acknowledged.push(Instant::now());
            // One more, which is in the new store for sure.
            if missing {
                break;
            }
            missing = !self.has(&mark).await?;
            edit.not_for_ever("the store to switch")?;
            sleep(Duration::from_millis(1)).await;
        }
        let mut first = acknowledged.len() - 1;
        while first > 0 && self.has(&key(self.edits, first - 1)).await? {
            first -= 1;
        }
        let receipt = self.ended(before, &edit).await?;
        Ok(Some(edit.shown(&receipt, acknowledged[first], None)?))
    }

    async fn edit_broker(&mut self, to: &Place<'_>) -> io::Result<Option<Edit>> {
        let since = to.reader.position()?;
        let before = self.generation().await?;
        let edit = self.write(to)?;
        let receipt = self.ended(before, &edit).await?;
        if matches!(to.reader, Reader::Nobody) {
            return Ok(None);
        }
        loop {
            let there = to.reader.since(&since)?;
            if let Some((first, arrived)) = self.events.first_of(&there) {
                return edit.shown(&receipt, first, Some(arrived)).map(Some);
            }
            edit.not_for_ever("an event that came by the new broker")?;
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// The edit: from now on the sidecar may see it.
    fn write(&self, to: &Place<'_>) -> io::Result<Moment> {
        let beside = self.file.with_file_name(".moves.yaml.new");
        fs::write(&beside, &to.document)?;
        let moment = Moment { clock: Timestamp::now(), at: Instant::now() };
        fs::rename(beside, &self.file)?;
        Ok(moment)
    }

    async fn save(&mut self, key: &str) -> io::Result<()> {
        let body = format!("[{{\"key\":\"{key}\",\"value\":1}}]");
        let (status, text) = self.caller.call("POST", &format!("/v1.0/state/{MOVES}"), &body).await?;
        if status == 204 { Ok(()) } else { Err(io::Error::other(format!("saving {key}: {status} {text}"))) }
    }

    async fn has(&mut self, key: &str) -> io::Result<bool> {
        match self.caller.call("GET", &format!("/v1.0/state/{MOVES}/{key}"), "").await? {
            (200, _) => Ok(true),
            (204, _) => Ok(false),
            (status, text) => Err(io::Error::other(format!("reading {key}: {status} {text}"))),
        }
    }

    async fn swaps(&mut self) -> io::Result<Value> {
        let (_, text) = self.caller.call("GET", "/v1.0-mecha/swaps", "").await?;
        serde_json::from_str(&text).map_err(io::Error::other)
    }

    async fn generation(&mut self) -> io::Result<u64> {
        self.swaps().await?["generation"].as_u64().ok_or_else(|| io::Error::other("the receipts have no generation"))
    }

    /// The receipt of the change after `before`, once it has ended.
    async fn ended(&mut self, before: u64, edit: &Moment) -> io::Result<Value> {
        loop {
            let mut all = self.swaps().await?;
            let mine = |r: &&mut Value| r["generation"].as_u64() > Some(before) && r["name"] == MOVES;
            let receipt = all["swaps"].as_array_mut().and_then(|all| all.iter_mut().find(mine).map(Value::take));
            match receipt {
                Some(receipt) if receipt["outcome"] == "applied" || receipt["outcome"] == "cutOff" => {
                    return Ok(receipt);
                }
                Some(receipt) if receipt["outcome"] != "draining" => {
                    return Err(io::Error::other(format!("the change was not applied: {receipt}")));
                }
                _ => {}
            }
            edit.not_for_ever("the end of the change")?;
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Ends the load, and waits for every event.
    async fn end(self) -> io::Result<Run> {
        let (calls, publishes) = (self.calls.end().await, self.publishes.end().await);
        let (lost, again) = self.events.end().await;
        self.sidecar.stop(LIMIT)?;
        let mut kinds: Vec<(&str, &str)> = Vec::new();
        for (from, to, _) in &self.seen {
            if !kinds.contains(&(*from, *to)) {
                kinds.push((*from, *to));
            }
        }
        let pair = |(from, to): (&'static str, &'static str)| {
            let of = || self.seen.iter().filter(|seen| (seen.0, seen.1) == (from, to)).map(|seen| seen.2);
            Pair {
                from,
                to,
                edits: of().count(),
                cut_off: of().filter(|e| e.cut_off).count(),
                begun: Spread::of(of().map(|e| e.begun)),
                switched: Spread::of(of().map(|e| e.switched)),
                first: Spread::of(of().map(|e| e.first)),
                arrived: (!self.store).then(|| Spread::of(of().filter_map(|e| e.arrived))),
                ended: Spread::of(of().map(|e| e.ended)),
            }
        };
        let pairs = kinds.into_iter().map(pair).collect();
        Ok(Run { daemon: self.daemon, title: self.title, pairs, calls, publishes, lost, again })
    }
}

/// When a file was edited, by both clocks.
struct Moment {
    clock: Timestamp,
    at: Instant,
}

impl Moment {
    fn not_for_ever(&self, what: &str) -> io::Result<()> {
        if self.at.elapsed() < LIMIT {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("{what}: not within {LIMIT:?}")))
    }

    fn shown(&self, receipt: &Value, first: Instant, arrived: Option<Instant>) -> io::Result<Edit> {
        let wrong = || io::Error::other(format!("not a receipt: {receipt}"));
        let began: Timestamp = receipt["time"].as_str().and_then(|t| t.parse().ok()).ok_or_else(wrong)?;
        let of = |field: &str| receipt[field].as_f64().ok_or_else(wrong);
        let begun = (began.as_nanosecond() - self.clock.as_nanosecond()) as f64 / 1e6;
        let after = |then: Instant| then.saturating_duration_since(self.at).as_secs_f64() * 1e3;
        Ok(Edit {
            begun,
            switched: begun + of("switchMs")?,
            first: after(first),
            arrived: arrived.map(after),
            ended: begun + of("durationMs")?,
            cut_off: receipt["outcome"] == "cutOff",
        })
    }
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (values.len() as f64 * share).ceil() as usize;
            values.get(rank.max(1) - 1).copied().unwrap_or_default()
        };
        Self { p50_ms: at(0.5), p99_ms: at(0.99), max_ms: at(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let spread = Spread::of((1..=200).rev().map(f64::from));
        assert_eq!(spread, Spread { p50_ms: 100.0, p99_ms: 198.0, max_ms: 200.0 });
        assert_eq!(Spread::of([7.0].into_iter()), Spread { p50_ms: 7.0, p99_ms: 7.0, max_ms: 7.0 });
        assert_eq!(Spread::of([3.0, 1.0].into_iter()), Spread { p50_ms: 1.0, p99_ms: 3.0, max_ms: 3.0 });
        assert_eq!(Spread::of(std::iter::empty()), Spread { p50_ms: 0.0, p99_ms: 0.0, max_ms: 0.0 });
    }

    #[test]
    fn figures_count_from_the_edit() {
        let moment = Moment { clock: "2026-01-02T03:04:05.100Z".parse().unwrap(), at: Instant::now() };
        let receipt = serde_json::json!({"time": "2026-01-02T03:04:05.160250Z", "switchMs": 12.5, "durationMs": 40});
        let edit = moment.shown(&receipt, moment.at + Duration::from_millis(80), None).unwrap();
        assert_eq!((edit.begun, edit.switched, edit.ended), (60.25, 72.75, 100.25));
        assert_eq!((edit.first, edit.arrived), (80.0, None));
        assert!(moment.shown(&serde_json::json!({"switchMs": 1}), moment.at, None).is_err());
    }
}
