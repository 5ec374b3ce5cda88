//! Whether a program is ready: when everything that announced itself has happened.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

/// What is still being waited for. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    waiting: Arc<Mutex<BTreeSet<&'static str>>>,
}

/// Something that has to happen first. Dropping it without [`Gate::open`] leaves the program unready.
#[derive(Debug)]
#[must_use = "the program stays unready until it is opened"]
pub struct Gate {
    readiness: Readiness,
    name: &'static str,
}

impl Readiness {
    /// Announces something that has to happen before the program is ready.
    pub fn wait_for(&self, name: &'static str) -> Gate {
        self.waiting.lock().insert(name);
        Gate { readiness: self.clone(), name }
    }

    /// What has not happened yet; ready when empty.
    #[must_use]
    pub fn waiting(&self) -> Vec<&'static str> {
        self.waiting.lock().iter().copied().collect()
    }
}

impl Gate {
    /// It has happened.
    pub fn open(self) {
        self.readiness.waiting.lock().remove(self.name);
    }
}
