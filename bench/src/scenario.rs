//! What is measured, and how rounds become figures.
//!
//! All paths of a contest are up at the same time and take turns in every round, so that a
//! machine that is slower for a while is slower for all of them. A ratio is made within a round;
//! the median over the rounds is the figure.

pub(crate) mod connections;
pub(crate) mod invoke;
pub(crate) mod pubsub;
pub(crate) mod soak;
pub(crate) mod startup;
pub(crate) mod state;
pub(crate) mod swap;

use std::io;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::Serialize;

use crate::load::{self, Load, Outcome, Pace, Shot};

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    pub(crate) rounds: usize,
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
    /// Starts that are timed.
    pub(crate) starts: usize,
}

/// What the paths of a contest are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// The first path is a bare handler; the others do the same work.
    Handler,
    /// The first path is a client that needs no HTTP hop at all; the others do the same work.
    Client,
    /// The first path is the direct call, the second goes through bare proxies.
    Hops,
}

/// One way a request can take.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    pub(crate) name: String,
    pub(crate) shot: Shot,
    /// Processes whose CPU this way costs.
    pub(crate) pids: Vec<u32>,
}

/// One run of one path.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
    /// Median time a request waited in the generator for its turn; part of the latencies.
    pub(crate) late_p50_us: f64,
    pub(crate) per_second: f64,
    pub(crate) cpu_us_per_request: f64,
    pub(crate) generator_cpu_us_per_request: f64,
    pub(crate) errors: u64,
}

/// Medians of a path over the rounds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) path: String,
    pub(crate) median: Sample,
    /// p50 above the direct call's, in the same round.
    pub(crate) added_p50_us: Option<f64>,
    /// p50, or added p50, over the reference's.
    pub(crate) latency_ratio: Option<f64>,
    /// Rate over the reference's.
    pub(crate) rate_ratio: Option<f64>,
    /// CPU over the reference's.
    pub(crate) cpu_ratio: Option<f64>,
    pub(crate) rounds: Vec<Sample>,
}

/// A finished contest.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Contest {
    pub(crate) title: String,
    pub(crate) kind: Kind,
    /// Requests a second that were asked for; `None` at saturation.
    pub(crate) rate: Option<u32>,
    pub(crate) connections: usize,
    pub(crate) rows: Vec<Row>,
}

/// Runs every path once a round, in turns.
///
/// # Errors
/// A path that cannot be reached at all.
pub(crate) fn contest(
    title: &str,
    kind: Kind,
    pace: Pace,
    connections: usize,
    paths: &[Path],
    effort: Effort,
) -> io::Result<Contest> {
    let rate = match pace {
        Pace::Rate(rate) => Some(rate),
        Pace::Saturation => None,
    };
    eprintln!("{title}, {}, {connections} connections", rate.map_or("saturation".to_owned(), |r| format!("{r}/s")));
    let load = Load { pace, connections, warm_up: effort.warm_up, measured: effort.measured };
    let mut rounds: Vec<Vec<Sample>> = vec![Vec::new(); paths.len()];
    for round in 0..effort.rounds {
        for turn in 0..paths.len() {
            // Nobody is always first after the pause, or always after the same neighbour.
            let at = (turn + round) % paths.len();
            let path = &paths[at];
            let outcome = load::run(&path.shot, load, &path.pids)
                .map_err(|e| io::Error::new(e.kind(), format!("{title}, {}: {e}", path.name)))?;
            if let Some(reason) = &outcome.reason {
                eprintln!("  {}: {} errors, the first: {reason}", path.name, outcome.errors);
            }
            rounds[at].push(Sample::from(&outcome));
        }
    }
    let rows = paths.iter().enumerate().map(|(at, path)| row(kind, at, &path.name, &rounds)).collect();
    Ok(Contest { title: title.to_owned(), kind, rate, connections, rows })
}

fn row(kind: Kind, at: usize, name: &str, rounds: &[Vec<Sample>]) -> Row {
    let own = &rounds[at];
    let reference = match kind {
        Kind::Handler | Kind::Client => 0,
        Kind::Hops => 1,
    };
    let compared = |value: &dyn Fn(&Sample, &Sample) -> f64| {
        let others = rounds.get(reference).filter(|_| at > 0)?;
        let ratios = own.iter().zip(others).map(|(own, other)| value(own, other));
        Some(median(ratios.filter(|r| r.is_finite())))
    };
    let direct = &rounds[0];
    let added = (kind == Kind::Hops && at > 0)
        .then(|| median(own.iter().zip(direct).map(|(own, direct)| own.p50_us - direct.p50_us)));
    let latency_ratio = match kind {
        Kind::Handler | Kind::Client => compared(&|own, other| own.p50_us / other.p50_us),
        Kind::Hops => rounds.get(1).filter(|_| at > 0).map(|proxies| {
            let each = own.iter().zip(proxies).zip(direct);
            median(each.map(|((own, proxy), direct)| (own.p50_us - direct.p50_us) / (proxy.p50_us - direct.p50_us)))
        }),
    };
    Row {
        path: name.to_owned(),
        median: Sample::median(own),
        added_p50_us: added,
        latency_ratio,
        rate_ratio: compared(&|own, other| own.per_second / other.per_second),
        // A client's CPU is the generator's.
        cpu_ratio: compared(&|own, other| own.cpu_us_per_request / other.cpu_us_per_request)
            .filter(|_| kind != Kind::Client),
        rounds: own.clone(),
    }
}

impl From<&Outcome> for Sample {
    fn from(o: &Outcome) -> Self {
        let us = |q: f64| o.latency.value_at_quantile(q) as f64 / 1e3;
        let each = |seconds: f64| seconds * 1e6 / (o.good.max(1) as f64);
        Self {
            p50_us: us(0.5),
            p90_us: us(0.9),
            p99_us: us(0.99),
            p999_us: us(0.999),
            max_us: o.latency.max() as f64 / 1e3,
            late_p50_us: o.late.value_at_quantile(0.5) as f64 / 1e3,
            per_second: o.good as f64 / o.elapsed.as_secs_f64(),
            cpu_us_per_request: each(o.cpu),
            generator_cpu_us_per_request: each(o.own_cpu),
            errors: o.errors,
        }
    }
}

impl Sample {
    fn median(samples: &[Self]) -> Self {
        let of = |f: &dyn Fn(&Self) -> f64| median(samples.iter().map(f));
        Self {
            p50_us: of(&|s| s.p50_us),
            p90_us: of(&|s| s.p90_us),
            p99_us: of(&|s| s.p99_us),
            p999_us: of(&|s| s.p999_us),
            max_us: of(&|s| s.max_us),
            late_p50_us: of(&|s| s.late_p50_us),
            per_second: of(&|s| s.per_second),
            cpu_us_per_request: of(&|s| s.cpu_us_per_request),
            generator_cpu_us_per_request: of(&|s| s.generator_cpu_us_per_request),
            errors: samples.iter().map(|s| s.errors).sum(),
        }
    }
}

/// The middle value; zero of nothing.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// A JSON text of about `bytes` bytes.
pub(crate) fn json_value(bytes: usize) -> Bytes {
    let mut out = BytesMut::with_capacity(bytes.max(2));
    out.put_u8(b'"');
    out.put_bytes(b'x', bytes.saturating_sub(2));
    out.put_u8(b'"');
    out.freeze()
}

/// A message in gRPC's frame, uncompressed.
pub(crate) fn grpc_frame(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + message.len());
    out.put_u8(0);
    out.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    out.put_slice(message);
    out.freeze()
}

/// A component document.
pub(crate) fn component(name: &str, kind: &str, metadata: &[(&str, &str)]) -> String {
    let mut text = format!(
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata:\n  name: {name}\nspec:\n  type: {kind}\n  \
         version: v1\n  metadata:\n"
    );
    for (name, value) in metadata {
        text.push_str(&format!("  - name: {name}\n    value: \"{value}\"\n"));
    }
    if metadata.is_empty() {
        text.truncate(text.len() - "  metadata:\n".len());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(p50_us: f64, per_second: f64) -> Sample {
        Sample {
            p50_us,
            p90_us: 0.0,
            p99_us: 0.0,
            p999_us: 0.0,
            max_us: 0.0,
            late_p50_us: 0.0,
            per_second,
            cpu_us_per_request: p50_us,
            generator_cpu_us_per_request: 0.0,
            errors: 0,
        }
    }

    #[test]
    fn ratios_are_made_within_a_round() {
        // The second round ran on a machine half as fast; no ratio may change by that.
        let rounds = vec![
            vec![sample(50.0, 100.0), sample(100.0, 50.0)],
            vec![sample(150.0, 40.0), sample(300.0, 20.0)],
            vec![sample(250.0, 20.0), sample(500.0, 10.0)],
        ];
        let got = row(Kind::Hops, 2, "a", &rounds);
        assert_eq!(got.latency_ratio, Some(2.0));
        assert_eq!(got.rate_ratio, Some(0.5));
        assert_eq!(got.added_p50_us, Some(400.0));
        let got = row(Kind::Handler, 2, "a", &rounds);
        assert_eq!(got.latency_ratio, Some(5.0));
        assert_eq!(got.cpu_ratio, Some(5.0));
        assert_eq!(row(Kind::Handler, 0, "bare", &rounds).latency_ratio, None);
    }

    #[test]
    fn frames_and_values() {
        assert_eq!(&grpc_frame(b"ab")[..], &[0, 0, 0, 0, 2, b'a', b'b']);
        assert_eq!(json_value(1024).len(), 1024);
        assert!(serde_json::from_slice::<String>(&json_value(16)).is_ok());
    }
}
