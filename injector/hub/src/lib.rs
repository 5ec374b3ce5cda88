//! The hub role: decides, writes bindings, drives swaps.
