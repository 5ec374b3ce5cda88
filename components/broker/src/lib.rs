//! `pubsub.mecha`: a durable message broker for one machine, without a server.
//!
//! All sidecars of a user open the same SQLite file (WAL, `synchronous=FULL`).
//! Topics are append-only logs; a consumer group is a position in a log plus one
//! row for each message that was handed out and is not acknowledged. Rows carry
//! a lease: the process that holds it, its expiry and a fencing token.
//!
//! Guarantees:
//! * `publish` returns after the commit reached the disk (fsync).
//! * A message is delivered to every group until that group acknowledges it, it
//!   outlives its own TTL, or the group had no subscriber for the retention time.
//! * The death of a process frees its leases within about a second; a frozen one
//!   loses them when they expire, and what it acknowledges after that is refused.
//! * Groups start at the oldest message that is still there, so that apps may
//!   start in any order.
//!
//! Assumptions: one machine, one kernel, a file system with POSIX locks (no NFS).
//! A process that is frozen in the middle of a commit (well under a millisecond)
//! blocks writers until it runs again; they fail after ten seconds and recover.
//!
//! ```text
//! <path>/broker.db         the log (-wal and -shm beside it)
//! <path>/owners/<id>.lock  held with flock while a process lives
//! <path>/wake/<topic>-<owner>-<n>.sock  a byte arrives when the topic grew
//! ```

mod client;
mod clock;
mod config;
mod error;
mod group;
mod log;
mod maintain;
mod owner;
mod pubsub;
mod schema;
mod stats;
mod subscription;
mod wake;
mod writer;

#[cfg(test)]
mod component_tests;
#[cfg(test)]
mod group_tests;
#[cfg(test)]
mod maintain_tests;

pub use stats::{GroupStats, Stats, TopicStats, stats};

use mecha_components_api::{Registration, Registry};

/// Type of the component in documents.
pub const KIND: &str = "pubsub.mecha";

/// Makes `pubsub.mecha` known to `registry`.
pub fn register(registry: &mut Registry) {
    registry.pubsub.push(Registration {
        kind: KIND,
        aliases: &[],
        versions: &["v1"],
        summary: "Durable broker of this machine, embedded, shared by all sidecars of the user",
        fields: config::FIELDS,
        prepare: pubsub::prepare,
    });
}
