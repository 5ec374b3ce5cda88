//! `nameresolution.mdns`: sidecars of one network find each other by multicast
//! DNS (RFC 6762), without a server.
//!
//! The records are those of the incumbent, so that both kinds of sidecar find
//! each other: the app id itself is the service, `<app-id>.local.`, with a PTR
//! to the instance `<host>:<pid>.<app-id>.local.`, which has an SRV with the
//! peer port, a TXT that holds the app id and the addresses of its target.
//! Names of this form are no `_service._proto` names, which is why no DNS-SD
//! library serves and only the packet format comes from one.
//!
//! No task is spawned. Whoever waits drives: the future of `announce` reads the
//! sockets for as long as it runs, and a `resolve` without it reads them itself.

mod cache;
#[doc(hidden)]
pub mod fuzzing;
mod net;
mod resolver;
mod wire;

use mecha_components_api::{NameResolver, Registration, Registry};

/// Makes the resolver of this crate known.
pub fn register(registry: &mut Registry) {
    registry.resolvers.push(registration());
}

fn registration() -> Registration<dyn NameResolver> {
    Registration {
        kind: "nameresolution.mdns",
        aliases: &[],
        versions: &["v1"],
        summary: "Multicast DNS: sidecars of one machine or network segment find each other",
        fields: &[],
        prepare: |_, _| Ok(Box::new(resolver::Config)),
    }
}
