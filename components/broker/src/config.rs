use std::path::PathBuf;
use std::time::Duration;

use mecha_components_api::{ConfigErrors, Field, FieldType, Metadata};

/// Bare numbers of durations count in seconds.
const SECOND: Duration = Duration::from_secs(1);
/// Long enough for a slow page load in the handler; a dead process is noticed much earlier.
const ACK_WAIT: Duration = Duration::from_secs(30);
/// Shorter leases would expire between two heartbeats of a busy machine.
const ACK_WAIT_MIN: Duration = Duration::from_secs(1);
/// Also the bound after which a stored expiry is taken for one of an earlier boot.
pub(crate) const ACK_WAIT_MAX: Duration = Duration::from_secs(3600);
/// Enough to hide the commit of acknowledgements, small enough as the count of duplicates after a kill.
const MAX_IN_FLIGHT: i64 = 16;
const MAX_IN_FLIGHT_LIMIT: i64 = 1000;
/// A week, as common brokers do.
const RETENTION_HOURS: i64 = 7 * 24;
const RETENTION_HOURS_LIMIT: i64 = 10 * 366 * 24;
const MAX_BYTES: u64 = 1 << 30;
const MAX_BYTES_MIN: u64 = 1 << 20;
/// Above the default body limit of the API (4 MiB), below what would fill the memory of a small machine.
const MAX_MESSAGE_BYTES: u64 = 16 << 20;
/// SQLite stores no more than 1e9 bytes in a value.
const MAX_MESSAGE_BYTES_LIMIT: u64 = 512 << 20;

/// Metadata keys of the component.
pub(crate) const FIELDS: &[Field] = &[
    Field::new(
        "path",
        FieldType::Text,
        "Folder of the broker's file; every component with the same folder shares its topics. Must be on a local disk.",
    )
    .default("~/.mecha/data/broker"),
    Field::new(
        "consumerID",
        FieldType::Text,
        "Consumer group: members share the messages of a topic, each group gets all of them. Default: the app id.",
    ),
    Field::new(
        "startFrom",
        FieldType::Text,
        "Where a new group starts: `oldest` (every message still kept) or `newest` (only what is published from then \
         on). An existing group keeps its position. Also subscription metadata.",
    )
    .default("oldest"),
    Field::new(
        "concurrency",
        FieldType::Text,
        "`parallel`: up to maxInFlight messages at once, a failed one does not hold up the others; `single`: one at a \
         time per group and topic, strictly in order, a failed one is repeated first. Also subscription metadata.",
    )
    .default("parallel"),
    Field::new(
        "maxInFlight",
        FieldType::Integer,
        "Messages one subscription handles at once, 1 to 1000. Also subscription metadata.",
    )
    .default("16"),
    Field::new(
        "ackWait",
        FieldType::Duration,
        "Lease of a delivered message, 1s to 1h (bare numbers are seconds). It is extended while the handler runs, so \
         it only matters for a process that hangs; a dead process is noticed within about a second. Also subscription \
         metadata.",
    )
    .default("30s"),
    Field::new(
        "ttlInSeconds",
        FieldType::Integer,
        "Messages not delivered after this many seconds are dropped. Publish metadata of the same name wins. Default: \
         never.",
    ),
    Field::new(
        "retentionHours",
        FieldType::Integer,
        "Hours a message is kept after every group acknowledged it, for groups that come later. A message of a topic \
         without groups is dropped after this time, and a group without subscribers is forgotten (both not before 24 \
         hours).",
    )
    .default("168"),
    Field::new(
        "maxBytes",
        FieldType::Quantity,
        "Most bytes all messages may take, at least 1Mi. When reached, acknowledged messages go first; if that is not \
         enough, publishing fails until subscribers catch up. Nothing unacknowledged is dropped.",
    )
    .default("1Gi"),
    Field::new("maxMessageBytes", FieldType::Quantity, "Largest message, at most 512Mi.").default("16Mi"),
];

/// Where a group that does not exist yet starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartFrom {
    Oldest,
    Newest,
}

/// What a subscription may override.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Consume {
    pub start: StartFrom,
    /// One message at a time per group and topic, in order.
    pub single: bool,
    pub max_in_flight: usize,
    pub ack_wait: Duration,
}

/// Limits on what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub retention: Duration,
    pub max_bytes: u64,
}

/// Decoded metadata of the component.
#[derive(Clone, Debug)]
pub(crate) struct BrokerConfig {
    pub path: Option<PathBuf>,
    pub consumer: Option<String>,
    pub consume: Consume,
    pub limits: Limits,
    pub max_message: u64,
    pub ttl: Option<Duration>,
}

impl BrokerConfig {
    pub(crate) fn decode(md: &Metadata) -> Result<Self, ConfigErrors> {
        let mut errors = ConfigErrors::new();
        let defaults = Consume {
            start: StartFrom::Oldest,
            single: false,
            max_in_flight: MAX_IN_FLIGHT as usize,
            ack_wait: ACK_WAIT,
        };
        let consume = defaults.overlaid(md, &mut errors);
        let hours = errors.int(md, "retentionHours", RETENTION_HOURS);
        if !(0..=RETENTION_HOURS_LIMIT).contains(&hours) {
            errors.push("retentionHours", format!("'retentionHours' must be between 0 and {RETENTION_HOURS_LIMIT}"));
        }
        let max_bytes = errors.quantity(md, "maxBytes", MAX_BYTES);
        if max_bytes < MAX_BYTES_MIN {
            errors.push("maxBytes", "'maxBytes' must be at least 1Mi");
        }
        let max_message = errors.quantity(md, "maxMessageBytes", MAX_MESSAGE_BYTES);
        if !(1..=MAX_MESSAGE_BYTES_LIMIT).contains(&max_message) {
            errors.push("maxMessageBytes", "'maxMessageBytes' must be between 1 and 512Mi");
        }
        let ttl = ttl(md);
        let ttl = errors.keep("ttlInSeconds", ttl, None);
        let config = Self {
            path: md.get_non_empty("path").map(PathBuf::from),
            consumer: md.get_non_empty("consumerID").map(str::to_owned),
            consume,
            limits: Limits { retention: Duration::from_secs(hours.max(0) as u64 * 3600), max_bytes },
            max_message,
            ttl,
        };
        errors.finish(config)
    }
}

impl Consume {
    /// These settings with what `md` says on top; mistakes go to `errors`.
    pub(crate) fn overlaid(self, md: &Metadata, errors: &mut ConfigErrors) -> Self {
        let start = match md.get_non_empty("startFrom") {
            None => self.start,
            Some(v) if v.eq_ignore_ascii_case("oldest") => StartFrom::Oldest,
            Some(v) if v.eq_ignore_ascii_case("newest") => StartFrom::Newest,
            Some(_) => {
                errors.push("startFrom", "'startFrom' must be oldest or newest");
                self.start
            }
        };
        let single = match md.get_non_empty("concurrency") {
            None => self.single,
            Some(v) if v.eq_ignore_ascii_case("parallel") => false,
            Some(v) if v.eq_ignore_ascii_case("single") => true,
            Some(_) => {
                errors.push("concurrency", "'concurrency' must be parallel or single");
                self.single
            }
        };
        let max = errors.int(md, "maxInFlight", self.max_in_flight as i64);
        if !(1..=MAX_IN_FLIGHT_LIMIT).contains(&max) {
            errors.push("maxInFlight", format!("'maxInFlight' must be between 1 and {MAX_IN_FLIGHT_LIMIT}"));
        }
        let ack_wait = errors.duration(md, "ackWait", SECOND, self.ack_wait);
        if !(ACK_WAIT_MIN..=ACK_WAIT_MAX).contains(&ack_wait) {
            errors.push("ackWait", "'ackWait' must be between 1s and 1h");
        }
        Self { start, single, max_in_flight: max.clamp(1, MAX_IN_FLIGHT_LIMIT) as usize, ack_wait }
    }
}

/// `ttlInSeconds` of a message or component; absent or empty is `None`.
pub(crate) fn ttl(md: &Metadata) -> Result<Option<Duration>, String> {
    match md.get_non_empty("ttlInSeconds") {
        None => Ok(None),
        // More than u32 seconds (136 years) is a typing mistake rather than a wish.
        Some(v) => match v.trim().parse::<u32>() {
            Ok(s) if s > 0 => Ok(Some(Duration::from_secs(s.into()))),
            _ => Err("'ttlInSeconds' must be a whole number of seconds greater than 0".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn md(pairs: &[(&str, &str)]) -> Metadata {
        pairs.iter().copied().collect()
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let c = BrokerConfig::decode(&Metadata::new()).unwrap();
        let documented = md(&FIELDS
            .iter()
            .filter(|f| !f.default.is_empty() && f.name != "path")
            .map(|f| (f.name, f.default))
            .collect::<Vec<_>>());
        let d = BrokerConfig::decode(&documented).unwrap();
        assert_eq!((c.consume, c.limits, c.max_message, c.ttl), (d.consume, d.limits, d.max_message, d.ttl));
    }

    #[test]
    fn every_mistake_is_reported_together() {
        let errors = BrokerConfig::decode(&md(&[
            ("startFrom", "middle"),
            ("concurrency", "both"),
            ("maxInFlight", "0"),
            ("ackWait", "soon"),
            ("ttlInSeconds", "-1"),
            ("retentionHours", "-5"),
            ("maxBytes", "3"),
            ("maxMessageBytes", "4Ti"),
        ]))
        .unwrap_err();
        let fields: Vec<&str> = errors.list().iter().map(|e| e.field.as_str()).collect();
        for f in FIELDS.iter().filter(|f| !["path", "consumerID"].contains(&f.name)) {
            assert!(fields.contains(&f.name), "{} is missing in {fields:?}", f.name);
        }
    }

    #[test]
    fn ttl_takes_whole_positive_seconds_only() {
        assert_eq!(ttl(&md(&[("ttlInSeconds", "3")])), Ok(Some(Duration::from_secs(3))));
        assert_eq!(ttl(&md(&[("ttlInSeconds", "")])), Ok(None));
        for bad in ["0", "-1", "1.5", "1s", "99999999999"] {
            assert!(ttl(&md(&[("ttlInSeconds", bad)])).is_err(), "{bad}");
        }
    }
}
