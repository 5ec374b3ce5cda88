//! mecha-core.
