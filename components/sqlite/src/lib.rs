//! mecha-sqlite.
