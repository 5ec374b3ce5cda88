//! Publishing and delivery per broker, to an app over HTTP, one by one and in bulk.

use std::io;
use std::net::SocketAddr;
use std::path::Path as Folder;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};
use serde::Serialize;

use super::{Contest, Effort, Kind, Path, contest, median};
use crate::backends::Backends;
use crate::load::{self, Load, Pace, Shot, Wire};
use crate::process::{cpu_seconds, wait_until};
use crate::serve::{DELIVER, DELIVER_BULK, DELIVERED, start_app};
use crate::sidecar::{Binary, Setup, Sidecar, get, request};

/// Events of one bulk publish.
const BULK: usize = 100;
/// Publishers at the same time.
const CONNECTIONS: usize = 16;
/// Topic that nobody subscribes to.
const UNREAD: &str = "unread";
/// Nothing more is on its way when nothing came for this long.
const QUIET: Duration = Duration::from_secs(1);
/// Time for a subscription to be in place.
const ATTACH: Duration = Duration::from_secs(60);
/// Time for a backlog to drain.
const DRAIN: Duration = Duration::from_secs(300);

/// What one binary delivered.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Delivery {
    pub(crate) broker: String,
    pub(crate) title: String,
    pub(crate) path: String,
    /// Events a second that reached the app and were acknowledged.
    pub(crate) per_second: f64,
    /// CPU of the sidecar per delivered event: publish and delivery together.
    pub(crate) cpu_us_per_event: f64,
    pub(crate) publish_errors: u64,
    pub(crate) rounds: Vec<f64>,
}

/// How events are published and delivered.
struct Way {
    title: &'static str,
    topic: &'static str,
    bulk: bool,
}

const WAYS: [Way; 3] = [
    Way { title: "publish one, deliver one", topic: "single", bulk: false },
    Way { title: "publish 100, deliver one", topic: "single", bulk: true },
    Way { title: "publish 100, deliver in bulk", topic: "bulk", bulk: true },
];

/// Publishing without subscribers beside what else could take the event, then deliveries.
///
/// # Errors
/// A binary that does not start, publishes that nobody takes, or deliveries that stop.
pub(crate) fn run(
    binaries: &[Binary],
    backends: &Backends,
    folder: &Folder,
    effort: Effort,
) -> io::Result<(Vec<Contest>, Vec<Delivery>)> {
    let mut contests = Vec::new();
    let mut out = Vec::new();
    for (file, document) in backends.brokers() {
        let broker = file.trim_end_matches(".yaml");
        let mut documents = vec![(file, document)];
        documents.extend(subscriptions(broker));
        let app = start_app(Wire::Http1, 0)?;
        let app_id = format!("pubsub-{broker}");
        let setup = Setup { app_id: &app_id, app: Some((app.address, "http")), documents: &documents };
        // One after the other: sidecars of the same app would share the events.
        let mut rounds = vec![vec![Vec::new(); WAYS.len()]; binaries.len()];
        let mut errors = vec![[0; WAYS.len()]; binaries.len()];
        for _ in 0..effort.rounds {
            for (at, binary) in binaries.iter().enumerate() {
                let sidecar = binary.start(folder, &setup)?;
                attached(&sidecar, broker, app.address)?;
                for (nr, way) in WAYS.iter().enumerate() {
                    eprintln!("{}, {broker}, saturation, {}", way.title, binary.name);
                    let (to, topic) = (sidecar.http, way.topic);
                    let shot = if way.bulk { bulk_shot(to, broker, topic) } else { single_shot(to, broker, topic) };
                    let (rate, cpu, failed) = deliveries(&shot, app.address, sidecar.pid(), effort)
                        .map_err(|e| io::Error::new(e.kind(), format!("{}, {broker}: {e}", way.title)))?;
                    rounds[at][nr].push((rate, cpu));
                    errors[at][nr] += failed;
                }
            }
        }
        for (nr, way) in WAYS.iter().enumerate() {
            for (at, binary) in binaries.iter().enumerate() {
                let rounds = &rounds[at][nr];
                out.push(Delivery {
                    broker: broker.to_owned(),
                    title: way.title.to_owned(),
                    path: binary.name.clone(),
                    per_second: median(rounds.iter().map(|(rate, _)| *rate)),
                    cpu_us_per_event: median(rounds.iter().map(|(_, cpu)| *cpu)),
                    publish_errors: errors[at][nr],
                    rounds: rounds.iter().map(|(rate, _)| *rate).collect(),
                });
            }
        }
        contests.extend(publishing(broker, binaries, backends, folder, &documents[..1], effort)?);
    }
    Ok((contests, out))
}

/// The subscriptions of the app, by file name.
pub(crate) fn subscriptions(broker: &str) -> [(&'static str, String); 2] {
    let in_bulk = "  bulkSubscribe:\n    enabled: true\n    maxMessagesCount: 100\n    maxAwaitDurationMs: 10\n";
    [
        ("single.yaml", subscription(broker, "single", DELIVER, "")),
        ("bulk.yaml", subscription(broker, "bulk", DELIVER_BULK, in_bulk)),
    ]
}

/// Every way to publish to a broker that [`subscriptions`] read.
pub(crate) fn shots(to: SocketAddr, broker: &str) -> [Shot; 2] {
    [single_shot(to, broker, "single"), bulk_shot(to, broker, "bulk")]
}

/// Latency and rate of publishing one event that nobody reads.
fn publishing(
    broker: &str,
    binaries: &[Binary],
    backends: &Backends,
    folder: &Folder,
    documents: &[(&str, String)],
    effort: Effort,
) -> io::Result<Vec<Contest>> {
    let app_id = format!("publish-{broker}");
    let setup = Setup { app_id: &app_id, app: None, documents };
    let sidecars: Vec<Sidecar> = binaries.iter().map(|b| b.start(folder, &setup)).collect::<io::Result<_>>()?;
    let bare = start_app(Wire::Http1, 0)?;
    let mut paths = Vec::new();
    let mut kind = Kind::Handler;
    if let (Some(address), "redis") = (backends.redis_address()?, broker) {
        kind = Kind::Client;
        paths.push(Path { name: "direct client".to_owned(), shot: added(address), pids: Vec::new() });
    } else if let (Some(to), "kafka") = (backends.kafka_address()?, broker) {
        kind = Kind::Client;
        let shot =
            Shot { wire: Wire::Kafka, path: "bench-direct".to_owned(), body: envelope(), ..single_shot(to, "", "") };
        paths.push(Path { name: "direct client".to_owned(), shot, pids: Vec::new() });
    } else {
        let shot =
            Shot { expect: StatusCode::OK, path: DELIVER.to_owned(), ..single_shot(bare.address, broker, UNREAD) };
        paths.push(Path { name: "bare hyper".to_owned(), shot, pids: vec![bare.pid()] });
    }
    for (binary, sidecar) in binaries.iter().zip(&sidecars) {
        let shot = single_shot(sidecar.http, broker, UNREAD);
        paths.push(Path { name: binary.name.clone(), shot, pids: vec![sidecar.pid()] });
    }
    [Pace::Rate(1000), Pace::Saturation]
        .into_iter()
        .map(|pace| contest(&format!("publish, {broker}"), kind, pace, CONNECTIONS, &paths, effort))
        .collect()
}

/// Waits until the subscriptions of the app deliver.
fn attached(sidecar: &Sidecar, broker: &str, app: SocketAddr) -> io::Result<()> {
    for topic in ["single", "bulk"] {
        let before = delivered(app)?;
        let event = String::from_utf8_lossy(&event()).into_owned();
        let path = format!("/v1.0/publish/{broker}/{topic}");
        let (status, text) = request(sidecar.http, "POST", &path, &event)?;
        if status != 204 {
            return Err(io::Error::other(format!("the first event for {broker}: {status} {text}")));
        }
        wait_until(ATTACH, "the first delivery", || Ok(delivered(app)? > before))?;
    }
    settle(app, 0)
}

/// Events a second, CPU microseconds per event, failed publishes.
fn deliveries(shot: &Shot, app: SocketAddr, pid: u32, effort: Effort) -> io::Result<(f64, f64, u64)> {
    let load = Load {
        pace: Pace::Saturation,
        connections: CONNECTIONS,
        warm_up: effort.warm_up,
        // Publishing goes on a little longer than the counting.
        measured: effort.measured + Duration::from_millis(200),
    };
    std::thread::scope(|scope| {
        let publishing = scope.spawn(|| load::run(shot, load, &[]));
        std::thread::sleep(effort.warm_up);
        let (first, cpu, began) = (delivered(app)?, cpu_seconds(pid), Instant::now());
        std::thread::sleep(effort.measured);
        let (last, used, elapsed) = (delivered(app)?, cpu_seconds(pid) - cpu, began.elapsed());
        let outcome = publishing.join().unwrap_or_else(|_| Err(io::Error::other("publishing panicked")))?;
        if let Some(reason) = &outcome.reason {
            eprintln!("  {} publishes failed, the first: {reason}", outcome.errors);
        }
        settle(app, last)?;
        let events = last.saturating_sub(first).max(1) as f64;
        Ok((events / elapsed.as_secs_f64(), used * 1e6 / events, outcome.errors))
    })
}

/// Waits until nothing arrives any more, so that one round does not pay for another. What a broker
/// took faster than the app is still on its way.
fn settle(app: SocketAddr, before: u64) -> io::Result<()> {
    let began = Instant::now();
    let (mut last, mut moved) = (before, began);
    while moved.elapsed() < QUIET {
        std::thread::sleep(Duration::from_millis(100));
        let now = delivered(app)?;
        if now != last {
            (last, moved) = (now, Instant::now());
        }
        if began.elapsed() > DRAIN {
            return Err(io::Error::other(format!("the backlog did not drain within {DRAIN:?}, {last} so far")));
        }
    }
    Ok(())
}

fn delivered(app: SocketAddr) -> io::Result<u64> {
    get(app, DELIVERED)?.1.trim().parse().map_err(io::Error::other)
}

pub(super) fn subscription(broker: &str, topic: &str, route: &str, more: &str) -> String {
    format!(
        "apiVersion: dapr.io/v2alpha1\nkind: Subscription\nmetadata:\n  name: {topic}\nspec:\n  pubsubname: {broker}\n  \
         topic: {topic}\n  routes:\n    default: {route}\n{more}"
    )
}

fn single_shot(to: SocketAddr, broker: &str, topic: &str) -> Shot {
    Shot {
        to,
        wire: Wire::Http1,
        method: Method::POST,
        path: format!("/v1.0/publish/{broker}/{topic}"),
        headers: vec![(CONTENT_TYPE, HeaderValue::from_static("application/json"))],
        body: event(),
        commands: Vec::new(),
        expect: StatusCode::NO_CONTENT,
        least_bytes: 0,
    }
}

fn bulk_shot(to: SocketAddr, broker: &str, topic: &str) -> Shot {
    let text = event();
    let text = String::from_utf8_lossy(&text);
    let entries: Vec<String> = (0..BULK)
        .map(|i| format!("{{\"entryId\":\"{i}\",\"contentType\":\"application/json\",\"event\":{text}}}"))
        .collect();
    Shot {
        path: format!("/v1.0/publish/bulk/{broker}/{topic}"),
        body: Bytes::from(format!("[{}]", entries.join(","))),
        ..single_shot(to, broker, topic)
    }
}

/// The bytes of such an event in a stream of Redis, without a sidecar.
fn added(to: SocketAddr) -> Shot {
    let words = ["XADD", "bench-direct-stream", "MAXLEN", "~", "10000", "*", "data"];
    let mut command: Vec<Bytes> = words.iter().map(|w| Bytes::from_static(w.as_bytes())).collect();
    command.push(envelope());
    Shot { wire: Wire::Redis, commands: vec![command], ..single_shot(to, "", "") }
}

/// As many bytes as an event has in its envelope.
fn envelope() -> Bytes {
    Bytes::from(vec![b'x'; 420])
}

fn event() -> Bytes {
    Bytes::from(format!("{{\"orderId\":42,\"note\":\"{}\"}}", "x".repeat(96)))
}
