//! Values that expire.

use std::time::{Duration, SystemTime};

use mecha_components_api::ErrorKind::Conflict;

use super::{Space, StateCase, StateProfile};
use crate::case::{Outcome, PATIENCE, check, check_eq, refused, table, wait_until};

pub(super) const CASES: &[StateCase] = table![Space::new;
    a_value_expires: ttl,
    a_value_does_not_expire_early: ttl,
    the_time_of_expiry_is_told: ttl,
    never_clears_the_life_time: ttl,
    a_write_without_life_time_clears_it: ttl,
    a_write_renews_the_life_time: ttl,
    a_life_time_can_be_added: ttl,
    a_life_time_of_years_works: ttl,
    an_expired_key_can_be_first_written: |p| ttl(p) && p.caps.etag,
    an_expired_key_has_no_etag_to_match: |p| ttl(p) && p.caps.etag && p.absent_etag_conflicts,
    a_matching_etag_sets_the_life_time: |p| ttl(p) && p.caps.etag,
    bulk_reads_hide_expired_keys: |p| ttl(p) && p.bulk,
    transactions_set_the_life_time: |p| ttl(p) && p.transactional,
];

fn ttl(p: &StateProfile) -> bool {
    p.caps.ttl
}

async fn gone(s: &Space, key: &str) -> Outcome {
    wait_until(PATIENCE, "the key expires", || async { matches!(s.get(key).await, Ok(None)) }).await
}

async fn a_value_expires(s: Space) -> Outcome {
    s.put("k", "1").ttl(1).send().await?;
    gone(&s, "k").await?;
    s.put("k", "2").send().await?;
    check_eq!(s.text("k").await?.as_deref(), Some("2"), "written again");
    Ok(())
}

async fn a_value_does_not_expire_early(s: Space) -> Outcome {
    let before = SystemTime::now();
    s.put("k", "1").ttl(2).send().await?;
    gone(&s, "k").await?;
    let lived = SystemTime::now().duration_since(before).unwrap_or_default();
    // The store's clock may count from a little before the answer, never from before the call.
    check!(lived >= Duration::from_millis(1950), "gone after {lived:?} of 2 s");
    Ok(())
}

async fn the_time_of_expiry_is_told(s: Space) -> Outcome {
    let before = SystemTime::now();
    s.put("k", "1").ttl(100).send().await?;
    let Some(item) = s.get("k").await? else { return Err("absent at once".to_owned().into()) };
    // Not every store can tell.
    if let Some(at) = item.expires {
        let from_now = at.duration_since(before).unwrap_or_default();
        check!((98..=102).contains(&from_now.as_secs()), "expires after {from_now:?} instead of 100 s");
    }
    Ok(())
}

/// Waits until a probe that was written later, with the same life time, is gone.
async fn outlive(s: &Space) -> Outcome {
    s.put("probe", "1").ttl(1).send().await?;
    gone(s, "probe").await
}

async fn never_clears_the_life_time(s: Space) -> Outcome {
    s.put("k", "1").ttl(1).send().await?;
    s.put("k", "2").for_ever().send().await?;
    outlive(&s).await?;
    let item = s.get("k").await?;
    check!(item.is_some(), "expired although its life time was cleared");
    check_eq!(item.and_then(|i| i.expires), None, "time of expiry");
    Ok(())
}

async fn a_write_without_life_time_clears_it(s: Space) -> Outcome {
    s.put("k", "1").ttl(1).send().await?;
    s.put("k", "2").send().await?;
    outlive(&s).await?;
    check_eq!(s.text("k").await?.as_deref(), Some("2"), "value");
    Ok(())
}

async fn a_write_renews_the_life_time(s: Space) -> Outcome {
    s.put("k", "1").ttl(1).send().await?;
    s.put("k", "2").ttl(60).send().await?;
    outlive(&s).await?;
    check_eq!(s.text("k").await?.as_deref(), Some("2"), "value");
    Ok(())
}

async fn a_life_time_can_be_added(s: Space) -> Outcome {
    s.put("k", "1").send().await?;
    s.put("k", "2").ttl(1).send().await?;
    gone(&s, "k").await
}

async fn a_life_time_of_years_works(s: Space) -> Outcome {
    s.put("k", "1").ttl(10 * 365 * 86_400).send().await?;
    check_eq!(s.text("k").await?.as_deref(), Some("1"), "value");
    Ok(())
}

async fn an_expired_key_can_be_first_written(s: Space) -> Outcome {
    s.put("k", "1").ttl(1).send().await?;
    gone(&s, "k").await?;
    s.put("k", "2").first_write().send().await?;
    check_eq!(s.text("k").await?.as_deref(), Some("2"), "value");
    Ok(())
}

async fn an_expired_key_has_no_etag_to_match(s: Space) -> Outcome {
    s.put("k", "1").ttl(1).send().await?;
    let etag = s.etag("k").await?;
    gone(&s, "k").await?;
    refused(s.put("k", "2").etag(&etag).send().await, &[Conflict], "set with the ETag of an expired key")?;
    refused(s.delete("k", Some(&etag)).await, &[Conflict], "delete with the ETag of an expired key")?;
    check_eq!(s.get("k").await?, None, "expired key");
    Ok(())
}

async fn a_matching_etag_sets_the_life_time(s: Space) -> Outcome {
    s.put("k", "1").send().await?;
    let etag = s.etag("k").await?;
    s.put("k", "2").etag(&etag).ttl(1).send().await?;
    gone(&s, "k").await
}

async fn bulk_reads_hide_expired_keys(s: Space) -> Outcome {
    s.put("stays", "1").send().await?;
    s.put("goes", "1").ttl(1).send().await?;
    gone(&s, "goes").await?;
    let items = super::bulk::many(&s, &["stays", "goes"]).await?;
    check_eq!(items, [Some("1".to_owned()), None], "bulk read");
    Ok(())
}

async fn transactions_set_the_life_time(s: Space) -> Outcome {
    s.put("cleared", "1").ttl(1).send().await?;
    s.transact(&[s.put("goes", "1").ttl(1).into(), s.put("cleared", "2").into()]).await?;
    gone(&s, "goes").await?;
    check_eq!(s.text("cleared").await?.as_deref(), Some("2"), "value whose life time was cleared");
    Ok(())
}
