//! Doors for the fuzz targets. No API; nothing else may call it.

use std::net::SocketAddr;

use crate::wire::{self, Incoming, Service};

/// App ids and instances in an answer; an empty list for a question.
#[must_use]
pub fn packet(bytes: &[u8]) -> Option<Vec<(String, String)>> {
    let address = SocketAddr::from(([127, 0, 0, 1], 50002));
    match wire::read(bytes)? {
        Incoming::Found(found) => Some(found.into_iter().map(|f| (f.app_id, f.instance)).collect()),
        Incoming::Query(query) => {
            let service = Service::new("app", "host", 1, address).ok()?;
            if let Some((asked, _)) = query.asks(&service) {
                let answer = service.answer(asked, wire::Way::Legacy, &query);
                // What we say, we understand.
                wire::read(&answer)?;
            }
            Some(Vec::new())
        }
    }
}

/// Packets as sidecars send them.
#[must_use]
pub fn samples() -> Vec<Vec<u8>> {
    let address = SocketAddr::from(([127, 0, 0, 1], 50002));
    let service = Service::new("app", "host", 1, address).ok();
    let own = service.iter().flat_map(|s| [s.announcement(), s.goodbye()]);
    own.chain(wire::browse("app", 7)).collect()
}
