//! Whether a store does what it claims.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use mecha_components_api::{
    Concurrency, Consistency, DeleteState, Error, ErrorKind, GetState, Item, Metadata, SetState, StateStore,
    TransactOp, Ttl, Value,
};
use tokio::time::{Instant, sleep};

/// Life of a value that is to expire.
const LIFE: Duration = Duration::from_secs(1);
/// Time within which it must be gone.
const GONE: Duration = Duration::from_secs(6);
const PAUSE: Duration = Duration::from_millis(200);

/// Each feature, and why it does not work. Whatever was written below `prefix` is removed.
pub(super) async fn prove(
    store: &dyn StateStore,
    prefix: &str,
    features: &[String],
) -> BTreeMap<String, Result<(), String>> {
    let probe = Probe { store, prefix, none: Metadata::new() };
    let mut found = BTreeMap::new();
    for feature in features {
        let result = match feature.as_str() {
            "crud" => probe.crud().await,
            "etag" => probe.etag().await,
            "transactional" => probe.transactional().await,
            "ttl" => probe.ttl().await,
            "keysLike" => probe.keys_like().await,
            "actorStateStore" if store.caps().actor => match probe.etag().await {
                Ok(()) => probe.transactional().await,
                failed => failed,
            },
            "deleteWithPrefix" if store.caps().delete_with_prefix => Ok(()),
            "query" if store.query().is_some() => Ok(()),
            _ => Err("the component does not have it".to_owned()),
        };
        found.insert(feature.clone(), result);
    }
    for name in ["crud", "etag", "one", "two", "ttl", "list"] {
        // What could not be removed was perhaps never written.
        let _ = probe.delete(name).await;
    }
    store.close().await;
    found
}

struct Probe<'p> {
    store: &'p dyn StateStore,
    prefix: &'p str,
    none: Metadata,
}

fn told(what: &'static str) -> impl FnOnce(Error) -> String {
    move |error| format!("{what}: {error}")
}

fn expect(holds: bool, otherwise: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.to_owned()) }
}

impl Probe<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn write<'a>(&'a self, key: &'a str, value: &'static str, etag: Option<&'a str>, ttl: Option<Ttl>) -> SetState<'a> {
        SetState {
            key,
            value: Value::Json(Bytes::from_static(value.as_bytes())),
            etag,
            concurrency: Concurrency::LastWrite,
            consistency: Consistency::Eventual,
            ttl,
            content_type: None,
            metadata: &self.none,
        }
    }

    async fn get(&self, name: &str) -> Result<Option<Item>, String> {
        let key = self.key(name);
        let get = GetState { key: &key, consistency: Consistency::Strong, metadata: &self.none };
        self.store.get(get).await.map_err(told("a value cannot be read"))
    }

    async fn set(&self, name: &str, value: &'static str) -> Result<(), String> {
        let key = self.key(name);
        self.store.set(self.write(&key, value, None, None)).await.map_err(told("a value cannot be written"))
    }

    async fn delete(&self, name: &str) -> Result<(), String> {
        let key = self.key(name);
        let delete = DeleteState {
            key: &key,
            etag: None,
            concurrency: Concurrency::LastWrite,
            consistency: Consistency::Eventual,
            metadata: &self.none,
        };
        self.store.delete(delete).await.map_err(told("a value cannot be removed"))
    }

    async fn holds(&self, name: &str, value: &str) -> Result<bool, String> {
        Ok(self.get(name).await?.is_some_and(|item| item.value == value.as_bytes()))
    }

    async fn crud(&self) -> Result<(), String> {
        self.set("crud", "1").await?;
        expect(self.holds("crud", "1").await?, "a value that was written is not read")?;
        self.set("crud", "2").await?;
        expect(self.holds("crud", "2").await?, "a value that was replaced is read")?;
        self.delete("crud").await?;
        expect(self.get("crud").await?.is_none(), "a value that was removed is read")
    }

    async fn etag(&self) -> Result<(), String> {
        expect(self.store.caps().etag, "the component does not have it")?;
        self.set("etag", "1").await?;
        let first = self.get("etag").await?.and_then(|item| item.etag).ok_or("a value has no ETag")?;
        let key = self.key("etag");
        let next = self.store.set(self.write(&key, "2", Some(&first), None)).await;
        next.map_err(told("the right ETag is refused"))?;
        match self.store.set(self.write(&key, "3", Some(&first), None)).await {
            Err(e) if e.kind() == ErrorKind::Conflict => {}
            Err(e) => return Err(format!("a stale ETag gives another error: {e}")),
            Ok(()) => return Err("a stale ETag is accepted".to_owned()),
        }
        expect(self.holds("etag", "2").await?, "a refused write has changed the value")
    }

    async fn transactional(&self) -> Result<(), String> {
        let transactions = self.store.transact().ok_or("the component does not have it")?;
        let (one, two) = (self.key("one"), self.key("two"));
        let both = vec![
            TransactOp::Set(self.write(&one, "1", None, None)),
            TransactOp::Set(self.write(&two, "1", None, None)),
        ];
        transactions.transact(both, &self.none).await.map_err(told("a transaction fails"))?;
        let written = self.holds("one", "1").await? && self.holds("two", "1").await?;
        expect(written, "a transaction has not written all of it")?;
        if !self.store.caps().etag {
            return Ok(());
        }
        let stale = self.get("two").await?.and_then(|item| item.etag).ok_or("a value has no ETag")?;
        self.set("two", "2").await?;
        let half = vec![
            TransactOp::Set(self.write(&one, "3", None, None)),
            TransactOp::Set(self.write(&two, "3", Some(&stale), None)),
        ];
        let refused = transactions.transact(half, &self.none).await.is_err();
        expect(refused, "a transaction with a stale ETag is accepted")?;
        expect(self.holds("one", "1").await?, "a refused transaction has written a part")
    }

    async fn ttl(&self) -> Result<(), String> {
        expect(self.store.caps().ttl, "the component does not have it")?;
        let key = self.key("ttl");
        let write = self.write(&key, "1", None, Some(Ttl::After(LIFE)));
        self.store.set(write).await.map_err(told("a value with a life time cannot be written"))?;
        let deadline = Instant::now() + GONE;
        while self.get("ttl").await?.is_some() {
            expect(Instant::now() < deadline, "a value is still there after its life time")?;
            sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn keys_like(&self) -> Result<(), String> {
        let list = self.store.list().ok_or("the component does not have it")?;
        self.set("list", "1").await?;
        let page = list.keys(self.prefix, 100, None).await.map_err(told("keys cannot be listed"))?;
        expect(page.keys.contains(&self.key("list")), "a key that was written is not listed")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

    use std::sync::Arc;

    use async_trait::async_trait;
    use mecha_components_api::{BuildCx, Component, Lookup, Registry, Result, StateCaps};

    use super::*;

    /// A store that says it keeps life times and compares ETags, and does neither.
    #[derive(Debug)]
    struct Liar(Arc<dyn StateStore>);

    #[async_trait]
    impl Component for Liar {}

    #[async_trait]
    impl StateStore for Liar {
        fn caps(&self) -> StateCaps {
            StateCaps { etag: true, ttl: true, ..StateCaps::default() }
        }

        async fn get(&self, req: GetState<'_>) -> Result<Option<Item>> {
            self.0.get(req).await
        }

        async fn set(&self, req: SetState<'_>) -> Result<()> {
            self.0.set(SetState { etag: None, ttl: None, ..req }).await
        }

        async fn delete(&self, req: DeleteState<'_>) -> Result<()> {
            self.0.delete(req).await
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_lying_store_is_found_out() {
        let mut registry = Registry::new();
        mecha_components::register_all(&mut registry);
        let Lookup::Found(found) = Registry::find(&registry.state, "state.in-memory", "v1") else { panic!() };
        let prepared = (found.prepare)(&Metadata::new(), "v1").unwrap();
        let inner = prepared.build(&BuildCx::for_app("probe", "probe", "/tmp")).await.unwrap();
        let liar = Liar(inner.clone());
        let features = ["crud", "etag", "ttl", "transactional"].map(str::to_owned);
        let found = prove(&liar, "p||", &features).await;
        assert_eq!(found["crud"], Ok(()));
        assert!(found["etag"].as_ref().unwrap_err().contains("stale ETag is accepted"));
        assert!(found["ttl"].as_ref().unwrap_err().contains("still there"));
        assert!(found["transactional"].is_err());
        let none = Metadata::new();
        let left = inner.get(GetState { key: "p||ttl", consistency: Consistency::Eventual, metadata: &none });
        assert_eq!(left.await.unwrap(), None, "nothing is left behind");
    }
}
