//! What an edit would move, before anything moves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use mecha_resources::kinds::SwapStrategy;
use serde::{Deserialize, Serialize};

use crate::backends::{Choice, MoveWhy, StayWhy};
use crate::canonical::{Digest, digest_of};
use crate::world::Evaluation;

/// What keeps a move from beginning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Blocked {
    /// The class asks for a person.
    AwaitingApproval,
    /// The new store would begin empty, since no data is copied, and nobody has said that it may.
    EmptyNotAllowed,
    /// The document cannot be made.
    TemplateInvalid(String),
    /// Another move of the claim has not ended yet.
    Moving,
    /// The same move was taken back, and nothing has been edited since.
    RolledBack,
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AwaitingApproval => f.write_str("waits for approval: the class says approval: Manual"),
            Self::EmptyNotAllowed => f.write_str(
                "the new store begins empty, no data is copied; set swap.emptyOk in the class or pass --empty-ok",
            ),
            Self::TemplateInvalid(message) => f.write_str(message),
            Self::Moving => f.write_str("begins when the move that goes on has ended"),
            Self::RolledBack => {
                f.write_str("the same move was taken back; edit the class or the backend to try it again")
            }
        }
    }
}

/// Why a claim begins no move now, whatever the class says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It is on the move.
    Moving,
    /// Its move to this backend was taken back.
    RolledBack {
        /// The backend.
        to: String,
    },
}

/// One claim that waits for a person: claim, old and new backend, and how it moves.
pub type WaitingMove<'m> = (&'m str, &'m str, &'m str, SwapStrategy);

/// Names the moves of one class that wait for a person; `spec.approvedSwap` of the class takes it. It goes stale with
/// any of these, not with a score.
#[must_use]
pub fn waiting_digest(class: &str, moves: &[WaitingMove<'_>]) -> Digest {
    digest_of(&(class, moves))
}

/// What a person has agreed to, and what the past forbids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Consent {
    /// Every move.
    pub all: bool,
    /// These moves: claim, old and new backend. From a plan whose digest was named.
    pub moves: BTreeSet<(String, String, String)>,
    /// Stores may begin empty.
    pub empty_ok: bool,
    /// Claims that begin no move now, by claim.
    pub held: BTreeMap<String, Hold>,
}

/// One claim that would move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedMove {
    /// The claim, as namespace/name.
    pub claim: String,
    /// Its environment, as namespace/name.
    pub environment: String,
    /// App ids that have it; all of the environment when empty.
    pub scopes: Vec<String>,
    /// The old backend; `None` for a claim that is bound for the first time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The new backend.
    pub to: String,
    /// How it moves.
    pub strategy: SwapStrategy,
    /// Why, in one sentence.
    pub why: String,
    /// What stands in the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked: Option<String>,
    /// Digest of what the decision looked at.
    pub input_digest: String,
}

/// One claim that stays though it should not, or has no backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stuck {
    /// The claim, as namespace/name.
    pub claim: String,
    /// Why, in one sentence.
    pub why: String,
}

/// What an edit would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Names this plan; another one as soon as the inputs change.
    pub digest: Digest,
    /// Claims that would be bound for the first time.
    pub binds: Vec<PlannedMove>,
    /// Claims that would move.
    pub moves: Vec<PlannedMove>,
    /// Claims that cannot go where they should.
    pub stuck: Vec<Stuck>,
    /// Claims that stay.
    pub unchanged: usize,
}

impl Plan {
    /// The plan behind an evaluation.
    #[must_use]
    pub fn of(evaluation: &Evaluation) -> Self {
        let (mut binds, mut moves, mut stuck, mut unchanged) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for outcome in &evaluation.claims {
            let Some(decision) = &outcome.decision else {
                let why = outcome.problem.as_ref().map(|(_, message)| message.clone()).unwrap_or_default();
                stuck.push(Stuck { claim: outcome.claim.clone(), why });
                continue;
            };
            let planned = |from: Option<&String>, to: &String, why: String| PlannedMove {
                claim: outcome.claim.clone(),
                environment: outcome.environment.clone(),
                scopes: outcome.scopes.clone(),
                from: from.cloned(),
                to: to.clone(),
                strategy: outcome.strategy,
                why,
                blocked: outcome.blocked.as_ref().map(ToString::to_string),
                input_digest: decision.explanation.input_digest.clone(),
            };
            match &decision.choice {
                Choice::Bind { .. } if outcome.problem.is_some() => {
                    let why = outcome.problem.as_ref().map(|(_, message)| message.clone()).unwrap_or_default();
                    stuck.push(Stuck { claim: outcome.claim.clone(), why });
                }
                Choice::Bind { to } => binds.push(planned(None, to, "it has no backend yet".to_owned())),
                Choice::Move { from, to, why } => {
                    let why = match why {
                        MoveWhy::Contradicted { decider, message, .. } => format!("{from}: {message} ({decider})"),
                        MoveWhy::Better { gain } => format!("{to} is {gain} points better than {from}"),
                    };
                    moves.push(planned(Some(from), to, why));
                }
                Choice::Stay { at, why: StayWhy::NoCandidate } => {
                    let tightest = decision.explanation.tightest.as_ref();
                    let why = tightest.map(|t| t.message.as_str()).unwrap_or("there is no other backend");
                    stuck.push(Stuck { claim: outcome.claim.clone(), why: format!("stays at {at}: {why}") });
                }
                Choice::Stay { .. } => unchanged += 1,
                Choice::Pending => {
                    let why = outcome.problem.as_ref().map(|(_, message)| message.clone()).unwrap_or_default();
                    stuck.push(Stuck { claim: outcome.claim.clone(), why });
                }
            }
        }
        let digest = digest_of(&(&binds, &moves, &stuck));
        Self { digest, binds, moves, stuck, unchanged }
    }

    /// Whether nothing would change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.binds.is_empty() && self.moves.is_empty()
    }

    /// Agreement to every move of this plan.
    #[must_use]
    pub fn approve(&self) -> BTreeSet<(String, String, String)> {
        let agreed = |m: &PlannedMove| Some((m.claim.clone(), m.from.clone()?, m.to.clone()));
        self.moves.iter().filter_map(agreed).collect()
    }
}
