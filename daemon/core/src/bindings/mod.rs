//! Bindings: calls to the outside, and events from it.

mod input;
mod output;

pub use input::Inputs;
pub use output::OutputApi;
