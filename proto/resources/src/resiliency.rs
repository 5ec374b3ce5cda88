use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::decode::Obj;
use crate::value::{Meta, Resource};

/// Unit of a bare number in this document.
const BARE: Duration = Duration::from_millis(1);

/// A Resiliency document (`dapr.io/v1alpha1`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Resiliency {
    /// Name, namespace, scopes.
    #[serde(flatten)]
    pub meta: Meta,
    /// Named timeouts.
    #[serde(serialize_with = "crate::value::duration_texts")]
    pub timeouts: BTreeMap<String, Duration>,
    /// Named retries.
    pub retries: BTreeMap<String, RetryPolicy>,
    /// Named circuit breakers.
    pub circuit_breakers: BTreeMap<String, BreakerPolicy>,
    /// What the policies are for.
    pub targets: Targets,
}

/// A retry policy. What the document leaves out is `None` and has the default of the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RetryPolicy {
    /// Shape of the pauses; constant unless named.
    pub policy: RetryShape,
    /// Pause of the constant shape; 5 s unless given.
    #[serde(serialize_with = "crate::value::optional_duration_text")]
    pub duration: Option<Duration>,
    /// Longest pause of the exponential shape; 60 s unless given.
    #[serde(serialize_with = "crate::value::optional_duration_text")]
    pub max_interval: Option<Duration>,
    /// Retries after the first try; negative or `None` means endless.
    pub max_retries: Option<i64>,
    /// HTTP statuses that are retried; `None` means by the nature of the error.
    pub http_status_codes: Option<CodeList>,
    /// gRPC codes that are retried; `None` means by the nature of the error.
    pub grpc_status_codes: Option<CodeList>,
}

/// Shape of the pauses between tries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RetryShape {
    /// Always the same.
    #[default]
    Constant,
    /// Growing by half each time, with jitter.
    Exponential,
}

/// A circuit breaker. What the document leaves out is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BreakerPolicy {
    /// Calls let through while half open; 1 unless given.
    pub max_requests: Option<u32>,
    /// Period after which a closed breaker forgets its counts; never unless given.
    #[serde(serialize_with = "crate::value::optional_duration_text")]
    pub interval: Option<Duration>,
    /// Time it stays open; 60 s unless given.
    #[serde(serialize_with = "crate::value::optional_duration_text")]
    pub timeout: Option<Duration>,
    /// CEL over the counts; `consecutiveFailures > 5` unless given.
    pub trip: Option<String>,
}

/// What the policies of a document are for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Targets {
    /// By app id.
    pub apps: BTreeMap<String, AppTarget>,
    /// By actor type.
    pub actors: BTreeMap<String, ActorTarget>,
    /// By component name.
    pub components: BTreeMap<String, ComponentTarget>,
}

/// Names of the policies of one target; empty means none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyNames {
    /// Timeout.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub timeout: String,
    /// Retry.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub retry: String,
    /// Circuit breaker.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub circuit_breaker: String,
}

/// Policies for calls to an app.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AppTarget {
    /// Policies.
    #[serde(flatten)]
    pub policies: PolicyNames,
    /// Breakers kept, one per method; `None` means 100.
    pub circuit_breaker_cache_size: Option<u32>,
}

/// Policies for calls to actors of a type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ActorTarget {
    /// Policies.
    #[serde(flatten)]
    pub policies: PolicyNames,
    /// What a breaker is for.
    pub circuit_breaker_scope: BreakerScope,
    /// Breakers kept; `None` means 5000.
    pub circuit_breaker_cache_size: Option<u32>,
}

/// What the breaker of an actor counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BreakerScope {
    /// All actors of the type.
    #[default]
    Type,
    /// One actor.
    Id,
    /// Both.
    Both,
}

/// Policies for a component, by direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct ComponentTarget {
    /// Events from the component to the app.
    pub inbound: PolicyNames,
    /// Calls to the component.
    pub outbound: PolicyNames,
}

/// A list of codes such as `429,500-599`. Ranges include both ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CodeList(Vec<(u16, u16)>);

impl CodeList {
    /// Parses a list of codes and ranges between `min` and `max`.
    ///
    /// # Errors
    /// What is wrong with the text, for people.
    pub fn parse(text: &str, min: u16, max: u16) -> Result<Self, String> {
        let mut ranges = Vec::new();
        for part in text.split(',').map(str::trim) {
            let (low, high) = match part.split_once('-') {
                Some((low, high)) => (low.trim(), high.trim()),
                None => (part, part),
            };
            let code = |s: &str| {
                let digits = !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
                digits.then(|| s.parse::<u16>().ok()).flatten().filter(|c| (min..=max).contains(c))
            };
            match (code(low), code(high)) {
                (Some(low), Some(high)) if low <= high => ranges.push((low, high)),
                (Some(_), Some(_)) => return Err(format!("the range '{part}' runs backwards")),
                _ => return Err(format!("'{part}' is neither a code nor a range of codes from {min} to {max}")),
            }
        }
        Ok(Self(ranges))
    }

    /// The ranges, both ends included, in the order of the document.
    #[must_use]
    pub fn ranges(&self) -> &[(u16, u16)] {
        &self.0
    }

    /// Whether `code` is listed.
    #[must_use]
    pub fn contains(&self, code: u16) -> bool {
        self.0.iter().any(|&(low, high)| (low..=high).contains(&code))
    }
}

impl fmt::Display for CodeList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (low, high)) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            if low == high { write!(f, "{comma}{low}")? } else { write!(f, "{comma}{low}-{high}")? }
        }
        Ok(())
    }
}

impl Serialize for CodeList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Resource for Resiliency {
    const KIND: &'static str = "Resiliency";

    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl Resiliency {
    pub(crate) fn decode(root: &Obj<'_>, meta: Meta) -> Self {
        let mut doc = Self {
            meta,
            timeouts: BTreeMap::new(),
            retries: BTreeMap::new(),
            circuit_breakers: BTreeMap::new(),
            targets: Targets::default(),
        };
        let Some(spec) = root.required_object("spec") else { return doc };
        if let Some(policies) = spec.object("policies") {
            doc.timeouts = policies.named_durations("timeouts", BARE);
            doc.retries = policies.named_objects("retries").into_iter().map(|(n, o)| (n, retry(&o))).collect();
            let breakers = policies.named_objects("circuitBreakers").into_iter();
            doc.circuit_breakers = breakers.map(|(n, o)| (n, breaker(&o))).collect();
        }
        if let Some(targets) = spec.object("targets") {
            doc.targets.apps = targets.named_objects("apps").into_iter().map(|(n, o)| (n, app(&o))).collect();
            doc.targets.actors = targets.named_objects("actors").into_iter().map(|(n, o)| (n, actor(&o))).collect();
            let components = targets.named_objects("components").into_iter();
            doc.targets.components = components.map(|(n, o)| (n, component(&o))).collect();
        }
        doc
    }

    /// Every policy name that a target uses, with the path of the field.
    fn used_names(&self) -> impl Iterator<Item = (String, PolicyKind, &str)> {
        let apps = self.targets.apps.iter().map(|(n, t)| (format!("spec.targets.apps.{n}"), &t.policies));
        let actors = self.targets.actors.iter().map(|(n, t)| (format!("spec.targets.actors.{n}"), &t.policies));
        let components = self.targets.components.iter().flat_map(|(n, t)| {
            let path = |direction| format!("spec.targets.components.{n}.{direction}");
            [(path("inbound"), &t.inbound), (path("outbound"), &t.outbound)]
        });
        apps.chain(actors).chain(components).flat_map(|(path, names)| {
            [
                (PolicyKind::Timeout, "timeout", &names.timeout),
                (PolicyKind::Retry, "retry", &names.retry),
                (PolicyKind::CircuitBreaker, "circuitBreaker", &names.circuit_breaker),
            ]
            .into_iter()
            .filter(|(_, _, name)| !name.is_empty())
            .map(move |(kind, field, name)| (format!("{path}.{field}"), kind, name.as_str()))
            .collect::<Vec<_>>()
        })
    }

    fn names_of(&self, kind: PolicyKind) -> Vec<&str> {
        match kind {
            PolicyKind::Timeout => self.timeouts.keys().map(String::as_str).collect(),
            PolicyKind::Retry => self.retries.keys().map(String::as_str).collect(),
            PolicyKind::CircuitBreaker => self.circuit_breakers.keys().map(String::as_str).collect(),
        }
    }
}

/// Kind of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PolicyKind {
    /// `policies.timeouts`
    Timeout,
    /// `policies.retries`
    Retry,
    /// `policies.circuitBreakers`
    CircuitBreaker,
}

/// A policy name that no document defines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownPolicy {
    /// Position of the document in the list that was checked.
    pub document: usize,
    /// Path of the field.
    pub path: String,
    /// The name.
    pub name: String,
    /// A defined name of that kind that is close to it.
    pub suggestion: Option<String>,
}

/// Names that targets use and none of `documents` defines. Policies of all documents form one set.
pub fn unknown_policies<'d>(documents: impl IntoIterator<Item = &'d Resiliency>) -> Vec<UnknownPolicy> {
    let documents: Vec<_> = documents.into_iter().collect();
    let mut unknown = Vec::new();
    for (document, doc) in documents.iter().enumerate() {
        for (path, kind, name) in doc.used_names() {
            let known: Vec<_> = documents.iter().flat_map(|d| d.names_of(kind)).collect();
            let built_in = kind == PolicyKind::Retry && name.starts_with("DaprBuiltIn");
            if !built_in && !known.contains(&name) {
                let suggestion = crate::text::did_you_mean(name, known).map(str::to_owned);
                unknown.push(UnknownPolicy { document, path, name: name.to_owned(), suggestion });
            }
        }
    }
    unknown
}

fn retry(o: &Obj<'_>) -> RetryPolicy {
    let shapes = [("constant", RetryShape::Constant), ("exponential", RetryShape::Exponential)];
    let mut policy = RetryPolicy {
        policy: o.one_of("policy", &shapes).unwrap_or_default(),
        duration: o.duration("duration", BARE),
        max_interval: o.duration("maxInterval", BARE),
        max_retries: o.int("maxRetries", i64::from(i32::MIN)..=i64::from(i32::MAX)),
        http_status_codes: None,
        grpc_status_codes: None,
    };
    if let Some(matching) = o.object("matching") {
        policy.http_status_codes = codes(&matching, "httpStatusCodes", 100, 599);
        policy.grpc_status_codes = codes(&matching, "gRPCStatusCodes", 0, 16);
    }
    policy
}

fn codes(o: &Obj<'_>, name: &'static str, min: u16, max: u16) -> Option<CodeList> {
    let text = o.text(name).filter(|t| !t.trim().is_empty())?;
    match CodeList::parse(&text, min, max) {
        Ok(list) => Some(list),
        Err(message) => {
            o.error(name, message);
            None
        }
    }
}

fn breaker(o: &Obj<'_>) -> BreakerPolicy {
    BreakerPolicy {
        max_requests: size(o, "maxRequests"),
        interval: o.duration("interval", BARE),
        timeout: o.duration("timeout", BARE),
        trip: o.text("trip").filter(|t| !t.trim().is_empty()),
    }
}

fn names(o: &Obj<'_>) -> PolicyNames {
    PolicyNames {
        timeout: o.text_or_empty("timeout"),
        retry: o.text_or_empty("retry"),
        circuit_breaker: o.text_or_empty("circuitBreaker"),
    }
}

/// A positive number; 0 counts as not given, as in daprd.
fn size(o: &Obj<'_>, name: &'static str) -> Option<u32> {
    let value = o.int(name, 0..=i64::from(i32::MAX))?;
    u32::try_from(value).ok().filter(|v| *v > 0)
}

fn app(o: &Obj<'_>) -> AppTarget {
    AppTarget { policies: names(o), circuit_breaker_cache_size: size(o, "circuitBreakerCacheSize") }
}

fn actor(o: &Obj<'_>) -> ActorTarget {
    let scopes = [("type", BreakerScope::Type), ("id", BreakerScope::Id), ("both", BreakerScope::Both)];
    ActorTarget {
        policies: names(o),
        circuit_breaker_scope: o.one_of("circuitBreakerScope", &scopes).unwrap_or_default(),
        circuit_breaker_cache_size: size(o, "circuitBreakerCacheSize"),
    }
}

fn component(o: &Obj<'_>) -> ComponentTarget {
    ComponentTarget {
        inbound: o.object("inbound").map(|i| names(&i)).unwrap_or_default(),
        outbound: o.object("outbound").map(|i| names(&i)).unwrap_or_default(),
    }
}
