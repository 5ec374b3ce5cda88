//! What several kinds share.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::closed::closed;

closed! {
    /// What an app can ask for; the first part of the types of components that give it.
    pub enum CapabilityKind {
        /// Key-value state.
        State = "state",
        /// Publish and subscribe.
        Pubsub = "pubsub",
        /// Input and output bindings.
        Binding = "binding",
        /// Secrets.
        SecretStore = "secretstore",
        /// Configuration items.
        Configuration = "configuration",
        /// Distributed locks.
        Lock = "lock",
        /// Cryptography.
        Crypto = "crypto",
        /// Conversation with language models.
        Conversation = "conversation",
    }
}

impl CapabilityKind {
    /// What the type of a component of this kind starts with.
    #[must_use]
    pub const fn type_prefix(self) -> &'static str {
        match self {
            Self::State => "state.",
            Self::Pubsub => "pubsub.",
            Self::Binding => "bindings.",
            Self::SecretStore => "secretstores.",
            Self::Configuration => "configuration.",
            Self::Lock => "lock.",
            Self::Crypto => "crypto.",
            Self::Conversation => "conversation.",
        }
    }

    /// The closed list of features of this kind.
    #[must_use]
    pub const fn features(self) -> &'static [&'static str] {
        match self {
            Self::State => {
                &["crud", "etag", "transactional", "ttl", "query", "actorStateStore", "deleteWithPrefix", "keysLike"]
            }
            Self::Pubsub => &["ordered", "replay", "deadLetter", "delay", "bulk", "ttl", "wildcards"],
            Self::Binding => &["input", "output"],
            Self::SecretStore => &["multipleValues"],
            Self::Configuration => &["subscribe"],
            Self::Lock | Self::Crypto | Self::Conversation => &[],
        }
    }
}

closed! {
    /// Whether a condition holds.
    pub enum ConditionStatus {
        /// It does.
        True,
        /// It does not.
        False,
        /// Nobody can tell.
        Unknown,
    }
}

/// One aspect of an object's state, in the way of kstatus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Condition<T, R> {
    /// The aspect.
    #[serde(rename = "type")]
    pub kind: T,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, from a closed list.
    pub reason: R,
    /// The object concerned and the next step, in one sentence.
    #[serde(default)]
    pub message: String,
    /// When `status` last changed, RFC 3339.
    pub last_transition_time: String,
    /// Generation of the spec that was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// The status of the condition `kind` in a list of conditions.
pub fn condition_status<T: PartialEq, R>(conditions: &[Condition<T, R>], kind: T) -> Option<ConditionStatus> {
    conditions.iter().find(|c| c.kind == kind).map(|c| c.status)
}

closed! {
    /// How an attribute is compared.
    pub enum Operator {
        /// It has one of the values.
        In,
        /// It is known and has none of the values.
        NotIn,
        /// It is known.
        Exists,
        /// It is not known.
        DoesNotExist,
        /// It is a whole number above the one value.
        Gt,
        /// It is a whole number below the one value.
        Lt,
    }
}

/// What an attribute of a candidate must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Constraint {
    /// Name of a trait of a backend or of a property of a cluster, such as `residency` or `region`.
    pub attribute: String,
    /// How it is compared.
    pub operator: Operator,
    /// What it is compared with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// A wish that orders the candidates and excludes none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Hint {
    /// What to look at, such as `latency`.
    pub prefer: String,
    /// How much it counts beside the other hints.
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 100)))]
    pub weight: u32,
}

closed! {
    /// How a label is compared.
    pub enum LabelOperator {
        /// It has one of the values.
        In,
        /// It is absent or has none of the values.
        NotIn,
        /// It is there.
        Exists,
        /// It is absent.
        DoesNotExist,
    }
}

/// One requirement of a label selector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct LabelRequirement {
    /// Key of the label.
    pub key: String,
    /// How it is compared.
    pub operator: LabelOperator,
    /// What it is compared with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// Selects objects by their labels. An empty selector selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels that must have these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements; all must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<LabelRequirement>,
}

impl LabelSelector {
    /// Whether `labels` meet every requirement.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let one_of = |r: &LabelRequirement| labels.get(&r.key).is_some_and(|v| r.values.contains(v));
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|r| match r.operator {
                LabelOperator::In => one_of(r),
                LabelOperator::NotIn => !one_of(r),
                LabelOperator::Exists => labels.contains_key(&r.key),
                LabelOperator::DoesNotExist => !labels.contains_key(&r.key),
            })
    }
}

/// `key=value,key in (a,b)`, as kubectl writes selectors.
impl std::fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let labels = self.match_labels.iter().map(|(key, value)| format!("{key}={value}"));
        let expressions = self.match_expressions.iter().map(|r| match r.operator {
            LabelOperator::In => format!("{} in ({})", r.key, r.values.join(",")),
            LabelOperator::NotIn => format!("{} notin ({})", r.key, r.values.join(",")),
            LabelOperator::Exists => r.key.clone(),
            LabelOperator::DoesNotExist => format!("!{}", r.key),
        });
        let all: Vec<_> = labels.chain(expressions).collect();
        f.write_str(if all.is_empty() { "everything" } else { "" })?;
        f.write_str(&all.join(","))
    }
}

/// A length of time in Go's syntax, such as `72h` or `1m30s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        crate::value::duration_text(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
        // A bare number has no unit in a Kubernetes duration, so it is refused rather than guessed.
        let unit = !text.trim().bytes().all(|b| b.is_ascii_digit() || b == b'.') || text.as_ref() == "0";
        let parsed = unit.then(|| crate::text::parse_duration(&text, Duration::from_secs(1))).flatten();
        parsed
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom(format!("'{text}' is not a duration such as 72h, 1m30s or 500ms")))
    }
}

#[cfg(feature = "crd")]
impl schemars::JsonSchema for Span {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Span".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "maxLength": 32,
            "pattern": r"^(0|([0-9]+(\.[0-9]+)?(h|m|s|ms|us|ns))+)$"
        })
    }
}

closed! {
    /// What became of one candidate.
    pub enum Verdict {
        /// It was chosen.
        Selected,
        /// It would do, another one does better.
        Eligible,
        /// It does not do.
        Rejected,
    }
}

/// One part of a candidate's score.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct ScorePart {
    /// What was looked at.
    pub decider: String,
    /// How much it counts beside the other parts.
    pub weight: u32,
    /// From 0, worst, to 100.
    pub value: u32,
}

/// What was found about one candidate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// What became of it.
    pub verdict: Verdict,
    /// Weighted mean of its parts, from 0 to 100; not for rejected ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<u32>,
    /// The parts of the score.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<ScorePart>,
    /// The first decider that refused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decider: Option<String>,
    /// Why, for machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<DecideReason>,
    /// Why, in one sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// How many candidates one decider refused first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct RejectedBy {
    /// The decider.
    pub decider: String,
    /// Why, for machines.
    pub reason: DecideReason,
    /// How many.
    pub count: u32,
}

/// The one requirement that stands most in the way of a request nothing can meet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Tightest {
    /// The decider.
    pub decider: String,
    /// Candidates that would do without it.
    pub admits: u32,
    /// What to change, in one sentence.
    pub message: String,
}

/// Why a decision is as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// SHA-256 over everything that was looked at; the same inputs give the same answer.
    pub input_digest: String,
    /// Candidates that were looked at.
    pub evaluated: u32,
    /// Candidates that would do.
    pub eligible: u32,
    /// Candidates that are not listed below.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub truncated: u32,
    /// Refusals by decider and reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejected_by: Vec<RejectedBy>,
    /// Where nothing would do: what stands in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tightest: Option<Tightest>,
    /// The chosen ones, then the best of the others, then the nearest misses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<Candidate>,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

closed! {
    /// Why a candidate was refused.
    pub enum DecideReason {
        /// It gives another kind of capability.
        KindMismatch,
        /// The class does not select it.
        NotSelected,
        /// It takes no new claims.
        Cordoned,
        /// It is being emptied.
        Draining,
        /// It is out of use.
        Retired,
        /// It is known not to work now.
        NotReady,
        /// It lacks a feature.
        MissingFeature,
        /// It claims a feature that no probe has proven.
        NotProven,
        /// The attribute has none of the values wanted.
        NotIn,
        /// The attribute has one of the values excluded.
        Excluded,
        /// The attribute is not known.
        AttributeUnknown,
        /// The attribute is there and must not be.
        AttributePresent,
        /// The attribute is no whole number, or on the wrong side of the limit.
        OutOfRange,
        /// It separates tenants less than the class asks for.
        TenancyTooWeak,
        /// It has no room left.
        Full,
        /// A cluster cannot reach it.
        NotReachable,
        /// A target cluster is not known.
        ClusterUnknown,
        /// Sidecars do not know its component.
        UnknownComponent,
        /// The admin has not accepted it.
        NotAccepted,
        /// It is not available.
        NotAvailable,
        /// Nobody knows whether it is available.
        AvailabilityUnknown,
        /// A taint keeps new bindings away.
        NoNewBindings,
        /// A taint keeps all bindings away.
        NoBindings,
        /// It lacks an API.
        MissingApi,
        /// Too few groups to spread over.
        TooFewGroups,
        /// Too few candidates for the smallest number asked for.
        TooFewCandidates,
    }
}
