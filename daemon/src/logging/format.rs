//! One line in text (`key=value`, values quoted where needed) or JSON form.

use std::error::Error;
use std::fmt::{Debug, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};

use super::LogIdentity;
use super::level::Level;

/// Longest value; a longer one is cut. Bounds a line whatever was logged.
const MAX_VALUE: usize = 16 << 10;

/// Keys every line has; a field of that name is written as `fields.<name>`.
const FIXED: [&str; 8] = ["app_id", "instance", "level", "msg", "scope", "time", "type", "ver"];

/// What an event carries, in buffers that are reused.
#[derive(Default)]
pub(super) struct Fields {
    message: String,
    /// All values one after the other; entries point into it.
    values: String,
    entries: Vec<Entry>,
}

struct Entry {
    key: &'static str,
    from: usize,
    to: usize,
    /// A number or truth value, bare in JSON.
    bare: bool,
}

pub(super) struct Line<'a> {
    pub(super) time: SystemTime,
    pub(super) level: Level,
    pub(super) scope: &'a str,
    pub(super) identity: &'a LogIdentity,
    pub(super) fields: &'a Fields,
}

impl Fields {
    pub(super) fn clear(&mut self) {
        self.message.clear();
        self.values.clear();
        self.entries.clear();
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// Value of the field `component`, empty without one.
    pub(super) fn component(&self) -> &str {
        let entry = self.entries.iter().find(|entry| entry.key == "component");
        entry.map_or("", |entry| &self.values[entry.from..entry.to])
    }

    pub(super) fn add_suppressed(&mut self, lines: u64) {
        self.push("suppressed", true, |out| {
            let _ = write!(out, "{lines}");
        });
    }

    pub(super) fn sort(&mut self) {
        self.entries.sort_unstable_by_key(|entry| entry.key);
    }

    fn push(&mut self, key: &'static str, bare: bool, write: impl FnOnce(&mut String)) {
        let from = self.values.len();
        write(&mut self.values);
        cut(&mut self.values, from);
        self.entries.push(Entry { key, from, to: self.values.len(), bare });
    }

    fn add(&mut self, field: &Field, bare: bool, write: impl FnOnce(&mut String)) {
        match field.name() {
            "message" => {
                self.message.clear();
                write(&mut self.message);
                cut(&mut self.message, 0);
            }
            // Marks the level; says nothing itself.
            "fatal" => {}
            name => self.push(name, bare, write),
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, false, |out| out.push_str(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, true, |out| out.push_str(if value { "true" } else { "false" }));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, true, |out| {
            let _ = write!(out, "{value}");
        });
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, true, |out| {
            let _ = write!(out, "{value}");
        });
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.is_finite(), |out| {
            let _ = write!(out, "{value}");
        });
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.add(field, false, |out| {
            let _ = write!(out, "{value}");
            let mut cause = value.source();
            // A chain deeper than this is a loop.
            for _ in 0..8 {
                let Some(error) = cause else { break };
                let _ = write!(out, ": {error}");
                cause = error.source();
            }
        });
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, false, |out| {
            let _ = write!(out, "{value:?}");
        });
    }
}

impl Line<'_> {
    /// `time`, `level` and `msg` first, then all other keys sorted.
    pub(super) fn text(&self, out: &mut String) {
        out.push_str("time=\"");
        timestamp(out, self.time);
        out.push_str("\" level=");
        out.push_str(self.level.name());
        out.push_str(" msg=");
        quote(out, &self.fields.message);
        self.each(|key, renamed, value, _| {
            if matches!(key, "level" | "msg" | "time") && !renamed {
                return;
            }
            out.push(' ');
            if renamed {
                out.push_str("fields.");
            }
            out.push_str(key);
            out.push('=');
            quote(out, value);
        });
        out.push('\n');
    }

    /// One object, all keys sorted.
    pub(super) fn json(&self, out: &mut String) {
        let mut time = String::with_capacity(32);
        timestamp(&mut time, self.time);
        let mut sep = '{';
        self.each(|key, renamed, value, bare| {
            out.push(sep);
            sep = ',';
            out.push('"');
            if renamed {
                out.push_str("fields.");
            }
            json_escape(out, key);
            out.push_str("\":");
            let value = if key == "time" && !renamed { &time } else { value };
            if bare {
                out.push_str(value);
            } else {
                out.push('"');
                json_escape(out, value);
                out.push('"');
            }
        });
        out.push_str("}\n");
    }

    /// Merges fixed keys and fields in sorted order; both are sorted already.
    fn each(&self, mut visit: impl FnMut(&str, bool, &str, bool)) {
        let fixed = FIXED.iter().filter_map(|key| {
            let value = match *key {
                "app_id" if self.identity.app_id.is_empty() => return None,
                "app_id" => self.identity.app_id.as_str(),
                "instance" => &self.identity.instance,
                "level" => self.level.name(),
                "msg" => &self.fields.message,
                "scope" => self.scope,
                "type" => "log",
                "ver" => self.identity.version,
                _ => "",
            };
            Some((*key, value))
        });
        let mut fixed = fixed.peekable();
        // `fields.<name>` sorts under f.
        let sort_key = |entry: &Entry| if FIXED.contains(&entry.key) { "fields." } else { entry.key };
        let plain = self.fields.entries.iter().filter(|entry| !FIXED.contains(&entry.key));
        let renamed = self.fields.entries.iter().filter(|entry| FIXED.contains(&entry.key));
        let mut plain = plain.peekable();
        let mut renamed = renamed.peekable();
        loop {
            let heads = [
                fixed.peek().map(|(key, _)| *key),
                plain.peek().map(|entry| sort_key(entry)),
                renamed.peek().map(|entry| sort_key(entry)),
            ];
            let Some(next) = heads.iter().flatten().min() else { return };
            if heads[0] == Some(next) {
                if let Some((key, value)) = fixed.next() {
                    visit(key, false, value, false);
                }
            } else if heads[1] == Some(next) {
                if let Some(entry) = plain.next() {
                    visit(entry.key, false, &self.fields.values[entry.from..entry.to], entry.bare);
                }
            } else if let Some(entry) = renamed.next() {
                visit(entry.key, true, &self.fields.values[entry.from..entry.to], entry.bare);
            }
        }
    }
}

/// RFC 3339 in UTC with nine digits.
pub(super) fn timestamp(out: &mut String, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days (Howard Hinnant's algorithm), for days after 1970.
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let _ = write!(
        out,
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_nanos()
    );
}

/// Bare when only letters, digits and a few signs; else in double quotes with
/// Go's escapes. An empty value stays empty.
fn quote(out: &mut String, value: &str) {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"-._/@^+".contains(&c);
    if value.bytes().all(plain) {
        out.push_str(value);
        return;
    }
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || c == '\u{7f}' => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            // Characters a terminal or log viewer would act on or not show.
            c if c.is_control()
                || matches!(c, '\u{a0}' | '\u{feff}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn json_escape(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || matches!(c, '\u{7f}' | '\u{2028}' | '\u{2029}') => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
}

fn cut(text: &mut String, from: usize) {
    if text.len() - from > MAX_VALUE {
        let mut end = from + MAX_VALUE;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
}
