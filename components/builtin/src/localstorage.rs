use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mecha_components_api::{
    BuildCx, Bytes, Component, ConfigErrors, Error, ErrorKind, Field, FieldType, Invoke, Metadata, OutputBinding,
    Prepared, Registration, Reply, Result, Retry, async_trait,
};
use rustix::io::Errno;
use tokio::sync::Semaphore;

use crate::confined::{Content, Listing, Root, parts, resolve};

const OPERATIONS: &[&str] = &["create", "get", "list", "delete"];
/// Places that hold the machine's own affairs or other people's secrets.
const FORBIDDEN: [&str; 4] = ["/proc", "/sys", "/boot", "/var/run/secrets"];
/// A file is handed over in one piece of memory.
const MAX_FILE: u64 = 512 * 1024 * 1024;
const MAX_LISTED: usize = 100_000;
/// Calls that use the disk at the same time; each holds a thread.
const MAX_CALLS: usize = 32;
/// A disk that answers later than this counts as gone.
const DISK_WAIT: Duration = Duration::from_secs(60);

const FIELDS: &[Field] = &[
    Field::new(
        "rootPath",
        FieldType::Text,
        "Folder of the files, made when missing; not below /proc, /sys, /boot or /var/run/secrets.",
    )
    .required(),
    Field::new("direction", FieldType::Text, "Only output is possible.").default("output"),
];

pub(crate) fn registration() -> Registration<dyn OutputBinding> {
    Registration {
        kind: "bindings.localstorage",
        aliases: &[],
        versions: &["v1"],
        summary: "Files in one folder of this machine",
        fields: FIELDS,
        prepare,
    }
}

fn prepare(md: &Metadata, _: &str) -> Result<Box<dyn Prepared<dyn OutputBinding>>, ConfigErrors> {
    let mut errors = ConfigErrors::new();
    let root = errors.required(md, "rootPath");
    errors.finish(Box::new(Config { root: root.into() }) as Box<dyn Prepared<dyn OutputBinding>>)
}

struct Config {
    root: PathBuf,
}

#[async_trait]
impl Prepared<dyn OutputBinding> for Config {
    async fn build(self: Box<Self>, _: &BuildCx) -> Result<Arc<dyn OutputBinding>> {
        let root = blocking(move || open(&self.root)).await?;
        Ok(Arc::new(LocalStorage { root: Arc::new(root), calls: Semaphore::new(MAX_CALLS) }))
    }
}

fn open(path: &Path) -> Result<Root> {
    let bad = |what: String| Error::new(ErrorKind::FailedPrecondition, format!("rootPath {what}"));
    let real = resolve(path).map_err(|e| bad(format!("cannot be used: {e}")))?;
    for place in FORBIDDEN {
        let is_below = real.starts_with(place) || resolve(Path::new(place)).is_ok_and(|p| real.starts_with(p));
        if is_below {
            return Err(bad(format!("must not lie below {place}")));
        }
    }
    Root::open(&real).map_err(|e| bad(format!("cannot be opened as a folder: {e}")))
}

/// Runs disk work beside the async threads, for at most [`DISK_WAIT`].
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::time::timeout(DISK_WAIT, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err(Error::internal("the work on the disk was cut short")),
        Err(_) => Err(Error::timeout("the disk did not answer within 60s")),
    }
}

/// `bindings.localstorage`.
#[derive(Debug)]
struct LocalStorage {
    root: Arc<Root>,
    calls: Semaphore,
}

impl Component for LocalStorage {}

#[async_trait]
impl OutputBinding for LocalStorage {
    fn operations(&self) -> &'static [&'static str] {
        OPERATIONS
    }

    async fn invoke(&self, req: Invoke<'_>) -> Result<Reply> {
        let given = req.metadata.get_non_empty("fileName").map(str::to_owned);
        let _call = match tokio::time::timeout(DISK_WAIT, self.calls.acquire()).await {
            Ok(Ok(call)) => call,
            _ => return Err(Error::new(ErrorKind::Overloaded, "too many calls wait for the disk")),
        };
        let root = self.root.clone();
        match (req.operation, given) {
            ("create", given) => {
                let name = given.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
                let data = without_quotes(req.data);
                blocking(move || create(&root, &name, &data)).await
            }
            ("get", Some(name)) => blocking(move || get(&root, &name)).await,
            ("delete", Some(name)) => blocking(move || delete(&root, &name)).await,
            ("list", name) => blocking(move || list(&root, &name.unwrap_or_default())).await,
            ("get" | "delete", None) => Err(Error::invalid("request metadata 'fileName' is required")),
            (other, _) => Err(Error::invalid(format!("unsupported operation {other}"))),
        }
    }
}

/// The text of a JSON string; any other data untouched.
fn without_quotes(data: Bytes) -> Bytes {
    if !(data.starts_with(b"\"") && data.ends_with(b"\"")) {
        return data;
    }
    serde_json::from_slice::<String>(&data).map_or(data, Bytes::from)
}

fn names(name: &str) -> Result<Vec<&str>> {
    parts(name).map_err(|e| Error::invalid(format!("request metadata 'fileName' {}", e.0)))
}

fn create(root: &Root, name: &str, data: &[u8]) -> Result<Reply> {
    let parts = names(name)?;
    if parts.is_empty() {
        return Err(Error::invalid("request metadata 'fileName' names no file"));
    }
    root.write(&parts, data).map_err(|e| failed("write", &parts, e))?;
    json(&serde_json::json!({ "fileName": parts.join("/") }))
}

fn get(root: &Root, name: &str) -> Result<Reply> {
    let parts = names(name)?;
    match root.read(&parts, MAX_FILE).map_err(|e| failed("read", &parts, e))? {
        Content::Whole(data) => Ok(Reply { data: Some(data.into()), ..Reply::default() }),
        Content::TooLarge => Err(Error::new(ErrorKind::TooLarge, "the file is larger than 512 MiB")),
        Content::NoFile => Err(Error::invalid(format!("{} is no file", parts.join("/")))),
    }
}

fn delete(root: &Root, name: &str) -> Result<Reply> {
    let parts = names(name)?;
    root.remove(&parts).map_err(|e| failed("delete", &parts, e))?;
    Ok(Reply::default())
}

fn list(root: &Root, name: &str) -> Result<Reply> {
    let parts = names(name)?;
    match root.list(&parts, MAX_LISTED).map_err(|e| failed("list", &parts, e))? {
        Listing::All(files) => json(&files.into()),
        Listing::TooMany => Err(Error::new(ErrorKind::TooLarge, "more than 100000 files, list a folder below")),
    }
}

fn json(value: &serde_json::Value) -> Result<Reply> {
    let content_type = Some("application/json".to_owned());
    Ok(Reply { data: Some(value.to_string().into()), content_type, ..Reply::default() })
}

/// What the operating system said, with the name as the caller knows it: no absolute path.
fn failed(what: &str, parts: &[&str], e: Errno) -> Error {
    let name = parts.join("/");
    match e {
        Errno::NOENT => Error::not_found(format!("file not found: {name}")),
        Errno::LOOP => Error::new(ErrorKind::PermissionDenied, format!("{name}: symbolic links are not followed")),
        Errno::NOTDIR => Error::invalid(format!("cannot {what} {name}: a part of it is no folder")),
        Errno::ISDIR => Error::invalid(format!("cannot {what} {name}: it is a folder")),
        Errno::NOTEMPTY | Errno::EXIST => Error::invalid(format!("cannot {what} {name}: the folder is not empty")),
        Errno::NAMETOOLONG => Error::invalid(format!("cannot {what} {name}: the name is too long")),
        Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE => {
            Error::unavailable(format!("cannot {what} {name}")).with_source(e)
        }
        Errno::ACCESS | Errno::PERM | Errno::ROFS => {
            Error::new(ErrorKind::PermissionDenied, format!("cannot {what} {name}")).with_source(e)
        }
        e => Error::internal(format!("cannot {what} {name}")).with_retry(Retry::IfIdempotent).with_source(e),
    }
}

#[cfg(test)]
#[path = "localstorage_tests.rs"]
mod tests;
