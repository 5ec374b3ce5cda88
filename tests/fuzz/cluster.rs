//! What comes from a cluster and its people: admission reviews, pods, objects of our kinds, kubeconfig files.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mecha_patch::{Config, asks, has_sidecar, inject};
use mecha_resources::Severity;
use mecha_resources::kinds::{Documents, KindSpec, Object};
use mecha_webhook::review::{Verdict, answer};
use serde_json::{Value, json};

use crate::engine::{Checked, Dice, Target, corpus};

const POD: &[&str] = &[
    "\"dapr.io/enabled\": \"true\"",
    "\"mecha.dev/enabled\": \"true\"",
    "\"dapr.io/app-port\": \"8080\",",
    "\"dapr.io/env\": \"A=1,B=2\",",
    "\"dapr.io/volume-mounts\": \"a:/b\",",
    "\"dapr.io/pluggable-components\": \"app\",",
    "\"dapr.io/unix-domain-socket-path\": \"/s\",",
    "\"daprd\"",
    "\"istio-proxy\"",
    "\"initContainers\": [",
    "\"restartPolicy\": \"Always\",",
    "\"hostNetwork\": true,",
    "\"ownerReferences\": [",
    "{\"name\": \"app\"},",
    "null",
    "{}",
    "[]",
    "~1",
    "/-",
    "\\u0000",
];

const KINDS: &[&str] = &[
    "apiVersion: mecha.dev/v1alpha1\n",
    "kind: Environment\n",
    "kind: CapabilityClaim\n",
    "kind: EnvironmentClass\n",
    "spec:\n",
    "metadata: {name: a}\n",
    "selector: {tier: a}\n",
    "source:\n",
    "metadata:\n",
    "---\n",
    "&a ",
    "*a",
    "{",
    "}",
    "[",
    "]",
    ": ",
    "null",
    "1e999",
    "!!str ",
];

const KUBECONFIG: &[&str] = &[
    "current-context: a\n",
    "contexts: ",
    "clusters: ",
    "users: ",
    "{name: a, cluster: {server: 'https://h'}}",
    "insecure-skip-tls-verify: true",
    "exec: {}",
    "&a ",
    "*a",
    "[",
    "]",
    "{",
    "}",
    "---\n",
    "!!binary ",
];

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "admission-review", words: POD, check: review },
    Target { name: "pod", words: POD, check: pod },
    Target { name: "yaml-kinds", words: KINDS, check: kinds },
    Target { name: "kubeconfig", words: KUBECONFIG, check: kubeconfig },
];

/// A question gets its answer, and no pod that asks for a sidecar gets in without one.
fn review(bytes: &[u8]) -> Checked {
    static WHOLE: LazyLock<Vec<Value>> = LazyLock::new(|| parsed("admission-review"));
    let read = answered(bytes)?;
    let other = changed(&WHOLE, bytes);
    answered(other.to_string().as_bytes()).map_err(|why| format!("{why}: {other}"))?;
    Ok(read)
}

fn answered(bytes: &[u8]) -> Checked {
    let answer = match answer(bytes, &Config::default()) {
        Ok(answer) => answer,
        Err(why) if why.to_string().is_empty() => return Err("no words on why it cannot be read".to_owned()),
        Err(_) => return Ok(false),
    };
    let asked: Value = serde_json::from_slice(bytes).map_err(|e| format!("no JSON is answered: {e}"))?;
    let said: Value = serde_json::from_slice(&answer.body).map_err(|e| format!("the answer is no JSON: {e}"))?;
    let response = &said["response"];
    if response["uid"] != asked["request"]["uid"] {
        return Err(format!("the question {} gets the answer {}", asked["request"]["uid"], response["uid"]));
    }
    if response["allowed"] != true {
        let why = response["status"]["message"].as_str().unwrap_or_default();
        return if why.is_empty() { Err("a refusal without words".to_owned()) } else { Ok(false) };
    }
    let before = &asked["request"]["object"];
    let after = match response["patch"].as_str() {
        None => before.clone(),
        Some(text) => {
            let patch = STANDARD.decode(text).map_err(|e| format!("the patch is no base64: {e}"))?;
            let patch = serde_json::from_slice(&patch).map_err(|e| format!("the patch is no JSON: {e}"))?;
            patched(before, &patch)?
        }
    };
    let wants = asks(before).map_err(|_| "a pod whose wish is unclear is admitted".to_owned())?;
    if wants != matches!(answer.verdict, Verdict::Injected | Verdict::Whole) {
        return Err(format!("a pod that asks ({wants}) is {:?}", answer.verdict));
    }
    if wants && !has_sidecar(&after) {
        return Err("a pod that asks gets in without its sidecar".to_owned());
    }
    if !wants && after != *before {
        return Err("a pod that does not ask is changed".to_owned());
    }
    Ok(wants)
}

/// What was done is not done again, and the patch makes the pod that is shown.
fn pod(bytes: &[u8]) -> Checked {
    static WHOLE: LazyLock<Vec<Value>> = LazyLock::new(|| parsed("pod"));
    let other = changed(&WHOLE, bytes);
    injected(&other).map_err(|why| format!("{why}: {other}"))?;
    serde_json::from_slice(bytes).map_or(Ok(false), |pod| injected(&pod))
}

fn injected(pod: &Value) -> Checked {
    let mut taken = false;
    for kubernetes_minor in [28, 29] {
        let config = Config { kubernetes_minor, ..Config::default() };
        let injection = match inject(pod, "shop", &config) {
            Ok(injection) => injection,
            Err(denied) if denied.problems.is_empty() => return Err("a refusal without a reason".to_owned()),
            Err(_) => continue,
        };
        let patch = serde_json::to_value(&injection.patch).map_err(|e| e.to_string())?;
        if patched(pod, &patch)? != injection.pod {
            return Err("the patch does not make the pod that is shown".to_owned());
        }
        let again = inject(&injection.pod, "shop", &config)
            .map_err(|denied| format!("what was injected is refused the next time: {denied}"))?;
        if !again.patch.is_empty() {
            return Err(format!("a second time changes it again: {:?}", again.patch));
        }
        taken |= injection.opted_in;
    }
    Ok(taken)
}

/// The seeds of a target that are JSON.
fn parsed(name: &str) -> Vec<Value> {
    corpus(name).iter().filter_map(|seed| serde_json::from_slice(seed).ok()).collect()
}

/// A seed with other values at some places. Few inputs are still JSON after a change of their bytes; this is,
/// and the bytes only decide what is changed.
fn changed(seeds: &[Value], bytes: &[u8]) -> Value {
    let mut dice = Dice::new(bytes.iter().fold(0, |hash: u64, b| hash.wrapping_mul(31) ^ u64::from(*b)));
    let mut document = seeds[dice.below(seeds.len())].clone();
    for _ in 0..=dice.below(4) {
        let mut path = String::new();
        while dice.below(5) > 0 {
            let below: Vec<String> = match document.pointer(&path) {
                Some(Value::Object(map)) => map.keys().map(|key| key.replace('~', "~0").replace('/', "~1")).collect(),
                Some(Value::Array(list)) => (0..list.len()).map(|index| index.to_string()).collect(),
                _ => break,
            };
            let Some(next) = below.get(dice.below(below.len())) else { break };
            path = format!("{path}/{next}");
        }
        let Some(at) = document.pointer_mut(&path) else { continue };
        let word = POD[dice.below(POD.len())].trim_matches(['"', ',', ' ']);
        let odd = [json!(null), json!([]), json!({}), json!(""), json!(true), json!(-1), json!("true"), json!(word)];
        let value = odd[dice.below(odd.len())].clone();
        match at {
            Value::Object(map) if dice.below(2) == 0 => {
                let (key, value) = word.split_once("\": ").map_or((word, value), |(key, text)| {
                    (key, serde_json::from_str(text).unwrap_or_else(|_| json!(text.trim_matches('"'))))
                });
                map.insert(key.to_owned(), value);
            }
            Value::Array(list) if !list.is_empty() && dice.below(2) == 0 => {
                let again = list[dice.below(list.len())].clone();
                list.push(again);
            }
            Value::Array(list) => list.push(value),
            at => *at = value,
        }
    }
    document
}

/// The document after a patch of additions and removals (RFC 6902).
fn patched(document: &Value, patch: &Value) -> Result<Value, String> {
    let mut document = document.clone();
    for op in patch.as_array().ok_or("the patch is no list")? {
        let path = op["path"].as_str().unwrap_or_default();
        let (parent, key) = path.rsplit_once('/').ok_or_else(|| format!("{op} has no place"))?;
        let key = key.replace("~1", "/").replace("~0", "~");
        let (add, value) = (op["op"] == "add", op["value"].clone());
        let nowhere = || format!("{op} has nothing to work on");
        match document.pointer_mut(parent).ok_or_else(nowhere)? {
            Value::Object(map) if add => drop(map.insert(key, value)),
            Value::Object(map) => drop(map.remove(&key).ok_or_else(nowhere)?),
            Value::Array(list) => {
                let at = if key == "-" { list.len() } else { key.parse().map_err(|_| nowhere())? };
                match add {
                    true if at <= list.len() => list.insert(at, value),
                    false if at < list.len() => drop(list.remove(at)),
                    _ => return Err(nowhere()),
                }
            }
            _ => return Err(nowhere()),
        }
    }
    Ok(document)
}

/// A document with a mistake is told with its place and not used; what is used means the same when it is written.
fn kinds(bytes: &[u8]) -> Checked {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(false) };
    let mut documents = Documents::default();
    documents.read_text("fuzz.yaml", text);
    // The parser counts line breaks as YAML does, which are a few more than Rust's.
    let lines = 1 + text.chars().filter(|c| matches!(c, '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}')).count();
    for finding in &documents.diagnostics {
        if finding.line as usize > lines + 1 {
            return Err(format!("line {} of {lines}: {finding}", finding.line));
        }
        if finding.message.is_empty() {
            return Err("a finding without words".to_owned());
        }
    }
    let mut used = 0;
    used += again(documents.clusters.iter().map(|d| &d.value), |d| &d.clusters)?;
    used += again(documents.classes.iter().map(|d| &d.value), |d| &d.classes)?;
    used += again(documents.environments.iter().map(|d| &d.value), |d| &d.environments)?;
    used += again(documents.backends.iter().map(|d| &d.value), |d| &d.backends)?;
    used += again(documents.claims.iter().map(|d| &d.value), |d| &d.claims)?;
    used += again(documents.placements.iter().map(|d| &d.value), |d| &d.placements)?;
    used += again(documents.bindings.iter().map(|d| &d.value), |d| &d.bindings)?;
    Ok(used > 0 && !documents.diagnostics.iter().any(|d| d.severity == Severity::Error))
}

fn again<'a, S: KindSpec>(
    objects: impl Iterator<Item = &'a Object<S>>,
    list: impl Fn(&Documents) -> &Vec<mecha_resources::Located<Object<S>>>,
) -> Result<usize, String> {
    let mut count = 0;
    for object in objects {
        let mut written = serde_json::to_value(object).map_err(|e| e.to_string())?;
        written["apiVersion"] = json!(mecha_resources::kinds::API_VERSION);
        written["kind"] = json!(S::KIND);
        let mut documents = Documents::default();
        documents.read_text("again.json", &written.to_string());
        match list(&documents).as_slice() {
            [same] if same.value == *object => count += 1,
            _ => return Err(format!("{written} is read as something else: {:?}", documents.diagnostics)),
        }
    }
    Ok(count)
}

fn kubeconfig(bytes: &[u8]) -> Checked {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(false) };
    match mecha_kubernetes::fuzzing::kubeconfig(text) {
        Ok(_) => Ok(true),
        Err(why) if why.is_empty() => Err("no words on what is wrong".to_owned()),
        Err(_) => Ok(false),
    }
}
