use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::canonical::{Digest, digest_of};

/// Facts by name, in the order of names, with a digest that is kept up with each change.
#[derive(Clone, Debug, Default)]
pub struct Inventory<T> {
    entries: BTreeMap<String, (T, Digest)>,
    whole: OnceLock<Digest>,
}

impl<T: Serialize> Inventory<T> {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self { entries: BTreeMap::new(), whole: OnceLock::new() }
    }

    /// Puts `value` in, in the place of what had this name.
    pub fn insert(&mut self, name: impl Into<String>, value: T) {
        let name = name.into();
        let digest = digest_of(&(&name, &value));
        self.entries.insert(name, (value, digest));
        self.whole.take();
    }

    /// Takes out what has this name.
    pub fn remove(&mut self, name: &str) -> Option<T> {
        self.whole.take();
        self.entries.remove(name).map(|(value, _)| value)
    }

    /// What has this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&T> {
        self.entries.get(name).map(|(value, _)| value)
    }

    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.entries.iter().map(|(name, (value, _))| (name.as_str(), value))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Digest of everything in it.
    #[must_use]
    pub fn digest(&self) -> Digest {
        *self.whole.get_or_init(|| Digest::over(self.entries.values().map(|(_, digest)| digest)))
    }
}

impl<T: PartialEq> PartialEq for Inventory<T> {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl<T: Serialize> FromIterator<(String, T)> for Inventory<T> {
    fn from_iter<I: IntoIterator<Item = (String, T)>>(items: I) -> Self {
        let mut inventory = Self::new();
        for (name, value) in items {
            inventory.insert(name, value);
        }
        inventory
    }
}

impl<T: Serialize> Serialize for Inventory<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, T: Serialize + DeserializeOwned> Deserialize<'de> for Inventory<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Digests are made anew: one that came from outside proves nothing.
        Ok(BTreeMap::<String, T>::deserialize(deserializer)?.into_iter().collect())
    }
}
