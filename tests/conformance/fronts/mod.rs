//! The ways a component is reached: as it is, through faults, through a real daemon.
//!
//! A front over HTTP or gRPC is a client that implements the component's trait and a daemon that
//! was started with the entry's recipe. What its API cannot say is named in [`limits`].

mod broker;
mod hooks;
pub(crate) mod limits;
mod output;
mod secrets;
mod state;
mod streams;
mod wire;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use mecha_components_api::{OutputBinding, SecretStore, StateStore};
use mecha_testkit::{Faults, FaultyState, StateProfile};

pub(crate) use self::broker::Members;
use self::output::OutputClient;
use self::secrets::SecretClient;
use self::state::StateClient;
pub(crate) use self::wire::Wire;

use crate::instances;
use crate::manifest::Recipe;

/// One way to reach a state store.
#[async_trait]
pub(crate) trait Front: Send + Sync {
    /// Its name in the manifest and in the names of tests.
    fn name(&self) -> &'static str;

    /// What is left of the declaration when the store is reached this way.
    fn profile(&self, declared: StateProfile) -> StateProfile {
        declared
    }

    /// What can be seen of a store, with what cannot be seen this way taken from `declared`.
    fn seen(&self, observed: StateProfile, _declared: &StateProfile) -> StateProfile {
        observed
    }

    /// The daemon's front it goes through, if it does.
    fn wire(&self) -> Option<Wire> {
        None
    }

    /// A store made by `recipe`, with `dir` for its files.
    async fn state(&self, recipe: &Recipe, dir: &Path) -> Result<Arc<dyn StateStore>, String>;
}

/// Every front there is.
pub(crate) fn all() -> Vec<Arc<dyn Front>> {
    let mut all: Vec<Arc<dyn Front>> = vec![Arc::new(Direct), Arc::new(Dropped), Arc::new(Slow)];
    all.extend(Wire::ALL.map(|wire| Arc::new(Served(wire)) as Arc<dyn Front>));
    all
}

/// The trait itself.
struct Direct;

/// Before every call another one is dropped at one of its awaits.
struct Dropped;

/// Every call comes late, so that callers overlap.
struct Slow;

/// The state API of a daemon.
struct Served(Wire);

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

#[async_trait]
impl Front for Served {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    /// Several keys can be read at once from every store.
    fn profile(&self, declared: StateProfile) -> StateProfile {
        StateProfile { bulk: true, ..declared }
    }

    fn seen(&self, observed: StateProfile, declared: &StateProfile) -> StateProfile {
        StateProfile { list: declared.list, query: declared.query, ..observed }
    }

    fn wire(&self) -> Option<Wire> {
        Some(self.0)
    }

    async fn state(&self, recipe: &Recipe, dir: &Path) -> Result<Arc<dyn StateStore>, String> {
        Ok(Arc::new(StateClient::start(self.0, recipe, dir).await?))
    }
}

/// The secrets API of a daemon with `env` in its environment.
pub(crate) async fn secrets(
    wire: Wire,
    recipe: &Recipe,
    dir: &Path,
    env: &[(String, String)],
) -> Result<Arc<dyn SecretStore>, String> {
    Ok(Arc::new(SecretClient::start(wire, recipe, dir, env).await?))
}

/// The bindings API of a daemon.
pub(crate) async fn output(wire: Wire, recipe: &Recipe, dir: &Path) -> Result<Arc<dyn OutputBinding>, String> {
    Ok(Arc::new(OutputClient::start(wire, recipe, dir).await?))
}
