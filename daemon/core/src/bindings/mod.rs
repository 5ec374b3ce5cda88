//! Bindings: calls to the outside, and events from it.

mod input;
mod output;

pub use input::{BesideState, Inputs, Leaving};
pub use output::OutputApi;
