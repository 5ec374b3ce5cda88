//! The control part on a real API server.

mod injection;
mod kinds;
