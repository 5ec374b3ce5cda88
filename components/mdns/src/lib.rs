//! mecha-mdns.
