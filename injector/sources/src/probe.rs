//! Proves features by a program, since the control part links no driver.
//!
//! The program is started as `PROGRAM probe --document -` and reads one JSON object: `component`, a Component with
//! its values, and `features`, what to prove. It works below a prefix that nobody else uses, removes what it made,
//! and prints `{"features": {"crud": {"ok": true}, "ttl": {"ok": false, "reason": "…"}}}`, or `{"error": "…"}`.
//! Values reach it by its standard input alone: no file, argument or variable holds them.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use jiff::Timestamp;
use mecha_apiserver::trace::{Span, SpanKind, Tracer};
use mecha_apiserver::{CapabilityBackend, Tasks};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::backends::Proof;
use crate::source::Credentials;

/// Probes at once.
const AT_ONCE: usize = 2;
/// Largest answer of the program, in bytes.
const MAX_ANSWER: u64 = 64 * 1024;
/// Longest reason that is repeated, in characters.
const MAX_REASON: usize = 160;
/// Shorter pieces of values are not told apart from ordinary words.
const SHORTEST_SECRET: usize = 6;
/// Pause before a probe that could not run is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// What a probe said.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// The program ran to its end and answered.
    pub(crate) ran: bool,
    /// Features that work, in the order in which they are claimed.
    pub(crate) proven: Vec<String>,
    /// Features that do not, and why.
    pub(crate) failed: BTreeMap<String, String>,
    /// Why it did not run.
    pub(crate) error: String,
    pub(crate) at: Timestamp,
}

/// Runs probes and remembers what they said.
pub(crate) struct Probes {
    program: Option<PathBuf>,
    every: Duration,
    limit: Duration,
    tasks: Tasks,
    tracer: Tracer,
    at_once: Arc<Semaphore>,
    known: Arc<Mutex<HashMap<String, Known>>>,
    changes: watch::Sender<u64>,
}

struct Known {
    /// What was probed.
    input: String,
    outcome: Option<Outcome>,
    /// When the next one is due; `None` while one runs.
    due: Option<Instant>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    features: BTreeMap<String, Verdict>,
    #[serde(default)]
    error: String,
}

#[derive(Deserialize)]
struct Verdict {
    ok: bool,
    #[serde(default)]
    reason: String,
}

impl Probes {
    pub(crate) fn new(
        program: Option<PathBuf>,
        every: Duration,
        limit: Duration,
        tasks: Tasks,
        tracer: Tracer,
    ) -> Self {
        Self {
            program,
            every,
            limit,
            tasks,
            tracer,
            at_once: Arc::new(Semaphore::new(AT_ONCE)),
            known: Arc::default(),
            changes: watch::Sender::new(0),
        }
    }

    /// Changes when a probe has ended.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// What is known of `backend`; starts a probe where one is due.
    pub(crate) fn proof(&self, backend: &CapabilityBackend, credentials: Option<&Credentials>) -> Proof {
        let Some(program) = &self.program else { return Proof::NotAsked };
        let name = backend.metadata.name.clone().unwrap_or_default();
        let version = credentials.map(Credentials::version).unwrap_or_default();
        let input = format!("{}/{version}", backend.metadata.generation.unwrap_or_default());
        let mut known = self.known.lock();
        let entry = known.entry(name.clone()).or_insert_with(|| Known {
            input: String::new(),
            outcome: None,
            due: Some(Instant::now()),
        });
        if entry.input != input && entry.due.is_some() {
            *entry = Known { input: input.clone(), outcome: None, due: Some(Instant::now()) };
        }
        let proof = entry.outcome.clone().filter(|_| entry.input == input).map_or(Proof::Pending, Proof::Ran);
        if entry.input == input && entry.due.is_some_and(|due| due <= Instant::now()) {
            entry.due = None;
            let (document, secrets) = document(backend, credentials);
            let run = Run { program: program.clone(), document, secrets, limit: self.limit };
            let features = backend.spec.features.clone();
            let (known, changes, at_once, every) =
                (self.known.clone(), self.changes.clone(), self.at_once.clone(), self.every);
            let tracer = self.tracer.clone();
            self.tasks.run("probe", async move {
                let _permit = at_once.acquire().await;
                let mut span = tracer.start(SpanKind::Internal, None, || "probe backend");
                let outcome = run.outcome(&features).await;
                told(&mut span, &name, &outcome);
                drop(span);
                let pause = if outcome.ran { every } else { RETRY.min(every) };
                known.lock().insert(name, Known { input, outcome: Some(outcome), due: Some(Instant::now() + pause) });
                changes.send_modify(|version| *version += 1);
            });
        }
        proof
    }

    /// When the next probe is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.known.lock().values().filter_map(|known| known.due).min()
    }

    /// Forgets backends that are gone.
    pub(crate) fn keep(&self, still: impl Fn(&str) -> bool) {
        self.known.lock().retain(|name, known| known.due.is_none() || still(name));
    }
}

/// Says in its span what a probe found.
fn told(span: &mut Span, backend: &str, outcome: &Outcome) {
    if span.is_recording() {
        span.set("mecha.backend", backend.to_owned());
        span.set("mecha.features", outcome.proven.join(","));
        let word = match (outcome.ran, outcome.failed.is_empty(), outcome.proven.is_empty()) {
            (false, _, _) => "not run",
            (true, true, _) => "proven",
            (true, false, false) => "partly",
            (true, false, true) => "refused",
        };
        span.set("mecha.outcome", word);
        if word == "not run" || word == "refused" {
            span.fail("no feature was proven");
        }
    }
}

/// What the program reads, and the values in it that nobody may repeat.
fn document(backend: &CapabilityBackend, credentials: Option<&Credentials>) -> (Value, Vec<String>) {
    let data = credentials.map(Credentials::data).unwrap_or_default();
    let prefix = format!("mecha_probe_{}", uuid::Uuid::new_v4().simple());
    let decoded = |key: &str| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(data.get(key)?.as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    let secrets = data.keys().filter_map(|key| decoded(key)).collect();
    let component = &backend.spec.component;
    let item = |item: &mecha_resources::kinds::TemplateValue| {
        let from = item.value_from.as_ref().and_then(|from| decoded(&from.key));
        let value = from.or_else(|| item.value.as_ref().map(|text| thrown_away(text, &prefix))).unwrap_or_default();
        json!({"name": item.name, "value": value})
    };
    let mut spec = Map::new();
    spec.insert("type".to_owned(), json!(component.kind));
    spec.insert("version".to_owned(), json!(component.version.as_deref().unwrap_or("v1")));
    spec.insert("metadata".to_owned(), component.metadata.iter().map(item).collect());
    let document = json!({
        "component": {
            "apiVersion": "dapr.io/v1alpha1", "kind": "Component", "metadata": {"name": prefix}, "spec": spec,
        },
        "features": backend.spec.features,
    });
    (document, secrets)
}

/// `text` with every template replaced by a word that no tenant has.
fn thrown_away(text: &str, prefix: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        out.push_str(before);
        // One that does not end makes no document: the hub says so.
        let Some((_, tail)) = after.split_once("}}") else { return out };
        out.push_str(prefix);
        rest = tail;
    }
    out.push_str(rest);
    out
}

struct Run {
    program: PathBuf,
    document: Value,
    secrets: Vec<String>,
    limit: Duration,
}

impl Run {
    async fn outcome(self, features: &[String]) -> Outcome {
        let answer = match tokio::time::timeout(self.limit, self.answer()).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("{} did not end within {:?}", self.program.display(), self.limit)),
        };
        let at = Timestamp::now();
        let answer = match answer {
            Ok(answer) if answer.error.is_empty() => answer,
            Ok(Answer { error, .. }) | Err(error) => {
                let error = self.scrubbed(&error);
                return Outcome { ran: false, proven: Vec::new(), failed: BTreeMap::new(), error, at };
            }
        };
        let mut outcome = Outcome { ran: true, proven: Vec::new(), failed: BTreeMap::new(), error: String::new(), at };
        for feature in features {
            match answer.features.get(feature) {
                Some(Verdict { ok: true, .. }) => outcome.proven.push(feature.clone()),
                Some(Verdict { reason, .. }) => {
                    outcome.failed.insert(feature.clone(), self.scrubbed(reason));
                }
                None => {
                    outcome.failed.insert(feature.clone(), "the probe does not know it".to_owned());
                }
            }
        }
        outcome
    }

    async fn answer(&self) -> Result<Answer, String> {
        let failed = |what: &str, e: std::io::Error| format!("{} {what}: {e}", self.program.display());
        let mut child = Command::new(&self.program)
            .args(["probe", "--document", "-"])
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Drivers write whatever they like there.
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed("cannot be started", e))?;
        if let Some(mut input) = child.stdin.take() {
            // A program that does not read to the end says so by its answer.
            let _ = input.write_all(self.document.to_string().as_bytes()).await;
        }
        let mut text = Vec::new();
        if let Some(output) = child.stdout.take() {
            output.take(MAX_ANSWER).read_to_end(&mut text).await.map_err(|e| failed("cannot be read", e))?;
        }
        let status = child.wait().await.map_err(|e| failed("cannot be waited for", e))?;
        let answer: Result<Answer, _> = serde_json::from_slice(&text);
        match answer {
            Ok(answer) => Ok(answer),
            Err(_) => Err(format!("{} ended with {status} and no answer that can be read", self.program.display())),
        }
    }

    /// `text` without anything that looks like a piece of a secret value, shortened.
    fn scrubbed(&self, text: &str) -> String {
        let mut clean = text.to_owned();
        let pieces = self.secrets.iter().flat_map(|secret| {
            let parts = secret.split(|c: char| c.is_whitespace() || ":/@?&=;,'\"".contains(c));
            std::iter::once(secret.trim()).chain(parts)
        });
        let mut pieces: Vec<&str> = pieces.filter(|piece| piece.len() >= SHORTEST_SECRET).collect();
        pieces.sort_unstable_by_key(|piece| std::cmp::Reverse(piece.len()));
        for piece in pieces {
            clean = clean.replace(piece, "***");
        }
        clean.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_piece_of_a_secret_is_repeated() {
        let run = Run {
            program: PathBuf::new(),
            document: Value::Null,
            secrets: vec!["postgres://app:s3cr3t-canary@db.internal/orders".to_owned()],
            limit: Duration::ZERO,
        };
        let said = run.scrubbed("cannot log in with s3cr3t-canary at postgres://app:s3cr3t-canary@db.internal/orders");
        assert_eq!(said, "cannot log in with *** at ***");
    }

    #[test]
    fn templates_become_a_word_that_no_tenant_has() {
        assert_eq!(thrown_away("{{ claim.slug }}_a_{{environment}}", "p"), "p_a_p");
        assert_eq!(thrown_away("{appID}", "p"), "{appID}");
        assert_eq!(thrown_away("{{ open", "p"), "");
    }
}
