//! mecha-resources.
