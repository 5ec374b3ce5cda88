//! The `mecha` program from outside, with `examples/fake-sidecar.rs` in place of mechad.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod commands;
mod environments;
mod run;
mod support;
