use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use mecha_components_api::{
    BulkState, Component, DeleteState, Error, GetState, Item, KeyPage, ListKeys, Metadata, Result, SetState, StateCaps,
    StateStore, TransactOp, TransactState,
};
use parking_lot::Mutex;

/// Key under which writes go that are dropped on purpose, so that they cannot disturb a case.
const SHADOW: &str = "dropped-";

/// What goes wrong between caller and store. Can be changed at any time.
#[derive(Debug, Default)]
pub struct Faults {
    delay: Mutex<Duration>,
    drop_calls: AtomicBool,
    disconnected: AtomicBool,
    calls: AtomicU64,
    dropped: AtomicU64,
}

/// A store whose every call meets the [`Faults`] first.
#[derive(Debug)]
pub struct FaultyState {
    inner: Arc<dyn StateStore>,
    faults: Arc<Faults>,
}

impl Faults {
    /// Every call waits this long before it reaches the store.
    pub fn slow(&self, delay: Duration) {
        *self.delay.lock() = delay;
    }

    /// Before every call, another one is begun and dropped at one of its awaits.
    pub fn drop_calls(&self, on: bool) {
        self.drop_calls.store(on, Ordering::SeqCst);
    }

    /// No call reaches the store: each is `Unavailable`.
    pub fn disconnect(&self, on: bool) {
        self.disconnected.store(on, Ordering::SeqCst);
    }

    /// Calls that came so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// Calls that were dropped before they ended.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::SeqCst)
    }

    async fn meet(&self) -> Result<u64> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        let delay = *self.delay.lock();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if self.disconnected.load(Ordering::SeqCst) {
            return Err(Error::unavailable("disconnected on purpose"));
        }
        Ok(call)
    }
}

impl FaultyState {
    /// Puts `faults` in front of `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn StateStore>, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }

    /// Meets the faults; drops a read of `key` and a write beside it, when told to.
    async fn pass(&self, key: &str) -> Result<()> {
        let call = self.faults.meet().await?;
        if !self.faults.drop_calls.load(Ordering::SeqCst) {
            return Ok(());
        }
        let md = Metadata::new();
        let shadow = format!("{SHADOW}{key}");
        let consistency = mecha_components_api::Consistency::Eventual;
        let polls = call % 3;
        if call.is_multiple_of(2) {
            self.drop_after(polls, self.inner.get(GetState { key, consistency, metadata: &md })).await;
        } else {
            let set = SetState {
                key: &shadow,
                value: mecha_components_api::Value::Json("1".into()),
                etag: None,
                concurrency: mecha_components_api::Concurrency::LastWrite,
                consistency,
                ttl: None,
                content_type: None,
                metadata: &md,
            };
            self.drop_after(polls, self.inner.set(set)).await;
        }
        Ok(())
    }

    /// Polls `future` at most `polls` times more than once, each after the last woke us, then drops it.
    async fn drop_after(&self, polls: u64, future: impl Future) {
        let mut future = pin!(future);
        let mut left = polls;
        let finished = std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(_) => Poll::Ready(true),
            Poll::Pending if left == 0 => Poll::Ready(false),
            Poll::Pending => {
                left -= 1;
                Poll::Pending
            }
        })
        .await;
        if !finished {
            self.faults.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[async_trait]
impl Component for FaultyState {
    async fn ping(&self) -> Result<()> {
        self.faults.meet().await?;
        self.inner.ping().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

#[async_trait]
impl StateStore for FaultyState {
    fn caps(&self) -> StateCaps {
        self.inner.caps()
    }

    async fn get(&self, req: GetState<'_>) -> Result<Option<Item>> {
        self.pass(req.key).await?;
        self.inner.get(req).await
    }

    async fn set(&self, req: SetState<'_>) -> Result<()> {
        self.pass(req.key).await?;
        self.inner.set(req).await
    }

    async fn delete(&self, req: DeleteState<'_>) -> Result<()> {
        self.pass(req.key).await?;
        self.inner.delete(req).await
    }

    fn bulk(&self) -> Option<&dyn BulkState> {
        self.inner.bulk().map(|_| self as &dyn BulkState)
    }

    fn transact(&self) -> Option<&dyn TransactState> {
        self.inner.transact().map(|_| self as &dyn TransactState)
    }

    fn list(&self) -> Option<&dyn ListKeys> {
        self.inner.list().map(|_| self as &dyn ListKeys)
    }
}

fn gone() -> Error {
    Error::unsupported("the store behind the faults does not have this power")
}

#[async_trait]
impl BulkState for FaultyState {
    async fn get_many(&self, reqs: &[GetState<'_>]) -> Result<Vec<Result<Option<Item>>>> {
        self.pass(reqs.first().map_or("none", |r| r.key)).await?;
        self.inner.bulk().ok_or_else(gone)?.get_many(reqs).await
    }
}

#[async_trait]
impl TransactState for FaultyState {
    async fn transact(&self, ops: Vec<TransactOp<'_>>, metadata: &Metadata) -> Result<()> {
        self.pass("transaction").await?;
        self.inner.transact().ok_or_else(gone)?.transact(ops, metadata).await
    }

    fn max_ops(&self) -> Option<usize> {
        self.inner.transact().and_then(TransactState::max_ops)
    }
}

#[async_trait]
impl ListKeys for FaultyState {
    async fn keys(&self, prefix: &str, limit: usize, token: Option<&str>) -> Result<KeyPage> {
        self.pass(prefix).await?;
        self.inner.list().ok_or_else(gone)?.keys(prefix, limit, token).await
    }
}

#[cfg(test)]
mod tests {
    use mecha_components_api::{Consistency, ErrorKind};

    use super::*;

    /// Answers after one turn of the scheduler and counts the calls that ended.
    #[derive(Debug, Default)]
    struct Lazy(AtomicU64);

    #[async_trait]
    impl Component for Lazy {}

    #[async_trait]
    impl StateStore for Lazy {
        fn caps(&self) -> StateCaps {
            StateCaps::default()
        }

        async fn get(&self, _: GetState<'_>) -> Result<Option<Item>> {
            tokio::task::yield_now().await;
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(None)
        }

        async fn set(&self, _: SetState<'_>) -> Result<()> {
            std::future::pending().await
        }

        async fn delete(&self, _: DeleteState<'_>) -> Result<()> {
            Ok(())
        }
    }

    fn get<'a>(md: &'a Metadata) -> GetState<'a> {
        GetState { key: "k", consistency: Consistency::Eventual, metadata: md }
    }

    #[tokio::test]
    async fn calls_are_dropped_beside_the_real_one() {
        let (inner, faults) = (Arc::new(Lazy::default()), Arc::new(Faults::default()));
        let store = FaultyState::new(inner.clone(), Arc::clone(&faults));
        faults.drop_calls(true);
        store.get(get(&Metadata::new())).await.unwrap();
        assert_eq!((faults.dropped(), inner.0.load(Ordering::SeqCst)), (1, 1));
        faults.drop_calls(false);
        store.get(get(&Metadata::new())).await.unwrap();
        assert_eq!((faults.dropped(), faults.calls()), (1, 2));
    }

    #[tokio::test]
    async fn nothing_passes_while_disconnected() {
        let (inner, faults) = (Arc::new(Lazy::default()), Arc::new(Faults::default()));
        let store = FaultyState::new(inner.clone(), Arc::clone(&faults));
        faults.disconnect(true);
        assert_eq!(store.get(get(&Metadata::new())).await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(inner.0.load(Ordering::SeqCst), 0);
        faults.disconnect(false);
        assert!(store.get(get(&Metadata::new())).await.is_ok());
    }
}
