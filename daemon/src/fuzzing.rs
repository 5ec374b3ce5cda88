//! Doors for the fuzz targets: what reads bytes of callers, apps and peers, as pure functions.
//! No API; nothing else may call it.

pub use crate::app::fuzzing as app;
pub use crate::handover::fuzzing as handover;
pub use crate::http::fuzzing as http;
pub use crate::peer::fuzzing as peer;
pub use crate::run::fuzzing as delivery;
