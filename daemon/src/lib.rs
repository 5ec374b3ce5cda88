//! mechad.
