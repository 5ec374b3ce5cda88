//! Walking through the keys of a server.

use std::collections::HashSet;

use mecha_components_api::{Error, KeyPage, Result};
use redis::Value;

use crate::client::Client;

/// Keys that the server looks at in one step.
const STEP: usize = 1000;
/// Steps of one call, at most: a prefix without keys must not walk through the whole server
/// at once.
const STEPS: usize = 256;
/// Keys in one page, at most, whatever the caller asks for.
const LARGEST_PAGE: usize = 10_000;

/// One page of the keys that begin with `prefix`.
///
/// The token holds the server's cursor and the keys it gave beyond the limit: the cursor
/// alone cannot stop within a step.
pub(crate) async fn page(client: &Client, prefix: &str, limit: usize, token: Option<&str>) -> Result<KeyPage> {
    let limit = limit.clamp(1, LARGEST_PAGE);
    let (mut cursor, mut keys) = match token {
        Some(token) => read_token(token)?,
        None => (Some(0), Vec::new()),
    };
    let mut seen: HashSet<String> = keys.iter().cloned().collect();
    let pattern = format!("{}*", escape(prefix));
    let mut steps = 0;
    while keys.len() < limit && steps < STEPS {
        let Some(from) = cursor else { break };
        let (next, found) = step(client, from, &pattern).await?;
        keys.extend(found.into_iter().filter(|key| seen.insert(key.clone())));
        cursor = (next != 0).then_some(next);
        steps += 1;
    }
    let rest = if keys.len() > limit { keys.split_off(limit) } else { Vec::new() };
    let next = (cursor.is_some() || !rest.is_empty()).then(|| write_token(cursor, &rest));
    Ok(KeyPage { keys, next })
}

/// One step through all keys that match the pattern: the next cursor, 0 at the end, and
/// what was found.
pub(crate) async fn step(client: &Client, cursor: u64, pattern: &str) -> Result<(u64, Vec<String>)> {
    let mut cmd = redis::cmd("SCAN");
    cmd.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(STEP);
    let reply = client.call(client.read("list keys"), &cmd).await?;
    let strange = || Error::internal("list keys: the server's answer has another form than expected");
    let Value::Array(parts) = reply else { return Err(strange()) };
    let mut parts = parts.into_iter();
    let (Some(next), Some(Value::Array(keys))) = (parts.next(), parts.next()) else { return Err(strange()) };
    let next = match next {
        Value::BulkString(text) => String::from_utf8_lossy(&text).parse().map_err(|_| strange())?,
        Value::Int(n) => u64::try_from(n).map_err(|_| strange())?,
        _ => return Err(strange()),
    };
    // Keys of this runtime are text; others cannot be named by its callers.
    let keys = keys.into_iter().filter_map(|key| match key {
        Value::BulkString(text) => String::from_utf8(text).ok(),
        _ => None,
    });
    Ok((next, keys.collect()))
}

/// The text as a pattern that matches only itself.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

fn write_token(cursor: Option<u64>, rest: &[String]) -> String {
    serde_json::json!([cursor, rest]).to_string()
}

fn read_token(token: &str) -> Result<(Option<u64>, Vec<String>)> {
    serde_json::from_str(token).map_err(|_| Error::invalid("list keys: the token is not one that this store gave"))
}

/// The number of replicas in the answer to INFO replication; `None` for another answer.
pub(crate) fn connected_replicas(info: &Value) -> Option<u64> {
    match info {
        Value::BulkString(text) => Some(read_replicas(&String::from_utf8_lossy(text))),
        // The third version of the protocol.
        Value::VerbatimString { text, .. } => Some(read_replicas(text)),
        _ => None,
    }
}

fn read_replicas(info: &str) -> u64 {
    info.lines()
        .find_map(|line| line.strip_prefix("connected_slaves:"))
        .and_then(|n| n.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn replicas_are_read_from_the_info() {
        let text = "# Replication\r\nrole:master\r\nconnected_slaves:2\r\n";
        assert_eq!(connected_replicas(&Value::BulkString(text.into())), Some(2));
        let verbatim = Value::VerbatimString { format: redis::VerbatimFormat::Text, text: text.to_owned() };
        assert_eq!(connected_replicas(&verbatim), Some(2));
        assert_eq!(connected_replicas(&Value::BulkString("role:slave\r\n".into())), Some(0));
        assert_eq!(connected_replicas(&Value::Nil), None);
    }

    #[test]
    fn prefixes_match_only_themselves() {
        assert_eq!(escape("a*[b]?-\\^c"), "a\\*\\[b\\]\\?\\-\\\\\\^c");
    }

    proptest! {
        #[test]
        fn tokens_come_back(cursor in proptest::option::of(any::<u64>()), rest in proptest::collection::vec(".{0,20}", 0..5)) {
            prop_assert_eq!(read_token(&write_token(cursor, &rest)).unwrap(), (cursor, rest));
        }

        #[test]
        fn any_token_is_read_or_refused(token in ".{0,40}") {
            let _ = read_token(&token);
        }
    }
}
