//! mecha-bench.
