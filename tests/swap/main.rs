//! What callers and messages notice of a change of the documents under load: nothing.
//!
//! Loops have a size for the gate and, with `MECHA_TEST_LONG=1`, a long one.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

mod backends;
mod brokers;
mod edits;
mod files;
mod fleet;
mod inputs;
mod load;
mod memory;
mod refusals;
mod secrets;
mod settings;
mod support;
