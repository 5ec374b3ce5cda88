//! What callers were told and what was seen afterwards, and whether the two fit.
//!
//! Times are ticks of a clock of the ledger's own: a write or publish *may* have taken effect from its
//! begin on, and *has* taken effect once it was acknowledged. Whatever ended otherwise, in an error or
//! not at all, may take effect at any time later, or never.

mod events;
mod state;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};

pub use self::events::{EventLedger, EventVerdict, PublishTicket};
pub use self::state::{ReadTicket, StateLedger, StateVerdict, WriteTicket};

/// Most findings a verdict names; all are counted.
const NAMED: usize = 20;

/// Orders what happens.
#[derive(Debug, Default)]
struct Ticks(AtomicU64);

impl Ticks {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}

/// Findings of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// How many there are.
    pub count: usize,
    /// The first of them.
    pub first: Vec<String>,
}

impl Findings {
    fn add(&mut self, what: String) {
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push(what);
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}
