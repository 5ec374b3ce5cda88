//! What a document comes to: its metadata with everything filled in, and a mark of its content.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::LazyLock;

use mecha_components_api::Metadata;
use mecha_resources::{Component, ResolveCx, SecretQuery, ValueSource, resolve};

use super::{Failure, Loader};
use crate::cx::{Cx, Front};
use crate::ops::Operation;
use crate::store::Found;

/// Marks are compared within this process only; nobody outside can compute one.
static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The secrets of a document by store, name and key.
type Secrets = HashMap<(String, String, String), String>;

/// The values that a document draws from elsewhere, read once.
pub(super) struct Drawn {
    secrets: Secrets,
    /// Why a secret could not be read. The error lines of the first reading.
    pub(super) unread: Vec<String>,
    /// Changes with whatever makes another instance: type, version, values, secrets.
    pub(super) content: u64,
}

impl Loader {
    /// Reads what the document refers to.
    pub(super) async fn draw(&self, component: &Component) -> Drawn {
        let mut secrets = Secrets::new();
        let mut unread = Vec::new();
        let cx = Cx::new(Front::Http);
        for query in component.secret_refs(&self.cx.default_secret_store) {
            let SecretQuery { store, name, key } = query;
            let Found::Running(h) = self.core.store.secrets(store) else { continue };
            if self.cx.scoped_secrets && !self.core.secrets.allows(store, name) {
                unread.push(format!("access denied by policy to get \"{name}\" from \"{store}\""));
                continue;
            }
            let none = Metadata::new();
            match h.ops.run(&cx, Operation::Get, true, || h.inner.get(name, &none)).await {
                Ok(found) => {
                    // A store with one value per secret names it like the secret.
                    if let Some(value) = found.get(key).or_else(|| found.get(name)) {
                        secrets.insert((store.into(), name.into(), key.into()), value.expose().to_owned());
                    }
                }
                Err(e) => unread.push(e.to_string()),
            }
        }
        let content = self.content(component, &secrets);
        Drawn { secrets, unread, content }
    }

    /// Templates count as they are written: `{uuid}` is another each time and changes nothing.
    fn content(&self, component: &Component, secrets: &Secrets) -> u64 {
        let store =
            if component.secret_store.is_empty() { &self.cx.default_secret_store } else { &component.secret_store };
        let mut hasher = KEY.build_hasher();
        (&component.kind, &component.version).hash(&mut hasher);
        for item in &component.metadata {
            item.name.hash(&mut hasher);
            match &item.value {
                ValueSource::Plain(text) => text.hash(&mut hasher),
                ValueSource::Secret(r) => {
                    let value = secrets.get(&(store.clone(), r.name.clone(), r.key.clone()));
                    (1, value).hash(&mut hasher);
                }
                ValueSource::Env(variable) => (2, (self.cx.env)(variable)).hash(&mut hasher),
            }
        }
        hasher.finish()
    }

    /// The document's metadata with secrets, variables and templates filled in.
    pub(super) fn metadata(&self, component: &Component, drawn: &Drawn) -> Result<Metadata, Failure> {
        for e in &drawn.unread {
            tracing::error!(target: "dapr.runtime.processor", "Error getting secret: {e}");
        }
        let env_keys = (self.cx.env)("DAPR_ENV_KEYS");
        let me = &self.core.me;
        let secrets = &drawn.secrets;
        let resolved = resolve(
            component,
            &ResolveCx {
                app_id: &me.app_id,
                namespace: &me.namespace,
                pod_name: (!me.pod_name.is_empty()).then_some(me.pod_name.as_ref()),
                env_keys: env_keys.as_deref(),
                default_store: &self.cx.default_secret_store,
                env: &*self.cx.env,
                secrets: &|q| secrets.get(&(q.store.into(), q.name.into(), q.key.into())).cloned(),
            },
        )
        .map_err(|e| Failure::init(component, e, true))?;
        for note in &resolved.notes {
            tracing::warn!(target: "dapr.runtime.processor", "component {}: {note}", component.meta.name);
        }
        Ok(resolved.values.into_iter().collect())
    }
}

/// Whether a document's content may change while its text does not.
pub(super) fn draws(component: &Component, default_store: &str) -> bool {
    component.secret_refs(default_store).next().is_some()
}
