//! Who a workload is, and how peers prove it to each other.

mod signature;

pub use signature::{SignatureError, sign, verify};
