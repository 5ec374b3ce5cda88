//! Checks of what a publisher asks for.

use std::time::Duration;

use mecha_components_api::Metadata;

/// What request metadata says to the runtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    /// No envelope.
    pub raw: bool,
    /// Lifetime; `None` when not given or not positive.
    pub ttl: Option<Duration>,
}

/// Reads request metadata; the error is a sentence for the caller.
pub(super) fn wishes(metadata: &Metadata) -> Result<Wishes, String> {
    if metadata.is_empty() {
        return Ok(Wishes::default());
    }
    for (key, value) in metadata.iter() {
        // Brokers hand metadata on as headers, where a line break starts another header.
        if [key, value].iter().any(|text| text.contains(['\r', '\n'])) {
            return Err(format!("metadata key {key:?} holds a line break"));
        }
    }
    let raw = raw_payload(metadata)?;
    let ttl = match metadata.get_non_empty("ttlInSeconds") {
        None => None,
        Some(text) => {
            let seconds: i64 = text.parse().map_err(|_| "ttlInSeconds must be a whole number of seconds".to_owned())?;
            u64::try_from(seconds).ok().filter(|s| *s > 0).map(Duration::from_secs)
        }
    };
    Ok(Wishes { raw, ttl })
}

/// `rawPayload` by Go's texts for booleans, which are fewer than YAML's.
pub(super) fn raw_payload(metadata: &Metadata) -> Result<bool, String> {
    match metadata.get_non_empty("rawPayload") {
        None => Ok(false),
        Some("1" | "t" | "T" | "TRUE" | "true" | "True") => Ok(true),
        Some("0" | "f" | "F" | "FALSE" | "false" | "False") => Ok(false),
        Some(_) => Err("rawPayload value must be a valid boolean: true or false".into()),
    }
}

/// Whether a broker with wildcard subscriptions would read this topic as a pattern.
pub(super) fn is_pattern(topic: &str) -> bool {
    topic.ends_with('*') || topic.split('/').any(|level| level == "+" || level == "#")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Wishes, String> {
        wishes(&pairs.iter().copied().collect())
    }

    #[test]
    fn raw_payload_takes_gos_booleans_only() {
        for yes in ["1", "t", "T", "TRUE", "true", "True"] {
            assert!(read(&[("rawpayload", yes)]).unwrap().raw);
        }
        for no in ["0", "f", "F", "FALSE", "false", "False", ""] {
            assert!(!read(&[("rawPayload", no)]).unwrap().raw);
        }
        for bad in ["yes", "on", "tRUE", "2", " true"] {
            assert!(read(&[("rawPayload", bad)]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_ttl_is_a_whole_number() {
        assert_eq!(read(&[("ttlInSeconds", "5")]).unwrap().ttl, Some(Duration::from_secs(5)));
        assert_eq!(read(&[("ttlInSeconds", "-5")]).unwrap().ttl, None);
        for bad in ["5s", "1.5", "x", "99999999999999999999"] {
            assert!(read(&[("ttlInSeconds", bad)]).is_err(), "{bad}");
        }
    }

    #[test]
    fn line_breaks_are_refused_in_keys_and_values() {
        assert!(read(&[("a\nb", "c")]).is_err());
        assert!(read(&[("a", "b\r\nx-evil: 1")]).unwrap_err().contains("\"a\""));
    }

    #[test]
    fn patterns_of_common_brokers() {
        for pattern in ["a*", "*", "a/+/b", "#", "a/#"] {
            assert!(is_pattern(pattern), "{pattern}");
        }
        for plain in ["a", "c++", "c#", "a*b", "a/b"] {
            assert!(!is_pattern(plain), "{plain}");
        }
    }
}
