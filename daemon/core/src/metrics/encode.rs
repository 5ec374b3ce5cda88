//! Prometheus text format 0.0.4.

use std::fmt::Write;
use std::sync::atomic::Ordering;

use super::family::Family;
use super::names::Kind;
use super::series::{Cell, HistogramCell};

/// `Content-Type` of what [`super::Metrics::encode`] writes.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Writes a number as Go's shortest form does (`strconv.FormatFloat(f, 'g', -1, 64)`),
/// which is what dashboards built for the incumbent compare `le` against.
pub fn go_number(out: &mut String, value: f64) {
    if value.is_nan() {
        return out.push_str("NaN");
    }
    if value.is_infinite() {
        return out.push_str(if value > 0.0 { "+Inf" } else { "-Inf" });
    }
    if value == 0.0 {
        return out.push_str(if value.is_sign_negative() { "-0" } else { "0" });
    }
    // Rust's shortest scientific form has the digits we need: `-1.048576e6`.
    let scientific = format!("{value:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else {
        return out.push_str(&scientific);
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    // Go's shortest form switches to an exponent below 1e-04 and from 1e+06 on.
    if (-4..6).contains(&exponent) {
        let _ = write!(out, "{value}");
        return;
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    let _ = write!(out, "{mantissa}e{sign}{:02}", exponent.unsigned_abs());
}

pub(super) fn family(out: &mut String, family: &Family) {
    let all = family.touched();
    if all.is_empty() {
        return;
    }
    let kind = match family.desc.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram(_) => "histogram",
    };
    header(out, &family.name, kind, family.desc.help);
    for series in all {
        let labels = Pairs { names: &family.labels, values: &series.labels };
        match &series.cell {
            Cell::Counter(value) => {
                let value = value.load(Ordering::Relaxed);
                sample(out, &family.name, "", &labels, None, value as f64);
            }
            Cell::Gauge(bits) => {
                let value = f64::from_bits(bits.load(Ordering::Relaxed));
                sample(out, &family.name, "", &labels, None, value);
            }
            Cell::Histogram(cell) => histogram(out, &family.name, &labels, cell),
        }
    }
}

pub(super) fn header(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// One line without labels.
pub(super) fn plain(out: &mut String, name: &str, value: f64) {
    out.push_str(name);
    out.push(' ');
    go_number(out, value);
    out.push('\n');
}

struct Pairs<'a> {
    names: &'a [&'static str],
    values: &'a [Box<str>],
}

fn histogram(out: &mut String, name: &str, labels: &Pairs<'_>, cell: &HistogramCell) {
    let mut below = 0;
    for (at, bucket) in cell.buckets.iter().enumerate() {
        below += bucket.load(Ordering::Relaxed);
        let le = cell.bounds.get(at).copied().unwrap_or(f64::INFINITY);
        sample(out, name, "_bucket", labels, Some(le), below as f64);
    }
    sample(out, name, "_sum", labels, None, f64::from_bits(cell.sum.load(Ordering::Relaxed)));
    // The count is the last bucket as read above: the two never disagree in one scrape.
    sample(out, name, "_count", labels, None, below as f64);
}

fn sample(out: &mut String, name: &str, suffix: &str, labels: &Pairs<'_>, le: Option<f64>, value: f64) {
    out.push_str(name);
    out.push_str(suffix);
    out.push('{');
    for (at, (label, text)) in labels.names.iter().zip(labels.values).enumerate() {
        if at > 0 {
            out.push(',');
        }
        out.push_str(label);
        out.push_str("=\"");
        escape(out, text);
        out.push('"');
    }
    if let Some(le) = le {
        out.push_str(",le=\"");
        go_number(out, le);
        out.push('"');
    }
    out.push_str("} ");
    go_number(out, value);
    out.push('\n');
}

fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn go(value: f64) -> String {
        let mut out = String::new();
        go_number(&mut out, value);
        out
    }

    #[test]
    fn numbers_have_the_form_go_gives_them() {
        for (value, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (-1.0, "-1"),
            (0.1, "0.1"),
            (0.95, "0.95"),
            (1.5, "1.5"),
            (100_000.0, "100000"),
            (262_144.0, "262144"),
            (123_456.5, "123456.5"),
            (1_000_000.0, "1e+06"),
            (1_048_576.0, "1.048576e+06"),
            (4_194_304.0, "4.194304e+06"),
            (4_294_967_296.0, "4.294967296e+09"),
            (1e21, "1e+21"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (0.000012345, "1.2345e-05"),
            (1e100, "1e+100"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(go(value), text);
        }
    }

    proptest::proptest! {
        #[test]
        fn every_number_reads_back_as_itself(value: f64) {
            let text = go(value);
            let back: f64 = text.replace("+Inf", "inf").replace("-Inf", "-inf").parse().unwrap();
            proptest::prop_assert!(back == value || (back.is_nan() && value.is_nan()));
        }
    }
}
