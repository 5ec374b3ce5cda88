//! What the sidecars of a binding have put into effect, as the status of the binding.

use std::collections::{BTreeMap, BTreeSet};

use mecha_apiserver::CapabilityBinding;
use mecha_resources::kinds::{
    BindingConditionType, BindingEntry, BindingEntryStatus, BindingReason, CapabilityBindingStatus, Condition,
    ConditionStatus, EntryProgress, MoveCounts, SwapPhase,
};

use crate::sidecars::Sidecar;

/// Bytes of a message in a status.
const MAX_MESSAGE: usize = 400;

/// All sidecars of one namespace.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    /// Those that speak our protocol.
    pub(crate) sidecars: Vec<Sidecar>,
    /// Numbers of those that speak Dapr's only, by app id: nobody hears from them what they run.
    pub(crate) stock: BTreeMap<String, usize>,
    /// App id and name of the pods that run with a sidecar.
    pub(crate) pods: BTreeSet<(String, String)>,
}

/// What is wrong with an entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Concern {
    /// Nothing.
    None,
    /// Sidecars have not answered yet.
    Waiting,
    /// The document is not delivered as it stands.
    Undelivered,
    /// The value of a secret is missing.
    SecretMissing,
    /// A sidecar cannot put it into effect.
    SidecarFailed,
}

impl Concern {
    /// The reason of an Event about it; `None` where it is none.
    pub(crate) const fn reason(self) -> Option<&'static str> {
        match self {
            Self::None | Self::Waiting => None,
            Self::Undelivered => Some("Undelivered"),
            Self::SecretMissing => Some("SecretMissing"),
            Self::SidecarFailed => Some("SidecarFailed"),
        }
    }
}

impl Fleet {
    /// Pods in scope of which nothing is heard. Those that stock sidecars stand for are left out: they never answer.
    fn silent(&self, concerns: &impl Fn(&str) -> bool) -> Vec<&str> {
        let heard: BTreeSet<_> = self.sidecars.iter().map(|s| (s.app_id.as_str(), s.instance.as_str())).collect();
        let mut stock: BTreeMap<&str, usize> = self.stock.iter().map(|(app, n)| (app.as_str(), *n)).collect();
        let mut silent = Vec::new();
        for (app, pod) in self.pods.iter().filter(|(app, _)| concerns(app)) {
            if heard.contains(&(app.as_str(), pod.as_str())) {
                continue;
            }
            match stock.get_mut(app.as_str()).filter(|left| **left > 0) {
                Some(left) => *left -= 1,
                None => silent.push(pod.as_str()),
            }
        }
        silent
    }
}

/// The status of one entry, and what is wrong with it. `trouble` says why its document is not delivered.
fn entry(entry: &BindingEntry, fleet: &Fleet, trouble: Option<&String>) -> (BindingEntryStatus, Concern) {
    let scopes = scopes(&entry.document);
    let concerns = |app: &str| scopes.is_empty() || scopes.iter().any(|scope| scope == app);
    let phase = entry.swap.as_ref().map(|swap| swap.phase);
    let silent = fleet.silent(&concerns);
    let in_scope: Vec<_> = fleet.sidecars.iter().filter(|sidecar| concerns(&sidecar.app_id)).collect();
    let mut progress = EntryProgress { revision: entry.revision, phase, ..EntryProgress::default() };
    let mut counts = MoveCounts::default();
    let (mut failure, mut missing) = (None, None);
    for sidecar in &in_scope {
        let lacks = sidecar.missing.get(&entry.claim);
        missing = missing.or(lacks);
        let Some(reported) = sidecar.reported.get(&entry.claim).filter(|r| r.revision == entry.revision) else {
            continue;
        };
        progress.pending = progress.pending.saturating_add(reported.pending);
        counts.in_flight = counts.in_flight.saturating_add(reported.counts.in_flight);
        counts.finished = counts.finished.saturating_add(reported.counts.finished);
        counts.redelivered = counts.redelivered.saturating_add(reported.counts.redelivered);
        counts.failed = counts.failed.saturating_add(reported.counts.failed);
        // Without its secret it only waits; and that it failed counts for the set that it has now, since the next
        // one may have brought what was missing.
        if reported.failed && lacks.is_none() && !sidecar.behind {
            progress.failed += 1;
            failure.get_or_insert_with(|| format!("{}: {}", sidecar.instance, reported.message));
        } else if reported.reached && !reported.failed && reported.phase == phase && lacks.is_none() {
            progress.reached += 1;
        }
    }
    progress.total = u32::try_from(in_scope.len() + silent.len()).unwrap_or(u32::MAX);
    progress.counts = phase.map(|_| counts);
    let (concern, mut message) = if let Some(trouble) = trouble {
        (Concern::Undelivered, trouble.clone())
    } else if let Some(missing) = missing {
        (Concern::SecretMissing, format!("{missing}; sidecars keep what they have"))
    } else if let Some(failure) = failure {
        (Concern::SidecarFailed, failure)
    } else if progress.reached < progress.total {
        let of = silent.first().map(|pod| format!("; nothing is heard of {pod}")).unwrap_or_default();
        (Concern::Waiting, format!("{} of {} sidecars have it{of}", progress.reached, progress.total))
    } else {
        (Concern::None, String::new())
    };
    message.truncate(message.floor_char_boundary(MAX_MESSAGE));
    let stock: usize = fleet.stock.iter().filter(|(app, _)| concerns(app)).map(|(_, count)| count).sum();
    let sidecars = match stock {
        0 => format!("{}/{}", progress.reached, progress.total),
        stock => format!("{}/{} +{stock} stock", progress.reached, progress.total),
    };
    let status = BindingEntryStatus {
        claim: entry.claim.clone(),
        ready: concern == Concern::None,
        sidecars,
        swap: phase.map(|phase| words(phase, &progress)).unwrap_or_default(),
        message,
        progress: Some(progress),
    };
    (status, concern)
}

fn words(phase: SwapPhase, progress: &EntryProgress) -> String {
    let mut words = format!("{phase} {}/{}", progress.reached, progress.total);
    if progress.pending > 0 {
        words.push_str(&format!(", {} pending", progress.pending));
    }
    if progress.failed > 0 {
        words.push_str(&format!(", {} failed", progress.failed));
    }
    words
}

/// App ids of a document. One that cannot be read goes to nobody, and says so elsewhere.
fn scopes(document: &str) -> Vec<String> {
    #[derive(serde::Deserialize)]
    struct Scoped {
        #[serde(default)]
        scopes: Option<Vec<String>>,
    }
    serde_json::from_str::<Scoped>(document).ok().and_then(|scoped| scoped.scopes).unwrap_or_default()
}

/// The status of a binding, and what is wrong with its entries, in their order. `troubles` are by claim, `before` is
/// the status so far, `now` the time in RFC 3339.
pub(crate) fn assess(
    binding: &CapabilityBinding,
    fleet: &Fleet,
    troubles: &BTreeMap<&str, &String>,
    before: Option<&CapabilityBindingStatus>,
    now: &str,
) -> (CapabilityBindingStatus, Vec<Concern>) {
    let spec = &binding.spec;
    let (entries, concerns): (Vec<_>, Vec<_>) =
        spec.entries.iter().map(|e| entry(e, fleet, troubles.get(e.claim.as_str()).copied())).unzip();
    let ready = entries.iter().filter(|entry| entry.ready).count();
    let all = ready == entries.len();
    let worst = entries.iter().zip(&concerns).find(|(_, concern)| concern.reason().is_some());
    let worst = worst.or_else(|| entries.iter().zip(&concerns).find(|(entry, _)| !entry.ready));
    let (reason, message) = match worst {
        None => (BindingReason::Applied, String::new()),
        Some((entry, Concern::Waiting | Concern::None)) => {
            (BindingReason::SidecarsPending, format!("{}: {}", entry.claim, entry.message))
        }
        Some((entry, _)) => (BindingReason::EntryNotReady, format!("{}: {}", entry.claim, entry.message)),
    };
    let condition = |kind, holds: bool, reason, message| {
        let status = if holds { ConditionStatus::True } else { ConditionStatus::False };
        let known = before.and_then(|before| before.conditions.iter().find(|c| c.kind == kind));
        let since = known.filter(|known| known.status == status).map(|known| known.last_transition_time.clone());
        Condition {
            kind,
            status,
            reason,
            message,
            last_transition_time: since.unwrap_or_else(|| now.to_owned()),
            observed_generation: binding.metadata.generation,
        }
    };
    let conditions = vec![
        condition(BindingConditionType::Delivered, true, BindingReason::Acked, String::new()),
        condition(BindingConditionType::Ready, all, reason, message),
        condition(BindingConditionType::Stale, false, BindingReason::AgentHeard, String::new()),
    ];
    let (applied_revision, applied_digest) = match before {
        _ if all => (spec.revision, spec.digest.clone()),
        Some(before) => (before.applied_revision, before.applied_digest.clone()),
        None => (0, String::new()),
    };
    let status = CapabilityBindingStatus {
        applied_revision,
        applied_digest,
        summary: format!("{ready}/{}", entries.len()),
        entries,
        conditions,
    };
    (status, concerns)
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
