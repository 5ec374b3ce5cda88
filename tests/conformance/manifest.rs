//! The manifest: what is tried, and what it declares.

use std::collections::BTreeMap;
use std::path::Path;

use mecha_components_api::{Metadata, PubSubCaps, SecretCaps, StateCaps};
use mecha_testkit::{ConfigurationProfile, LockProfile, PubSubProfile, ResolverProfile, StateProfile};
use serde::Deserialize;

use crate::servers;

/// All entries.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    #[serde(default)]
    pub(crate) state: Vec<StateEntry>,
    #[serde(default)]
    pub(crate) pubsub: Vec<PubSubEntry>,
    #[serde(default)]
    pub(crate) secrets: Vec<SecretEntry>,
    #[serde(default)]
    pub(crate) output: Vec<OutputEntry>,
    #[serde(default)]
    pub(crate) configuration: Vec<ConfigurationEntry>,
    #[serde(default)]
    pub(crate) lock: Vec<LockEntry>,
    #[serde(default)]
    pub(crate) resolver: Vec<ResolverEntry>,
}

/// How an instance is made.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) version: String,
    pub(crate) metadata: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StateEntry {
    name: String,
    kind: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    caps: Vec<String>,
    #[serde(default)]
    bulk: bool,
    #[serde(default)]
    list: bool,
    #[serde(default = "yes")]
    exact_json: bool,
    #[serde(default = "yes")]
    absent_etag_conflicts: bool,
    pub(crate) fronts: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PubSubEntry {
    name: String,
    kind: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    caps: Vec<String>,
    #[serde(default)]
    durable: bool,
    #[serde(default)]
    redelivers: bool,
    #[serde(default)]
    groups: bool,
    #[serde(default)]
    ordered: bool,
    #[serde(default)]
    keeps_metadata: bool,
    #[serde(default)]
    pub(crate) one_instance: bool,
    #[serde(default = "only_the_trait")]
    pub(crate) fronts: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SecretEntry {
    name: String,
    kind: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    caps: Vec<String>,
    /// Files to write into `{dir}` first.
    #[serde(default)]
    pub(crate) files: BTreeMap<String, String>,
    pub(crate) known: BTreeMap<String, BTreeMap<String, String>>,
    #[serde(default)]
    pub(crate) unknown_is_empty: bool,
    #[serde(default = "only_the_trait")]
    pub(crate) fronts: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OutputEntry {
    name: String,
    kind: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    pub(crate) operations: Vec<String>,
    #[serde(default)]
    pub(crate) object_key: Option<String>,
    #[serde(default = "only_the_trait")]
    pub(crate) fronts: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfigurationEntry {
    name: String,
    kind: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    /// Name of the server that is written to.
    pub(crate) server: String,
    #[serde(default)]
    every_change: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LockEntry {
    name: String,
    kind: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    #[serde(default)]
    fenced: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResolverEntry {
    name: String,
    kind: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    announces: bool,
    knows_absence: bool,
}

fn only_the_trait() -> Vec<String> {
    vec!["trait".to_owned()]
}

fn yes() -> bool {
    true
}

macro_rules! recipe {
    ($($entry:ident),+) => {
        $(impl $entry {
            /// How an instance is made.
            pub(crate) fn recipe(&self) -> Recipe {
                Recipe {
                    name: self.name.clone(),
                    kind: self.kind.clone(),
                    version: self.version.clone(),
                    metadata: self.metadata.clone(),
                }
            }
        })+
    };
}

recipe!(StateEntry, PubSubEntry, SecretEntry, OutputEntry, ConfigurationEntry, LockEntry, ResolverEntry);

impl Manifest {
    /// The manifest of this repository.
    pub(crate) fn load() -> Self {
        toml::from_str(include_str!("manifest.toml")).unwrap_or_else(|e| panic!("conformance/manifest.toml: {e}"))
    }
}

impl Recipe {
    /// What is not there and needed: environment variables and servers.
    pub(crate) fn missing(&self) -> Vec<String> {
        let values = || self.metadata.values();
        let unset = values().flat_map(|v| variables(v)).filter(|n| std::env::var_os(n).is_none());
        let absent = values().flat_map(|v| named(v, "{server:")).filter_map(|n| servers::missing(&n));
        unset.map(|n| format!("{n} is not set")).chain(absent).collect()
    }

    /// Its metadata for an instance that lives in `dir`.
    pub(crate) fn metadata(&self, dir: &Path) -> Metadata {
        self.metadata.iter().map(|(k, v)| (k.clone(), fill(v, dir))).collect()
    }
}

/// Puts the folder, the environment and the addresses of servers into a value.
pub(crate) fn fill(text: &str, dir: &Path) -> String {
    let mut text = text.replace("{dir}", &dir.to_string_lossy());
    for name in variables(&text) {
        text = text.replace(&format!("{{env:{name}}}"), &std::env::var(&name).unwrap_or_default());
    }
    for name in named(&text, "{server:") {
        text = text.replace(&format!("{{server:{name}}}"), &servers::address(&name));
    }
    text
}

/// Names of the environment variables in a value.
pub(crate) fn variables(text: &str) -> Vec<String> {
    named(text, "{env:")
}

/// What follows `open` up to the closing brace, each time.
fn named(text: &str, open: &str) -> Vec<String> {
    text.split(open).skip(1).filter_map(|rest| rest.split_once('}')).map(|(name, _)| name.to_owned()).collect()
}

/// Takes `known` names out of `caps`; the rest is a mistake in the manifest.
struct Named<'a>(Vec<&'a str>);

impl<'a> Named<'a> {
    fn new(caps: &'a [String]) -> Self {
        Self(caps.iter().map(String::as_str).collect())
    }

    fn take(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|c| *c != name);
        self.0.len() != before
    }

    fn done(self, entry: &str) {
        assert!(self.0.is_empty(), "conformance/manifest.toml: '{entry}' declares unknown capabilities {:?}", self.0);
    }
}

impl StateEntry {
    pub(crate) fn profile(&self) -> StateProfile {
        let mut named = Named::new(&self.caps);
        let profile = StateProfile {
            caps: StateCaps {
                etag: named.take("ETAG"),
                ttl: named.take("TTL"),
                delete_with_prefix: named.take("DELETE_WITH_PREFIX"),
                keys_like: named.take("KEYS_LIKE"),
                actor: named.take("ACTOR"),
            },
            transactional: named.take("TRANSACTIONAL"),
            query: named.take("QUERY_API"),
            bulk: self.bulk,
            list: self.list,
            exact_json: self.exact_json,
            absent_etag_conflicts: self.absent_etag_conflicts,
        };
        named.done(&self.name);
        profile
    }
}

impl PubSubEntry {
    pub(crate) fn profile(&self) -> PubSubProfile {
        let mut named = Named::new(&self.caps);
        let profile = PubSubProfile {
            caps: PubSubCaps {
                subscribe_wildcards: named.take("SUBSCRIBE_WILDCARDS"),
                message_ttl: named.take("MESSAGE_TTL"),
                bulk: named.take("BULK_PUBSUB"),
                durable: self.durable,
                redelivers: self.redelivers,
            },
            groups: self.groups,
            ordered: self.ordered,
            keeps_metadata: self.keeps_metadata,
        };
        named.done(&self.name);
        profile
    }
}

impl SecretEntry {
    pub(crate) fn profile(&self) -> SecretCaps {
        let mut named = Named::new(&self.caps);
        let caps = SecretCaps { multiple_keys: named.take("MULTIPLE_KEY_VALUES_PER_SECRET") };
        named.done(&self.name);
        caps
    }
}

impl ConfigurationEntry {
    pub(crate) fn profile(&self) -> ConfigurationProfile {
        ConfigurationProfile { every_change: self.every_change }
    }
}

impl LockEntry {
    pub(crate) fn profile(&self) -> LockProfile {
        LockProfile { fenced: self.fenced }
    }
}

impl ResolverEntry {
    pub(crate) fn profile(&self) -> ResolverProfile {
        ResolverProfile { announces: self.announces, knows_absence: self.knows_absence }
    }
}
