//! Documents of files put into a cluster by server-side apply.

use super::failed;
use crate::error::{CliError, Result};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::discovery::{self, Scope};
use kube::{Api, Client};
use mecha_apiserver::{CALL_LIMIT, Failure, FailureKind, call};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Owner of the fields that files name.
pub(crate) const MANAGER: &str = "mecha";
/// Time between two looks at a namespace that is not there yet.
const LOOK: Duration = Duration::from_millis(250);

/// What became of one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Change {
    /// It was not there.
    Created,
    /// It said something else.
    Configured,
    /// It was so already.
    Unchanged,
}

impl Change {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
        }
    }
}

/// One document of a file.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) document: Value,
    /// Where it stands.
    pub(crate) origin: String,
}

impl Wanted {
    /// `kind namespace/name`.
    pub(crate) fn title(&self) -> String {
        match self.namespace.is_empty() {
            true => format!("{} {}", self.kind, self.name),
            false => format!("{} {}/{}", self.kind, self.namespace, self.name),
        }
    }
}

/// How documents are put.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    pub(crate) dry_run: bool,
    pub(crate) force: bool,
    /// When waiting for a namespace ends.
    pub(crate) until: Instant,
}

/// Puts documents, with what was learnt about their kinds.
pub(crate) struct Writer {
    client: Client,
    /// Of documents that name none.
    namespace: String,
    kinds: BTreeMap<(String, String), (ApiResource, bool)>,
}

impl Writer {
    pub(crate) fn new(client: Client, namespace: String) -> Self {
        Self { client, namespace, kinds: BTreeMap::new() }
    }

    async fn kind(&mut self, wanted: &Wanted) -> Result<(ApiResource, bool)> {
        let key = (wanted.api_version.clone(), wanted.kind.clone());
        if let Some(known) = self.kinds.get(&key) {
            return Ok(known.clone());
        }
        let (group, version) = wanted.api_version.split_once('/').unwrap_or(("", &wanted.api_version));
        let gvk = GroupVersionKind::gvk(group, version, &wanted.kind);
        let found = tokio::time::timeout(CALL_LIMIT, discovery::pinned_kind(&self.client, &gvk)).await;
        let what = format!("{}: looking for the kind {} of {}", wanted.origin, wanted.kind, wanted.api_version);
        let (resource, capabilities) = match found {
            Ok(Ok(found)) => found,
            Ok(Err(kube::Error::Discovery(_))) => return Err(unknown(&what)),
            Ok(Err(error)) => {
                let failure = Failure::from(error);
                return Err(match failure.kind {
                    FailureKind::NotFound => unknown(&what),
                    _ => failed(&what, &failure),
                });
            }
            Err(_) => {
                return Err(CliError::new("cluster-unavailable", format!("{what}: no answer within {CALL_LIMIT:?}")));
            }
        };
        let known = (resource, capabilities.scope == Scope::Namespaced);
        self.kinds.insert(key, known.clone());
        Ok(known)
    }

    /// The object as it is stored, if it is.
    pub(crate) async fn get(&mut self, wanted: &Wanted) -> Result<Option<DynamicObject>> {
        let api = self.api(wanted).await?;
        call(api.get_opt(&wanted.name))
            .await
            .map_err(|failure| failed(&format!("reading {}", wanted.title()), &failure))
    }

    async fn api(&mut self, wanted: &Wanted) -> Result<Api<DynamicObject>> {
        let (resource, namespaced) = self.kind(wanted).await?;
        let namespace = if wanted.namespace.is_empty() { &self.namespace } else { &wanted.namespace };
        Ok(match namespaced {
            true => Api::namespaced_with(self.client.clone(), namespace, &resource),
            false => Api::all_with(self.client.clone(), &resource),
        })
    }

    /// Puts a document. The same document a second time changes nothing.
    pub(crate) async fn put(&mut self, wanted: &Wanted, how: How) -> Result<Change> {
        let api = self.api(wanted).await?;
        let what = format!("{}: applying {}", wanted.origin, wanted.title());
        let before = call(api.get_opt(&wanted.name)).await.map_err(|failure| failed(&what, &failure))?;
        let mut params = PatchParams::apply(MANAGER);
        params.force = how.force;
        params.dry_run = how.dry_run;
        let after = loop {
            match call(api.patch(&wanted.name, &params, &Patch::Apply(&wanted.document))).await {
                Ok(after) => break after,
                // The hub makes the namespace of an environment a moment after the environment.
                Err(failure) if lacks_namespace(&failure) && Instant::now() < how.until && !how.dry_run => {
                    tokio::time::sleep(LOOK).await;
                }
                Err(failure) if lacks_namespace(&failure) => {
                    let hint = "the control part makes the namespaces of environments: mecha wait environment/NAME, \
                                then apply again";
                    return Err(failed(&what, &failure).hint(hint));
                }
                Err(failure) => return Err(failed(&what, &failure)),
            }
        };
        Ok(match before {
            None => Change::Created,
            Some(before) if said(&before) == said(&after) => Change::Unchanged,
            Some(_) => Change::Configured,
        })
    }
}

fn unknown(what: &str) -> CliError {
    CliError::new("cluster-kinds", format!("{what}: the cluster does not know it"))
        .hint("install what defines it; the kinds of mecha.dev: kubectl apply --server-side -f deploy/crds")
}

fn lacks_namespace(failure: &Failure) -> bool {
    failure.kind == FailureKind::NotFound && failure.to_string().starts_with("namespaces ")
}

/// What people say in an object.
fn said(object: &DynamicObject) -> Value {
    let mut data = object.data.clone();
    if let Some(members) = data.as_object_mut() {
        members.remove("status");
    }
    serde_json::json!({
        "labels": object.metadata.labels.clone().unwrap_or_default(),
        "annotations": object.metadata.annotations.clone().unwrap_or_default(),
        "data": data,
    })
}
