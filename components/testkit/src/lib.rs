//! mecha-testkit.
