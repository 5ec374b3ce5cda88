//! Optimistic concurrency.

use mecha_components_api::ErrorKind::{Conflict, InvalidArgument};

use super::{Space, StateCase, StateProfile};
use crate::case::{Outcome, check, check_eq, refused, table};

/// No store makes this one.
const MALFORMED: &str = "not an etag ' OR 1=1";

pub(super) const CASES: &[StateCase] = table![Space::new;
    reads_give_an_etag: etag,
    etag_is_stable_between_reads: etag,
    each_write_changes_the_etag: etag,
    matching_etag_writes: etag,
    stale_etag_is_conflict: etag,
    stale_etag_keeps_the_life_time: |p| etag(p) && p.caps.ttl,
    malformed_etag_changes_nothing: etag,
    etag_of_absent_key_is_conflict: |p| etag(p) && p.absent_etag_conflicts,
    etag_of_deleted_key_is_conflict: |p| etag(p) && p.absent_etag_conflicts,
    last_write_ignores_what_is_there: etag,
    first_write_creates: etag,
    first_write_on_existing_key_is_conflict: etag,
    first_write_with_matching_etag_writes: etag,
    first_write_with_stale_etag_is_conflict: etag,
    delete_with_matching_etag_removes: etag,
    delete_with_stale_etag_is_conflict: etag,
    delete_of_absent_key_with_etag_is_conflict: |p| etag(p) && p.absent_etag_conflicts,
    delete_with_malformed_etag_changes_nothing: etag,
];

fn etag(p: &StateProfile) -> bool {
    p.caps.etag
}

async fn reads_give_an_etag(s: Space) -> Outcome {
    s.put("k", "1").send().await?;
    s.etag("k").await?;
    Ok(())
}

async fn etag_is_stable_between_reads(s: Space) -> Outcome {
    s.put("k", "1").send().await?;
    let first = s.etag("k").await?;
    s.put("other", "1").send().await?;
    check_eq!(s.etag("k").await?, first, "ETag of a key nobody wrote");
    Ok(())
}

async fn each_write_changes_the_etag(s: Space) -> Outcome {
    s.put("k", "1").send().await?;
    let first = s.etag("k").await?;
    s.put("k", "1").send().await?;
    check!(s.etag("k").await? != first, "the same ETag {first} after another write");
    Ok(())
}

async fn matching_etag_writes(s: Space) -> Outcome {
    s.put("k", "1").send().await?;
    let etag = s.etag("k").await?;
    s.put("k", "2").etag(&etag).send().await?;
    check_eq!(s.text("k").await?.as_deref(), Some("2"), "value");
    check!(s.etag("k").await? != etag, "the ETag did not change");
    Ok(())
}

/// Writes `k` twice and gives the first ETag.
async fn stale(s: &Space) -> Result<String, crate::Failure> {
    s.put("k", "1").send().await?;
    let stale = s.etag("k").await?;
    s.put("k", "2").send().await?;
    Ok(stale)
}

async fn stale_etag_is_conflict(s: Space) -> Outcome {
    let old = stale(&s).await?;
    refused(s.put("k", "3").etag(&old).send().await, &[Conflict], "set with a stale ETag")?;
    check_eq!(s.text("k").await?.as_deref(), Some("2"), "value after the refusal");
    Ok(())
}

async fn stale_etag_keeps_the_life_time(s: Space) -> Outcome {
    let old = stale(&s).await?;
    refused(s.put("k", "3").etag(&old).ttl(1).send().await, &[Conflict], "set with a stale ETag")?;
    check_eq!(s.get("k").await?.and_then(|i| i.expires), None, "life time after the refusal");
    Ok(())
}

async fn malformed_etag_changes_nothing(s: Space) -> Outcome {
    s.put("k", "1").send().await?;
    refused(s.put("k", "2").etag(MALFORMED).send().await, &[Conflict, InvalidArgument], "set with a malformed ETag")?;
    check_eq!(s.text("k").await?.as_deref(), Some("1"), "value after the refusal");
    Ok(())
}

async fn etag_of_absent_key_is_conflict(s: Space) -> Outcome {
    s.put("other", "1").send().await?;
    let etag = s.etag("other").await?;
    refused(s.put("absent", "1").etag(&etag).send().await, &[Conflict], "set of an absent key with an ETag")?;
    check_eq!(s.get("absent").await?, None, "absent key");
    Ok(())
}

async fn etag_of_deleted_key_is_conflict(s: Space) -> Outcome {
    s.put("k", "1").send().await?;
    let etag = s.etag("k").await?;
    s.delete("k", None).await?;
    refused(s.put("k", "2").etag(&etag).send().await, &[Conflict], "set of a deleted key with its ETag")?;
    check_eq!(s.get("k").await?, None, "deleted key");
    Ok(())
}

async fn last_write_ignores_what_is_there(s: Space) -> Outcome {
    s.put("k", "1").first_write().send().await?;
    s.put("k", "2").send().await?;
    check_eq!(s.text("k").await?.as_deref(), Some("2"), "value");
    Ok(())
}

async fn first_write_creates(s: Space) -> Outcome {
    s.put("k", "1").first_write().send().await?;
    check_eq!(s.text("k").await?.as_deref(), Some("1"), "value");
    s.etag("k").await?;
    Ok(())
}

async fn first_write_on_existing_key_is_conflict(s: Space) -> Outcome {
    s.put("k", "1").first_write().send().await?;
    refused(s.put("k", "2").first_write().send().await, &[Conflict], "second first-write")?;
    check_eq!(s.text("k").await?.as_deref(), Some("1"), "value after the refusal");
    Ok(())
}

async fn first_write_with_matching_etag_writes(s: Space) -> Outcome {
    s.put("k", "1").first_write().send().await?;
    let etag = s.etag("k").await?;
    s.put("k", "2").first_write().etag(&etag).send().await?;
    check_eq!(s.text("k").await?.as_deref(), Some("2"), "value");
    Ok(())
}

async fn first_write_with_stale_etag_is_conflict(s: Space) -> Outcome {
    let old = stale(&s).await?;
    refused(s.put("k", "3").first_write().etag(&old).send().await, &[Conflict], "first-write with a stale ETag")?;
    check_eq!(s.text("k").await?.as_deref(), Some("2"), "value after the refusal");
    Ok(())
}

async fn delete_with_matching_etag_removes(s: Space) -> Outcome {
    s.put("k", "1").send().await?;
    let etag = s.etag("k").await?;
    s.delete("k", Some(&etag)).await?;
    check_eq!(s.get("k").await?, None, "deleted key");
    Ok(())
}

async fn delete_with_stale_etag_is_conflict(s: Space) -> Outcome {
    let old = stale(&s).await?;
    refused(s.delete("k", Some(&old)).await, &[Conflict], "delete with a stale ETag")?;
    check_eq!(s.text("k").await?.as_deref(), Some("2"), "value after the refusal");
    Ok(())
}

async fn delete_of_absent_key_with_etag_is_conflict(s: Space) -> Outcome {
    s.put("other", "1").send().await?;
    let etag = s.etag("other").await?;
    refused(s.delete("absent", Some(&etag)).await, &[Conflict], "delete of an absent key with an ETag")
}

async fn delete_with_malformed_etag_changes_nothing(s: Space) -> Outcome {
    s.put("k", "1").send().await?;
    refused(s.delete("k", Some(MALFORMED)).await, &[Conflict, InvalidArgument], "delete with a malformed ETag")?;
    check_eq!(s.text("k").await?.as_deref(), Some("1"), "value after the refusal");
    Ok(())
}
