//! mecha-broker.
