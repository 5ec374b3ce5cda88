//! mecha-proto.
