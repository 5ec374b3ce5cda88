//! Many callers at once, and callers that leave.

use std::time::Duration;

use mecha_components_api::ErrorKind::Conflict;
use tokio::task::JoinSet;

use super::{Space, StateCase, StateProfile, any};
use crate::case::{Failure, Outcome, check, check_eq, table};

/// Callers at once.
const CALLERS: usize = 16;
/// Increments by each caller of the counter.
const ROUNDS: usize = 10;

pub(super) const CASES: &[StateCase] = table![Space::new;
    one_of_many_first_writes_wins: etag,
    one_of_many_writes_with_the_same_etag_wins: etag,
    one_of_many_deletes_with_the_same_etag_wins: |p| etag(p) && p.absent_etag_conflicts,
    one_of_many_transactions_with_the_same_etag_wins: |p| etag(p) && p.transactional,
    no_increment_is_lost: etag,
    parallel_callers_do_not_mix_values: any,
    concurrent_transactions_leave_a_whole_one: |p| p.transactional,
    dropped_calls_leave_the_store_usable: any,
];

fn etag(p: &StateProfile) -> bool {
    p.caps.etag
}

/// Runs `work` for each caller at once and gives the results in any order.
async fn all<T, F, Fut>(work: F) -> Result<Vec<T>, Failure>
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let mut set = JoinSet::new();
    for i in 0..CALLERS {
        set.spawn(work(i));
    }
    let mut results = Vec::new();
    while let Some(joined) = set.join_next().await {
        results.push(joined.map_err(|e| Failure::new(format!("a caller panicked: {e}")))?);
    }
    Ok(results)
}

fn one_winner(results: Vec<mecha_components_api::Result<usize>>) -> Result<usize, Failure> {
    let mut winners = Vec::new();
    for result in results {
        match result {
            Ok(i) => winners.push(i),
            Err(e) => check!(e.kind() == Conflict, "a loser got {:?}: {e}", e.kind()),
        }
    }
    check_eq!(winners.len(), 1, "winners");
    Ok(winners[0])
}

async fn one_of_many_first_writes_wins(s: Space) -> Outcome {
    let results = all(|i| {
        let s = s.clone();
        async move { s.put("k", &i.to_string()).first_write().send().await.map(|()| i) }
    })
    .await?;
    let winner = one_winner(results)?;
    check_eq!(s.text("k").await?, Some(winner.to_string()), "value of the winner");
    Ok(())
}

async fn one_of_many_writes_with_the_same_etag_wins(s: Space) -> Outcome {
    s.put("k", "\"start\"").send().await?;
    let etag = s.etag("k").await?;
    let results = all(|i| {
        let (s, etag) = (s.clone(), etag.clone());
        async move { s.put("k", &i.to_string()).etag(&etag).send().await.map(|()| i) }
    })
    .await?;
    let winner = one_winner(results)?;
    check_eq!(s.text("k").await?, Some(winner.to_string()), "value of the winner");
    Ok(())
}

async fn one_of_many_deletes_with_the_same_etag_wins(s: Space) -> Outcome {
    s.put("k", "1").send().await?;
    let etag = s.etag("k").await?;
    let results = all(|i| {
        let (s, etag) = (s.clone(), etag.clone());
        async move { s.delete("k", Some(&etag)).await.map(|()| i) }
    })
    .await?;
    one_winner(results)?;
    check_eq!(s.get("k").await?, None, "deleted key");
    Ok(())
}

async fn one_of_many_transactions_with_the_same_etag_wins(s: Space) -> Outcome {
    s.put("k", "\"start\"").send().await?;
    let etag = s.etag("k").await?;
    let results = all(|i| {
        let (s, etag) = (s.clone(), etag.clone());
        async move {
            let text = i.to_string();
            let ops = [s.put("side", &text).into(), s.put("k", &text).etag(&etag).into()];
            match s.transact(&ops).await {
                Ok(()) => Ok(i),
                Err(super::TransactFailure::Refused(e)) => Err(e),
                Err(super::TransactFailure::Missing) => {
                    Err(mecha_components_api::Error::unsupported("no transactions"))
                }
            }
        }
    })
    .await?;
    let winner = Some(one_winner(results)?.to_string());
    check_eq!((s.text("k").await?, s.text("side").await?), (winner.clone(), winner), "values of the winner");
    Ok(())
}

async fn no_increment_is_lost(s: Space) -> Outcome {
    s.put("n", "0").send().await?;
    let results = all(|_| {
        let s = s.clone();
        async move {
            for _ in 0..ROUNDS {
                // The loop of a user: read, change, write if nobody else did. Every round has
                // a winner, so this many tries are enough.
                let mut left = CALLERS * ROUNDS + 1;
                loop {
                    let item = s.get("n").await?.ok_or_else(|| Failure::new("the counter is absent"))?;
                    let n: u64 = std::str::from_utf8(&item.value)
                        .ok()
                        .and_then(|t| t.parse().ok())
                        .ok_or_else(|| Failure::new("no number"))?;
                    let etag = item.etag.ok_or_else(|| Failure::new("no ETag"))?;
                    match s.put("n", &(n + 1).to_string()).etag(&etag).send().await {
                        Ok(()) => break,
                        Err(e) if e.kind() == Conflict && left > 0 => left -= 1,
                        Err(e) => return Err(Failure::from(e)),
                    }
                }
            }
            Ok(())
        }
    })
    .await?;
    results.into_iter().collect::<Outcome>()?;
    check_eq!(s.text("n").await?, Some((CALLERS * ROUNDS).to_string()), "counter");
    Ok(())
}

async fn parallel_callers_do_not_mix_values(s: Space) -> Outcome {
    let results = all(|i| {
        let s = s.clone();
        async move {
            for round in 0..ROUNDS {
                let (key, value) = (format!("k{i}"), format!("\"{i} {round}\""));
                s.put(&key, &value).send().await?;
                check_eq!(s.text(&key).await?, Some(value), "caller {i}");
            }
            Ok(())
        }
    })
    .await?;
    results.into_iter().collect()
}

async fn concurrent_transactions_leave_a_whole_one(s: Space) -> Outcome {
    let results: Vec<Outcome> = all(|i| {
        let s = s.clone();
        async move {
            let text = i.to_string();
            let ops: Vec<super::Op<'_>> = (0..5).map(|k| s.put(&format!("k{k}"), &text).into()).collect();
            Ok(s.transact(&ops).await?)
        }
    })
    .await?;
    results.into_iter().collect::<Outcome>()?;
    let first = s.text("k0").await?;
    for k in 1..5 {
        check_eq!(s.text(&format!("k{k}")).await?, first, "key {k} belongs to another transaction");
    }
    Ok(())
}

async fn dropped_calls_leave_the_store_usable(s: Space) -> Outcome {
    for i in 0..40_u64 {
        let key = format!("k{i}");
        let put = s.put(&key, "1");
        // From "before it was sent" to "after the answer came".
        let _ = tokio::time::timeout(Duration::from_micros(i * i), put.send()).await;
        let _ = tokio::time::timeout(Duration::from_micros(i * i), s.get(&key)).await;
    }
    s.put("last", "1").send().await?;
    check_eq!(s.text("last").await?.as_deref(), Some("1"), "after the dropped calls");
    // What was dropped is there wholly or not at all.
    for i in 0..40 {
        let text = s.text(&format!("k{i}")).await?;
        check!(matches!(text.as_deref(), None | Some("1")), "k{i} is {text:?}");
    }
    Ok(())
}
