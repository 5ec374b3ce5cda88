//! Which backend serves a claim, which clusters run an app, what sidecars get for it, and why.
//!
//! Everything here is a pure function of its arguments: no clock, no file, no network, no randomness.
//! The same inputs give the same answer in the control part, in `mecha plan` and in `mecha dev`, and an
//! answer can be checked years later from what was recorded ([`Record`]).
//!
//! - [`decide_backend`] and [`decide_clusters`]: two chains of filters and scores with one explanation.
//! - [`World`]: all objects of a hub or of a folder, evaluated together into bindings.
//! - [`Plan`]: what an edit would move, and what stands in the way.
//! - [`swap`]: the phases of a move, step by step.
//!
//! Three rules hold throughout: what is absent is not deleted; without a candidate everything stays;
//! a fact that has gone missing moves nothing, only an explicit contradiction does.

mod backends;
mod canonical;
mod chain;
mod class;
mod clusters;
mod constraint;
mod inventory;
mod plan;
mod record;
mod render;
pub mod swap;
mod world;

pub use backends::{
    Backend, BackendDecision, Challenger, Choice, ClaimRequest, Current, Hysteresis, MoveWhy, StayWhy, decide_backend,
};
pub use canonical::{Digest, digest_of};
pub use class::{ClassProblem, connect_to, environment_slug, resolve_class, rule_for, strategy_for};
pub use clusters::{Chosen, Cluster, ClusterDecision, Gravity, PlacementRequest, Standing, decide_clusters};
pub use inventory::Inventory;
pub use plan::{Blocked, Consent, Hold, Plan, PlannedMove, Stuck, WaitingMove, waiting_digest};
pub use record::{Inputs, Mismatch, Record};
pub use render::{Component, RenderError, Tenant, claim_slug, document_digest, render, secret_name};
pub use world::{Assume, Bound, ClaimOutcome, Evaluation, Memory, Placed, PlacementOutcome, World, entries_digest};
