//! Volumes of a pod as folders, which follow what they come from.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::{Value, json};

/// Files by their name in the volume.
type Files = BTreeMap<String, Vec<u8>>;

/// The volumes of one pod.
pub(super) struct Volumes {
    client: Client,
    namespace: String,
    pod: Value,
    folder: PathBuf,
    tokens: BTreeMap<String, Token>,
    /// Contents in force.
    written: BTreeMap<String, Files>,
    generation: u64,
}

struct Token {
    text: String,
    renew: Instant,
}

impl Volumes {
    pub(super) fn new(client: Client, namespace: &str, pod: &Value, folder: &Path) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
            pod: pod.clone(),
            folder: folder.join("volumes"),
            tokens: BTreeMap::new(),
            written: BTreeMap::new(),
            generation: 0,
        }
    }

    /// Makes every volume what its source says now.
    ///
    /// # Errors
    /// What is missing; volumes that were there stay as they are.
    pub(super) async fn refresh(&mut self) -> Result<(), String> {
        let volumes = self.pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
        for volume in volumes {
            let name = volume["name"].as_str().unwrap_or_default().to_owned();
            let folder = self.folder.join(&name);
            fs::create_dir_all(&folder).map_err(|e| format!("volume {name}: {e}"))?;
            let files = if let Some(source) = volume.get("configMap") {
                self.config_map(source, source["name"].as_str()).await
            } else if let Some(source) = volume.get("secret") {
                self.secret(source, source["secretName"].as_str()).await
            } else if let Some(source) = volume.get("projected") {
                self.projected(source).await
            } else if volume.get("emptyDir").is_some() {
                continue;
            } else {
                Err(format!("this node has no volumes like {volume}"))
            };
            let files = files.map_err(|e| format!("volume {name}: {e}"))?;
            if self.written.get(&name) != Some(&files) {
                self.generation += 1;
                write(&folder, &files, self.generation).map_err(|e| format!("volume {name}: {e}"))?;
                self.written.insert(name, files);
            }
        }
        Ok(())
    }

    /// One key of a Secret, for a variable.
    pub(super) async fn secret_key(&self, reference: &Value) -> Result<Option<String>, String> {
        let files = self.secret(&json!({"optional": reference["optional"]}), reference["name"].as_str()).await?;
        let key = reference["key"].as_str().unwrap_or_default();
        match files.get(key) {
            Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
            None if reference["optional"] == true => Ok(None),
            None => Err(format!("Secret {} has no key {key}", reference["name"])),
        }
    }

    async fn config_map(&self, source: &Value, name: Option<&str>) -> Result<Files, String> {
        let name = name.unwrap_or_default();
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let Some(found) = api.get_opt(name).await.map_err(|e| e.to_string())? else {
            return absent(source, "ConfigMap", name);
        };
        let texts = found.data.unwrap_or_default().into_iter().map(|(key, text)| (key, text.into_bytes()));
        let bytes = found.binary_data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0));
        Ok(picked(source, texts.chain(bytes).collect()))
    }

    async fn secret(&self, source: &Value, name: Option<&str>) -> Result<Files, String> {
        let name = name.unwrap_or_default();
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let Some(found) = api.get_opt(name).await.map_err(|e| e.to_string())? else {
            return absent(source, "Secret", name);
        };
        Ok(picked(source, found.data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)).collect()))
    }

    async fn projected(&mut self, source: &Value) -> Result<Files, String> {
        let mut files = Files::new();
        for source in source["sources"].as_array().cloned().unwrap_or_default() {
            if let Some(source) = source.get("serviceAccountToken") {
                let path = source["path"].as_str().unwrap_or_default().to_owned();
                files.insert(path, self.token(source).await?.into_bytes());
            } else if let Some(source) = source.get("configMap") {
                files.extend(self.config_map(source, source["name"].as_str()).await?);
            } else if let Some(source) = source.get("secret") {
                files.extend(self.secret(source, source["name"].as_str()).await?);
            } else {
                return Err(format!("this node cannot project {source}"));
            }
        }
        Ok(files)
    }

    /// A token of the pod's account, bound to the pod; a new one when four fifths of its life are over.
    async fn token(&mut self, source: &Value) -> Result<String, String> {
        let key = source.to_string();
        if let Some(token) = self.tokens.get(&key).filter(|token| Instant::now() < token.renew) {
            return Ok(token.text.clone());
        }
        let seconds = source["expirationSeconds"].as_u64().unwrap_or(3600);
        let audiences: Vec<&str> = source["audience"].as_str().into_iter().collect();
        let account = self.pod["spec"]["serviceAccountName"].as_str().unwrap_or("default");
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": {
                "apiVersion": "v1", "kind": "Pod",
                "name": self.pod["metadata"]["name"], "uid": self.pod["metadata"]["uid"],
            }},
        });
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
        let answer: Value = api
            .create_subresource("token", account, &PostParams::default(), &request)
            .await
            .map_err(|e| format!("no token of the service account {account}: {e}"))?;
        let text = answer["status"]["token"].as_str().ok_or("the answer to a TokenRequest has no token")?.to_owned();
        let renew = Instant::now() + Duration::from_secs(seconds * 4 / 5);
        self.tokens.insert(key, Token { text: text.clone(), renew });
        Ok(text)
    }
}

fn absent(source: &Value, kind: &str, name: &str) -> Result<Files, String> {
    if source["optional"] == true { Ok(Files::new()) } else { Err(format!("there is no {kind} {name}")) }
}

/// The keys that `items` asks for, under the names it gives; all of them where there is no such list.
fn picked(source: &Value, all: Files) -> Files {
    let Some(items) = source["items"].as_array() else { return all };
    let pick = |item: &Value| {
        let value = all.get(item["key"].as_str()?)?;
        Some((item["path"].as_str()?.to_owned(), value.clone()))
    };
    items.iter().filter_map(pick).collect()
}

/// Puts the files into a new folder and turns the link `..data` to it, so that readers see all of the old or
/// all of the new, as with the real kubelet.
fn write(folder: &Path, files: &Files, generation: u64) -> std::io::Result<()> {
    let data = format!("..{generation}");
    fs::create_dir(folder.join(&data))?;
    for (name, content) in files {
        fs::write(folder.join(&data).join(name), content)?;
    }
    fs::set_permissions(folder.join(&data), fs::Permissions::from_mode(0o755))?;
    let before = fs::read_link(folder.join("..data")).ok();
    symlink(&data, folder.join("..data_tmp"))?;
    fs::rename(folder.join("..data_tmp"), folder.join("..data"))?;
    for name in files.keys() {
        if folder.join(name).symlink_metadata().is_err() {
            symlink(Path::new("..data").join(name), folder.join(name))?;
        }
    }
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !files.contains_key(&*name) {
            fs::remove_file(folder.join(&*name))?;
        }
    }
    before.map_or(Ok(()), |old| fs::remove_dir_all(folder.join(old)))
}
