//! Records on the wire: what a publish becomes, and what a record becomes for the app.

use std::borrow::Cow;

use bytes::Bytes;
use mecha_components_api::{Error, Metadata, Result};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rdkafka::Message;
use rdkafka::message::{Header, Headers, OwnedHeaders};

use crate::config::HeaderRules;

/// Longest name of a topic.
const TOPIC_BYTES: usize = 249;
/// A record without a value, as JSON has it.
const NULL: &[u8] = b"null";

/// Request metadata that names the key of a record.
const PARTITION_KEY: &str = "partitionKey";
const KEY: &str = "__key";
/// Request metadata that names the partition.
const PARTITION_NUMBER: &str = "partitionNumber";

const TOPIC: &str = "__topic";
const PARTITION: &str = "__partition";
const OFFSET: &str = "__offset";
const TIMESTAMP: &str = "__timestamp";

/// What Go's url.QueryEscape leaves as it is.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b' ');

/// A record that is ready to be sent.
#[derive(Debug)]
pub(crate) struct Outgoing<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: Option<i32>,
    pub(crate) key: Option<&'a str>,
    /// `None` deletes the key from a compacted topic.
    pub(crate) value: Option<Cow<'a, [u8]>>,
    pub(crate) headers: Option<OwnedHeaders>,
}

impl<'a> Outgoing<'a> {
    /// Makes a record of a publish.
    ///
    /// # Errors
    /// Names what Kafka cannot take.
    pub(crate) fn new(
        topic: &'a str,
        data: impl Into<Cow<'a, [u8]>>,
        md: &'a Metadata,
        rules: &HeaderRules,
    ) -> Result<Self> {
        let data = data.into();
        check_topic(topic)?;
        let partition = match md.get_non_empty(PARTITION_NUMBER).map(str::parse::<i32>) {
            None => None,
            Some(Ok(n)) if n >= 0 => Some(n),
            Some(_) => return Err(Error::invalid(format!("metadata '{PARTITION_NUMBER}' must be a number from 0"))),
        };
        let kept = || md.iter().filter(|(name, _)| !rules.exclude.as_ref().is_some_and(|r| r.is_match(name)));
        let count = kept().count();
        if let Some((name, _)) = kept().find(|(name, _)| name.contains('\0')) {
            return Err(Error::invalid(format!("metadata '{}' cannot be a header", name.escape_default())));
        }
        let headers = (count > 0).then(|| {
            kept().fold(OwnedHeaders::new_with_capacity(count), |headers, (key, value)| {
                headers.insert(Header { key, value: Some(value) })
            })
        });
        Ok(Self {
            topic,
            partition,
            key: md.get(PARTITION_KEY).or_else(|| md.get(KEY)),
            value: (*data != *NULL).then_some(data),
            headers,
        })
    }
}

/// Checks the name of a topic as the brokers do.
pub(crate) fn check_topic(topic: &str) -> Result<()> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if topic.is_empty() || topic.len() > TOPIC_BYTES || matches!(topic, "." | "..") || !topic.chars().all(legal) {
        return Err(Error::invalid(format!(
            "a topic of Kafka has 1 to {TOPIC_BYTES} of the characters a-z, A-Z, 0-9, '.', '_' and '-', not '{}'",
            topic.escape_debug().take(80).collect::<String>()
        )));
    }
    Ok(())
}

/// The value of a record.
pub(crate) fn data(record: &impl Message) -> Bytes {
    record.payload().map_or(Bytes::from_static(NULL), Bytes::copy_from_slice)
}

/// The metadata of a record: its headers, and where it lies.
pub(crate) fn metadata(record: &impl Message, rules: &HeaderRules) -> Metadata {
    let mut md = Metadata::new();
    if let Some(key) = record.key() {
        md.insert(KEY, rules.text(key));
    }
    for header in record.headers().into_iter().flat_map(Headers::iter) {
        if !rules.exclude.as_ref().is_some_and(|r| r.is_match(header.key)) {
            md.insert(header.key, rules.text(header.value.unwrap_or_default()));
        }
    }
    // Last: a record that was copied from another topic carries that one's.
    md.insert(TOPIC, record.topic());
    md.insert(PARTITION, record.partition().to_string());
    md.insert(OFFSET, record.offset().to_string());
    if let Some(at) = record.timestamp().to_millis() {
        md.insert(TIMESTAMP, at.to_string());
    }
    md
}

impl HeaderRules {
    fn text(&self, value: &[u8]) -> String {
        let text = String::from_utf8_lossy(value);
        if self.escape { utf8_percent_encode(&text, QUERY).to_string().replace(' ', "+") } else { text.into_owned() }
    }
}

#[cfg(test)]
mod tests {
    use mecha_components_api::ErrorKind;
    use proptest::prelude::*;
    use rdkafka::Timestamp;
    use rdkafka::message::OwnedMessage;
    use regex::Regex;

    use super::*;

    fn md(pairs: &[(&str, &str)]) -> Metadata {
        pairs.iter().copied().collect()
    }

    fn stored(out: Outgoing<'_>) -> OwnedMessage {
        OwnedMessage::new(
            out.value.map(Cow::into_owned),
            out.key.map(|k| k.as_bytes().to_vec()),
            out.topic.to_owned(),
            Timestamp::CreateTime(12),
            3,
            7,
            out.headers,
        )
    }

    #[test]
    fn keys_and_partitions_are_named_by_metadata() {
        let rules = HeaderRules::default();
        let both = md(&[("partitionKey", "a"), ("partitionNumber", "5")]);
        let out = Outgoing::new("t", &b"x"[..], &both, &rules).unwrap();
        assert_eq!((out.key, out.partition, out.value.as_deref()), (Some("a"), Some(5), Some(&b"x"[..])));
        let other = md(&[("__key", "b")]);
        assert_eq!(Outgoing::new("t", &b""[..], &other, &rules).unwrap().key, Some("b"));
        for wrong in ["-1", "x", "99999999999"] {
            let e = Outgoing::new("t", &b""[..], &md(&[("partitionNumber", wrong)]), &rules)
                .map(|o| o.partition)
                .unwrap_err();
            assert_eq!(e.kind(), ErrorKind::InvalidArgument);
        }
    }

    #[test]
    fn metadata_comes_back_with_the_place_of_the_record() {
        let rules = HeaderRules::default();
        let sent = md(&[("partitionKey", "k"), ("note", "é漢"), ("__offset", "99")]);
        let record = stored(Outgoing::new("t", &b"x"[..], &sent, &rules).unwrap());
        let got = metadata(&record, &rules);
        let want = [
            ("__key", "k"),
            ("__offset", "7"),
            ("__partition", "3"),
            ("__timestamp", "12"),
            ("__topic", "t"),
            ("note", "é漢"),
            ("partitionKey", "k"),
        ];
        assert_eq!(got.iter().collect::<Vec<_>>(), want);
    }

    #[test]
    fn headers_are_escaped_and_left_out_as_asked() {
        let rules = HeaderRules { escape: true, exclude: Some(Regex::new("^secret").unwrap()) };
        let plain = HeaderRules::default();
        let sent = md(&[("note", "a b/é~"), ("secret-one", "x")]);
        let got = metadata(&stored(Outgoing::new("t", &b"x"[..], &sent, &plain).unwrap()), &rules);
        assert_eq!((got.get("note"), got.get("secret-one")), (Some("a+b%2F%C3%A9~"), None));
        let got = metadata(&stored(Outgoing::new("t", &b"x"[..], &sent, &rules).unwrap()), &plain);
        assert_eq!((got.get("note"), got.get("secret-one")), (Some("a b/é~"), None));
    }

    #[test]
    fn null_is_a_record_without_a_value_and_empty_is_not() {
        let (rules, none) = (HeaderRules::default(), Metadata::new());
        let null = stored(Outgoing::new("t", &b"null"[..], &none, &rules).unwrap());
        assert_eq!((null.payload(), data(&null).as_ref()), (None, &b"null"[..]));
        let empty = stored(Outgoing::new("t", &b""[..], &none, &rules).unwrap());
        assert_eq!((empty.payload(), data(&empty).as_ref()), (Some(&b""[..]), &b""[..]));
    }

    #[test]
    fn names_of_topics() {
        for good in ["a", "A.b_c-9", &"x".repeat(249)] {
            assert!(check_topic(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "ä", "a\0", &"x".repeat(250)] {
            assert_eq!(check_topic(bad).unwrap_err().kind(), ErrorKind::InvalidArgument, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_metadata_is_kept_or_refused(pairs in proptest::collection::vec((".{0,12}", ".{0,24}"), 0..8)) {
            let rules = HeaderRules::default();
            let sent: Metadata = pairs.into_iter().collect();
            if let Ok(out) = Outgoing::new("t", &b"x"[..], &sent, &rules) {
                let got = metadata(&stored(out), &rules);
                for (key, value) in sent.iter().filter(|(k, _)| !k.starts_with("__")) {
                    prop_assert_eq!(got.get(key), Some(value));
                }
            }
        }
    }
}
