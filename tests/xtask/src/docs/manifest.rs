//! What each component can do, as the conformance manifest declares it. The conformance runner checks
//! every declaration against the component, both ways, so the docs may repeat it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;

const MANIFEST: &str = "tests/conformance/manifest.toml";

/// Powers by component type, in words.
pub(super) type Powers = BTreeMap<String, Vec<String>>;

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    state: Vec<Entry>,
    #[serde(default)]
    pubsub: Vec<Entry>,
    #[serde(default)]
    secrets: Vec<Entry>,
    #[serde(default)]
    output: Vec<Entry>,
    #[serde(default)]
    resolver: Vec<Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    kind: String,
    caps: Vec<String>,
    operations: Vec<String>,
    bulk: bool,
    list: bool,
    durable: bool,
    redelivers: bool,
    groups: bool,
    ordered: bool,
    announces: bool,
}

pub(super) fn read(root: &Path) -> Result<Powers, String> {
    let text = fs::read_to_string(root.join(MANIFEST)).map_err(|e| format!("cannot read {MANIFEST}: {e}"))?;
    parse(&text)
}

fn parse(text: &str) -> Result<Powers, String> {
    let manifest: Manifest = toml::from_str(text).map_err(|e| format!("{MANIFEST}: {e}"))?;
    let Manifest { state, pubsub, secrets, output, resolver } = manifest;
    let mut powers = Powers::new();
    for entry in [state, pubsub, secrets, output, resolver].into_iter().flatten() {
        let known = powers.entry(entry.kind.clone()).or_default();
        for word in words(&entry) {
            if !known.contains(&word) {
                known.push(word);
            }
        }
    }
    Ok(powers)
}

fn words(entry: &Entry) -> Vec<String> {
    let mut words: Vec<String> = entry.caps.iter().map(|cap| named(cap)).collect();
    let flags = [
        (entry.bulk, "bulk in one call"),
        (entry.list, "listing of keys"),
        (entry.durable, "durable"),
        (entry.redelivers, "redelivery"),
        (entry.groups, "competing consumers"),
        (entry.ordered, "order"),
        (entry.announces, "announces itself"),
    ];
    words.extend(flags.into_iter().filter(|(set, _)| *set).map(|(_, word)| word.to_owned()));
    if !entry.operations.is_empty() {
        words.push(format!("operations {}", entry.operations.join(", ")));
    }
    words
}

/// The name in the metadata API, in words for people.
fn named(cap: &str) -> String {
    match cap {
        "ETAG" => "ETags".to_owned(),
        "TRANSACTIONAL" => "transactions".to_owned(),
        "TTL" => "TTL".to_owned(),
        "ACTOR" => "fit for actors".to_owned(),
        "DELETE_WITH_PREFIX" => "delete by prefix".to_owned(),
        "KEYS_LIKE" => "keys by pattern".to_owned(),
        "SUBSCRIBE_WILDCARDS" => "wildcards in topics".to_owned(),
        "MESSAGE_TTL" => "TTL of messages".to_owned(),
        "BULK_PUBSUB" => "bulk publish".to_owned(),
        "MULTIPLE_KEY_VALUES_PER_SECRET" => "several values per secret".to_owned(),
        other => other.to_lowercase().replace('_', " "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_one_type_are_joined() {
        let powers = parse(
            "[[state]]\nkind = \"state.a\"\ncaps = [\"ETAG\"]\nbulk = true\nfronts = []\n\
             [[state]]\nkind = \"state.a\"\ncaps = [\"ETAG\", \"TTL\"]\n\
             [[output]]\nkind = \"bindings.b\"\noperations = [\"get\", \"list\"]\n",
        )
        .unwrap();
        assert_eq!(powers["state.a"], ["ETags", "bulk in one call", "TTL"]);
        assert_eq!(powers["bindings.b"], ["operations get, list"]);
        assert!(parse("[[state]]\nkind = 1\n").unwrap_err().contains(MANIFEST));
    }
}
