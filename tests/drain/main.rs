//! What clients and messages notice of a stop, a restart or a replacement: nothing.
//!
//! Loops have a size for the gate and, with `MECHA_TEST_LONG=1`, a long one.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

mod calls;
mod handover;
mod identity;
mod ledger;
mod left;
mod load;
mod operator;
mod rolling;
mod stop;
mod streams;
mod support;
mod upgrade;
