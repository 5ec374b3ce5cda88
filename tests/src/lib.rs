//! mecha-tests.
