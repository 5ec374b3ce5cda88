//! `nameresolution.mdns`.

use mecha_components_api::Registry;

/// Makes the resolver of this crate known.
pub fn register(_registry: &mut Registry) {}
