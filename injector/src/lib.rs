//! mecha-control.
