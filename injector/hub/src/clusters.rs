//! The cluster that the control part runs in is a member by itself.

use jiff::Timestamp;
use mecha_apiserver::MemberCluster;
use mecha_resources::kinds::{ClusterConditionType, ClusterReason, ConditionStatus, MemberClusterSpec};
use serde_json::json;

use crate::conditions::{conditions, holds};
use crate::view::{Facts as _, View};
use crate::write::Write;

/// What the API server says about itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Own {
    /// UID of kube-system.
    pub(crate) id: String,
    /// Such as v1.36.3.
    pub(crate) version: String,
}

/// What is to be written about this cluster. Its spec belongs to the admin from the moment it is made.
pub(crate) fn own(view: &View, name: &str, own: &Own, now: Timestamp) -> Vec<Write> {
    let Some(stored) = view.clusters.iter().find(|cluster| cluster.name() == name) else {
        let spec = MemberClusterSpec { accepted: true, ..MemberClusterSpec::default() };
        return vec![Write::create(&MemberCluster::new(name, None, spec))];
    };
    let status = stored.status.clone().unwrap_or_default();
    let accepted = stored.spec.accepted;
    let (reason, message) = match accepted {
        true => (ClusterReason::InCluster, "the control part runs in it"),
        false => (ClusterReason::AwaitingAcceptance, "set spec.accepted to let environments use it"),
    };
    let aspects = vec![
        (ClusterConditionType::Joined, holds(accepted), reason, message.to_owned()),
        (ClusterConditionType::Available, ConditionStatus::True, ClusterReason::InCluster, String::new()),
    ];
    let wanted = conditions(&status.conditions, aspects, stored.metadata.generation, now);
    let there = wanted.iter().all(|condition| status.conditions.contains(condition));
    // What could not be asked stays as it was.
    let id = if own.id.is_empty() { &status.cluster_id } else { &own.id };
    let version = if own.version.is_empty() { &status.kubernetes_version } else { &own.version };
    if there && *id == status.cluster_id && *version == status.kubernetes_version {
        return Vec::new();
    }
    let part = json!({"clusterId": id, "kubernetesVersion": version, "conditions": wanted});
    vec![Write::part_of_status(stored.as_ref(), part)]
}
