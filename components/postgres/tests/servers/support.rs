use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mecha_components_api::{
    BuildCx, Concurrency, ConfigurationStore, Consistency, DeleteState, Error, GetState, Item, Lookup, Metadata,
    OutputBinding, Registration, Registry, Result, SetState, StateStore, Ttl, Value,
};
use mecha_testkit::servers::Postgres;

/// Longest wait for something that should be there at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

fn registry() -> Registry {
    let mut registry = Registry::new();
    mecha_postgres::register(&mut registry);
    registry
}

async fn make<C: ?Sized + 'static>(
    list: &[Registration<C>],
    kind: &str,
    version: &str,
    pairs: &[(&str, &str)],
) -> Result<Arc<C>> {
    let Lookup::Found(registration) = Registry::find(list, kind, version) else {
        panic!("{kind} {version} is not registered")
    };
    let md: Metadata = pairs.iter().copied().collect();
    assert_eq!(registration.unknown_keys(&md, &[]), Vec::new());
    let prepared = (registration.prepare)(&md, version).map_err(|e| Error::invalid(e.to_string()))?;
    prepared.build(&BuildCx::for_app("app", "store", ".")).await
}

pub(crate) async fn open(version: &str, pairs: &[(&str, &str)]) -> Result<Arc<dyn StateStore>> {
    make(&registry().state, "state.postgresql", version, pairs).await
}

pub(crate) async fn store(server: &Postgres, version: &str, more: &[(&str, &str)]) -> Arc<dyn StateStore> {
    let url = server.url();
    let pairs: Vec<(&str, &str)> =
        [("connectionString", url.as_str())].into_iter().chain(more.iter().copied()).collect();
    open(version, &pairs).await.unwrap()
}

pub(crate) async fn configuration(server: &Postgres, more: &[(&str, &str)]) -> Result<Arc<dyn ConfigurationStore>> {
    let url = server.url();
    let pairs: Vec<(&str, &str)> =
        [("connectionString", url.as_str())].into_iter().chain(more.iter().copied()).collect();
    make(&registry().configuration, "configuration.postgres", "v1", &pairs).await
}

pub(crate) async fn binding(server: &Postgres, more: &[(&str, &str)]) -> Arc<dyn OutputBinding> {
    let url = server.url();
    let pairs: Vec<(&str, &str)> = [("url", url.as_str())].into_iter().chain(more.iter().copied()).collect();
    make(&registry().output, "bindings.postgresql", "v1", &pairs).await.unwrap()
}

pub(crate) fn put<'a>(md: &'a Metadata, key: &'a str, value: &str) -> SetState<'a> {
    SetState {
        key,
        value: Value::Json(Bytes::copy_from_slice(value.as_bytes())),
        etag: None,
        concurrency: Concurrency::LastWrite,
        consistency: Consistency::Eventual,
        ttl: None,
        content_type: None,
        metadata: md,
    }
}

pub(crate) fn bytes<'a>(md: &'a Metadata, key: &'a str, value: &'static [u8]) -> SetState<'a> {
    SetState { value: Value::Binary(Bytes::from_static(value)), ..put(md, key, "") }
}

pub(crate) fn remove<'a>(md: &'a Metadata, key: &'a str) -> DeleteState<'a> {
    DeleteState {
        key,
        etag: None,
        concurrency: Concurrency::LastWrite,
        consistency: Consistency::Eventual,
        metadata: md,
    }
}

pub(crate) async fn get(store: &Arc<dyn StateStore>, key: &str) -> Result<Option<Item>> {
    store.get(GetState { key, consistency: Consistency::Eventual, metadata: &Metadata::new() }).await
}

pub(crate) async fn text(store: &Arc<dyn StateStore>, key: &str) -> Option<String> {
    get(store, key).await.unwrap().map(|i| String::from_utf8(i.value.to_vec()).unwrap())
}

pub(crate) fn seconds(n: u64) -> Option<Ttl> {
    Some(Ttl::After(Duration::from_secs(n)))
}

/// Looks until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
