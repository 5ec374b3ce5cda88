//! mecha-resiliency.
