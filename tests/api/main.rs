//! The daemon as a user meets it.
fn main() {}
