use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;
use zeroize::Zeroizing;

use crate::{Component, Metadata, Result};

/// A secret value: wiped on drop, never shown by `Debug`, without `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes ownership of the text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text. Keep the borrow short and never log it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// The parts of one secret by key.
pub type SecretMap = BTreeMap<String, Secret>;

/// What a secret store declares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SecretCaps {
    /// `MULTIPLE_KEY_VALUES_PER_SECRET`.
    pub multiple_keys: bool,
}

/// A store of secrets.
#[async_trait]
pub trait SecretStore: Component {
    /// What the store can do; constant over its life.
    fn caps(&self) -> SecretCaps;

    /// One secret. An unknown name is `NotFound`.
    async fn get(&self, name: &str, metadata: &Metadata) -> Result<SecretMap>;

    /// All secrets this store may show, by name.
    async fn list(&self, metadata: &Metadata) -> Result<BTreeMap<String, SecretMap>>;
}
