//! Messages and services with the wire identity of Dapr 1.18: package, message, field and method names
//! and every field number are those of `dapr.proto.*.v1`, so stock SDKs, sidecars and control planes
//! speak with ours.
//!
//! Beside them stands `mecha.v1`, our own.
//!
//! The sources are the .proto files in `proto/dapr` and `proto/mecha`; the Rust is generated from them by
//! `cargo run -p xtask -- codegen` and committed. There is no logic here.
//!
//! - `bytes` fields are [`bytes::Bytes`], and so is the value of [`Any`], in which bodies of invocations
//!   travel: handing a payload on costs no copy.
//! - `map` fields are `BTreeMap`s, as metadata is everywhere in this workspace.
//! - Other well-known types are those of [`prost_types`]; `Empty` is `()`, wrappers are their value.
//! - Clients take any channel (`DaprClient::new(channel)`); there is no `connect`.
//! - Messages that carry secrets have a `Debug` that leaves them out.
//! - JSON forms are not generated: the HTTP front writes its own.

mod any;
mod redact;

pub use any::Any;

/// The tree that paths between generated packages (`super::super::common::v1::…`) rely on.
mod generated {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used)]

    pub mod common {
        pub mod v1 {
            include!("generated/dapr.proto.common.v1.rs");
        }
    }
    pub mod components {
        pub mod v1 {
            include!("generated/dapr.proto.components.v1.rs");
        }
    }
    pub mod internals {
        pub mod v1 {
            include!("generated/dapr.proto.internals.v1.rs");
        }
    }
    pub mod mecha {
        pub mod v1 {
            include!("generated/mecha.v1.rs");
        }
    }
    pub mod operator {
        pub mod v1 {
            include!("generated/dapr.proto.operator.v1.rs");
        }
    }
    pub mod placement {
        pub mod v1 {
            include!("generated/dapr.proto.placement.v1.rs");
        }
    }
    pub mod runtime {
        pub mod v1 {
            include!("generated/dapr.proto.runtime.v1.rs");
        }
    }
    pub mod scheduler {
        pub mod v1 {
            include!("generated/dapr.proto.scheduler.v1.rs");
        }
    }
    pub mod sentry {
        pub mod v1 {
            include!("generated/dapr.proto.sentry.v1.rs");
        }
    }
}

/// `dapr.proto.common.v1`: messages shared by the other packages.
pub use generated::common::v1 as common;
/// `dapr.proto.components.v1`: what pluggable components serve.
pub use generated::components::v1 as components;
/// `dapr.proto.internals.v1`: the protocol between sidecars.
pub use generated::internals::v1 as internals;
/// `mecha.v1`: what an agent delivers to sidecars, and what they report back.
pub use generated::mecha::v1 as delivery;

/// `mecha.v1`: what sidecars tell of themselves.
pub mod sidecar {
    pub use super::generated::mecha::v1::{
        DegradedComponent, DocumentChange, DocumentsFrom, GetPhaseRequest, GetPhaseResponse, ListSwapsRequest,
        ListSwapsResponse, RefusedDocument, SidecarPhase, SwapMove, SwapMovePhase, SwapOutcome, SwapReceipt,
        sidecar_client, sidecar_server,
    };
}
/// `dapr.proto.operator.v1`: delivery of documents to sidecars on Kubernetes.
pub use generated::operator::v1 as operator;
/// `dapr.proto.placement.v1`: actor placement.
pub use generated::placement::v1 as placement;
/// `dapr.proto.runtime.v1`: the API for applications and the callbacks of applications.
pub use generated::runtime::v1 as runtime;
/// `dapr.proto.scheduler.v1`: jobs and reminders.
pub use generated::scheduler::v1 as scheduler;
/// `dapr.proto.sentry.v1`: the certificate authority.
pub use generated::sentry::v1 as sentry;

/// Every file of this crate and what it imports, as an encoded `google.protobuf.FileDescriptorSet`:
/// what server reflection serves.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/descriptor.bin");

#[cfg(test)]
mod tests;
