//! All or nothing.

use mecha_components_api::Error;
use mecha_components_api::ErrorKind::Conflict;

use super::{Op, Space, StateCase, StateProfile, TransactFailure};
use crate::case::{Failure, Outcome, check_eq, refused, table};

/// Operations that every transactional store takes at once, unless it declares fewer.
const MANY: usize = 128;

pub(super) const CASES: &[StateCase] = table![Space::new;
    a_transaction_applies_every_operation: transact,
    an_empty_transaction_succeeds: transact,
    operations_apply_in_their_order: transact,
    a_transaction_deletes_absent_keys: transact,
    bytes_and_json_mix_in_a_transaction: transact,
    a_stale_etag_undoes_the_transaction: |p| transact(p) && p.caps.etag,
    a_stale_delete_undoes_the_transaction: |p| transact(p) && p.caps.etag,
    a_first_write_conflict_undoes_the_transaction: |p| transact(p) && p.caps.etag,
    matching_etags_commit: |p| transact(p) && p.caps.etag,
    the_first_operation_may_be_the_one_refused: |p| transact(p) && p.caps.etag,
    many_operations_commit: transact,
    the_most_operations_are_kept_to: transact,
];

fn transact(p: &StateProfile) -> bool {
    p.transactional
}

fn error(outcome: Result<(), TransactFailure>) -> Result<Result<(), Error>, Failure> {
    match outcome {
        Ok(()) => Ok(Ok(())),
        Err(TransactFailure::Refused(e)) => Ok(Err(e)),
        Err(missing) => Err(missing.into()),
    }
}

/// The transaction must be a conflict and leave `a`, `b` as they are and `new` absent.
async fn undone(s: &Space, ops: &[Op<'_>]) -> Outcome {
    let before = (s.text("a").await?, s.text("b").await?);
    refused(error(s.transact(ops).await)?, &[Conflict], "transaction")?;
    check_eq!((s.text("a").await?, s.text("b").await?), before, "values after the refusal");
    check_eq!(s.get("new").await?, None, "key that only the transaction wrote");
    Ok(())
}

/// `a` and `b` exist; gives an ETag of `a` that is no longer true.
async fn stale(s: &Space) -> Result<String, Failure> {
    s.put("a", "1").send().await?;
    let etag = s.etag("a").await?;
    s.put("a", "2").send().await?;
    s.put("b", "3").send().await?;
    Ok(etag)
}

async fn a_transaction_applies_every_operation(s: Space) -> Outcome {
    s.put("gone", "1").send().await?;
    s.put("changed", "1").send().await?;
    s.transact(&[s.put("new", "1").into(), s.remove_op("gone", None), s.put("changed", "2").into()]).await?;
    let now = (s.text("new").await?, s.text("gone").await?, s.text("changed").await?);
    check_eq!(now, (Some("1".into()), None, Some("2".into())), "values");
    Ok(())
}

async fn an_empty_transaction_succeeds(s: Space) -> Outcome {
    s.transact(&[]).await?;
    Ok(())
}

async fn operations_apply_in_their_order(s: Space) -> Outcome {
    s.transact(&[s.put("a", "1").into(), s.put("a", "2").into()]).await?;
    check_eq!(s.text("a").await?.as_deref(), Some("2"), "two writes");
    s.transact(&[s.put("a", "3").into(), s.remove_op("a", None)]).await?;
    check_eq!(s.text("a").await?, None, "write, then delete");
    s.transact(&[s.remove_op("a", None), s.put("a", "4").into()]).await?;
    check_eq!(s.text("a").await?.as_deref(), Some("4"), "delete, then write");
    Ok(())
}

async fn a_transaction_deletes_absent_keys(s: Space) -> Outcome {
    s.transact(&[s.remove_op("never-written", None), s.put("a", "1").into()]).await?;
    check_eq!(s.text("a").await?.as_deref(), Some("1"), "value");
    Ok(())
}

async fn bytes_and_json_mix_in_a_transaction(s: Space) -> Outcome {
    let json = r#"{"b":9007199254740993, "a":0.10}"#;
    s.transact(&[s.put_bytes("bytes", b"\x00\xff\xfe").into(), s.put("json", json).into()]).await?;
    check_eq!(s.get("bytes").await?.map(|i| i.value.to_vec()), Some(vec![0, 255, 254]), "bytes");
    let number = s.text("json").await?.is_some_and(|t| t.contains("9007199254740993"));
    check_eq!(number, true, "large integer inside a transaction");
    Ok(())
}

async fn a_stale_etag_undoes_the_transaction(s: Space) -> Outcome {
    let old = stale(&s).await?;
    undone(&s, &[s.put("new", "1").into(), s.remove_op("b", None), s.put("a", "9").etag(&old).into()]).await
}

async fn a_stale_delete_undoes_the_transaction(s: Space) -> Outcome {
    let old = stale(&s).await?;
    undone(&s, &[s.put("new", "1").into(), s.put("b", "9").into(), s.remove_op("a", Some(&old))]).await
}

async fn a_first_write_conflict_undoes_the_transaction(s: Space) -> Outcome {
    s.put("a", "1").first_write().send().await?;
    s.put("b", "3").send().await?;
    undone(&s, &[s.put("new", "1").into(), s.put("a", "9").first_write().into()]).await
}

async fn matching_etags_commit(s: Space) -> Outcome {
    s.put("a", "1").send().await?;
    s.put("b", "1").send().await?;
    let (a, b) = (s.etag("a").await?, s.etag("b").await?);
    s.transact(&[s.put("a", "2").etag(&a).into(), s.remove_op("b", Some(&b))]).await?;
    check_eq!((s.text("a").await?, s.text("b").await?), (Some("2".into()), None), "values");
    Ok(())
}

async fn the_first_operation_may_be_the_one_refused(s: Space) -> Outcome {
    let old = stale(&s).await?;
    undone(&s, &[s.put("a", "9").etag(&old).into(), s.put("new", "1").into()]).await
}

async fn many_operations_commit(s: Space) -> Outcome {
    let count = s.transactions()?.max_ops().map_or(MANY, |most| most.min(MANY));
    let ops: Vec<Op<'_>> = (0..count).map(|i| s.put(&format!("k{i}"), &i.to_string()).into()).collect();
    s.transact(&ops).await?;
    for i in 0..count {
        check_eq!(s.text(&format!("k{i}")).await?, Some(i.to_string()), "operation {i} of {count}");
    }
    Ok(())
}

async fn the_most_operations_are_kept_to(s: Space) -> Outcome {
    // Without a limit there is nothing to exceed.
    let Some(most) = s.transactions()?.max_ops() else { return Ok(()) };
    let ops: Vec<Op<'_>> = (0..=most).map(|i| s.put(&format!("k{i}"), "1").into()).collect();
    check_eq!(error(s.transact(&ops).await)?.is_err(), true, "{} operations where {most} are allowed", most + 1);
    check_eq!(s.get("k0").await?, None, "first key of a refused transaction");
    Ok(())
}
