//! Building components as the daemon does, and waiting for conditions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mecha_components_api::{
    BuildCx, Concurrency, ConfigurationStore, Consistency, GetState, LockStore, Lookup, Metadata, OutputBinding,
    PubSub, Publish, Registration, Registry, Result, SetState, StateStore, Value,
};

/// Longest wait for something that a test expects; a test that passes never waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

async fn build<C: ?Sized + 'static>(list: &[Registration<C>], kind: &str, pairs: &[(&str, &str)]) -> Result<Arc<C>> {
    let md: Metadata = pairs.iter().copied().collect();
    let Lookup::Found(registration) = Registry::find(list, kind, "v1") else { panic!("{kind} is not registered") };
    let prepared = (registration.prepare)(&md, "v1").unwrap_or_else(|e| panic!("{kind}: {e}"));
    prepared.build(&BuildCx::for_app("app", "test", "/nonexistent")).await
}

fn registry() -> Registry {
    let mut registry = Registry::new();
    mecha_redis::register(&mut registry);
    registry
}

pub(crate) async fn state(pairs: &[(&str, &str)]) -> Result<Arc<dyn StateStore>> {
    build(&registry().state, "state.redis", pairs).await
}

pub(crate) async fn pubsub(pairs: &[(&str, &str)]) -> Result<Arc<dyn PubSub>> {
    build(&registry().pubsub, "pubsub.redis", pairs).await
}

pub(crate) async fn lock(pairs: &[(&str, &str)]) -> Result<Arc<dyn LockStore>> {
    build(&registry().lock, "lock.redis", pairs).await
}

pub(crate) async fn configuration(pairs: &[(&str, &str)]) -> Result<Arc<dyn ConfigurationStore>> {
    build(&registry().configuration, "configuration.redis", pairs).await
}

pub(crate) async fn binding(pairs: &[(&str, &str)]) -> Result<Arc<dyn OutputBinding>> {
    build(&registry().output, "bindings.redis", pairs).await
}

/// A last-write of text without life time.
pub(crate) fn put<'a>(md: &'a Metadata, key: &'a str, text: &str) -> SetState<'a> {
    SetState {
        key,
        value: Value::Json(Bytes::copy_from_slice(text.as_bytes())),
        etag: None,
        concurrency: Concurrency::LastWrite,
        consistency: Consistency::Eventual,
        ttl: None,
        content_type: None,
        metadata: md,
    }
}

/// The value and ETag of a key.
pub(crate) async fn get(store: &dyn StateStore, key: &str) -> Result<Option<(String, Option<String>)>> {
    let md = Metadata::new();
    let item = store.get(GetState { key, consistency: Consistency::Eventual, metadata: &md }).await?;
    Ok(item.map(|i| (String::from_utf8_lossy(&i.value).into_owned(), i.etag)))
}

pub(crate) async fn publish(broker: &dyn PubSub, topic: &str, text: &str) -> Result<()> {
    let (md, data) = (Metadata::new(), Bytes::copy_from_slice(text.as_bytes()));
    broker.publish(Publish { topic, data, content_type: None, metadata: &md }).await
}

/// Looks at a condition until it holds.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
