//! The control part on a real API server, where several of its roles, the sidecar or the command line take part.
//!
//! What one role does alone is tested in its own crate, `injector/<role>/tests/real_server.rs`, which compiles
//! without the others; `injector/apiserver/tests/real_server.rs` shows the form.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

mod away;
mod clock;
mod composites;
mod exports;
mod faults;
mod guide;
mod injection;
mod install;
mod kinds;
mod kubelet;
mod leaders;
mod leaks;
mod nodes;
mod phases;
mod proven;
mod rbac;
mod reduced;
mod roles;
mod secrets;
mod settled;
mod show;
mod traces;
mod uninstall;
mod versions;
