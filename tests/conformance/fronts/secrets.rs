//! A [`SecretStore`] that is the secrets API of a sidecar.

use std::collections::BTreeMap;
use std::path::Path;

use async_trait::async_trait;
use mecha_components_api::{Component, Metadata, Result, Secret, SecretCaps, SecretMap, SecretStore};

use super::wire::{Around, Daemon, TARGET, Wire, error};
use crate::manifest::Recipe;

#[derive(Debug)]
pub(super) struct SecretClient {
    daemon: Daemon,
    caps: SecretCaps,
}

impl SecretClient {
    pub(super) async fn start(
        wire: Wire,
        recipe: &Recipe,
        dir: &Path,
        env: &[(String, String)],
    ) -> std::result::Result<Self, String> {
        let around = Around { app_id: "conformance", env, ..Around::default() };
        let daemon = Daemon::start(wire, recipe, dir, around).await;
        let mut caps = SecretCaps::default();
        for name in daemon.capabilities().await? {
            match name.as_str() {
                "MULTIPLE_KEY_VALUES_PER_SECRET" => caps.multiple_keys = true,
                other => return Err(format!("the metadata API lists the unknown capability {other}")),
            }
        }
        Ok(Self { daemon, caps })
    }
}

fn secret(values: BTreeMap<String, String>) -> SecretMap {
    values.into_iter().map(|(key, value)| (key, Secret::new(value))).collect()
}

#[async_trait]
impl Component for SecretClient {
    async fn close(&self) {
        self.daemon.end();
    }
}

#[async_trait]
impl SecretStore for SecretClient {
    fn caps(&self) -> SecretCaps {
        self.caps
    }

    async fn get(&self, name: &str, _: &Metadata) -> Result<SecretMap> {
        self.daemon.api.secret(TARGET, name).await.map(secret).map_err(|e| error(&e))
    }

    async fn list(&self, _: &Metadata) -> Result<BTreeMap<String, SecretMap>> {
        let all = self.daemon.api.secrets(TARGET).await.map_err(|e| error(&e))?;
        Ok(all.into_iter().map(|(name, values)| (name, secret(values))).collect())
    }
}
