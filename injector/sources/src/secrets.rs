//! The Secrets that documents name: written from the sources, and removed when no document names them any more.
//!
//! Which Secrets there are is kept in a ledger, a ConfigMap in each namespace with their names alone: a Secret is
//! entered before it is made and struck out after it is gone. So nothing is ever forgotten, and no right to list
//! Secrets is needed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::ListParams;
use kube::{Api, Client};
use mecha_apiserver::trace::{SpanKind, Tracer};
use mecha_apiserver::{CapabilityBinding, Failure, FailureKind, Term, apply, call, delete};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::source::Credentials;
use crate::{LEDGER, MANAGED_BY, MANAGER, Options};

/// Writes at once.
const AT_ONCE: usize = 8;
/// A Secret is written again after so long, whoever may have changed it.
const REWRITE: Duration = Duration::from_secs(600);

/// Longest name of a Secret; the ledger takes no longer one either, and with it none at all.
const MAX_NAME: usize = 253;

/// A Secret that a document names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) claim: String,
    pub(crate) backend: String,
}

/// What the documents of one namespace name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) secrets: BTreeMap<String, Wanted>,
    /// Claims at their backends, with or without a Secret.
    pub(crate) claims: BTreeSet<(String, String)>,
    /// A document cannot be read, so what it names must not be taken for unused.
    pub(crate) unsure: bool,
}

/// What the documents of `cluster` name, by namespace.
pub(crate) fn wanted<'b>(
    bindings: impl Iterator<Item = &'b CapabilityBinding>,
    cluster: &str,
) -> BTreeMap<String, Names> {
    let mut all = BTreeMap::<String, Names>::new();
    for binding in bindings.filter(|binding| binding.spec.cluster == cluster) {
        let names = all.entry(binding.spec.namespace.clone()).or_default();
        for entry in &binding.spec.entries {
            for document in std::iter::once(&entry.document).chain(&entry.previous_document) {
                match serde_json::from_str::<Value>(document) {
                    Ok(document) => names.take(&entry.claim, &document),
                    Err(_) => names.unsure = true,
                }
            }
        }
    }
    all
}

impl Names {
    fn take(&mut self, claim: &str, document: &Value) {
        let backend = document["metadata"]["annotations"]["mecha.dev/backend"].as_str().unwrap_or_default();
        if !backend.is_empty() {
            self.claims.insert((claim.to_owned(), backend.to_owned()));
        }
        let items = document["spec"]["metadata"].as_array().map(Vec::as_slice).unwrap_or_default();
        for name in items.iter().filter_map(|item| item["secretKeyRef"]["name"].as_str()) {
            // Only names that the hub gives are ours to write; a document may not point us at another Secret.
            if revision_of(claim, name).is_some() && name.len() <= MAX_NAME && !backend.is_empty() {
                let wanted = Wanted { claim: claim.to_owned(), backend: backend.to_owned() };
                self.secrets.insert(name.to_owned(), wanted);
            }
        }
    }
}

/// The revision in `mecha-<claim>-r<revision>`.
fn revision_of(claim: &str, name: &str) -> Option<u64> {
    name.strip_prefix("mecha-")?.strip_prefix(claim)?.strip_prefix("-r")?.parse().ok()
}

/// Since when a Secret has been unused; `None` while it is in use.
type Ledger = BTreeMap<String, Option<Timestamp>>;

/// What is to be done about one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Plan {
    /// The ledger before anything else is done.
    ledger: Ledger,
    /// Unused for long enough.
    remove: Vec<String>,
}

fn plan(ledger: &Ledger, names: &Names, now: Timestamp, retain: Duration) -> Plan {
    let retain = SignedDuration::try_from(retain).unwrap_or(SignedDuration::MAX);
    let mut plan = Plan::default();
    for (name, since) in ledger {
        let since = if names.secrets.contains_key(name) || names.unsure { None } else { Some(since.unwrap_or(now)) };
        if since.is_some_and(|since| now.duration_since(since) >= retain) {
            plan.remove.push(name.clone());
        }
        plan.ledger.insert(name.clone(), since);
    }
    plan.ledger.extend(names.secrets.keys().map(|name| (name.clone(), None)));
    plan
}

/// Writes the Secrets of one cluster. Only the leader has one, for one term.
pub(crate) struct Secrets {
    client: Client,
    term: Term,
    retain: Duration,
    tracer: Tracer,
    ledgers: BTreeMap<String, Ledger>,
    /// What was written of which source, and when.
    written: HashMap<(String, String), (String, Instant)>,
}

/// What became of a round.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Round {
    /// Secrets that are as they should be.
    pub(crate) current: usize,
    /// Secrets whose source is not complete; what was written before stays.
    pub(crate) waiting: usize,
    /// Writes that failed.
    pub(crate) failed: usize,
}

impl Secrets {
    /// Reads the ledgers.
    pub(crate) async fn begin(client: Client, term: Term, options: &Options) -> Result<Self, Failure> {
        let maps: Api<ConfigMap> = Api::all(client.clone());
        let params = ListParams::default().fields(&format!("metadata.name={LEDGER}"));
        let mut ledgers = BTreeMap::new();
        for map in call(maps.list(&params)).await?.items {
            let entries = map.data.unwrap_or_default().into_iter().map(|(name, since)| (name, since.parse().ok()));
            ledgers.insert(map.metadata.namespace.unwrap_or_default(), entries.collect());
        }
        let (retain, tracer) = (options.retain, options.tracer.clone());
        Ok(Self { client, term, retain, tracer, ledgers, written: HashMap::new() })
    }

    /// Brings all Secrets into line. `source` gives the connection data for a namespace and
    /// a claim's backend, and what a Secret says beside it.
    pub(crate) async fn reconcile(
        &mut self,
        all: &BTreeMap<String, Names>,
        source: impl Fn(&str, &Wanted) -> Option<(Credentials, Said)>,
    ) -> Round {
        let mut round = Round::default();
        let none = Names::default();
        let namespaces: BTreeSet<String> = self.ledgers.keys().chain(all.keys()).cloned().collect();
        let mut due = Vec::new();
        for namespace in namespaces {
            let names = all.get(&namespace).unwrap_or(&none);
            if self.account(&namespace, names).await.is_err() {
                round.failed += 1;
                continue;
            }
            for (name, wanted) in &names.secrets {
                let Some((credentials, said)) = source(&namespace, wanted) else {
                    round.waiting += 1;
                    continue;
                };
                let version = format!("{}/{}/{said:?}", wanted.backend, credentials.version());
                let key = (namespace.clone(), name.clone());
                match self.written.get(&key) {
                    Some((written, at)) if *written == version && at.elapsed() < REWRITE => round.current += 1,
                    before => {
                        let known = before.is_some();
                        let secret = said.secret(&namespace, name, wanted, &credentials);
                        due.push((key, version, secret, known, wanted.backend.clone()));
                    }
                }
            }
        }
        let (client, term, tracer) = (&self.client, &self.term, &self.tracer);
        let writes = due.into_iter().map(|(key, version, secret, known, backend)| async move {
            if !term.holds() {
                return (key, version, Ok(false));
            }
            let mut span = tracer.start(SpanKind::Internal, None, || "write secret");
            let answer = write(client, &key, &secret, known).await;
            if span.is_recording() {
                span.set("mecha.namespace", key.0.clone());
                span.set("mecha.secret", key.1.clone());
                span.set("mecha.backend", backend);
                let outcome = match &answer {
                    Ok(true) => "written",
                    Ok(false) => "taken",
                    Err(_) => "failed",
                };
                span.set("mecha.outcome", outcome);
                if outcome != "written" {
                    span.fail("the Secret was not written");
                }
            }
            (key, version, answer)
        });
        let answers: Vec<_> = futures_util::stream::iter(writes).buffer_unordered(AT_ONCE).collect().await;
        for (key, version, answer) in answers {
            match answer {
                Ok(true) => {
                    round.current += 1;
                    self.written.insert(key, (version, Instant::now()));
                }
                Ok(false) => {
                    round.failed += 1;
                    self.written.remove(&key);
                }
                Err(error) => {
                    round.failed += 1;
                    tracing::warn!(namespace = key.0, secret = key.1, %error, "a Secret could not be written; it is tried again");
                }
            }
        }
        round
    }

    /// Whether something is to be done later without any change.
    pub(crate) fn wait(&self) -> Duration {
        let unused = self.ledgers.values().flatten().any(|(_, since)| since.is_some());
        if unused { (self.retain / 2).clamp(Duration::from_millis(100), REWRITE / 10) } else { REWRITE }
    }

    /// Enters what is new into the ledger, and removes what has been unused for long enough.
    async fn account(&mut self, namespace: &str, names: &Names) -> Result<(), ()> {
        let ledger = self.ledgers.entry(namespace.to_owned()).or_default().clone();
        let Plan { ledger: mut then, remove } = plan(&ledger, names, Timestamp::now(), self.retain);
        self.note(namespace, &ledger, &then).await?;
        for name in remove {
            if !self.term.holds() {
                return Err(());
            }
            match self.remove(namespace, &name).await {
                Ok(()) => {
                    then.remove(&name);
                    self.written.remove(&(namespace.to_owned(), name));
                }
                Err(error) => {
                    tracing::warn!(namespace, secret = name, %error, "an unused Secret could not be removed; it is tried again")
                }
            }
        }
        let before = self.ledgers.get(namespace).cloned().unwrap_or_default();
        self.note(namespace, &before, &then).await
    }

    /// Writes the ledger where it differs.
    async fn note(&mut self, namespace: &str, before: &Ledger, then: &Ledger) -> Result<(), ()> {
        if before == then {
            return Ok(());
        }
        if !self.term.holds() {
            return Err(());
        }
        let data: BTreeMap<_, _> = then
            .iter()
            .map(|(name, since)| (name, since.map_or_else(String::new, |since| since.to_string())))
            .collect();
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": LEDGER, "labels": {(MANAGED_BY): MANAGER}},
            "data": data,
        });
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        match apply(&api, LEDGER, MANAGER, &map).await {
            Ok(_) => {
                self.ledgers.insert(namespace.to_owned(), then.clone());
                Ok(())
            }
            // With the namespace all its Secrets are gone.
            Err(failure) if failure.kind == FailureKind::NotFound => {
                self.ledgers.remove(namespace);
                Err(())
            }
            Err(error) => {
                tracing::warn!(namespace, %error, "the list of Secrets could not be written; it is tried again");
                Err(())
            }
        }
    }

    async fn remove(&self, namespace: &str, name: &str) -> Result<(), Failure> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        match call(api.get_metadata_opt(name)).await? {
            Some(found) if is_ours(&found.metadata) => delete(&api, name).await.map(|_| ()),
            _ => Ok(()),
        }
    }
}

fn is_ours(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> bool {
    metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|by| by == MANAGER)
}

/// Writes one Secret; `false` when somebody else's has its name. `known`: it was ours before.
async fn write(client: &Client, key: &(String, String), secret: &Value, known: bool) -> Result<bool, Failure> {
    let (namespace, name) = key;
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    if !known
        && let Some(found) = call(api.get_metadata_opt(name)).await?
        && !is_ours(&found.metadata)
    {
        tracing::warn!(
            namespace,
            secret = name,
            "a Secret of this name is there and not of the control part; it is left alone. Delete it or rename the claim"
        );
        return Ok(false);
    }
    match apply(&api, name, MANAGER, secret).await {
        // The type of a Secret cannot change.
        Err(failure) if failure.kind == FailureKind::Invalid => {
            delete(&api, name).await?;
            apply(&api, name, MANAGER, secret).await.map(|_| true)
        }
        other => other.map(|_| true),
    }
}

/// What a Secret says beside the keys of its source, in the words of the Service Binding specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    /// Such as `postgresql`.
    pub(crate) kind: String,
    /// The backend.
    pub(crate) provider: String,
}

impl Said {
    fn secret(&self, namespace: &str, name: &str, wanted: &Wanted, credentials: &Credentials) -> Value {
        let mut data: Map<String, Value> = credentials.data();
        // The source's own word wins.
        for (key, value) in [("type", &self.kind), ("provider", &self.provider)] {
            data.entry(key).or_insert_with(|| json!(STANDARD.encode(value)));
        }
        let kind = word(&data["type"]).unwrap_or_else(|| self.kind.clone());
        json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {(MANAGED_BY): MANAGER, "app.kubernetes.io/part-of": "mecha"},
                "annotations": {"mecha.dev/claim": wanted.claim, "mecha.dev/backend": wanted.backend},
            },
            "type": format!("servicebinding.io/{kind}"),
            "data": data,
        })
    }
}

/// A short word in base64 that a type may have in it.
fn word(value: &Value) -> Option<String> {
    let word = String::from_utf8(STANDARD.decode(value.as_str()?).ok()?).ok()?;
    let fits =
        !word.is_empty() && word.len() <= 63 && word.bytes().all(|c| c.is_ascii_alphanumeric() || b"-.".contains(&c));
    fits.then_some(word)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

    use super::*;

    fn binding(documents: &[(&str, Value, Option<Value>)]) -> CapabilityBinding {
        let entry = |(claim, document, previous): &(&str, Value, Option<Value>)| {
            json!({"claim": claim, "backend": "pg", "role": "Active", "access": "ReadWrite",
                   "document": document.to_string(), "previousDocument": previous.as_ref().map(Value::to_string)})
        };
        serde_json::from_value(json!({
            "metadata": {"name": "shop", "namespace": "mecha-cluster-local"},
            "spec": {"environment": "team/shop", "namespace": "shop", "cluster": "local", "revision": 3,
                     "leaderEpoch": 1, "digest": "d", "entries": documents.iter().map(entry).collect::<Vec<_>>()},
        }))
        .unwrap()
    }

    fn document(backend: &str, secret: &str) -> Value {
        json!({"metadata": {"name": "orders", "annotations": {"mecha.dev/backend": backend}},
               "spec": {"metadata": [{"name": "a", "value": "x"}, {"name": "b", "secretKeyRef": {"name": secret, "key": "uri"}}]}})
    }

    #[test]
    fn both_sides_of_a_move_are_wanted_and_names_that_are_not_ours_are_not() {
        let long = "x".repeat(250);
        let moving = binding(&[
            ("orders", document("pg", "mecha-orders-r7"), Some(document("redis", "mecha-orders-r3"))),
            ("other", document("pg", "somebody-elses"), None),
            ("billing", document("pg", "mecha-orders-r9"), None),
            (&long, document("pg", &format!("mecha-{long}-r9")), None),
        ]);
        let all = wanted([&moving].into_iter(), "local");
        let names = &all["shop"];
        let found: Vec<_> = names.secrets.iter().map(|(name, w)| (name.as_str(), w.backend.as_str())).collect();
        assert_eq!(found, [("mecha-orders-r3", "redis"), ("mecha-orders-r7", "pg")]);
        assert!(!names.unsure && wanted([&moving].into_iter(), "eu-1").is_empty());
        let broken = binding(&[("orders", json!("no object"), None)]);
        assert!(!wanted([&broken].into_iter(), "local")["shop"].unsure, "JSON without names");
    }

    #[test]
    fn a_secret_goes_only_when_no_document_has_named_it_for_long_enough() {
        let now = Timestamp::now();
        let hour = Duration::from_secs(3600);
        let wanted = Wanted { claim: "orders".to_owned(), backend: "pg".to_owned() };
        let names = Names { secrets: BTreeMap::from([("mecha-orders-r7".to_owned(), wanted)]), ..Names::default() };
        let old = Ledger::from([("mecha-orders-r3".to_owned(), None)]);
        let first = plan(&old, &names, now, hour);
        assert_eq!(first.remove, [""; 0]);
        assert_eq!(first.ledger["mecha-orders-r3"], Some(now));
        assert_eq!(first.ledger["mecha-orders-r7"], None);
        let later = plan(&first.ledger, &names, now + SignedDuration::from_hours(1), hour);
        assert_eq!(later.remove, ["mecha-orders-r3"]);
        // Named again in time, or perhaps named: it stays.
        let again = Names {
            secrets: first.ledger.keys().map(|n| (n.clone(), names.secrets["mecha-orders-r7"].clone())).collect(),
            ..Names::default()
        };
        assert_eq!(
            plan(&first.ledger, &again, now + SignedDuration::from_hours(9), hour).ledger["mecha-orders-r3"],
            None
        );
        let unsure = Names { unsure: true, ..Names::default() };
        let kept = plan(&first.ledger, &unsure, now + SignedDuration::from_hours(9), hour);
        assert_eq!((kept.remove.len(), kept.ledger["mecha-orders-r7"]), (0, None));
    }
}
