use std::collections::BTreeMap;
use std::fmt;

use parking_lot::Mutex;

use super::{Findings, Ticks};

/// Published events and their deliveries, by an id that is used once.
#[derive(Debug, Default)]
pub struct EventLedger {
    ticks: Ticks,
    book: Mutex<Book>,
}

/// A publish that began; hand it back when it is acknowledged. One that is dropped stays of unknown outcome.
#[derive(Debug)]
#[must_use]
pub struct PublishTicket {
    id: String,
}

/// What the ledger proves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventVerdict {
    /// Publishes that were acknowledged.
    pub acked: usize,
    /// Publishes that ended otherwise, or not.
    pub unknown: usize,
    /// Deliveries, repeated ones included.
    pub deliveries: usize,
    /// Acknowledged and never handled.
    pub lost: Findings,
    /// Delivered, but published by nobody.
    pub ghosts: Findings,
    /// Deliveries beyond the first of their event.
    pub duplicates: usize,
    /// Those of them with no fault at or since the delivery before.
    pub unexplained: Findings,
}

#[derive(Debug, Default)]
struct Book {
    events: BTreeMap<String, Event>,
    /// From when to when something was broken.
    faults: Vec<(u64, u64)>,
}

#[derive(Debug, Default)]
struct Event {
    published: bool,
    acked: bool,
    handled: bool,
    deliveries: Vec<u64>,
}

impl EventLedger {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A publish begins.
    pub fn publish(&self, id: &str) -> PublishTicket {
        self.book.lock().events.entry(id.to_owned()).or_default().published = true;
        PublishTicket { id: id.to_owned() }
    }

    /// The caller was told that the event is published.
    pub fn acked(&self, ticket: PublishTicket) {
        self.book.lock().events.entry(ticket.id).or_default().acked = true;
    }

    /// The app got an event, and did or did not live to handle it.
    pub fn delivered(&self, id: &str, handled: bool) {
        let tick = self.ticks.next();
        let mut book = self.book.lock();
        let event = book.events.entry(id.to_owned()).or_default();
        event.deliveries.push(tick);
        event.handled |= handled;
    }

    /// Something broke for a moment: what is in flight now may come again.
    pub fn fault(&self) {
        self.fault_begins();
        self.fault_ends();
    }

    /// Something is broken until [`EventLedger::fault_ends`]: until then, anything may come again.
    pub fn fault_begins(&self) {
        let tick = self.ticks.next();
        self.book.lock().faults.push((tick, u64::MAX));
    }

    /// The fault that began last is over, and its recovery too.
    pub fn fault_ends(&self) {
        let tick = self.ticks.next();
        if let Some((_, end)) = self.book.lock().faults.last_mut() {
            *end = tick;
        }
    }

    /// Acknowledged publishes so far.
    #[must_use]
    pub fn acked_count(&self) -> usize {
        self.book.lock().events.values().filter(|event| event.acked).count()
    }

    /// Acknowledged events that nobody handled yet.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.book.lock().events.values().filter(|event| event.acked && !event.handled).count()
    }

    /// Whether the app handled this event.
    #[must_use]
    pub fn has_handled(&self, id: &str) -> bool {
        self.book.lock().events.get(id).is_some_and(|event| event.handled)
    }

    /// Judges all that happened.
    #[must_use]
    pub fn verdict(&self) -> EventVerdict {
        let book = self.book.lock();
        let mut verdict = EventVerdict::default();
        for (id, event) in &book.events {
            verdict.acked += usize::from(event.acked);
            verdict.unknown += usize::from(event.published && !event.acked);
            verdict.deliveries += event.deliveries.len();
            verdict.duplicates += event.deliveries.len().saturating_sub(1);
            if event.acked && !event.handled {
                verdict.lost.add(format!("{id}, delivered {} times", event.deliveries.len()));
            }
            if !event.published {
                verdict.ghosts.add(id.clone());
            }
            for pair in event.deliveries.windows(2) {
                if !book.faults.iter().any(|(begin, end)| *begin < pair[1] && pair[0] < *end) {
                    verdict.unexplained.add(id.clone());
                }
            }
        }
        verdict
    }
}

impl EventVerdict {
    /// Nothing acknowledged is lost, and nothing came from nowhere.
    ///
    /// # Panics
    /// With what is wrong otherwise.
    #[track_caller]
    pub fn assert_kept(&self) {
        assert!(self.lost.is_empty() && self.ghosts.is_empty(), "{self}: {self:#?}");
    }
}

impl fmt::Display for EventVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} acked, {} unknown, {} deliveries, {} lost, {} from nowhere, {} duplicates, {} of them without a fault",
            self.acked,
            self.unknown,
            self.deliveries,
            self.lost.count,
            self.ghosts.count,
            self.duplicates,
            self.unexplained.count
        )
    }
}
