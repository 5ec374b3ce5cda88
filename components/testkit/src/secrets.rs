//! Cases of [`SecretStore`].

use std::collections::BTreeMap;
use std::sync::Arc;

use mecha_components_api::{ErrorKind, Metadata, SecretCaps, SecretMap, SecretStore};

use crate::case::{Case, Outcome, check, check_eq, fresh_name, refused, table};

/// A store, and what the runner put into it.
#[derive(Debug)]
pub struct SecretBench {
    /// The store.
    pub store: Arc<dyn SecretStore>,
    /// Every secret that must be there, by name and key. At least one, with values that
    /// occur nowhere else.
    pub known: BTreeMap<String, BTreeMap<String, String>>,
    /// An unknown name gives empty values instead of `NotFound`.
    pub unknown_is_empty: bool,
}

/// All cases.
pub const CASES: &[Case<SecretBench, SecretCaps>] = table![|bench| bench;
    each_known_secret_is_given: any,
    an_unknown_secret_is_told: any,
    an_empty_name_gives_no_secret: any,
    the_list_has_each_known_secret: any,
    the_list_agrees_with_single_reads: any,
    debug_output_shows_no_value: any,
    a_single_valued_secret_is_under_its_own_name: |caps: &SecretCaps| !caps.multiple_keys,
    parallel_reads_give_the_same: any,
];

fn any(_: &SecretCaps) -> bool {
    true
}

fn exposed(map: &SecretMap) -> BTreeMap<String, String> {
    map.iter().map(|(k, v)| (k.clone(), v.expose().to_owned())).collect()
}

async fn each_known_secret_is_given(b: Arc<SecretBench>) -> Outcome {
    check!(!b.known.is_empty(), "the bench knows no secret");
    for (name, expected) in &b.known {
        check_eq!(exposed(&b.store.get(name, &Metadata::new()).await?), *expected, "secret {name}");
    }
    Ok(())
}

async fn an_unknown_secret_is_told(b: Arc<SecretBench>) -> Outcome {
    let outcome = b.store.get(&fresh_name(), &Metadata::new()).await;
    if b.unknown_is_empty {
        check!(outcome?.values().all(|v| v.expose().is_empty()), "an unknown secret has a value");
        return Ok(());
    }
    refused(outcome, &[ErrorKind::NotFound], "unknown secret")
}

async fn an_empty_name_gives_no_secret(b: Arc<SecretBench>) -> Outcome {
    match b.store.get("", &Metadata::new()).await {
        Ok(map) => check!(map.values().all(|v| v.expose().is_empty()), "the empty name has a value"),
        Err(e) => check!(matches!(e.kind(), ErrorKind::NotFound | ErrorKind::InvalidArgument), "{e}"),
    }
    Ok(())
}

async fn the_list_has_each_known_secret(b: Arc<SecretBench>) -> Outcome {
    let list = b.store.list(&Metadata::new()).await?;
    for (name, expected) in &b.known {
        let found = list.get(name).map(exposed);
        check_eq!(found.as_ref(), Some(expected), "secret {name} in the list");
    }
    Ok(())
}

async fn the_list_agrees_with_single_reads(b: Arc<SecretBench>) -> Outcome {
    let list = b.store.list(&Metadata::new()).await?;
    for name in b.known.keys() {
        let single = exposed(&b.store.get(name, &Metadata::new()).await?);
        check_eq!(list.get(name).map(exposed), Some(single), "secret {name}");
    }
    Ok(())
}

async fn debug_output_shows_no_value(b: Arc<SecretBench>) -> Outcome {
    let list = b.store.list(&Metadata::new()).await?;
    let text = format!("{:?} {list:?}", b.store);
    for (name, parts) in &b.known {
        check!(parts.values().all(|v| v.is_empty() || !text.contains(v.as_str())), "Debug shows the value of {name}");
    }
    Ok(())
}

async fn a_single_valued_secret_is_under_its_own_name(b: Arc<SecretBench>) -> Outcome {
    for name in b.known.keys() {
        let secret = b.store.get(name, &Metadata::new()).await?;
        check_eq!(secret.keys().collect::<Vec<_>>(), [name], "keys of {name}");
    }
    Ok(())
}

async fn parallel_reads_give_the_same(b: Arc<SecretBench>) -> Outcome {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let b = Arc::clone(&b);
        tasks.spawn(each_known_secret_is_given(b));
    }
    while let Some(joined) = tasks.join_next().await {
        joined.map_err(|e| format!("a reader panicked: {e}"))??;
    }
    Ok(())
}
