//! Documents of an environment in a folder that sidecars of this machine follow.
//!
//! One folder per environment below `~/.mecha/environments`: `resources` with the documents, `secrets.json`
//! with what they refer to, `state.json` with what is bound. Files are replaced whole, new ones before old
//! ones go, so a sidecar that looks at any moment finds documents that work.

use crate::error::{CliError, Result};
use crate::home::Home;
use base64::Engine as _;
use mecha_decide::{Memory, World};
use mecha_resources::kinds::{CapabilityBindingSpec, Documents, Environment};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Name of the secret store that stands in for the cluster's.
const SECRET_STORE: &str = "mecha-environment";

/// The folder of one environment.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
    /// Held while a `mecha dev` writes here.
    _lock: Option<fs::File>,
}

impl Folder {
    /// Where documents of the environment called `name` lie, whether or not somebody writes them now.
    pub(crate) fn resources_of(home: &Home, name: &str) -> Result<PathBuf> {
        let wrong = name.is_empty() || name.starts_with('.') || name.contains('/');
        if wrong {
            return Err(CliError::usage("environment", format!("{name:?} is no name of an environment")));
        }
        let path = home.environments().join(name).join("resources");
        create(&path)?;
        Ok(path)
    }

    /// Takes the folder of an environment to write in it.
    pub(crate) fn take(home: &Home, environment: &Environment) -> Result<Self> {
        let root = home.environments().join(environment.name());
        create(&root.join("resources"))?;
        let path = root.join("lock");
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(|error| unusable(&path, &error))?;
        if file.try_lock().is_err() {
            let message = format!("another mecha dev feeds the environment {}", environment.name());
            return Err(CliError::new("environment-taken", message).hint("stop it first"));
        }
        Ok(Self { root, _lock: Some(file) })
    }

    /// Where the documents are.
    pub(crate) fn resources(&self) -> PathBuf {
        self.root.join("resources")
    }

    /// What was bound when somebody last wrote here.
    pub(crate) fn memory(&self) -> Result<Memory> {
        let path = self.root.join("state.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                CliError::new("environment-state", format!("{} cannot be read: {error}", path.display()))
                    .hint("remove it to decide afresh; nothing else is lost")
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Memory::default()),
            Err(error) => Err(unusable(&path, &error)),
        }
    }

    /// Writes what is bound now.
    pub(crate) fn remember(&self, memory: &Memory) -> Result<()> {
        let text = serde_json::to_vec_pretty(memory)
            .map_err(|error| CliError::new("environment-state", format!("cannot be written: {error}")))?;
        replace(&self.root.join("state.json"), &text).map(|_| ())
    }

    /// Makes the documents those of `binding`, and those that people wrote beside it. Returns the names of the
    /// files that changed.
    pub(crate) fn deliver(
        &self,
        binding: &CapabilityBindingSpec,
        documents: &Documents,
        world: &World,
    ) -> Result<Vec<String>> {
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut secrets: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for entry in &binding.entries {
            let mut document: Value = serde_json::from_str(&entry.document)
                .map_err(|error| CliError::new("document", format!("{}: {error}", entry.claim)))?;
            // The namespace is that of a cluster; on this machine there is none.
            if let Some(metadata) = document["metadata"].as_object_mut() {
                metadata.remove("namespace");
            }
            if document.get("auth").is_some() {
                document["auth"] = json!({"secretStore": SECRET_STORE});
                resolve(&document, &entry.backend, documents, world, &mut secrets)?;
            }
            files.insert(format!("{}.yaml", entry.claim), pretty(&document)?);
        }
        for other in documents.others.iter().filter(|other| other.value.api_version.starts_with("dapr.io/")) {
            let document = other.value.document.expose();
            let name = document["metadata"]["name"].as_str().unwrap_or_default();
            if name.is_empty() || name.contains('/') {
                continue;
            }
            files.insert(format!("own-{}-{name}.yaml", other.value.kind.to_lowercase()), pretty(document)?);
        }
        if !secrets.is_empty() {
            // Old ones stay until the documents that name them are gone.
            let path = self.root.join("secrets.json");
            let mut both = before(&path);
            both.extend(secrets.iter().map(|(name, keys)| (name.clone(), json!(keys))));
            replace(&path, &pretty(&Value::Object(both))?)?;
            let store = json!({
                "apiVersion": "dapr.io/v1alpha1",
                "kind": "Component",
                "metadata": {"name": SECRET_STORE},
                "spec": {"type": "secretstores.local.file", "version": "v1", "metadata": [
                    {"name": "secretsFile", "value": path.to_string_lossy()},
                    {"name": "multiValued", "value": "true"},
                ]},
            });
            files.insert(format!("{SECRET_STORE}.yaml"), pretty(&store)?);
        }
        let folder = self.resources();
        let mut changed = Vec::new();
        for (name, text) in &files {
            if replace(&folder.join(name), text)? {
                changed.push(name.clone());
            }
        }
        let entries = fs::read_dir(&folder).map_err(|error| unusable(&folder, &error))?;
        for entry in entries.filter_map(|entry| entry.ok()) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".yaml") && !files.contains_key(&name) {
                fs::remove_file(entry.path()).map_err(|error| unusable(&entry.path(), &error))?;
                changed.push(name);
            }
        }
        Ok(changed)
    }
}

/// Reads what a document refers to from the Secret of its backend, which lies beside the kinds.
fn resolve(
    document: &Value,
    backend: &str,
    documents: &Documents,
    world: &World,
    secrets: &mut BTreeMap<String, BTreeMap<String, String>>,
) -> Result<()> {
    let source = world.backend(backend).and_then(|b| b.spec.source.secret_ref.as_ref());
    let Some(source) = source else {
        let message = format!("CapabilityBackend {backend} refers to keys of a Secret, and its source names none here");
        return Err(CliError::new("secret", message).hint("on a laptop only source.secretRef is followed"));
    };
    let keys: BTreeSet<(&str, &str)> = document["spec"]["metadata"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|item| Some((item["secretKeyRef"]["name"].as_str()?, item["secretKeyRef"]["key"].as_str()?)))
        .collect();
    let found = documents.others.iter().map(|other| &other.value).find(|other| {
        let metadata = &other.document.expose()["metadata"];
        let namespace = metadata["namespace"].as_str().unwrap_or_default();
        let fits = source.namespace.is_empty() || namespace.is_empty() || namespace == source.namespace;
        other.kind == "Secret" && metadata["name"] == source.name.as_str() && fits
    });
    let Some(secret) = found else {
        let message = format!("Secret {} of CapabilityBackend {backend} is not in the folder", source.name);
        return Err(CliError::new("secret", message)
            .hint("put a Secret document there, or use a backend with source: {none: {}}"));
    };
    for (name, key) in keys {
        let document = secret.document.expose();
        let plain = document["stringData"][key].as_str().map(str::to_owned);
        let coded = document["data"][key].as_str();
        let decoded = coded.and_then(|text| base64::engine::general_purpose::STANDARD.decode(text).ok());
        let value = plain.or_else(|| String::from_utf8(decoded?).ok());
        let Some(value) = value else {
            let message = format!("Secret {} of CapabilityBackend {backend} has no readable key {key}", source.name);
            return Err(CliError::new("secret", message));
        };
        secrets.entry(name.to_owned()).or_default().insert(key.to_owned(), value);
    }
    Ok(())
}

fn before(path: &Path) -> Map<String, Value> {
    let text = fs::read(path).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

fn pretty(value: &Value) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| CliError::new("document", error))?;
    text.push(b'\n');
    Ok(text)
}

/// Puts `text` in the place of a file, whole or not at all. Says whether that changed anything.
fn replace(path: &Path, text: &[u8]) -> Result<bool> {
    if fs::read(path).is_ok_and(|old| old == text) {
        return Ok(false);
    }
    let draft = path.with_extension("new");
    let write = || {
        // A draft of somebody who was killed has our mode already.
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    write().map_err(|error| unusable(path, &error))?;
    Ok(true)
}

fn create(path: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, error: &std::io::Error) -> CliError {
    CliError::new("environment-folder", format!("{} cannot be used: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mecha_decide::{Assume, Consent};
    use std::os::unix::fs::PermissionsExt as _;

    const SHOP: &str = r#"
apiVersion: mecha.dev/v1alpha1
kind: EnvironmentClass
metadata: {name: dev}
spec:
  type: dev
  capabilities: [{kind: state, backendSelector: {matchLabels: {engine: ENGINE}}, swap: {emptyOk: true}}]
---
apiVersion: mecha.dev/v1alpha1
kind: Environment
metadata: {name: shop}
spec: {className: dev}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: pg, labels: {engine: pg}}
spec:
  kind: state
  component: {type: state.postgresql, version: v2, metadata: [{name: connectionString, valueFrom: {key: uri}}]}
  source: {secretRef: {name: pg}}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: memory, labels: {engine: memory}}
spec: {kind: state, component: {type: state.in-memory}, source: {none: {}}}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityClaim
metadata: {name: orders, namespace: shop}
spec: {kind: state, scopes: [orders-api]}
---
apiVersion: v1
kind: Secret
metadata: {name: pg}
data: {uri: aHVudGVyMg==}
---
apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: {name: own}
spec: {policies: {}}
"#;

    fn turn(folder: &Folder, text: &str, memory: &Memory) -> Result<(Vec<String>, Memory)> {
        let mut documents = Documents::default();
        documents.read_text("shop.yaml", text);
        assert!(documents.diagnostics.is_empty(), "{:#?}", documents.diagnostics);
        let world = World::from_documents(&documents, Assume::Documents);
        let evaluation = world.evaluate(memory, &Consent::default(), 0);
        let mut changed = folder.deliver(&evaluation.bindings[0], &documents, &world)?;
        changed.sort();
        Ok((changed, evaluation.memory))
    }

    fn folder(home: &tempfile::TempDir) -> (Home, Folder) {
        let home = Home::at(home.path());
        let mut documents = Documents::default();
        documents.read_text("shop.yaml", SHOP);
        let folder = Folder::take(&home, &documents.environments[0].value).unwrap();
        (home, folder)
    }

    #[test]
    fn a_swap_replaces_one_file_and_secrets_stay_out_of_documents() {
        let home = tempfile::tempdir().unwrap();
        let (_, folder) = folder(&home);
        let (changed, memory) = turn(&folder, &SHOP.replace("ENGINE", "pg"), &Memory::default()).unwrap();
        assert_eq!(changed, ["mecha-environment.yaml", "orders.yaml", "own-resiliency-own.yaml"]);
        let text = fs::read_to_string(folder.resources().join("orders.yaml")).unwrap();
        assert!(
            text.contains("mecha-environment") && !text.contains("hunter2") && !text.contains("namespace"),
            "{text}"
        );
        let secrets = folder.root.join("secrets.json");
        assert!(fs::read_to_string(&secrets).unwrap().contains("hunter2"));
        assert_eq!(fs::metadata(&secrets).unwrap().permissions().mode() & 0o777, 0o600);
        let loaded = mecha_resources::load_dir(&folder.resources()).unwrap();
        assert!(loaded.diagnostics.is_empty(), "{:#?}", loaded.diagnostics);
        assert_eq!((loaded.components.len(), loaded.resiliencies.len()), (2, 1));

        let again = turn(&folder, &SHOP.replace("ENGINE", "pg"), &memory).unwrap();
        assert_eq!(again.0, [""; 0], "a second look writes nothing");
        let (changed, _) = turn(&folder, &SHOP.replace("ENGINE", "memory"), &memory).unwrap();
        assert_eq!(changed, ["mecha-environment.yaml", "orders.yaml"]);
    }

    #[test]
    fn a_missing_secret_is_named_and_nothing_changes() {
        let home = tempfile::tempdir().unwrap();
        let (_, folder) = folder(&home);
        let text = SHOP.replace("ENGINE", "pg").replace("metadata: {name: pg}\ndata", "metadata: {name: other}\ndata");
        let error = turn(&folder, &text, &Memory::default()).unwrap_err().to_string();
        assert!(error.contains("Secret pg of CapabilityBackend pg is not in the folder"), "{error}");
        assert_eq!(fs::read_dir(folder.resources()).unwrap().count(), 0);
    }

    #[test]
    fn one_writer_at_a_time_and_what_is_bound_is_remembered() {
        let home = tempfile::tempdir().unwrap();
        let (home, first) = folder(&home);
        let mut documents = Documents::default();
        documents.read_text("shop.yaml", SHOP);
        let error = Folder::take(&home, &documents.environments[0].value).unwrap_err();
        assert!(error.to_string().contains("another mecha dev feeds the environment shop"), "{error}");
        let (_, memory) = turn(&first, &SHOP.replace("ENGINE", "pg"), &Memory::default()).unwrap();
        first.remember(&memory).unwrap();
        drop(first);
        let next = Folder::take(&home, &documents.environments[0].value).unwrap();
        assert_eq!(next.memory().unwrap(), memory);
        assert!(Folder::resources_of(&home, "../x").is_err());
    }
}
