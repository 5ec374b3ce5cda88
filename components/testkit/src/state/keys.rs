//! Keys mean themselves.

use std::collections::BTreeSet;

use super::{Space, StateCase, StateProfile, any};
use crate::case::{Failure, Outcome, PATIENCE, check, check_eq, table, wait_until};

pub(super) const CASES: &[StateCase] = table![Space::new;
    odd_characters_are_part_of_the_key: any,
    unicode_keys_are_exact: any,
    keys_differ_in_case: any,
    keys_differ_in_trailing_space: any,
    long_keys_are_exact: any,
    list_pages_through_a_prefix: list,
    list_takes_the_prefix_literally: list,
    list_hides_what_was_deleted: list,
    list_hides_expired_keys: |p| list(p) && p.caps.ttl,
];

fn list(p: &StateProfile) -> bool {
    p.list
}

async fn distinct(s: &Space, keys: &[&str]) -> Outcome {
    for (i, key) in keys.iter().enumerate() {
        s.put(key, &i.to_string()).send().await?;
    }
    for (i, key) in keys.iter().enumerate() {
        check_eq!(s.text(key).await?, Some(i.to_string()), "key {key:?}");
    }
    for key in keys {
        s.delete(key, None).await?;
        check_eq!(s.get(key).await?, None, "deleted key {key:?}");
    }
    Ok(())
}

async fn odd_characters_are_part_of_the_key(s: Space) -> Outcome {
    distinct(
        &s,
        &[
            "a b", "a%20b", "a+b", "a/b", "a//b", "a?b", "a#b", "a&b=c", "a'b", "a\"b", "a;b", "a%b", "a_b", "a*b",
            "a[b]", "a\\b", "a:b", "a|b", "a{b}", "a,b", "a@b", "..", "a.b", "$a", "(a)", "~a", "`a`", "<a>",
        ],
    )
    .await
}

async fn unicode_keys_are_exact(s: Space) -> Outcome {
    // The first two look the same and are not, composed and decomposed; so do the last two,
    // the letter and the unit.
    distinct(&s, &["\u{e9}", "e\u{301}", "漢字", "🦀", "ß", "ss", "ı", "i", "\u{200b}", "\u{3a9}", "\u{2126}"]).await
}

async fn keys_differ_in_case(s: Space) -> Outcome {
    distinct(&s, &["key", "Key", "KEY", "ä", "Ä"]).await
}

async fn keys_differ_in_trailing_space(s: Space) -> Outcome {
    distinct(&s, &["key", "key ", "key  ", " key"]).await
}

async fn long_keys_are_exact(s: Space) -> Outcome {
    let (one, two) = (format!("{}1", "x".repeat(480)), format!("{}2", "x".repeat(480)));
    distinct(&s, &[one.as_str(), two.as_str()]).await
}

async fn listed(s: &Space, prefix: &str, limit: usize) -> Result<Vec<String>, Failure> {
    let list = s.store.list().ok_or_else(|| Failure::new("the store cannot list"))?;
    let full = s.key(prefix);
    let (mut keys, mut token) = (Vec::new(), None);
    for _ in 0..1000 {
        let page = list.keys(&full, limit, token.as_deref()).await?;
        check!(page.keys.len() <= limit, "a page of {} keys where {limit} were asked for", page.keys.len());
        keys.extend(page.keys.into_iter().map(|k| k.strip_prefix(&s.prefix).map(str::to_owned).unwrap_or(k)));
        match page.next {
            Some(next) => token = Some(next),
            None => return Ok(keys),
        }
    }
    Err(Failure::new("the list has no end"))
}

async fn list_pages_through_a_prefix(s: Space) -> Outcome {
    let expected: BTreeSet<String> = (0..25).map(|i| format!("p{i}")).collect();
    for key in &expected {
        s.put(key, "1").send().await?;
    }
    s.put("q", "1").send().await?;
    for limit in [1, 7, 25, 100] {
        let keys = listed(&s, "p", limit).await?;
        check_eq!(keys.len(), expected.len(), "keys in pages of {limit}");
        check_eq!(keys.into_iter().collect::<BTreeSet<_>>(), expected, "pages of {limit}");
    }
    check_eq!(listed(&s, "nothing", 10).await?, Vec::<String>::new(), "unused prefix");
    Ok(())
}

async fn list_takes_the_prefix_literally(s: Space) -> Outcome {
    for key in ["a%", "a%1", "ab", "a_", "A%", "a*", "aab"] {
        s.put(key, "1").send().await?;
    }
    for (prefix, expected) in [("a%", &["a%", "a%1"][..]), ("a_", &["a_"]), ("a*", &["a*"]), ("A", &["A%"])] {
        let keys: BTreeSet<String> = listed(&s, prefix, 50).await?.into_iter().collect();
        check_eq!(keys, expected.iter().map(|k| (*k).to_owned()).collect(), "prefix {prefix}");
    }
    Ok(())
}

async fn list_hides_what_was_deleted(s: Space) -> Outcome {
    s.put("a", "1").send().await?;
    s.put("b", "1").send().await?;
    s.delete("a", None).await?;
    check_eq!(listed(&s, "", 10).await?, ["b"], "keys");
    Ok(())
}

async fn list_hides_expired_keys(s: Space) -> Outcome {
    s.put("stays", "1").send().await?;
    s.put("goes", "1").ttl(1).send().await?;
    wait_until(PATIENCE, "the key expires", || async { matches!(s.get("goes").await, Ok(None)) }).await?;
    check_eq!(listed(&s, "", 10).await?, ["stays"], "keys");
    Ok(())
}
