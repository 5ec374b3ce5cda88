//! Publishing and delivery in memory, to an app over HTTP, one by one and in bulk.

use std::io;
use std::net::SocketAddr;
use std::path::Path as Folder;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};
use serde::Serialize;

use super::{Effort, component, median};
use crate::load::{self, Load, Pace, Shot, Wire};
use crate::process::cpu_seconds;
use crate::serve::{DELIVER, DELIVER_BULK, DELIVERED, start_app};
use crate::sidecar::{Binary, Setup, get};

/// Events of one bulk publish.
const BULK: usize = 100;
/// Publishers at the same time.
const CONNECTIONS: usize = 16;

/// What one binary delivered.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Delivery {
    pub(crate) title: String,
    pub(crate) path: String,
    /// Events a second that reached the app and were acknowledged.
    pub(crate) per_second: f64,
    /// CPU of the sidecar per delivered event: publish and delivery together.
    pub(crate) cpu_us_per_event: f64,
    pub(crate) publish_errors: u64,
    pub(crate) rounds: Vec<f64>,
}

/// Publishes at saturation and counts what arrives at the app.
///
/// # Errors
/// A binary that does not start, or publishes that nobody takes.
pub(crate) fn run(binaries: &[Binary], folder: &Folder, effort: Effort) -> io::Result<Vec<Delivery>> {
    let documents = [
        ("pubsub.yaml", component("pubsub", "pubsub.in-memory", &[])),
        ("single.yaml", subscription("single", DELIVER, "")),
        (
            "bulk.yaml",
            subscription(
                "bulk",
                DELIVER_BULK,
                "  bulkSubscribe:\n    enabled: true\n    maxMessagesCount: 100\n    maxAwaitDurationMs: 10\n",
            ),
        ),
    ];
    let app = start_app(Wire::Http1, 0)?;
    let setup = Setup { app_id: "pubsub", app: Some((app.address, "http")), documents: &documents };
    let sidecars = binaries.iter().map(|b| b.start(folder, &setup)).collect::<io::Result<Vec<_>>>()?;
    let mut out = Vec::new();
    for (title, topic, bulk) in [
        ("publish one, deliver one", "single", false),
        ("publish 100, deliver one", "single", true),
        ("publish 100, deliver in bulk", "bulk", true),
    ] {
        eprintln!("{title}, in memory, saturation");
        let mut rounds = vec![Vec::new(); binaries.len()];
        let mut errors = vec![0; binaries.len()];
        for _ in 0..effort.rounds {
            for (at, sidecar) in sidecars.iter().enumerate() {
                let shot = if bulk { bulk_shot(sidecar.http, topic) } else { single_shot(sidecar.http, topic) };
                let (rate, cpu, failed) = deliveries(&shot, app.address, sidecar.pid(), effort)?;
                rounds[at].push((rate, cpu));
                errors[at] += failed;
            }
        }
        for ((binary, rounds), publish_errors) in binaries.iter().zip(rounds).zip(errors) {
            out.push(Delivery {
                title: title.to_owned(),
                path: binary.name.clone(),
                per_second: median(rounds.iter().map(|(rate, _)| *rate)),
                cpu_us_per_event: median(rounds.iter().map(|(_, cpu)| *cpu)),
                publish_errors,
                rounds: rounds.iter().map(|(rate, _)| *rate).collect(),
            });
        }
    }
    Ok(out)
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
        settle(app)?;
        let events = last.saturating_sub(first).max(1) as f64;
        Ok((events / elapsed.as_secs_f64(), used * 1e6 / events, outcome.errors))
    })
}

/// Waits until nothing arrives any more, so that one round does not pay for another.
fn settle(app: SocketAddr) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut last = delivered(app)?;
    while Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(200));
        let now = delivered(app)?;
        if now == last {
            return Ok(());
        }
        last = now;
    }
    Err(io::Error::other("deliveries did not end within 30 s after the last publish"))
}

fn delivered(app: SocketAddr) -> io::Result<u64> {
    get(app, DELIVERED)?.1.trim().parse().map_err(io::Error::other)
}

fn subscription(topic: &str, route: &str, more: &str) -> String {
    format!(
        "apiVersion: dapr.io/v2alpha1\nkind: Subscription\nmetadata:\n  name: {topic}\nspec:\n  pubsubname: pubsub\n  \
         topic: {topic}\n  routes:\n    default: {route}\n{more}"
    )
}

fn single_shot(to: SocketAddr, topic: &str) -> Shot {
    Shot {
        to,
        wire: Wire::Http1,
        method: Method::POST,
        path: format!("/v1.0/publish/pubsub/{topic}"),
        headers: vec![(CONTENT_TYPE, HeaderValue::from_static("application/json"))],
        body: event(),
        expect: StatusCode::NO_CONTENT,
        least_bytes: 0,
    }
}

fn bulk_shot(to: SocketAddr, topic: &str) -> Shot {
    let text = event();
    let text = String::from_utf8_lossy(&text);
    let entries: Vec<String> = (0..BULK)
        .map(|i| format!("{{\"entryId\":\"{i}\",\"contentType\":\"application/json\",\"event\":{text}}}"))
        .collect();
    Shot {
        path: format!("/v1.0/publish/bulk/pubsub/{topic}"),
        body: Bytes::from(format!("[{}]", entries.join(","))),
        ..single_shot(to, topic)
    }
}

fn event() -> Bytes {
    Bytes::from(format!("{{\"orderId\":42,\"note\":\"{}\"}}", "x".repeat(96)))
}
