use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::breaker::{Breaker, BreakerSpec};

/// Breakers of one policy, one per key: the methods of an app, the actors of a type.
///
/// At most `capacity` are kept; the one that was unused for longest goes first.
#[derive(Debug)]
pub struct BreakerGroup {
    spec: BreakerSpec,
    capacity: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    breakers: HashMap<Box<str>, Slot>,
    /// Counts look-ups; the order of use.
    clock: u64,
}

#[derive(Debug)]
struct Slot {
    breaker: Arc<Breaker>,
    used: u64,
}

impl BreakerGroup {
    /// Breakers kept per app where a document names no number.
    pub const APP_CAPACITY: usize = 100;
    /// Breakers kept per actor type where a document names no number.
    pub const ACTOR_CAPACITY: usize = 5_000;

    /// No breakers yet.
    #[must_use]
    pub fn new(spec: BreakerSpec, capacity: usize) -> Self {
        Self { spec, capacity: capacity.max(1), inner: Mutex::default() }
    }

    /// Settings of its breakers.
    #[must_use]
    pub fn spec(&self) -> &BreakerSpec {
        &self.spec
    }

    /// Breakers that are kept at most.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// A group with other settings whose breakers go on where those of this one stand.
    #[must_use]
    pub fn with_spec(&self, spec: BreakerSpec, capacity: usize) -> Self {
        let capacity = capacity.max(1);
        let old = self.inner.lock();
        let mut kept: Vec<_> = old.breakers.iter().collect();
        kept.sort_by_key(|(_, slot)| std::cmp::Reverse(slot.used));
        let breakers = kept.into_iter().take(capacity).map(|(key, slot)| {
            let breaker = Arc::new(slot.breaker.with_spec(spec.clone()));
            (key.clone(), Slot { breaker, used: slot.used })
        });
        let inner = Inner { breakers: breakers.collect(), clock: old.clock };
        drop(old);
        Self { spec, capacity, inner: Mutex::new(inner) }
    }

    /// The breaker of `key`, made when there is none.
    #[must_use]
    pub fn get(&self, key: &str, now: Instant) -> Arc<Breaker> {
        let mut inner = self.inner.lock();
        inner.clock += 1;
        let used = inner.clock;
        if let Some(slot) = inner.breakers.get_mut(key) {
            slot.used = used;
            return Arc::clone(&slot.breaker);
        }
        if inner.breakers.len() >= self.capacity {
            // A scan, but only for a key that was not there, and over a bounded number.
            let oldest = inner.breakers.iter().min_by_key(|(_, slot)| slot.used).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                inner.breakers.remove(&oldest);
            }
        }
        let breaker = Arc::new(Breaker::new(self.spec.clone(), now));
        inner.breakers.insert(key.into(), Slot { breaker: Arc::clone(&breaker), used });
        breaker
    }

    /// Breakers kept now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.lock().breakers.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_ones_in_use() {
        let now = Instant::now();
        let group = BreakerGroup::new(BreakerSpec::new("b"), 2);
        let a = group.get("a", now);
        let b = group.get("b", now);
        assert!(Arc::ptr_eq(&a, &group.get("a", now)));
        let _ = group.get("c", now);
        assert_eq!(group.len(), 2);
        assert!(Arc::ptr_eq(&a, &group.get("a", now)));
        assert!(!Arc::ptr_eq(&b, &group.get("b", now)));
    }
}
