//! `mechad probe --document FILE`: proves the features of one component, and runs nothing else.
//!
//! The file (`-` is standard input) holds one JSON object: `component`, a Component document with its values, and
//! `features`, what to prove. The answer on standard output is `{"features": {"ttl": {"ok": false, "reason": "…"}}}`,
//! or `{"error": "…"}` when the component cannot be opened. The exit status is 0 for the former, 1 for the latter.
//!
//! Stores are written to below a prefix that nobody else uses, and what was written is removed. So are brokers, in a
//! topic and by a consumer group of the probe's own. A broker where this user may make no topic, or that has no way to
//! remove one, is asked whether it is there, and takes nothing: its driver's word stands for its features.

mod pubsub;
mod state;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mecha_components_api::{
    BuildCx, Component, Error, ErrorKind, Invoke, Lookup, Metadata, PubSub, Registration, Registry,
};
use serde::{Deserialize, Serialize};

/// Largest document, in bytes.
const MAX_DOCUMENT: u64 = 1 << 20;
/// Time for the component to open.
const OPEN_LIMIT: Duration = Duration::from_secs(20);
/// Time for all features together.
const PROBE_LIMIT: Duration = Duration::from_secs(30);

/// What is asked.
#[derive(Deserialize)]
struct Question {
    component: Document,
    #[serde(default)]
    features: Vec<String>,
}

#[derive(Deserialize)]
struct Document {
    metadata: Name,
    spec: Spec,
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

#[derive(Deserialize)]
struct Spec {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    metadata: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    name: String,
    #[serde(default)]
    value: serde_json::Value,
}

/// What is answered.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Answer {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    features: BTreeMap<String, Verdict>,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Verdict {
    ok: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
}

impl From<Result<(), String>> for Verdict {
    fn from(result: Result<(), String>) -> Self {
        match result {
            Ok(()) => Self { ok: true, reason: String::new() },
            Err(reason) => Self { ok: false, reason },
        }
    }
}

/// Runs the command; `args` are the words after `probe`.
#[must_use]
pub fn main(args: &[String]) -> ExitCode {
    let [flag, file] = args else { return usage() };
    if flag != "--document" {
        return usage();
    }
    let answer = match read(file) {
        Ok(question) => match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
            Ok(tokio) => {
                let answer = tokio.block_on(answer(&question));
                // A driver that does not let go must not keep the answer.
                tokio.shutdown_background();
                answer
            }
            Err(e) => failed(format!("no runtime: {e}")),
        },
        Err(error) => failed(error),
    };
    println!("{}", serde_json::to_string(&answer).unwrap_or_default());
    if answer.error.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usage() -> ExitCode {
    eprintln!("usage: mechad probe --document FILE ('-' is standard input)");
    ExitCode::from(2)
}

fn failed(error: String) -> Answer {
    Answer { error, ..Answer::default() }
}

fn read(file: &str) -> Result<Question, String> {
    let mut text = String::new();
    let read = match file {
        "-" => std::io::stdin().take(MAX_DOCUMENT).read_to_string(&mut text),
        path => std::fs::File::open(path).and_then(|file| file.take(MAX_DOCUMENT).read_to_string(&mut text)),
    };
    read.map_err(|e| format!("{file} cannot be read: {e}"))?;
    // What the parser says names a place, never a value.
    serde_json::from_str(&text).map_err(|e| format!("{file} is no question: line {} column {}", e.line(), e.column()))
}

async fn answer(question: &Question) -> Answer {
    let mut registry = Registry::new();
    mecha_components::register_all(&mut registry);
    let kind = &question.component.spec.kind;
    match kind.split('.').next() {
        Some("state") => match open(&registry.state, question).await {
            Ok(store) => {
                let prefix = format!("{}||", question.component.metadata.name);
                let features = state::prove(&*store, &prefix, &question.features);
                match tokio::time::timeout(PROBE_LIMIT, features).await {
                    Ok(features) => Answer {
                        features: features.into_iter().map(|(name, result)| (name, result.into())).collect(),
                        ..Answer::default()
                    },
                    Err(_) => failed(format!("{kind} did not answer within {PROBE_LIMIT:?}")),
                }
            }
            Err(error) => failed(error),
        },
        Some("pubsub") => {
            let open = open(&registry.pubsub, question).await;
            let proven = match open {
                Ok(broker) => match kind.as_str() {
                    "pubsub.in-memory" => {
                        let end = async || {
                            broker.close().await;
                            Ok(())
                        };
                        brokered(&broker, question, end).await
                    }
                    "pubsub.redis" => {
                        let end = async || {
                            broker.close().await;
                            remove(&registry, question).await
                        };
                        brokered(&broker, question, end).await
                    }
                    _ => tried(&broker, question).await,
                },
                Err(error) => Err(error),
            };
            proven.unwrap_or_else(failed)
        }
        Some("bindings") => {
            let version = &question.component.spec.version;
            let reads = matches!(Registry::find(&registry.input, kind, version), Lookup::Found(_));
            let writes = matches!(Registry::find(&registry.output, kind, version), Lookup::Found(_));
            let has = |name: &str| name == "input" && reads || name == "output" && writes;
            match reads {
                true => open_and_ask(&registry.input, question, |_, name| has(name)).await,
                false => open_and_ask(&registry.output, question, |_, name| has(name)).await,
            }
        }
        Some("secretstores") => open_and_ask(&registry.secrets, question, |_, name| name == "multipleValues").await,
        Some("configuration") => open_and_ask(&registry.configuration, question, |_, name| name == "subscribe").await,
        Some("lock") => open_and_ask(&registry.lock, question, |_, _| false).await,
        _ => failed(unknown(kind)),
    }
}

/// Proves the features of a broker whose driver makes and removes topics.
async fn tried(broker: &Arc<dyn PubSub>, question: &Question) -> Result<Answer, String> {
    let topic = topic(question);
    let Some(trial) = broker.trial() else { return Ok(ask(broker, question, pubsub::says).await) };
    match tokio::time::timeout(OPEN_LIMIT, trial.make(&topic)).await {
        Ok(Ok(())) => {}
        // Apps may use the topics that somebody else makes for them.
        Ok(Err(e)) if e.kind() == ErrorKind::PermissionDenied => return Ok(ask(broker, question, pubsub::says).await),
        Ok(Err(e)) => return Err(told(&format!("the topic {topic} cannot be made"), &e)),
        Err(_) => return Err(format!("the topic {topic} was not made within {OPEN_LIMIT:?}")),
    }
    let end = async || {
        let removed = tokio::time::timeout(OPEN_LIMIT, trial.remove(&topic)).await;
        broker.close().await;
        match removed {
            Ok(removed) => removed.map_err(|e| e.to_string()),
            Err(_) => Err(format!("no answer within {OPEN_LIMIT:?}")),
        }
    };
    brokered(broker, question, end).await
}

/// Proves the features of a broker; `end` removes what was made for it and closes it.
async fn brokered(
    broker: &Arc<dyn PubSub>,
    question: &Question,
    end: impl AsyncFnOnce() -> Result<(), String>,
) -> Result<Answer, String> {
    let topic = topic(question);
    let features = tokio::time::timeout(PROBE_LIMIT, pubsub::prove(broker, &topic, &question.features)).await;
    let removed = end().await.map_err(|e| format!("the topic {topic} cannot be removed: {e}"));
    let features = features.map_err(|_| format!("it did not answer within {PROBE_LIMIT:?}"))?;
    removed?;
    let features = features.into_iter().map(|(name, result)| (name, result.into())).collect();
    Ok(Answer { features, ..Answer::default() })
}

/// The topic of a probe.
fn topic(question: &Question) -> String {
    format!("{}-probe", question.component.metadata.name)
}

/// Removes the stream of a topic, by the binding that reaches the same server with the same metadata.
async fn remove(registry: &Registry, question: &Question) -> Result<(), String> {
    let Spec { version, metadata, .. } = &question.component.spec;
    let binding = open_as(&registry.output, "bindings.redis", version, metadata, question).await?;
    let key = [("key", topic(question))].into_iter().collect();
    let invoke = Invoke { operation: "delete", data: Bytes::new(), metadata: &key };
    let removed = tokio::time::timeout(OPEN_LIMIT, binding.invoke(invoke)).await;
    binding.close().await;
    match removed {
        Ok(removed) => removed.map(drop).map_err(|e| e.to_string()),
        Err(_) => Err(format!("no answer within {OPEN_LIMIT:?}")),
    }
}

fn unknown(kind: &str) -> String {
    format!("this version knows no component {kind}")
}

async fn open<C: ?Sized + 'static>(list: &[Registration<C>], question: &Question) -> Result<Arc<C>, String> {
    let Spec { kind, version, metadata } = &question.component.spec;
    open_as(list, kind, version, metadata, question).await
}

/// The same as another type.
async fn open_as<C: ?Sized + 'static>(
    list: &[Registration<C>],
    kind: &str,
    version: &str,
    metadata: &[Item],
    question: &Question,
) -> Result<Arc<C>, String> {
    let registration = match Registry::find(list, kind, version) {
        Lookup::Found(registration) => registration,
        Lookup::WrongVersion(_) => return Err(format!("this version knows {kind}, and not its version {version}")),
        Lookup::Unknown => return Err(unknown(kind)),
    };
    let mut values = Metadata::new();
    for Item { name, value } in metadata {
        values.insert(name, value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    }
    let name = &question.component.metadata.name;
    for key in ["consumerID", "consumerGroup"] {
        // A group of its own: one that apps read in would share out its partitions anew. What was written for one
        // tenant has the name of the probe in it already.
        if registration.fields.iter().any(|field| field.name == key)
            && values.get(key).is_none_or(|group| !group.contains(name))
        {
            values.insert(key, name);
        }
    }
    let prepared = (registration.prepare)(&values, version).map_err(|e| format!("{kind}: {e}"))?;
    let mut cx = BuildCx::for_app(name, name, std::env::temp_dir());
    cx.strict = true;
    match tokio::time::timeout(OPEN_LIMIT, prepared.build(&cx)).await {
        Ok(built) => built.map_err(|e| told(&format!("{kind} cannot be opened"), &e)),
        Err(_) => Err(format!("{kind} did not open within {OPEN_LIMIT:?}")),
    }
}

/// Whether the component answers; it has the features that its driver says it has.
async fn ask<C: Component + ?Sized>(component: &Arc<C>, question: &Question, has: impl Fn(&C, &str) -> bool) -> Answer {
    let answered = tokio::time::timeout(PROBE_LIMIT, component.ping()).await;
    let verdict = |name: &String| {
        let known = has(component, name);
        (name.clone(), if known { Ok(()) } else { Err("the component does not have it".to_owned()) }.into())
    };
    let features = question.features.iter().map(verdict).collect();
    component.close().await;
    match answered {
        Ok(Ok(())) => Answer { features, ..Answer::default() },
        Ok(Err(e)) => failed(told("it does not answer", &e)),
        Err(_) => failed(format!("it does not answer within {PROBE_LIMIT:?}")),
    }
}

/// The same for one that is still to be opened.
async fn open_and_ask<C: Component + ?Sized>(
    list: &[Registration<C>],
    question: &Question,
    has: impl Fn(&C, &str) -> bool,
) -> Answer {
    match open(list, question).await {
        Ok(component) => ask(&component, question, has).await,
        Err(error) => failed(error),
    }
}

fn told(what: &str, error: &Error) -> String {
    format!("{what}: {error}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

    use serde_json::json;

    use super::*;

    async fn asked(kind: &str, metadata: serde_json::Value, features: &[&str]) -> serde_json::Value {
        let question = json!({
            "component": {"metadata": {"name": "mecha_probe_1"}, "spec": {"type": kind, "version": "v1", "metadata": metadata}},
            "features": features,
        });
        serde_json::to_value(answer(&serde_json::from_value(question).unwrap()).await).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn features_of_a_store_are_proven_by_using_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let metadata = json!([{"name": "connectionString", "value": path.to_str()}]);
        let found = asked("state.sqlite", metadata, &["crud", "etag", "transactional", "ttl", "nosuch"]).await;
        for feature in ["crud", "etag", "transactional", "ttl"] {
            assert_eq!(found["features"][feature], json!({"ok": true}), "{found}");
        }
        assert_eq!(found["features"]["nosuch"]["ok"], false);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_cannot_be_opened_says_why() {
        assert!(asked("state.nosuch", json!([]), &[]).await["error"].as_str().unwrap().contains("state.nosuch"));
        assert!(asked("state.redis", json!([]), &[]).await["error"].as_str().unwrap().contains("redisHost"));
        let closed = json!([{"name": "redisHost", "value": "127.0.0.1:1"}, {"name": "redisMaxRetries", "value": "-1"}]);
        assert!(asked("state.redis", closed, &["crud"]).await["error"].is_string());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_broker_has_what_it_shows() {
        let found = asked("pubsub.in-memory", json!([]), &["ordered", "replay", "delay"]).await;
        assert_eq!(found["features"]["ordered"], json!({"ok": true}), "{found}");
        for feature in ["replay", "delay"] {
            assert_eq!(found["features"][feature]["ok"], false, "{found}");
        }
    }
}
