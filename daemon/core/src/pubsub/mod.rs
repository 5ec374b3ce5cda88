//! The pub/sub API.

pub mod scopes;
