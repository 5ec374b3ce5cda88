use serde::{Deserialize, Serialize};

use super::class::SwapStrategy;
use super::closed::closed;
use super::common::Condition;
use super::object::{KindSpec, Problem};

closed! {
    /// What a cluster is to an app or a claim.
    pub enum Role {
        /// The only one.
        Active,
        /// The first of several.
        Primary,
        /// Ready to take over.
        Standby,
        /// Helps out.
        Overflow,
    }
}

closed! {
    /// What sidecars may do with a component.
    pub enum Access {
        /// Everything.
        ReadWrite,
        /// Read.
        ReadOnly,
    }
}

closed! {
    /// How far a move has come. The old backend owns the claim up to and with `Prepare`, and again from
    /// `RollBack` on; the new one owns it from `Switch` on.
    pub enum SwapPhase {
        /// The new component is opened beside the old one and checked, everywhere.
        Prepare,
        /// Calls go to the new one.
        Switch,
        /// The old one is emptied: calls in flight end, what is queued is read.
        Drain,
        /// The deadline has passed before the old one was empty; a person says how it goes on.
        Paused,
        /// The old component is closed; there is no way back.
        Finalize,
        /// Calls go back to the old one, and the new one is closed.
        RollBack,
    }
}

/// A move that goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SwapRecord {
    /// The old backend.
    pub from: String,
    /// The new backend.
    pub to: String,
    /// The way of moving.
    pub strategy: SwapStrategy,
    /// How far it has come.
    pub phase: SwapPhase,
    /// When it began, RFC 3339.
    pub started_at: String,
    /// When it stops and asks, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<String>,
    /// Why it moves, in one sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// Digest of the class and backend that asked for it: what was taken back is not tried again by the same.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cause: String,
    /// W3C trace context of the decision that began it, when the hub traces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// What sidecars get for one claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct BindingEntry {
    /// The claim.
    pub claim: String,
    /// Its backend.
    pub backend: String,
    /// What the cluster is to it.
    pub role: Role,
    /// Rises with each change of the writer.
    #[serde(default)]
    pub fencing_epoch: i64,
    /// What sidecars may do.
    pub access: Access,
    /// Revision of the binding in which the document last changed; 0 when its writer did not say.
    #[serde(default)]
    pub revision: i64,
    /// The move that goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<SwapRecord>,
    /// The Component document, as JSON text; that of the new backend while a move goes on.
    pub document: String,
    /// The document of the old backend, as JSON text. Only while a move goes on: a sidecar that starts in the
    /// middle of it needs both sides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_document: Option<String>,
}

/// What one cluster gets of one environment. Only the hub writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CapabilityBindingSpec {
    /// The environment, as namespace/name.
    pub environment: String,
    /// Its namespace in the member.
    pub namespace: String,
    /// The member.
    pub cluster: String,
    /// Rises with each change; never decreases.
    pub revision: i64,
    /// Term of the leader that wrote it; never decreases, which keeps a deposed leader out.
    pub leader_epoch: i64,
    /// SHA-256 over what was decided, the same for the same decision wherever it is made.
    pub digest: String,
    /// What sidecars get, by claim.
    #[serde(default)]
    pub entries: Vec<BindingEntry>,
}

/// Counts of one move, over all sidecars.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct MoveCounts {
    /// Calls in flight when work was switched.
    pub in_flight: u64,
    /// Of these and of the queued ones, those that ended well at the old side.
    pub finished: u64,
    /// Messages that were delivered again.
    pub redelivered: u64,
    /// Calls that failed because of the move.
    pub failed: u64,
}

/// What the sidecars in scope of one claim have put into effect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct EntryProgress {
    /// Revision of the entry that all counts are about; one that differs from the entry's says nothing about it.
    pub revision: i64,
    /// Phase of the move that all counts are about; absent outside a move.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<SwapPhase>,
    /// Sidecars in scope, those included that have not answered.
    pub total: u32,
    /// Those whose open components, and where their work goes, are what entry and phase ask for.
    pub reached: u32,
    /// Those that cannot open the new component or find it not working.
    pub failed: u32,
    /// Calls in flight and unread messages at the side that new work does not go to, over all sidecars.
    pub pending: u64,
    /// Counts of the move so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<MoveCounts>,
}

/// What an agent reports for one claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct BindingEntryStatus {
    /// The claim.
    pub claim: String,
    /// Whether all sidecars have it.
    #[serde(default)]
    pub ready: bool,
    /// Sidecars that have it, of all in scope.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sidecars: String,
    /// How far a move has come, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub swap: String,
    /// What is wrong.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The same in numbers; the steps of a move are taken by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<EntryProgress>,
}

closed! {
    /// Aspects of a binding's state.
    pub enum BindingConditionType {
        /// The agent has it.
        Delivered,
        /// Sidecars have it.
        Ready,
        /// The agent has not been heard of for too long.
        Stale,
    }
}

closed! {
    /// Why a binding's state is as it is.
    pub enum BindingReason {
        /// The agent has confirmed the revision.
        Acked,
        /// The agent has not confirmed the revision yet.
        AwaitingAgent,
        /// Every sidecar in scope has it.
        Applied,
        /// Some sidecar does not have it yet.
        SidecarsPending,
        /// Some entry does not work.
        EntryNotReady,
        /// The agent was heard of lately.
        AgentHeard,
        /// The agent is silent.
        AgentSilent,
    }
}

/// What an agent reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct CapabilityBindingStatus {
    /// The last revision put into effect.
    pub applied_revision: i64,
    /// Its digest.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub applied_digest: String,
    /// Ready entries of all, for columns.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub summary: String,
    /// By claim.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<BindingEntryStatus>,
    /// Aspects of its state.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition<BindingConditionType, BindingReason>>,
}

/// Most claims of one environment in one cluster.
pub const MAX_ENTRIES: usize = 64;

pub(super) const REVISION_FALLS: &str = "revision must not decrease; the writer has read an old object";
pub(super) const EPOCH_FALLS: &str = "leaderEpoch must not decrease; the writer is no longer the leader";
pub(super) const ROLE_UNBUILT: &str = "roles Primary, Standby and Overflow are not available yet; use Active";
pub(super) const ACCESS_UNBUILT: &str = "access ReadOnly is not available yet; use ReadWrite";
pub(super) const FENCING_UNBUILT: &str = "fencingEpoch is not available yet; leave it out or 0";
pub(super) const BINDING_HOME_FIXED: &str = "environment and cluster cannot change";

impl KindSpec for CapabilityBindingSpec {
    const KIND: &'static str = "CapabilityBinding";
    const PLURAL: &'static str = "capabilitybindings";
    const NAMESPACED: bool = true;
    type Status = CapabilityBindingStatus;

    fn check(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        if self.entries.len() > MAX_ENTRIES {
            found.push(Problem::new("spec.entries", format!("must have at most {MAX_ENTRIES} items")));
        }
        for (i, entry) in self.entries.iter().enumerate() {
            if self.entries[..i].iter().any(|e| e.claim == entry.claim) {
                found.push(Problem::new(format!("spec.entries[{i}].claim"), "is given twice"));
            }
            let unbuilt = [
                ("role", entry.role != Role::Active, ROLE_UNBUILT),
                ("access", entry.access != Access::ReadWrite, ACCESS_UNBUILT),
                ("fencingEpoch", entry.fencing_epoch != 0, FENCING_UNBUILT),
            ];
            let unbuilt = unbuilt.into_iter().filter(|(_, given, _)| *given);
            found.extend(unbuilt.map(|(field, _, why)| Problem::new(format!("spec.entries[{i}].{field}"), why)));
            let strategy = entry.swap.as_ref().map(|s| s.strategy);
            if matches!(strategy, Some(SwapStrategy::OnRestart | SwapStrategy::DualWrite)) {
                let path = format!("spec.entries[{i}].swap.strategy");
                found.push(Problem::new(path, super::class::STRATEGY_UNBUILT));
            }
        }
        found
    }

    fn check_change(&self, before: &Self) -> Vec<Problem> {
        let mut found = Vec::new();
        if self.revision < before.revision {
            found.push(Problem::new("spec.revision", REVISION_FALLS));
        }
        if self.leader_epoch < before.leader_epoch {
            found.push(Problem::new("spec.leaderEpoch", EPOCH_FALLS));
        }
        if self.environment != before.environment || self.cluster != before.cluster {
            found.push(Problem::new("spec", BINDING_HOME_FIXED));
        }
        found
    }
}
