//! A decision with everything it looked at, to be checked later and elsewhere.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::backends::{Backend, BackendDecision, ClaimRequest, decide_backend};
use crate::clusters::{Cluster, ClusterDecision, PlacementRequest, decide_clusters};
use crate::inventory::Inventory;

/// Everything a decision looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Inputs {
    /// Of a claim.
    Backend {
        /// The question.
        request: Box<ClaimRequest>,
        /// The candidates.
        backends: Inventory<Backend>,
        /// The clusters.
        clusters: Inventory<Cluster>,
        /// The time.
        now_ms: u64,
    },
    /// Of a placement.
    Clusters {
        /// The question.
        request: Box<PlacementRequest>,
        /// The candidates.
        clusters: Inventory<Cluster>,
        /// The time.
        now_ms: u64,
    },
}

/// A decision and its inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Everything it looked at.
    pub inputs: Inputs,
    /// What was decided.
    pub decision: Value,
}

/// How a replayed decision differs from the recorded one.
#[derive(Clone, Debug, PartialEq)]
pub enum Mismatch {
    /// The inputs are not those of the record.
    Inputs {
        /// Digest in the record.
        recorded: String,
        /// Digest of the inputs beside it.
        found: String,
    },
    /// The inputs are the same and the answer is not.
    Answer {
        /// The recorded answer.
        recorded: Box<Value>,
        /// The answer now.
        found: Box<Value>,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inputs { recorded, found } => {
                write!(f, "the inputs were changed after the decision: it was made on {recorded}, these are {found}")
            }
            Self::Answer { .. } => {
                f.write_str("the same inputs give another answer: the record was made by another version, or edited")
            }
        }
    }
}

impl std::error::Error for Mismatch {}

impl Record {
    /// Records a decision about a claim.
    #[must_use]
    pub fn of_backend(
        request: ClaimRequest,
        backends: Inventory<Backend>,
        clusters: Inventory<Cluster>,
        now_ms: u64,
    ) -> (Self, BackendDecision) {
        let decision = decide_backend(&request, &backends, &clusters, now_ms);
        let inputs = Inputs::Backend { request: Box::new(request), backends, clusters, now_ms };
        // Text keys only: this cannot fail.
        (Self { inputs, decision: serde_json::to_value(&decision).unwrap_or_default() }, decision)
    }

    /// Records a decision about a placement.
    #[must_use]
    pub fn of_clusters(
        request: PlacementRequest,
        clusters: Inventory<Cluster>,
        now_ms: u64,
    ) -> (Self, ClusterDecision) {
        let decision = decide_clusters(&request, &clusters, now_ms);
        let inputs = Inputs::Clusters { request: Box::new(request), clusters, now_ms };
        (Self { inputs, decision: serde_json::to_value(&decision).unwrap_or_default() }, decision)
    }

    /// Decides again from the recorded inputs.
    ///
    /// # Errors
    /// The inputs or the answer are not those recorded.
    pub fn replay(&self) -> Result<(), Mismatch> {
        let again = match &self.inputs {
            Inputs::Backend { request, backends, clusters, now_ms } => {
                serde_json::to_value(decide_backend(request, backends, clusters, *now_ms))
            }
            Inputs::Clusters { request, clusters, now_ms } => {
                serde_json::to_value(decide_clusters(request, clusters, *now_ms))
            }
        }
        .unwrap_or_default();
        let digest = |decision: &Value| decision["explanation"]["inputDigest"].as_str().unwrap_or_default().to_owned();
        let (recorded, found) = (digest(&self.decision), digest(&again));
        if recorded != found {
            return Err(Mismatch::Inputs { recorded, found });
        }
        if again != self.decision {
            return Err(Mismatch::Answer { recorded: Box::new(self.decision.clone()), found: Box::new(again) });
        }
        Ok(())
    }
}
