use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mecha_components_api::{
    BuildCx, Component, ConfigErrors, Error, ErrorKind, Field, FieldType, Metadata, Prepared, Registration, Result,
    Secret, SecretCaps, SecretMap, SecretStore, async_trait,
};
use parking_lot::Mutex;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

const MAX_FILE: u64 = 16 * 1024 * 1024;
const MAX_DEPTH: usize = 64;
/// A disk that answers later than this counts as gone.
const DISK_WAIT: Duration = Duration::from_secs(10);

const FIELDS: &[Field] = &[
    Field::new(
        "secretsFile",
        FieldType::Text,
        "Path of the JSON file, at most 16 MiB. A relative path starts at the sidecar's working directory.",
    )
    .required(),
    Field::new("nestedSeparator", FieldType::Text, "Joins the keys of nested objects into one name.").default(":"),
    Field::new(
        "multiValued",
        FieldType::Boolean,
        "When true each key of the first level is a secret and the members below it are its keys; \
                 else the file is flattened and each secret has one value.",
    )
    .default("false"),
];

pub(crate) fn registration() -> Registration<dyn SecretStore> {
    Registration {
        kind: "secretstores.local.file",
        aliases: &[],
        versions: &["v1"],
        summary: "Secrets from a JSON file, read again when it changes",
        fields: FIELDS,
        prepare,
    }
}

fn prepare(md: &Metadata, _: &str) -> Result<Box<dyn Prepared<dyn SecretStore>>, ConfigErrors> {
    let mut errors = ConfigErrors::new();
    let config = Config {
        path: errors.required(md, "secretsFile").into(),
        separator: errors.text(md, "nestedSeparator", ":"),
        multi_valued: errors.bool(md, "multiValued", false),
    };
    errors.finish(Box::new(config) as Box<dyn Prepared<dyn SecretStore>>)
}

#[derive(Clone, Debug)]
struct Config {
    path: PathBuf,
    separator: String,
    multi_valued: bool,
}

#[async_trait]
impl Prepared<dyn SecretStore> for Config {
    async fn build(self: Box<Self>, cx: &BuildCx) -> Result<Arc<dyn SecretStore>> {
        let config = Arc::new(*self);
        let store = FileSecrets {
            name: cx.name.clone(),
            loaded: Arc::new(Mutex::new(Loaded { stamp: None, secrets: Arc::default() })),
            config,
        };
        store.refresh(true).await?;
        Ok(Arc::new(store))
    }
}

type Secrets = BTreeMap<String, SecretMap>;

/// Tells one state of the file from the next.
type Stamp = (Option<SystemTime>, u64, u64);

#[derive(Debug)]
struct Loaded {
    stamp: Option<Stamp>,
    secrets: Arc<Secrets>,
}

/// `secretstores.local.file`. Each call looks whether the file changed. A file
/// that cannot be used any more does not take the known secrets away: they stay
/// and a log line says what is wrong with the new content.
#[derive(Debug)]
struct FileSecrets {
    name: Arc<str>,
    config: Arc<Config>,
    loaded: Arc<Mutex<Loaded>>,
}

impl FileSecrets {
    async fn refresh(&self, first: bool) -> Result<Arc<Secrets>> {
        let (name, config, loaded) = (self.name.clone(), self.config.clone(), self.loaded.clone());
        let work = tokio::task::spawn_blocking(move || {
            let stamp = stamp(&config.path);
            if let Some(stamp) = stamp.as_ref().ok().copied()
                && loaded.lock().stamp == Some(stamp)
            {
                return Ok(loaded.lock().secrets.clone());
            }
            let outcome = stamp.and_then(|s| Ok((Some(s), read(&config)?)));
            let mut loaded = loaded.lock();
            match outcome {
                Ok((stamp, secrets)) => *loaded = Loaded { stamp, secrets: Arc::new(secrets) },
                Err(e) if first => return Err(e),
                Err(e) => {
                    // Remembered, so that the same broken content is read and reported once.
                    let broken = self::stamp(&config.path).ok();
                    if loaded.stamp.is_some() || broken.is_some() {
                        tracing::warn!(component = %name, error = %e, "secrets file changed and cannot be used, the secrets read before stay");
                    }
                    loaded.stamp = broken;
                }
            }
            Ok(loaded.secrets.clone())
        });
        match tokio::time::timeout(DISK_WAIT, work).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Error::internal("reading the secrets file was cut short")),
            Err(_) => Err(Error::timeout("the disk of the secrets file did not answer within 10s")),
        }
    }
}

fn stamp(path: &Path) -> Result<Stamp> {
    let md = fs::metadata(path).map_err(|e| unreadable(path, &e))?;
    if !md.is_file() {
        return Err(Error::new(ErrorKind::FailedPrecondition, format!("secrets file {} is no file", path.display())));
    }
    #[cfg(unix)]
    let inode = std::os::unix::fs::MetadataExt::ino(&md);
    #[cfg(not(unix))]
    let inode = 0;
    Ok((md.modified().ok(), md.len(), inode))
}

fn unreadable(path: &Path, e: &std::io::Error) -> Error {
    Error::new(ErrorKind::FailedPrecondition, format!("cannot read secrets file {}: {e}", path.display()))
}

fn read(config: &Config) -> Result<Secrets> {
    let path = &config.path;
    let mut bytes = Zeroizing::new(Vec::new());
    let file = fs::File::open(path).map_err(|e| unreadable(path, &e))?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|e| unreadable(path, &e))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::new(ErrorKind::TooLarge, format!("secrets file {} is larger than 16 MiB", path.display())));
    }
    parse(&bytes, &config.separator, config.multi_valued)
        .map_err(|m| Error::new(ErrorKind::FailedPrecondition, format!("secrets file {}: {m}", path.display())))
}

/// Secrets of a JSON text. Errors say where, never what stands there.
pub(crate) fn parse(bytes: &[u8], separator: &str, multi_valued: bool) -> Result<Secrets, String> {
    let text = std::str::from_utf8(bytes).map_err(|e| format!("no UTF-8 text from byte {} on", e.valid_up_to()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let top: BTreeMap<String, &RawValue> = serde_json::from_str(text).map_err(|e| {
        let what = match e.classify() {
            serde_json::error::Category::Data => "the top level must be a JSON object",
            serde_json::error::Category::Eof => "the JSON text ends too early",
            _ => "no valid JSON",
        };
        format!("{what}, line {} column {}", e.line(), e.column())
    })?;
    let mut secrets = Secrets::new();
    if multi_valued {
        for (name, value) in top {
            let mut members = SecretMap::new();
            if is_nested(value) {
                flatten("", value, separator, 1, &mut |key, secret| insert(&mut members, key, secret))?;
            } else {
                members.insert(name.clone(), scalar(value)?);
            }
            secrets.insert(name, members);
        }
    } else {
        for (name, value) in top {
            flatten(&name, value, separator, 1, &mut |key, secret| {
                let map = SecretMap::from([(key.clone(), secret)]);
                insert(&mut secrets, key, map)
            })?;
        }
    }
    Ok(secrets)
}

fn insert<V>(map: &mut BTreeMap<String, V>, key: String, value: V) -> Result<(), String> {
    match map.insert(key.clone(), value) {
        None => Ok(()),
        Some(_) => Err(format!("the name '{key}' comes out twice when nested keys are joined")),
    }
}

fn is_nested(value: &RawValue) -> bool {
    value.get().starts_with(['{', '['])
}

/// Text of a value: a string without quotes, numbers and booleans as they stand
/// in the file, null as nothing.
fn scalar(value: &RawValue) -> Result<Secret, String> {
    match value.get() {
        "null" => Ok(Secret::new("")),
        text if text.starts_with('"') => {
            let text: String = serde_json::from_str(text).map_err(|_| "a string with a broken escape".to_owned())?;
            Ok(Secret::new(text))
        }
        text => Ok(Secret::new(text)),
    }
}

fn flatten(
    path: &str,
    value: &RawValue,
    separator: &str,
    depth: usize,
    out: &mut dyn FnMut(String, Secret) -> Result<(), String>,
) -> Result<(), String> {
    if !is_nested(value) {
        return out(path.to_owned(), scalar(value)?);
    }
    if depth > MAX_DEPTH {
        return Err(format!(
            "nested deeper than {MAX_DEPTH} levels below '{}'",
            path.split(separator).next().unwrap_or(path)
        ));
    }
    let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}{separator}{key}") };
    let broken = |_| format!("no valid JSON below '{path}'");
    if value.get().starts_with('{') {
        let members: BTreeMap<String, &RawValue> = serde_json::from_str(value.get()).map_err(broken)?;
        for (key, member) in members {
            flatten(&join(&key), member, separator, depth + 1, out)?;
        }
    } else {
        let members: Vec<&RawValue> = serde_json::from_str(value.get()).map_err(broken)?;
        for (index, member) in members.into_iter().enumerate() {
            flatten(&join(&index.to_string()), member, separator, depth + 1, out)?;
        }
    }
    Ok(())
}

impl Component for FileSecrets {}

#[async_trait]
impl SecretStore for FileSecrets {
    fn caps(&self) -> SecretCaps {
        SecretCaps { multiple_keys: self.config.multi_valued }
    }

    async fn get(&self, name: &str, _: &Metadata) -> Result<SecretMap> {
        let secrets = self.refresh(false).await?;
        secrets.get(name).cloned().ok_or_else(|| Error::not_found(format!("secret {name} not found")))
    }

    async fn list(&self, _: &Metadata) -> Result<Secrets> {
        Ok(Secrets::clone(&*self.refresh(false).await?))
    }
}

#[cfg(test)]
#[path = "secrets_file_tests.rs"]
mod tests;
