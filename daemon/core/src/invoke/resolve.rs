//! Peer addresses of apps: the name resolver behind a short cache, taken in turn.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use mecha_components_api::{Error, NameResolver, Result, Target};
use parking_lot::Mutex;
use tokio::time::Instant;

/// How long an answer is used. Addresses that fail are dropped at once.
pub const CACHE_TTL: Duration = Duration::from_secs(20);
/// Apps kept at most; ids come from callers.
const CACHE_SIZE: usize = 4096;

#[derive(Debug)]
struct Entry {
    namespace: Box<str>,
    addresses: Vec<Arc<str>>,
    until: Instant,
    next: AtomicUsize,
}

/// Finds addresses of apps.
#[derive(Debug, Default)]
pub struct Addresses {
    resolver: ArcSwapOption<Holder>,
    cache: Mutex<HashMap<Box<str>, Vec<Entry>>>,
    /// Where the next answer starts, so that a fresh one does not favour its first address.
    turn: AtomicUsize,
}

#[derive(Debug)]
struct Holder(Arc<dyn NameResolver>);

impl Addresses {
    /// Uses `resolver` from now on.
    pub fn set_resolver(&self, resolver: Option<Arc<dyn NameResolver>>) {
        self.resolver.store(resolver.map(|r| Arc::new(Holder(r))));
        self.cache.lock().clear();
    }

    /// The next address of an app, and how many it has.
    ///
    /// # Errors
    /// What the resolver says; without one every app is unknown.
    pub async fn pick(&self, app_id: &str, namespace: &str) -> Result<(Arc<str>, usize)> {
        if let Some(hit) = self.cached(app_id, namespace) {
            return Ok(hit);
        }
        let resolver = self.resolver.load_full().ok_or_else(|| Error::not_found("name resolver not initialized"))?;
        let addresses = resolver.0.resolve(Target { app_id, namespace }).await?;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let Some(address) = addresses.get(turn % addresses.len().max(1)).cloned() else {
            return Err(Error::not_found(format!("no address found for app {app_id}")));
        };
        let count = addresses.len();
        self.store(app_id, namespace, addresses, turn.wrapping_add(1));
        Ok((address, count))
    }

    /// Forgets what is cached of an app, because an address failed.
    pub fn forget(&self, app_id: &str, namespace: &str) {
        let mut cache = self.cache.lock();
        if let Some(entries) = cache.get_mut(app_id) {
            entries.retain(|e| *e.namespace != *namespace);
            if entries.is_empty() {
                cache.remove(app_id);
            }
        }
    }

    fn cached(&self, app_id: &str, namespace: &str) -> Option<(Arc<str>, usize)> {
        let cache = self.cache.lock();
        let entry = cache.get(app_id)?.iter().find(|e| *e.namespace == *namespace)?;
        if entry.until <= Instant::now() {
            return None;
        }
        let turn = entry.next.fetch_add(1, Ordering::Relaxed);
        Some((entry.addresses.get(turn % entry.addresses.len())?.clone(), entry.addresses.len()))
    }

    fn store(&self, app_id: &str, namespace: &str, addresses: Vec<Arc<str>>, next: usize) {
        let now = Instant::now();
        let mut cache = self.cache.lock();
        if cache.len() >= CACHE_SIZE {
            cache.retain(|_, entries| {
                entries.retain(|e| e.until > now);
                !entries.is_empty()
            });
            // All of it fresh: better to resolve again than to grow.
            if cache.len() >= CACHE_SIZE {
                cache.clear();
            }
        }
        let entries = cache.entry(app_id.into()).or_default();
        entries.retain(|e| *e.namespace != *namespace && e.until > now);
        entries.push(Entry { namespace: namespace.into(), addresses, until: now + CACHE_TTL, next: next.into() });
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use mecha_components_api::{CancellationToken, Component, Instance};

    use super::*;

    #[derive(Debug, Default)]
    struct Fake {
        asked: AtomicUsize,
    }

    #[async_trait]
    impl Component for Fake {}

    #[async_trait]
    impl NameResolver for Fake {
        async fn resolve(&self, target: Target<'_>) -> Result<Vec<Arc<str>>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            match target.app_id {
                "b" => Ok(vec!["h1:1".into(), "h2:1".into()]),
                "empty" => Ok(vec![]),
                _ => Err(Error::not_found("no host found with the given ID")),
            }
        }

        async fn announce(&self, _: Instance, _: Box<dyn FnOnce() + Send>, _: CancellationToken) -> Result<()> {
            Ok(())
        }
    }

    fn addresses() -> (Arc<Fake>, Addresses) {
        let fake = Arc::new(Fake::default());
        let addresses = Addresses::default();
        addresses.set_resolver(Some(fake.clone()));
        (fake, addresses)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_serves_for_its_time_and_addresses_take_turns() {
        let (fake, a) = addresses();
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(a.pick("b", "default").await.unwrap().0);
        }
        assert_eq!(seen.iter().filter(|s| ***s == *"h1:1").count(), 2);
        assert_eq!(fake.asked.load(Ordering::Relaxed), 1);
        tokio::time::advance(CACHE_TTL).await;
        a.pick("b", "default").await.unwrap();
        assert_eq!(fake.asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_failed_address_is_asked_for_again() {
        let (fake, a) = addresses();
        a.pick("b", "default").await.unwrap();
        a.pick("b", "other").await.unwrap();
        a.forget("b", "default");
        a.pick("b", "other").await.unwrap();
        assert_eq!(fake.asked.load(Ordering::Relaxed), 2);
        a.pick("b", "default").await.unwrap();
        assert_eq!(fake.asked.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn unknown_apps_are_not_cached() {
        let (fake, a) = addresses();
        assert!(a.pick("x", "").await.is_err());
        assert!(a.pick("x", "").await.is_err());
        assert!(a.pick("empty", "").await.is_err());
        assert_eq!(fake.asked.load(Ordering::Relaxed), 3);
    }
}
