//! The metadata that every SQLite component shares: where the database is and how to open it.

use std::time::Duration;

use mecha_components_api::{ConfigErrors, Field, FieldType, Metadata, parse_go_duration};
use percent_encoding::percent_decode_str;

/// Pragmas that decide what two processes can rely on; they have metadata keys instead.
const FORBIDDEN: [(&str, &str); 3] = [
    ("busy_timeout", "use the metadata key 'busyTimeout' instead"),
    ("journal_mode", "use the metadata key 'disableWAL' instead"),
    ("foreign_keys", "it cannot be changed"),
];

/// Shortest `timeout` that is accepted.
const MIN_TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) const CONNECTION_STRING: Field =
    Field::new("connectionString", FieldType::Text, "Path of the database file, a `file:` URI, or `:memory:`.")
        .required()
        .aliases(&["url"]);
pub(crate) const DISABLE_WAL: Field = Field::new(
    "disableWAL",
    FieldType::Boolean,
    "Uses a rollback journal instead of the write-ahead log, which network file systems need.",
)
.default("false");
pub(crate) const METADATA_TABLE_NAME: Field =
    Field::new("metadataTableName", FieldType::Text, "Table that holds the version of the layout.").default("metadata");

/// How to open one database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DbConfig {
    /// URI for SQLite, without the parameters that are ours.
    pub(crate) uri: String,
    /// The database lives in memory and is gone with its connection.
    pub(crate) memory: bool,
    /// Nobody else gets at the file: its locking mode is exclusive.
    pub(crate) alone: bool,
    /// One connection only: an in-memory database, or an exclusive locking mode.
    pub(crate) solo: bool,
    /// Write-ahead log; otherwise a rollback journal.
    pub(crate) wal: bool,
    /// The file cannot be written.
    pub(crate) read_only: bool,
    /// How long one statement waits for a lock before it is tried anew; not more than `timeout`.
    pub(crate) busy_timeout: Duration,
    /// How long one operation may take in all.
    pub(crate) timeout: Duration,
    /// `PRAGMA name(value)` for each connection.
    pub(crate) pragmas: Vec<(String, String)>,
}

/// Defaults that differ between the components.
pub(crate) struct Defaults {
    pub(crate) timeout: Duration,
    pub(crate) busy_timeout: Duration,
}

impl DbConfig {
    /// Reads the shared keys, noting mistakes in `errors`.
    pub(crate) fn read(md: &Metadata, errors: &mut ConfigErrors, defaults: &Defaults) -> Self {
        let second = Duration::from_secs(1);
        let text = md.get_non_empty("connectionString").or_else(|| md.get_non_empty("url")).unwrap_or("");
        let key = if md.contains("timeout") { "timeout" } else { "timeoutInSeconds" };
        let timeout = errors.duration(md, key, second, defaults.timeout);
        if timeout < MIN_TIMEOUT {
            errors.push(key, "invalid value for 'timeout': must be greater than 1s");
        }
        let busy_timeout = span(md, errors, "busyTimeout", defaults.busy_timeout);
        let disable_wal = errors.bool(md, "disableWAL", false);
        let mut config = Self {
            uri: String::new(),
            memory: false,
            alone: false,
            solo: false,
            wal: true,
            read_only: false,
            busy_timeout: busy_timeout.min(timeout.max(MIN_TIMEOUT)),
            timeout: timeout.max(MIN_TIMEOUT),
            pragmas: Vec::new(),
        };
        if text.is_empty() {
            errors.push("connectionString", "missing connection string");
        } else if let Err(message) = config.connect_with(text) {
            errors.push("connectionString", message);
        }
        config.wal = !(disable_wal || config.read_only || config.memory);
        config
    }

    fn connect_with(&mut self, text: &str) -> Result<(), String> {
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        let lower = path.to_ascii_lowercase();
        self.memory = lower.starts_with(":memory:") || lower.starts_with("file::memory:");
        let mut kept = String::new();
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(name), decode(value));
            match name.as_str() {
                "_pragma" => self.add_pragma(&value)?,
                // A cache shared between connections brings table locks that no busy timeout covers.
                "cache" => continue,
                // Write transactions are always immediate; the other options are about Go types.
                _ if name.starts_with('_') => continue,
                "mode" if value.eq_ignore_ascii_case("memory") => self.memory = true,
                "mode" if value.eq_ignore_ascii_case("ro") => self.read_only = true,
                "immutable" if matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on") => {
                    self.read_only = true
                }
                _ => {}
            }
            if name != "_pragma" {
                kept.push(if kept.is_empty() { '?' } else { '&' });
                kept.push_str(pair);
            }
        }
        if path.contains('\0') || percent_decode_str(path).any(|b| b == 0) {
            return Err("the path of the database must not hold a NUL byte".into());
        }
        let prefix = if lower.starts_with("file:") { "" } else { "file:" };
        self.uri = if self.memory { ":memory:".into() } else { format!("{prefix}{path}{kept}") };
        self.solo |= self.memory;
        Ok(())
    }

    fn add_pragma(&mut self, text: &str) -> Result<(), String> {
        let lower = text.to_ascii_lowercase();
        if let Some((name, instead)) = FORBIDDEN.iter().find(|(name, _)| lower.starts_with(name)) {
            return Err(format!("found forbidden option '_pragma={name}' in the connection string; {instead}"));
        }
        let malformed =
            || format!("option '_pragma={text}' in the connection string must look like 'cache_size(-2000)'");
        let (name, value) = match text.split_once('(') {
            Some((name, rest)) => (name, rest.strip_suffix(')').ok_or_else(malformed)?),
            None => text.split_once('=').ok_or_else(malformed)?,
        };
        let (name, value) = (name.trim(), value.trim().trim_matches('\''));
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '+');
        if !valid_identifier(name) || value.is_empty() || !value.chars().all(plain) {
            return Err(malformed());
        }
        // With this mode a second connection, even of this process, would never get in.
        let alone = name.eq_ignore_ascii_case("locking_mode") && value.eq_ignore_ascii_case("exclusive");
        self.alone |= alone;
        self.solo |= alone;
        self.pragmas.push((name.to_ascii_lowercase(), value.to_owned()));
        Ok(())
    }
}

/// A duration whose bare numbers are seconds and whose negative values count as zero.
pub(crate) fn span(md: &Metadata, errors: &mut ConfigErrors, key: &str, default: Duration) -> Duration {
    let second = Duration::from_secs(1);
    match md.get_non_empty(key).map(str::trim).and_then(|v| v.strip_prefix('-')) {
        Some(rest) if parse_go_duration(rest, second).is_some() => Duration::ZERO,
        _ => errors.duration(md, key, second, default),
    }
}

/// A table name: letters, digits and underscores, so that it can stand in SQL.
pub(crate) fn table(md: &Metadata, errors: &mut ConfigErrors, key: &str, default: &str) -> String {
    let name = errors.text(md, key, default);
    if !valid_identifier(&name) {
        errors.push(key, format!("invalid identifier: {name}"));
    }
    name
}

fn valid_identifier(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn decode(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DEFAULTS: Defaults = Defaults { timeout: Duration::from_secs(20), busy_timeout: Duration::from_secs(2) };

    fn read(pairs: &[(&str, &str)]) -> Result<DbConfig, ConfigErrors> {
        let md: Metadata = pairs.iter().copied().collect();
        let mut errors = ConfigErrors::new();
        let config = DbConfig::read(&md, &mut errors, &DEFAULTS);
        errors.finish(config)
    }

    #[test]
    fn paths_and_uris() {
        let plain = read(&[("connectionString", "data/my.db")]).unwrap();
        assert_eq!((plain.uri.as_str(), plain.wal, plain.solo), ("file:data/my.db", true, false));
        assert_eq!(plain.timeout, Duration::from_secs(20));
        assert_eq!(plain.busy_timeout, Duration::from_secs(2));

        let uri =
            read(&[("url", "file:my.db?_txlock=immediate&nolock=1&_pragma=cache_size(-100)&cache=shared")]).unwrap();
        assert_eq!(uri.uri, "file:my.db?nolock=1");
        assert_eq!(uri.pragmas, [("cache_size".to_owned(), "-100".to_owned())]);

        for memory in [":memory:", "file::memory:?cache=shared", "file:x?mode=memory"] {
            let config = read(&[("connectionString", memory)]).unwrap();
            assert!(config.memory && config.solo && !config.wal, "{memory}");
        }
        assert!(!read(&[("connectionString", "a.db"), ("disableWAL", "yes")]).unwrap().wal);
        assert!(read(&[("connectionString", "a.db?_pragma=locking_mode(EXCLUSIVE)")]).unwrap().solo);
    }

    #[test]
    fn durations() {
        let config = read(&[("connectionString", "a"), ("timeoutInSeconds", "3"), ("busyTimeout", "150ms")]).unwrap();
        assert_eq!((config.timeout, config.busy_timeout), (Duration::from_secs(3), Duration::from_millis(150)));
        assert_eq!(read(&[("connectionString", "a"), ("busyTimeout", "-1s")]).unwrap().busy_timeout, Duration::ZERO);
    }

    #[test]
    fn every_mistake_is_told() {
        let errors = read(&[("timeout", "10ms"), ("busyTimeout", "soon")]).unwrap_err();
        let text = errors.to_string();
        assert_eq!(errors.list().len(), 3, "{text}");
        assert!(text.contains("missing connection string"));
        assert!(text.contains("invalid value for 'timeout': must be greater than 1s"));
        for pragma in ["busy_timeout(5)", "JOURNAL_MODE(WAL)", "foreign_keys=1", "journal_mode%28DELETE)"] {
            let errors = read(&[("connectionString", &format!("a.db?_pragma={pragma}"))]).unwrap_err();
            assert!(errors.to_string().starts_with("found forbidden option '_pragma="), "{errors}");
        }
        for pragma in ["cache_size", "x(1);drop table state", "cache_size(1", "a b(1)"] {
            assert!(read(&[("connectionString", &format!("a.db?_pragma={pragma}"))]).is_err(), "{pragma}");
        }
    }

    #[test]
    fn table_names_stay_names() {
        for bad in ["a b", "state;", "\"x\"", "ü"] {
            let md: Metadata = [("tableName", bad)].into_iter().collect();
            let mut errors = ConfigErrors::new();
            table(&md, &mut errors, "tableName", "state");
            assert_eq!(errors.to_string(), format!("invalid identifier: {bad}"));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,60}|(file:)?[a-z%?&=_():0-9]{0,40}") {
            let _ = read(&[("connectionString", &text)]);
        }
    }
}
