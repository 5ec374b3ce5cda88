//! Several keys in one round trip.

use mecha_components_api::{Consistency, GetState};

use super::{Space, StateCase, StateProfile};
use crate::case::{Failure, Outcome, check_eq, table};

pub(super) const CASES: &[StateCase] = table![Space::new;
    bulk_answers_in_the_order_asked: bulk,
    bulk_names_missing_keys_as_absent: bulk,
    bulk_answers_a_double_key_twice: bulk,
    bulk_of_nothing_is_empty: bulk,
    bulk_of_many_keys_is_complete: bulk,
    bulk_gives_etags: |p| bulk(p) && p.caps.etag,
    bulk_keeps_bytes: bulk,
];

fn bulk(p: &StateProfile) -> bool {
    p.bulk
}

/// The values of the keys as text.
pub(super) async fn many(s: &Space, keys: &[&str]) -> Result<Vec<Option<String>>, Failure> {
    let bulk = s.store.bulk().ok_or_else(|| Failure::new("the store has no bulk reads"))?;
    let full: Vec<String> = keys.iter().map(|k| s.key(k)).collect();
    let reqs: Vec<GetState<'_>> =
        full.iter().map(|key| GetState { key, consistency: Consistency::Eventual, metadata: &s.md }).collect();
    let mut values = Vec::new();
    for item in bulk.get_many(&reqs).await? {
        values.push(item?.map(|i| String::from_utf8_lossy(&i.value).into_owned()));
    }
    Ok(values)
}

async fn bulk_answers_in_the_order_asked(s: Space) -> Outcome {
    for key in ["c", "a", "b"] {
        s.put(key, &format!("\"{key}\"")).send().await?;
    }
    let expected = ["b", "c", "a"].map(|k| Some(format!("\"{k}\"")));
    check_eq!(many(&s, &["b", "c", "a"]).await?, expected, "bulk read");
    Ok(())
}

async fn bulk_names_missing_keys_as_absent(s: Space) -> Outcome {
    s.put("a", "1").send().await?;
    check_eq!(many(&s, &["x", "a", "y"]).await?, [None, Some("1".to_owned()), None], "bulk read");
    Ok(())
}

async fn bulk_answers_a_double_key_twice(s: Space) -> Outcome {
    s.put("a", "1").send().await?;
    let one = Some("1".to_owned());
    check_eq!(many(&s, &["a", "b", "a", "b"]).await?, [one.clone(), None, one, None], "bulk read");
    Ok(())
}

async fn bulk_of_nothing_is_empty(s: Space) -> Outcome {
    check_eq!(many(&s, &[]).await?, Vec::<Option<String>>::new(), "bulk read");
    Ok(())
}

async fn bulk_of_many_keys_is_complete(s: Space) -> Outcome {
    let keys: Vec<String> = (0..150).map(|i| format!("k{i}")).collect();
    for (i, key) in keys.iter().enumerate() {
        s.put(key, &i.to_string()).send().await?;
    }
    let names: Vec<&str> = keys.iter().map(String::as_str).collect();
    let expected: Vec<Option<String>> = (0..150).map(|i| Some(i.to_string())).collect();
    check_eq!(many(&s, &names).await?, expected, "bulk read");
    Ok(())
}

async fn bulk_gives_etags(s: Space) -> Outcome {
    s.put("a", "1").send().await?;
    let etag = s.etag("a").await?;
    let key = s.key("a");
    let bulk = s.store.bulk().ok_or_else(|| Failure::new("the store has no bulk reads"))?;
    let items = bulk.get_many(&[GetState { key: &key, consistency: Consistency::Eventual, metadata: &s.md }]).await?;
    let mut got = Vec::new();
    for item in items {
        got.push(item?.and_then(|i| i.etag));
    }
    check_eq!(got, [Some(etag)], "ETag in a bulk read");
    Ok(())
}

async fn bulk_keeps_bytes(s: Space) -> Outcome {
    s.put_bytes("a", b"\x00\x9f\x92\x96").send().await?;
    let key = s.key("a");
    let bulk = s.store.bulk().ok_or_else(|| Failure::new("the store has no bulk reads"))?;
    let items = bulk.get_many(&[GetState { key: &key, consistency: Consistency::Eventual, metadata: &s.md }]).await?;
    let mut got = Vec::new();
    for item in items {
        got.push(item?.map(|i| i.value.to_vec()));
    }
    check_eq!(got, [Some(vec![0, 0x9f, 0x92, 0x96])], "bytes in a bulk read");
    Ok(())
}
