//! Bindings: calls to the outside, and events from it.

mod output;

pub use output::OutputApi;
