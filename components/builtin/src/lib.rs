//! mecha-builtin.
