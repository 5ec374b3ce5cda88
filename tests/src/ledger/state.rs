use std::collections::BTreeMap;
use std::fmt;

use parking_lot::Mutex;

use super::{Findings, Ticks};

/// Writes to state stores and what reads gave, per key.
///
/// Values of one key must differ from each other: they tell which write a read saw.
#[derive(Debug, Default)]
pub struct StateLedger {
    ticks: Ticks,
    keys: Mutex<BTreeMap<String, History>>,
}

/// A write that began; hand it back with its outcome. One that is dropped stays of unknown outcome.
#[derive(Debug)]
#[must_use]
pub struct WriteTicket {
    key: String,
    number: usize,
}

/// A read that began.
#[derive(Debug)]
#[must_use]
pub struct ReadTicket {
    key: String,
    began: u64,
}

/// What the ledger proves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateVerdict {
    /// Writes that were acknowledged.
    pub acked: usize,
    /// Writes that ended otherwise, or not.
    pub unknown: usize,
    /// Reads.
    pub reads: usize,
    /// Reads that did not see an acknowledged write, nor anything later.
    pub lost: Findings,
    /// Reads of a value that nobody was writing.
    pub ghosts: Findings,
    /// Acknowledged writes that were guarded by an ETag another acknowledged write had used up.
    pub forks: Findings,
}

#[derive(Debug, Default)]
struct History {
    writes: Vec<Write>,
    reads: Vec<Read>,
}

#[derive(Debug)]
struct Write {
    value: Option<String>,
    guard: Option<String>,
    began: u64,
    /// When it was acknowledged.
    acked: Option<u64>,
    /// It surely had no effect.
    refused: bool,
}

#[derive(Debug)]
struct Read {
    value: Option<String>,
    began: u64,
    ended: u64,
}

impl ReadTicket {
    /// What is read.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }
}

impl StateLedger {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A write begins; `None` removes the key.
    pub fn write(&self, key: &str, value: Option<&str>) -> WriteTicket {
        self.begin(key, value, None)
    }

    /// A write begins that must only succeed while the stored ETag is `guard`.
    pub fn guarded_write(&self, key: &str, value: Option<&str>, guard: &str) -> WriteTicket {
        self.begin(key, value, Some(guard.to_owned()))
    }

    fn begin(&self, key: &str, value: Option<&str>, guard: Option<String>) -> WriteTicket {
        let mut keys = self.keys.lock();
        let history = keys.entry(key.to_owned()).or_default();
        let (value, began) = (value.map(str::to_owned), self.ticks.next());
        history.writes.push(Write { value, guard, began, acked: None, refused: false });
        WriteTicket { key: key.to_owned(), number: history.writes.len() - 1 }
    }

    /// The caller was told that the write is done.
    pub fn acked(&self, ticket: WriteTicket) {
        let tick = self.ticks.next();
        self.edit(ticket, |write| write.acked = Some(tick));
    }

    /// The caller was told that the write has no effect, as in a conflict of ETags.
    pub fn refused(&self, ticket: WriteTicket) {
        self.edit(ticket, |write| write.refused = true);
    }

    fn edit(&self, ticket: WriteTicket, edit: impl FnOnce(&mut Write)) {
        let mut keys = self.keys.lock();
        if let Some(write) = keys.get_mut(&ticket.key).and_then(|history| history.writes.get_mut(ticket.number)) {
            edit(write);
        }
    }

    /// A read begins.
    pub fn read(&self, key: &str) -> ReadTicket {
        ReadTicket { key: key.to_owned(), began: self.ticks.next() }
    }

    /// What it gave.
    pub fn seen(&self, ticket: ReadTicket, value: Option<&str>) {
        let read = Read { value: value.map(str::to_owned), began: ticket.began, ended: self.ticks.next() };
        self.keys.lock().entry(ticket.key).or_default().reads.push(read);
    }

    /// Acknowledged writes so far.
    #[must_use]
    pub fn acked_count(&self) -> usize {
        self.keys.lock().values().flat_map(|history| &history.writes).filter(|write| write.acked.is_some()).count()
    }

    /// Every key that was ever written.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.keys.lock().keys().cloned().collect()
    }

    /// Judges all that happened.
    #[must_use]
    pub fn verdict(&self) -> StateVerdict {
        let mut verdict = StateVerdict::default();
        for (key, history) in &*self.keys.lock() {
            history.judge(key, &mut verdict);
        }
        verdict
    }
}

impl History {
    fn judge(&self, key: &str, verdict: &mut StateVerdict) {
        let acked = self.writes.iter().filter(|write| write.acked.is_some());
        verdict.acked += acked.clone().count();
        verdict.unknown += self.writes.iter().filter(|write| write.acked.is_none() && !write.refused).count();
        verdict.reads += self.reads.len();
        let mut winners = BTreeMap::new();
        for write in acked {
            if let Some(guard) = &write.guard
                && let Some(other) = winners.insert(guard, &write.value)
            {
                verdict.forks.add(format!("{key}: {other:?} and {:?} both replaced ETag {guard:?}", write.value));
            }
        }
        for read in &self.reads {
            let effects = || self.writes.iter().filter(|write| !write.refused && write.began < read.ended);
            let from_start = read.value.is_none().then_some(None);
            let sources = effects().filter(|write| write.value == read.value).map(Some);
            let (mut any, mut current) = (false, false);
            for source in from_start.into_iter().chain(sources) {
                any = true;
                current |= !self.is_over(source, read);
            }
            if !any {
                verdict.ghosts.add(format!("{key}: read {:?}, which nobody was writing", read.value));
            } else if !current {
                let last = effects().rfind(|write| write.acked.is_some_and(|tick| tick < read.began));
                let last = last.map(|write| &write.value);
                verdict.lost.add(format!("{key}: read {:?}, but {last:?} was acknowledged before", read.value));
            }
        }
    }

    /// Whether an acknowledged write lies wholly between `source` (`None`: the empty begin) and `read`.
    fn is_over(&self, source: Option<&Write>, read: &Read) -> bool {
        let since = match source {
            None => None,
            // One of unknown outcome may take effect at any later time.
            Some(Write { acked: None, .. }) => return false,
            Some(write) => write.acked,
        };
        self.writes.iter().any(|write| {
            write.acked.is_some_and(|acked| acked < read.began) && since.is_none_or(|since| since < write.began)
        })
    }
}

impl StateVerdict {
    /// Nothing acknowledged is lost, nothing came from nowhere, and each ETag had one winner.
    ///
    /// # Panics
    /// With what is wrong otherwise.
    #[track_caller]
    pub fn assert_kept(&self) {
        assert!(self.lost.is_empty() && self.ghosts.is_empty() && self.forks.is_empty(), "{self}: {self:#?}");
    }
}

impl fmt::Display for StateVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} acked, {} unknown, {} reads, {} lost, {} from nowhere, {} ETags won twice",
            self.acked, self.unknown, self.reads, self.lost.count, self.ghosts.count, self.forks.count
        )
    }
}
