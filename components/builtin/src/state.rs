use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;
use std::time::SystemTime;

use mecha_components_api::{
    BuildCx, BulkState, Bytes, Clock, Component, Concurrency, DeleteState, Error, GetState, Item, KeyPage, ListKeys,
    Metadata, Prepared, Registration, Result, SetState, StateCaps, StateStore, TransactOp, TransactState, Ttl, Value,
    async_trait,
};
use parking_lot::RwLock;
use uuid::Uuid;

/// Expired items that one write removes at most, so that no write pays for a whole sweep.
/// Above one, so that sweeping overtakes writing.
const SWEEP_PER_WRITE: usize = 16;

/// Values up to this size are copied, so that a small item does not keep the
/// whole request body alive that it was cut from.
const COPY_BELOW: usize = 64 * 1024;

pub(crate) fn registration() -> Registration<dyn StateStore> {
    Registration {
        kind: "state.in-memory",
        aliases: &[],
        versions: &["v1"],
        summary: "State in the memory of this process, gone when it ends",
        fields: &[],
        prepare: |_, _| Ok(Box::new(Config)),
    }
}

struct Config;

#[async_trait]
impl Prepared<dyn StateStore> for Config {
    async fn build(self: Box<Self>, cx: &BuildCx) -> Result<Arc<dyn StateStore>> {
        Ok(Arc::new(InMemoryState { clock: cx.clock.clone(), table: RwLock::default() }))
    }
}

/// `state.in-memory`: an ordered map behind one lock that is never held across an await.
struct InMemoryState {
    clock: Arc<dyn Clock>,
    table: RwLock<Table>,
}

impl fmt::Debug for InMemoryState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InMemoryState").field("items", &self.table.read().items.len()).finish_non_exhaustive()
    }
}

struct Entry {
    value: Bytes,
    etag: Uuid,
    expires: Option<SystemTime>,
}

impl Entry {
    /// Asks the clock only when the entry can expire at all.
    fn is_live(&self, clock: &dyn Clock) -> bool {
        self.expires.is_none_or(|at| clock.now() < at)
    }

    fn to_item(&self) -> Item {
        Item {
            value: self.value.clone(),
            etag: Some(self.etag.hyphenated().encode_lower(&mut Uuid::encode_buffer()).to_owned()),
            expires: self.expires,
            content_type: None,
        }
    }
}

/// What a key held before an operation of a transaction, for taking it back.
type Undo = (Arc<str>, Option<Entry>);

#[derive(Default)]
struct Table {
    items: BTreeMap<Arc<str>, Entry>,
    /// Every item that expires, soonest first.
    due: BTreeSet<(SystemTime, Arc<str>)>,
}

impl Table {
    fn get(&self, key: &str, clock: &dyn Clock) -> Option<&Entry> {
        self.items.get(key).filter(|e| e.is_live(clock))
    }

    /// Whether a write that expects `etag` may go on.
    fn check(&self, key: &str, etag: Option<&str>, concurrency: Concurrency, clock: &dyn Clock) -> Result<()> {
        let found = self.get(key, clock);
        match (etag, concurrency) {
            (Some(want), _) => {
                let mut buf = Uuid::encode_buffer();
                match found {
                    Some(e) if e.etag.hyphenated().encode_lower(&mut buf) == want => Ok(()),
                    Some(_) => Err(Error::conflict("the item has another ETag")),
                    None => Err(Error::conflict("an ETag was given but the item does not exist")),
                }
            }
            (None, Concurrency::FirstWrite) if found.is_some() => {
                Err(Error::conflict("first-write without ETag, but the item exists"))
            }
            (None, _) => Ok(()),
        }
    }

    fn put(&mut self, key: Arc<str>, entry: Entry) -> Option<Entry> {
        let expires = entry.expires;
        let old = self.items.insert(key.clone(), entry);
        if let Some(at) = old.as_ref().and_then(|e| e.expires) {
            self.due.remove(&(at, key.clone()));
        }
        if let Some(at) = expires {
            self.due.insert((at, key));
        }
        old
    }

    fn take(&mut self, key: &str) -> Option<(Arc<str>, Entry)> {
        let (key, entry) = self.items.remove_entry(key)?;
        if let Some(at) = entry.expires {
            self.due.remove(&(at, key.clone()));
        }
        Some((key, entry))
    }

    fn set(&mut self, req: &SetState<'_>, clock: &dyn Clock) -> Result<Undo> {
        self.check(req.key, req.etag, req.concurrency, clock)?;
        let expires = match req.ttl {
            // A life time past the end of the clock's range is as good as none.
            Some(Ttl::After(time)) => clock.now().checked_add(time),
            Some(Ttl::Never) | None => None,
        };
        let key = self.items.get_key_value(req.key).map_or_else(|| req.key.into(), |(k, _)| k.clone());
        let entry = Entry { value: keep(&req.value), etag: Uuid::new_v4(), expires };
        Ok((key.clone(), self.put(key, entry)))
    }

    fn delete(&mut self, req: &DeleteState<'_>, clock: &dyn Clock) -> Result<Option<Undo>> {
        self.check(req.key, req.etag, req.concurrency, clock)?;
        Ok(self.take(req.key).map(|(key, entry)| (key, Some(entry))))
    }

    fn undo(&mut self, (key, old): Undo) {
        match old {
            Some(entry) => drop(self.put(key, entry)),
            None => drop(self.take(&key)),
        }
    }

    /// Frees the memory of a bounded number of expired items. Readers never see them anyway.
    fn sweep(&mut self, clock: &dyn Clock) {
        if self.due.is_empty() {
            return;
        }
        let now = clock.now();
        for _ in 0..SWEEP_PER_WRITE {
            match self.due.first() {
                Some((at, _)) if *at <= now => {}
                _ => break,
            }
            if let Some((_, key)) = self.due.pop_first() {
                self.items.remove(&key);
            }
        }
    }
}

fn keep(value: &Value) -> Bytes {
    let bytes = value.bytes();
    if bytes.len() < COPY_BELOW { Bytes::copy_from_slice(bytes) } else { bytes.clone() }
}

#[async_trait]
impl Component for InMemoryState {
    async fn close(&self) {
        *self.table.write() = Table::default();
    }
}

#[async_trait]
impl StateStore for InMemoryState {
    fn caps(&self) -> StateCaps {
        StateCaps { etag: true, ttl: true, delete_with_prefix: true, keys_like: true, actor: true }
    }

    async fn get(&self, req: GetState<'_>) -> Result<Option<Item>> {
        Ok(self.table.read().get(req.key, &*self.clock).map(Entry::to_item))
    }

    async fn set(&self, req: SetState<'_>) -> Result<()> {
        let mut table = self.table.write();
        table.sweep(&*self.clock);
        table.set(&req, &*self.clock).map(drop)
    }

    async fn delete(&self, req: DeleteState<'_>) -> Result<()> {
        let mut table = self.table.write();
        table.sweep(&*self.clock);
        table.delete(&req, &*self.clock).map(drop)
    }

    fn bulk(&self) -> Option<&dyn BulkState> {
        Some(self)
    }

    fn transact(&self) -> Option<&dyn TransactState> {
        Some(self)
    }

    fn list(&self) -> Option<&dyn ListKeys> {
        Some(self)
    }
}

#[async_trait]
impl BulkState for InMemoryState {
    async fn get_many(&self, reqs: &[GetState<'_>]) -> Result<Vec<Result<Option<Item>>>> {
        let table = self.table.read();
        Ok(reqs.iter().map(|r| Ok(table.get(r.key, &*self.clock).map(Entry::to_item))).collect())
    }
}

#[async_trait]
impl TransactState for InMemoryState {
    async fn transact(&self, ops: Vec<TransactOp<'_>>, _: &Metadata) -> Result<()> {
        let mut table = self.table.write();
        table.sweep(&*self.clock);
        let mut done: Vec<Undo> = Vec::with_capacity(ops.len());
        for op in &ops {
            let step = match op {
                TransactOp::Set(set) => table.set(set, &*self.clock).map(Some),
                TransactOp::Delete(delete) => table.delete(delete, &*self.clock),
            };
            match step {
                Ok(undo) => done.extend(undo),
                Err(e) => {
                    for undo in done.into_iter().rev() {
                        table.undo(undo);
                    }
                    return Err(e);
                }
            }
        }
        Ok(())
    }
}

#[async_trait]
impl ListKeys for InMemoryState {
    async fn keys(&self, prefix: &str, limit: usize, token: Option<&str>) -> Result<KeyPage> {
        let from = match token {
            // The token is the last key of the page before; one from elsewhere must not leave the prefix.
            Some(last) if last >= prefix => Bound::Excluded(last),
            _ => Bound::Included(prefix),
        };
        let table = self.table.read();
        let mut live = table
            .items
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(_, entry)| entry.is_live(&*self.clock))
            .map(|(key, _)| key.to_string());
        let keys: Vec<String> = live.by_ref().take(limit.max(1)).collect();
        let next = live.next().and_then(|_| keys.last().cloned());
        Ok(KeyPage { keys, next })
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
