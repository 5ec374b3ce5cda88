//! The ways a state store is reached: as it is, through faults, later through a real daemon.
//!
//! A front over HTTP or gRPC is a client that implements [`StateStore`] and a daemon that was
//! started with the entry's recipe; it goes into [`all`], and its name into the manifest.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use mecha_components_api::StateStore;
use mecha_testkit::{Faults, FaultyState, StateProfile};

use crate::instances;
use crate::manifest::Recipe;

/// One way to reach a store.
#[async_trait]
pub(crate) trait Front: Send + Sync {
    /// Its name in the manifest and in the names of tests.
    fn name(&self) -> &'static str;

    /// What is left of the declaration when the store is reached this way.
    fn profile(&self, declared: StateProfile) -> StateProfile {
        declared
    }

    /// A store made by `recipe`, with `dir` for its files.
    async fn state(&self, recipe: &Recipe, dir: &Path) -> Result<Arc<dyn StateStore>, String>;
}

/// Every front there is.
pub(crate) fn all() -> Vec<Arc<dyn Front>> {
    vec![Arc::new(Direct), Arc::new(Dropped), Arc::new(Slow)]
}

/// The trait itself.
struct Direct;

/// Before every call another one is dropped at one of its awaits.
struct Dropped;

/// Every call comes late, so that callers overlap.
struct Slow;

#[async_trait]
impl Front for Direct {
    fn name(&self) -> &'static str {
        "trait"
    }

    async fn state(&self, recipe: &Recipe, dir: &Path) -> Result<Arc<dyn StateStore>, String> {
        instances::state(recipe, dir).await
    }
}

fn through_faults(declared: StateProfile) -> StateProfile {
    StateProfile { query: false, ..declared }
}

#[async_trait]
impl Front for Dropped {
    fn name(&self) -> &'static str {
        "dropped"
    }

    fn profile(&self, declared: StateProfile) -> StateProfile {
        through_faults(declared)
    }

    async fn state(&self, recipe: &Recipe, dir: &Path) -> Result<Arc<dyn StateStore>, String> {
        let faults = Arc::new(Faults::default());
        faults.drop_calls(true);
        Ok(Arc::new(FaultyState::new(instances::state(recipe, dir).await?, faults)))
    }
}

#[async_trait]
impl Front for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    fn profile(&self, declared: StateProfile) -> StateProfile {
        through_faults(declared)
    }

    async fn state(&self, recipe: &Recipe, dir: &Path) -> Result<Arc<dyn StateStore>, String> {
        let faults = Arc::new(Faults::default());
        faults.slow(Duration::from_millis(2));
        Ok(Arc::new(FaultyState::new(instances::state(recipe, dir).await?, faults)))
    }
}
