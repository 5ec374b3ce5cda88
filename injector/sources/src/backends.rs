//! What a backend's status says of its source and of what was proven.

use jiff::Timestamp;
use mecha_apiserver::CapabilityBackend;
use mecha_resources::kinds::{
    BackendConditionType, BackendReason, BackendState, CapabilityBackendStatus, Condition, ConditionStatus,
};
use serde_json::{Value, json};

use crate::probe::Outcome;
use crate::source::{Credentials, Lack};

/// Longest message of a condition, in bytes.
const LONGEST: usize = 1000;

/// What is known of a backend's features.
#[derive(Clone, Debug)]
pub(crate) enum Proof {
    /// Nothing probes here.
    NotAsked,
    /// Objects are made when claims bind; what lacks for some of them.
    Later(Option<String>),
    /// A probe is to run, or runs.
    Pending,
    /// A probe has run.
    Ran(Outcome),
}

/// The part of the status that is written here.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    verified: Option<Vec<String>>,
    last_probe: String,
    pub(crate) ready: Condition<BackendConditionType, BackendReason>,
}

impl Part {
    /// As it is to be applied.
    pub(crate) fn value(&self) -> Value {
        let mut part = json!({"conditions": [self.ready]});
        if let Some(verified) = &self.verified {
            part["verifiedFeatures"] = json!(verified);
        }
        if !self.last_probe.is_empty() {
            part["lastProbe"] = json!(self.last_probe);
        }
        part
    }
}

/// What is to be written about `backend`, if anything.
pub(crate) fn judge(
    backend: &CapabilityBackend,
    source: &Result<Option<Credentials>, Lack>,
    proof: &Proof,
    now: Timestamp,
) -> Option<Part> {
    let stored = backend.status.clone().unwrap_or_default();
    let mut verified = stored.verified_features.clone();
    let mut last_probe = stored.last_probe.clone();
    let (status, reason, message) = match (source, proof) {
        _ if backend.spec.state == Some(BackendState::Retired) => (
            ConditionStatus::False,
            BackendReason::Retired,
            "its state is Retired; set spec.state to Active to use it again".to_owned(),
        ),
        (Err(lack), _) if lack.unread => return None,
        (Err(lack), _) => (ConditionStatus::False, lack.reason, lack.message.clone()),
        (Ok(_), Proof::NotAsked) => {
            verified = Some(backend.spec.features.clone());
            last_probe.clear();
            let message =
                "its source is complete; no probe program is set, so the features it claims are taken as true";
            (ConditionStatus::True, BackendReason::NotProbed, message.to_owned())
        }
        (Ok(_), Proof::Later(lack)) => {
            verified = Some(backend.spec.features.clone());
            last_probe.clear();
            let message = match lack {
                None => "its template can be filled in; objects are made when claims bind, so the features it claims \
                         are taken as true"
                    .to_owned(),
                Some(lack) => format!("its template can be filled in; waiting: {lack}"),
            };
            (ConditionStatus::True, BackendReason::NotProbed, message)
        }
        (Ok(_), Proof::Pending) => {
            // What an earlier probe of the same spec said holds until the next one has run.
            if probed_before(&stored, backend.metadata.generation) {
                return None;
            }
            let message = "its source is complete; its features are being probed".to_owned();
            (ConditionStatus::Unknown, BackendReason::ProbePending, message)
        }
        (Ok(_), Proof::Ran(outcome)) => {
            last_probe = outcome.at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            if outcome.ran {
                verified = Some(outcome.proven.clone());
            }
            judge_outcome(outcome)
        }
    };
    let mut message = message;
    message.truncate(message.floor_char_boundary(LONGEST));
    let before = stored.conditions.iter().find(|c| c.kind == BackendConditionType::Ready);
    let since = before.filter(|before| before.status == status).map(|before| before.last_transition_time.clone());
    let ready = Condition {
        kind: BackendConditionType::Ready,
        status,
        reason,
        message,
        last_transition_time: since.unwrap_or_else(|| now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        observed_generation: backend.metadata.generation,
    };
    let part = Part { verified, last_probe, ready };
    let same = before == Some(&part.ready)
        && stored.verified_features == part.verified
        && stored.last_probe == part.last_probe;
    (!same).then_some(part)
}

fn judge_outcome(outcome: &Outcome) -> (ConditionStatus, BackendReason, String) {
    let failed: Vec<_> = outcome.failed.iter().map(|(feature, why)| format!("{feature} ({why})")).collect();
    if !outcome.ran || outcome.proven.is_empty() && !failed.is_empty() {
        let why = if outcome.ran { failed.join(", ") } else { outcome.error.clone() };
        return (ConditionStatus::False, BackendReason::ProbeFailed, format!("its probe failed: {why}"));
    }
    let message = match failed.as_slice() {
        [] => "every feature that it claims was proven".to_owned(),
        _ => format!("claimed and not proven: {}; correct spec.features or the backend", failed.join(", ")),
    };
    (ConditionStatus::True, BackendReason::ProbePassed, message)
}

fn probed_before(stored: &CapabilityBackendStatus, generation: Option<i64>) -> bool {
    stored.conditions.iter().any(|c| {
        c.kind == BackendConditionType::Ready
            && matches!(c.reason, BackendReason::ProbePassed | BackendReason::ProbeFailed)
            && c.observed_generation == generation
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

    use std::collections::BTreeMap;

    use super::*;

    fn backend(status: Option<Value>) -> CapabilityBackend {
        let mut backend: CapabilityBackend = serde_json::from_value(json!({
            "apiVersion": "mecha.dev/v1alpha1", "kind": "CapabilityBackend",
            "metadata": {"name": "pg", "generation": 2},
            "spec": {"kind": "state", "component": {"type": "state.postgresql"}, "features": ["crud", "ttl"],
                     "source": {"none": {}}},
        }))
        .unwrap();
        backend.status = status.map(|status| serde_json::from_value(status).unwrap());
        backend
    }

    fn outcome(proven: &[&str], failed: &[(&str, &str)]) -> Proof {
        Proof::Ran(Outcome {
            ran: true,
            proven: proven.iter().map(|f| (*f).to_owned()).collect(),
            failed: failed.iter().map(|(f, why)| ((*f).to_owned(), (*why).to_owned())).collect::<BTreeMap<_, _>>(),
            error: String::new(),
            at: Timestamp::UNIX_EPOCH,
        })
    }

    #[test]
    fn a_lying_backend_loses_the_feature_and_keeps_the_rest() {
        let part = judge(&backend(None), &Ok(None), &outcome(&["crud"], &[("ttl", "still there")]), Timestamp::now());
        let part = part.unwrap();
        assert_eq!(part.value()["verifiedFeatures"], json!(["crud"]));
        assert_eq!((part.ready.status, part.ready.reason), (ConditionStatus::True, BackendReason::ProbePassed));
        assert!(part.ready.message.contains("ttl (still there)"), "{}", part.ready.message);
        let nothing =
            judge(&backend(None), &Ok(None), &outcome(&[], &[("crud", "refused")]), Timestamp::now()).unwrap();
        assert_eq!((nothing.ready.status, nothing.ready.reason), (ConditionStatus::False, BackendReason::ProbeFailed));
    }

    #[test]
    fn a_source_that_goes_takes_nothing_back_that_was_proven() {
        let first = judge(&backend(None), &Ok(None), &outcome(&["crud", "ttl"], &[]), Timestamp::now()).unwrap();
        let stored = backend(Some(first.value()));
        assert_eq!(judge(&stored, &Ok(None), &outcome(&["crud", "ttl"], &[]), Timestamp::now()), None, "nothing new");
        assert_eq!(judge(&stored, &Ok(None), &Proof::Pending, Timestamp::now()), None, "a restart tells nothing new");
        let lack = Lack::new(BackendReason::SourceMissing, "gone");
        let part = judge(&stored, &Err(lack), &Proof::Pending, Timestamp::now()).unwrap();
        assert_eq!(part.ready.status, ConditionStatus::False);
        assert_eq!(part.value()["verifiedFeatures"], json!(["crud", "ttl"]));
    }

    #[test]
    fn without_a_probe_the_claimed_features_count_and_the_status_says_so() {
        let part = judge(&backend(None), &Ok(None), &Proof::NotAsked, Timestamp::now()).unwrap();
        assert_eq!(part.value()["verifiedFeatures"], json!(["crud", "ttl"]));
        assert_eq!(part.ready.reason, BackendReason::NotProbed);
        assert!(part.value().get("lastProbe").is_none());
    }
}
