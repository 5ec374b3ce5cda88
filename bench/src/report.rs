//! All results of a run, and the tables made of them.

use std::fmt::Write as _;

use serde::Serialize;

use crate::facts::Facts;
use crate::process::Memory;
use crate::scenario::connections::Connections;
use crate::scenario::pubsub::Delivery;
use crate::scenario::soak::Soak;
use crate::scenario::startup::Footprint;
use crate::scenario::swap::{Spread, Swaps};
use crate::scenario::{Contest, Effort, Kind, Row};

/// Everything of one run.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) facts: Facts,
    pub(crate) rounds: usize,
    pub(crate) seconds_per_round: f64,
    pub(crate) footprints: Vec<Footprint>,
    pub(crate) contests: Vec<Contest>,
    pub(crate) after_invoke: Vec<After>,
    pub(crate) deliveries: Vec<Delivery>,
    pub(crate) connections: Vec<Connections>,
    pub(crate) soaks: Vec<Soak>,
}

/// Memory of a calling sidecar after all invoke contests.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct After {
    pub(crate) path: String,
    pub(crate) rss_kib: u64,
    pub(crate) peak_kib: u64,
}

impl Results {
    pub(crate) fn new(effort: Effort) -> Self {
        Self {
            facts: Facts::now(),
            rounds: effort.rounds,
            seconds_per_round: effort.measured.as_secs_f64(),
            footprints: Vec::new(),
            contests: Vec::new(),
            after_invoke: Vec::new(),
            deliveries: Vec::new(),
            connections: Vec::new(),
            soaks: Vec::new(),
        }
    }

    pub(crate) fn after_load(&mut self, after: Vec<(String, Memory)>) {
        self.after_invoke =
            after.into_iter().map(|(path, m)| After { path, rss_kib: m.rss, peak_kib: m.peak }).collect();
    }

    /// Whether nothing was measured yet.
    pub(crate) fn is_empty(&self) -> bool {
        let first = self.footprints.is_empty() && self.contests.is_empty();
        first && self.connections.is_empty() && self.soaks.is_empty()
    }

    pub(crate) fn finish(&mut self) {
        self.facts.finish();
    }
}

/// The tables a person reads.
pub(crate) fn table(results: &Results) -> String {
    let mut out = String::new();
    let f = &results.facts;
    let _ = writeln!(
        out,
        "{} cores of {}, {} MiB, Linux {}; {}; {}; load average {:.1} before, {:.1} after\n\
         medians of {} rounds of {} s; latencies in microseconds; *CPU microseconds of the \
         measured processes, the same number as CPU milliseconds per 1,000 requests",
        f.cores,
        f.cpu,
        f.memory_mib,
        f.kernel,
        f.commit,
        f.date,
        f.load_before,
        f.load_after,
        results.rounds,
        results.seconds_per_round
    );
    footprints(&mut out, results);
    for contest in &results.contests {
        one(&mut out, contest);
    }
    if !results.deliveries.is_empty() {
        let _ = writeln!(
            out,
            "\n{:<10}{:<32}{:<18}{:>10}{:>14}{:>18}",
            "broker", "way", "", "events/s", "CPU us/event", "failed publishes"
        );
        for d in &results.deliveries {
            let _ = writeln!(
                out,
                "{:<10}{:<32}{:<18}{:>10.0}{:>14.1}{:>18}",
                d.broker, d.title, d.path, d.per_second, d.cpu_us_per_event, d.publish_errors
            );
        }
    }
    memory(&mut out, results);
    out
}

fn footprints(out: &mut String, results: &Results) {
    if results.footprints.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "\n{:<20}{:<28}{:>8}{:>11}{:>10}{:>12}{:>13}{:>9}",
        "binary", "loaded", "size MB", "to 204 ms", "worst ms", "idle RSS MB", "anonymous MB", "peak MB"
    );
    for p in &results.footprints {
        let _ = writeln!(
            out,
            "{:<20}{:<28}{:>8.1}{:>11.1}{:>10.1}{:>12.1}{:>13.1}{:>9.1}",
            p.binary,
            p.loaded,
            p.bytes as f64 / 1e6,
            p.start_ms,
            p.start_worst_ms,
            mb(p.idle_rss_kib),
            mb(p.idle_anonymous_kib),
            mb(p.idle_peak_kib)
        );
    }
}

fn one(out: &mut String, contest: &Contest) {
    let pace = contest.rate.map_or_else(|| "saturation (closed loop)".to_owned(), |rate| format!("{rate}/s"));
    let _ = writeln!(out, "\n{}, {pace}, {} connections", contest.title, contest.connections);
    let added = if contest.kind == Kind::Hops { "added p50" } else { "" };
    let against = match contest.kind {
        Kind::Handler | Kind::Client => "ratios to the first line",
        Kind::Hops => "ratios to the proxies",
    };
    let _ = writeln!(
        out,
        "  {:<18}{:>9}{:>9}{:>9}{:>9}{added:>11}{:>10}{:>9}   {against}: latency, rate, CPU",
        "", "rate/s", "p50", "p99", "p99.9", "CPU/req*", "errors"
    );
    for row in &contest.rows {
        line(out, row);
    }
}

fn line(out: &mut String, row: &Row) {
    let m = &row.median;
    let ratio = |r: Option<f64>| r.map_or_else(|| "-".to_owned(), |r| format!("{r:.2}"));
    let _ = writeln!(
        out,
        "  {:<18}{:>9.0}{:>9.0}{:>9.0}{:>9.0}{:>11}{:>10.1}{:>9}   {:>6} {:>6} {:>6}",
        row.path,
        m.per_second,
        m.p50_us,
        m.p99_us,
        m.p999_us,
        row.added_p50_us.map(|us| format!("{us:.0}")).unwrap_or_default(),
        m.cpu_us_per_request,
        m.errors,
        ratio(row.latency_ratio),
        ratio(row.rate_ratio),
        ratio(row.cpu_ratio)
    );
}

fn memory(out: &mut String, results: &Results) {
    for a in &results.after_invoke {
        let (now, peak) = (mb(a.rss_kib as f64), mb(a.peak_kib as f64));
        let _ =
            writeln!(out, "\nmemory of the caller after the invoke load, {}: {now:.1} MB (peak {peak:.1} MB)", a.path);
    }
    for c in &results.connections {
        let _ = writeln!(
            out,
            "\nmemory, {}: {:.1} MB before, {:.1} MB under {} busy connections, {:.1} MB 10 s after ({} errors)",
            c.path,
            mb(c.before_kib as f64),
            mb(c.under_load_kib as f64),
            c.connections,
            mb(c.after_kib as f64),
            c.errors
        );
    }
    for s in &results.soaks {
        let _ = writeln!(
            out,
            "\nmemory, {}: {:.1} MB before, {:.1} MB half way, {:.1} MB at the end of {} s at {}/s, {:.1} MB 10 s after \
             ({} errors)",
            s.path,
            mb(s.before_kib as f64),
            mb(s.half_way_kib as f64),
            mb(s.end_kib as f64),
            s.seconds,
            s.per_second,
            mb(s.after_kib as f64),
            s.errors
        );
    }
}

/// The tables of the swaps.
pub(crate) fn swaps(swaps: &Swaps) -> String {
    let mut out = String::new();
    let (f, spread) = (&swaps.facts, |s: &Spread| format!("{:.0}/{:.0}/{:.0}", s.p50_ms, s.p99_ms, s.max_ms));
    let _ = writeln!(
        out,
        "\nswaps by the edit of a file, under {} calls and {} events a second; milliseconds from the edit, p50/p99/max; \
         load average {:.1} before, {:.1} after",
        swaps.calls_per_second, swaps.events_per_second, f.load_before, f.load_after
    );
    for run in &swaps.runs {
        let _ = writeln!(
            out,
            "\n{}, {}\n  {:<30}{:>6}{:>18}{:>18}{:>18}{:>18}{:>22}",
            run.title, run.daemon, "", "edits", "begun", "receipt", "first in new", "at the app", "old one closed"
        );
        for p in &run.pairs {
            let _ = writeln!(
                out,
                "  {:<30}{:>6}{:>18}{:>18}{:>18}{:>18}{:>22}",
                format!("{} -> {}", p.from, p.to),
                p.edits,
                spread(&p.begun),
                spread(&p.switched),
                spread(&p.first),
                p.arrived.as_ref().map_or_else(|| "-".to_owned(), spread),
                spread(&p.ended)
            );
            if p.cut_off > 0 {
                let _ = writeln!(out, "    {} of these old brokers were not read to their end in time", p.cut_off);
            }
        }
        for (what, told) in [("calls", &run.calls), ("publishes", &run.publishes)] {
            let reason = told.reason.as_ref().map(|r| format!(", the first: {r}")).unwrap_or_default();
            let _ = writeln!(
                out,
                "  {what}: {} at {:.0}/s, {} failed{reason}, slowest {:.0} ms",
                told.done, told.per_second, told.failed, told.slowest_ms
            );
        }
        let _ = writeln!(out, "  events: {} lost, {} came again", run.lost, run.again);
    }
    out
}

/// KiB as megabytes of a thousand thousand bytes.
pub(crate) fn mb(kib: f64) -> f64 {
    kib * 1024.0 / 1e6
}
