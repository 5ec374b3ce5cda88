//! mecha.
