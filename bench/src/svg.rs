//! A picture of the main figures for the documentation.

use std::fmt::Write as _;

use crate::report::{Results, mb};
use crate::scenario::startup::Footprint;
use crate::scenario::{Contest, Kind};

const WIDTH: f64 = 760.0;
const LABEL: f64 = 270.0;
const BAR: f64 = 18.0;
const GAP: f64 = 6.0;

struct Panel {
    title: String,
    unit: &'static str,
    bars: Vec<(String, f64)>,
}

/// One panel of bars for each figure that was measured.
pub(crate) fn draw(results: &Results) -> String {
    let panels = panels(results);
    let height: f64 = panels.iter().map(|p| 34.0 + p.bars.len() as f64 * (BAR + GAP)).sum::<f64>() + 64.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {WIDTH} {height:.0}\" font-family=\"system-ui, sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let mut y = 12.0;
    for panel in &panels {
        y = panel_at(&mut out, panel, y);
    }
    let f = &results.facts;
    let note = format!(
        "{} cores of {}, Linux {}, {}; medians of {} rounds; shorter is better",
        f.cores, f.cpu, f.kernel, f.date, results.rounds
    );
    let _ =
        writeln!(out, "<text x=\"16\" y=\"{:.0}\" fill=\"#666\" font-size=\"11\">{}</text>", y + 24.0, escaped(&note));
    out.push_str("</svg>\n");
    out
}

fn panel_at(out: &mut String, panel: &Panel, top: f64) -> f64 {
    let most = panel.bars.iter().map(|(_, v)| *v).fold(f64::MIN_POSITIVE, f64::max);
    let mut y = top + 16.0;
    let _ = writeln!(out, "<text x=\"16\" y=\"{y:.0}\" font-weight=\"600\">{}</text>", escaped(&panel.title));
    y += 10.0;
    for (name, value) in &panel.bars {
        let width = (value / most * (WIDTH - LABEL - 130.0)).max(1.0);
        let base = y + BAR - 5.0;
        let fill = if reference(name) { "#9aa5b1" } else { "#2f6f8f" };
        let _ = writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{base:.0}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LABEL}\" y=\"{y:.0}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\" fill=\"{fill}\"/>\
             <text x=\"{:.0}\" y=\"{base:.0}\">{} {}</text>",
            LABEL - 8.0,
            escaped(name),
            LABEL + width + 8.0,
            shown(*value),
            panel.unit
        );
        y += BAR + GAP;
    }
    y + 8.0
}

fn panels(results: &Results) -> Vec<Panel> {
    let mut out = Vec::new();
    let footprint = |title: &str, unit, value: &dyn Fn(&Footprint) -> f64| Panel {
        title: title.to_owned(),
        unit,
        bars: results.footprints.iter().map(|f| (format!("{}, {}", f.binary, f.loaded), value(f))).collect(),
    };
    if !results.footprints.is_empty() {
        out.push(footprint("Idle memory", "MB", &|f| mb(f.idle_rss_kib)));
        out.push(footprint("From exec to the first 204", "ms", &|f| f.start_ms));
    }
    for contest in results.contests.iter().filter(|c| c.rate == Some(1000) && c.connections == 16) {
        out.push(latency(contest));
        // One picture of CPU for each kind of work; the table has them all.
        if ["1 KB", "memory"].iter().any(|shown| contest.title.ends_with(shown)) {
            out.push(cpu(contest));
        }
    }
    if !results.deliveries.is_empty() {
        let bars = results.deliveries.iter().map(|d| (format!("{}, {}", d.path, d.broker), d));
        for way in ["publish one, deliver one", "publish 100, deliver one", "publish 100, deliver in bulk"] {
            let of_way = bars.clone().filter(|(_, d)| d.title == way);
            out.push(Panel {
                title: format!("Events delivered a second: {way} (longer is better)"),
                unit: "/s",
                bars: of_way.map(|(name, d)| (name, d.per_second)).collect(),
            });
        }
    }
    out.retain(|p| !p.bars.is_empty());
    out
}

fn latency(contest: &Contest) -> Panel {
    let added = contest.kind == Kind::Hops;
    let bars = contest.rows.iter().filter_map(|row| {
        let value = if added { row.added_p50_us? } else { row.median.p50_us };
        Some((row.path.clone(), value))
    });
    let what = if added { "median latency added to the direct call" } else { "median latency" };
    Panel { title: format!("{} at 1,000/s: {what}", contest.title), unit: "us", bars: bars.collect() }
}

fn cpu(contest: &Contest) -> Panel {
    let rows = contest.rows.iter().filter(|row| row.median.cpu_us_per_request > 0.0);
    Panel {
        title: format!("{} at 1,000/s: CPU per request", contest.title),
        unit: "us",
        bars: rows.map(|row| (row.path.clone(), row.median.cpu_us_per_request)).collect(),
    }
}

fn reference(name: &str) -> bool {
    name.starts_with("direct") || name.contains("bare")
}

fn shown(value: f64) -> String {
    if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
