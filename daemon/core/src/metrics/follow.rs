//! Handles that outlive a change of the settings.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::Metrics;

/// Followers are looked through for ones that are gone once there are this many more.
const SWEEP: usize = 64;

/// A handle, or a group of them, that is looked up again whenever the settings of the metrics
/// change. Reading it takes no lock. The default does nothing.
pub struct Following<T>(Arc<Follower<T>>);

struct Follower<T> {
    now: ArcSwap<T>,
    look_up: Box<dyn Fn(&Metrics) -> T + Send + Sync>,
}

/// Whom a change of the settings concerns.
#[derive(Default)]
pub(super) struct Followers(Mutex<List>);

#[derive(Default)]
struct List {
    all: Vec<Weak<dyn Follow>>,
    sweep_at: usize,
}

trait Follow: Send + Sync {
    fn renew(&self, metrics: &Metrics);
}

impl<T: Send + Sync> Follow for Follower<T> {
    fn renew(&self, metrics: &Metrics) {
        self.now.store(Arc::new((self.look_up)(metrics)));
    }
}

impl<T> Following<T> {
    /// The handle of the moment. Not to be kept.
    pub fn get(&self) -> impl Deref<Target = Arc<T>> {
        self.0.now.load()
    }
}

impl<T> Clone for Following<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Default> Default for Following<T> {
    fn default() -> Self {
        Self(Arc::new(Follower { now: ArcSwap::default(), look_up: Box::new(|_| T::default()) }))
    }
}

impl<T: fmt::Debug> fmt::Debug for Following<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Following").field(&*self.0.now.load()).finish()
    }
}

impl fmt::Debug for Followers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Followers").field(&self.0.lock().all.len()).finish()
    }
}

impl Followers {
    /// Runs `change`, then lets everybody look up anew. Nobody joins meanwhile.
    pub(super) fn renew(&self, metrics: &Metrics, change: impl FnOnce()) {
        let mut list = self.0.lock();
        change();
        list.all.retain(|follower| follower.upgrade().inspect(|f| f.renew(metrics)).is_some());
    }

    fn join<T: Send + Sync + 'static>(
        &self,
        metrics: &Metrics,
        look_up: Box<dyn Fn(&Metrics) -> T + Send + Sync>,
    ) -> Following<T> {
        // Under the lock, so that no change of the settings comes in between.
        let mut list = self.0.lock();
        let follower = Arc::new(Follower { now: ArcSwap::from_pointee(look_up(metrics)), look_up });
        if list.all.len() >= list.sweep_at {
            list.all.retain(|follower| follower.strong_count() > 0);
            list.sweep_at = list.all.len() * 2 + SWEEP;
        }
        let joined: Weak<Follower<T>> = Arc::downgrade(&follower);
        list.all.push(joined);
        Following(follower)
    }
}

impl Metrics {
    /// Looks a handle up, now and after each change of the settings: for whoever keeps one. A
    /// plain handle goes on with the series that it was made for.
    pub fn follow<T: Send + Sync + 'static>(
        &self,
        look_up: impl Fn(&Metrics) -> T + Send + Sync + 'static,
    ) -> Following<T> {
        self.followers.join(self, Box::new(look_up))
    }

    #[cfg(test)]
    pub(super) fn followed(&self) -> usize {
        self.followers.0.lock().all.len()
    }
}
