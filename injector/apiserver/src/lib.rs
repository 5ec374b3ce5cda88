//! Reading, watching and writing objects of one Kubernetes API server: what all roles of the control part share.

mod kinds;
mod ready;
mod role;

pub use kinds::{
    AppPlacement, CapabilityBackend, CapabilityBinding, CapabilityClaim, Environment, EnvironmentClass, MemberCluster,
    Stored,
};
pub use ready::{Gate, Readiness};
pub use role::{Role, Tasks};
