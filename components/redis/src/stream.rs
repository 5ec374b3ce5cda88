//! Streams on the wire: what is added to them, and what comes out.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use mecha_components_api::{Error, Metadata, Publish, Result};
use redis::{Cmd, Value};

/// The field with the payload.
const DATA: &[u8] = b"data";
/// The field with the metadata, a JSON object of texts.
const METADATA: &[u8] = b"metadata";

/// How a stream is kept from growing without end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trim {
    /// About so many entries stay. Wins over `age`: one command can do only one of them.
    pub(crate) entries: Option<u64>,
    /// About the entries of this time stay.
    pub(crate) age: Option<Duration>,
}

/// One entry of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) data: Bytes,
    pub(crate) metadata: Metadata,
}

/// One answer to a claim.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Claimed {
    /// Where the next claim goes on; `0-0` at the end.
    pub(crate) next: String,
    pub(crate) entries: Vec<Entry>,
}

/// The command that adds a message to its stream.
pub(crate) fn add(msg: &Publish<'_>, trim: Trim, now: SystemTime) -> Result<Cmd> {
    let metadata: BTreeMap<&str, &str> = msg.metadata.iter().collect();
    let metadata = serde_json::to_vec(&metadata)
        .map_err(|e| Error::internal("cannot encode the message's metadata").with_source(e))?;
    let mut cmd = Cmd::with_capacity(10, msg.topic.len() + msg.data.len() + metadata.len() + 64);
    cmd.arg("XADD").arg(msg.topic);
    match trim {
        Trim { entries: Some(entries), .. } => {
            cmd.arg("MAXLEN").arg("~").arg(entries);
        }
        Trim { age: Some(age), .. } => {
            cmd.arg("MINID").arg("~").arg(first_id(now, age));
        }
        Trim { entries: None, age: None } => {}
    }
    cmd.arg("*").arg(DATA).arg(msg.data.as_ref()).arg(METADATA).arg(metadata);
    Ok(cmd)
}

/// The lowest id of entries that are younger than `age`.
fn first_id(now: SystemTime, age: Duration) -> String {
    let since = now.checked_sub(age).and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    format!("{}-0", since.as_millis())
}

/// Entries of the one stream in the answer to XREADGROUP; nil is none.
pub(crate) fn read(value: Value) -> Option<Vec<Entry>> {
    match value {
        Value::Nil => Some(Vec::new()),
        Value::Array(streams) => {
            let Some(Value::Array(stream)) = streams.into_iter().next() else { return Some(Vec::new()) };
            entries(stream.into_iter().nth(1)?)
        }
        // The third version of the protocol.
        Value::Map(streams) => match streams.into_iter().next() {
            Some((_, list)) => entries(list),
            None => Some(Vec::new()),
        },
        _ => None,
    }
}

/// The answer to XAUTOCLAIM.
pub(crate) fn claimed(value: Value) -> Option<Claimed> {
    let Value::Array(parts) = value else { return None };
    let mut parts = parts.into_iter();
    let next = text(parts.next()?)?;
    Some(Claimed { next, entries: entries(parts.next()?)? })
}

/// Entries without fields, which were removed from the stream after they were delivered, are
/// left out.
fn entries(list: Value) -> Option<Vec<Entry>> {
    let Value::Array(list) = list else { return None };
    Some(list.into_iter().filter_map(entry).collect())
}

fn entry(value: Value) -> Option<Entry> {
    let Value::Array(parts) = value else { return None };
    let mut parts = parts.into_iter();
    let id = text(parts.next()?)?;
    let Value::Array(fields) = parts.next()? else { return None };
    let (mut data, mut metadata) = (Bytes::new(), Metadata::new());
    let mut fields = fields.into_iter();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        let (Some(name), Some(value)) = (bytes(name), bytes(value)) else { continue };
        if name == DATA {
            data = value;
        } else if name == METADATA {
            metadata = decode(&value);
        }
    }
    Some(Entry { id, data, metadata })
}

/// Metadata that cannot be read is none: the payload still counts.
fn decode(json: &[u8]) -> Metadata {
    let map: Option<BTreeMap<String, serde_json::Value>> = serde_json::from_slice(json).unwrap_or_default();
    let texts = map.unwrap_or_default().into_iter().filter_map(|(key, value)| match value {
        serde_json::Value::String(text) => Some((key, text)),
        _ => None,
    });
    texts.collect()
}

fn bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(bytes) => Some(bytes.into()),
        Value::SimpleString(text) => Some(text.into_bytes().into()),
        _ => None,
    }
}

fn text(value: Value) -> Option<String> {
    bytes(value).and_then(|b| String::from_utf8(b.into()).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(cmd: &Cmd) -> Vec<String> {
        let args = cmd.args_iter().map(|arg| match arg {
            redis::Arg::Simple(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            _ => String::new(),
        });
        args.collect()
    }

    fn publish<'a>(data: &'static [u8], metadata: &'a Metadata) -> Publish<'a> {
        Publish { topic: "t", data: Bytes::from_static(data), content_type: None, metadata }
    }

    #[test]
    fn messages_have_the_layout_of_the_incumbent() {
        let md: Metadata = [("a", "1")].into_iter().collect();
        let cmd = add(&publish(b"x", &md), Trim::default(), UNIX_EPOCH).unwrap();
        assert_eq!(packed(&cmd), ["XADD", "t", "*", "data", "x", "metadata", r#"{"a":"1"}"#]);
    }

    #[test]
    fn streams_are_trimmed_by_length_or_age() {
        let md = Metadata::new();
        let now = UNIX_EPOCH + Duration::from_secs(100);
        let age = Some(Duration::from_secs(40));
        let by_age = add(&publish(b"", &md), Trim { entries: None, age }, now).unwrap();
        assert_eq!(packed(&by_age)[2..5], ["MINID", "~", "60000-0"]);
        let by_length = add(&publish(b"", &md), Trim { entries: Some(7), age }, now).unwrap();
        assert_eq!(packed(&by_length)[2..5], ["MAXLEN", "~", "7"]);
    }

    fn parse(text: &str) -> Value {
        redis::parse_redis_value(text.replace(' ', "\r\n").as_bytes()).unwrap()
    }

    #[test]
    fn answers_are_read() {
        let reply = parse("*1 *2 $1 t *1 *2 $3 1-0 *4 $4 data $1 x $8 metadata $9 {\"a\":\"1\"} ");
        let entries = read(reply).unwrap();
        let metadata: Metadata = [("a", "1")].into_iter().collect();
        assert_eq!(entries, [Entry { id: "1-0".into(), data: "x".into(), metadata }]);
        assert_eq!(read(Value::Nil), Some(Vec::new()));
        assert_eq!(read(Value::Okay), None);

        // The second entry was removed from the stream, the third has fields of somebody else.
        let reply = parse("*3 $3 0-0 *3 *2 $3 1-0 *2 $4 data $1 x *-1 *2 $3 3-0 *2 $1 f $1 y *0 ");
        let claimed = claimed(reply).unwrap();
        assert_eq!(claimed.next, "0-0");
        let ids: Vec<&str> = claimed.entries.iter().map(|e| e.id.as_str()).collect();
        assert_eq!(ids, ["1-0", "3-0"]);
        assert!(claimed.entries[1].data.is_empty());
    }

    #[test]
    fn metadata_that_is_no_object_of_texts_is_none() {
        for json in ["", "null", "[]", "1", "{\"a\":", "\u{0}"] {
            assert!(decode(json.as_bytes()).is_empty(), "{json}");
        }
        assert_eq!(decode(br#"{"a":"1","b":2}"#).len(), 1);
    }

    proptest! {
        #[test]
        fn any_metadata_comes_back(pairs in proptest::collection::btree_map("[a-z]{1,8}", "\\PC{0,12}", 0..6)) {
            let md: Metadata = pairs.clone().into_iter().collect();
            let cmd = add(&publish(b"", &md), Trim::default(), UNIX_EPOCH).unwrap();
            prop_assert_eq!(decode(packed(&cmd).last().unwrap().as_bytes()).into_inner(), pairs);
        }

        #[test]
        fn any_answer_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(value) = redis::parse_redis_value(&bytes) {
                let _ = read(value.clone());
                let _ = claimed(value);
            }
        }
    }
}
