//! mecha-components.
