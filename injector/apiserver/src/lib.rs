//! Reading, watching and writing objects of one Kubernetes API server: what all roles of the control part share.
//!
//! - [`connect`] makes the client, [`call`] gives a request its deadline, [`Failure`] says what went wrong.
//! - [`follow`] keeps all objects of one kind current.
//! - [`Leadership`] tells which replica leads, and [`Term`] fences its writes.
//! - [`apply`], [`apply_status`] and [`delete`] write; [`Events`] tells people.
//! - [`Role`] is what a role of the control part is started with.
//! - `testing`, a feature, is what tests of the roles share.

mod access;
mod error;
mod events;
mod follow;
mod kinds;
mod lease;
mod patience;
mod ready;
mod role;
#[cfg(feature = "testing")]
pub mod testing;
mod traces;
mod write;

pub use access::{Access, AccessError, CALL_LIMIT, call, connect};
pub use error::{Failure, FailureKind, kind_of};
pub use events::Events;
pub use follow::{Followed, Selection, follow};
pub use kinds::{
    AppPlacement, CapabilityBackend, CapabilityBinding, CapabilityClaim, Environment, EnvironmentClass, MemberCluster,
    Stored, cluster_namespace,
};
pub use kube::runtime::events::EventType;
pub use lease::{Leadership, Term, Timing};
pub use mecha_trace as trace;
pub use patience::Patience;
pub use ready::{Gate, Readiness};
pub use role::{Role, Tasks};
pub use traces::{TRACEPARENT, cause_of};
pub use write::{apply, apply_status, delete};
