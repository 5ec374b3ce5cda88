//! Documents on disk: the resources folders and the `--config` files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use mecha_core::loader::EnvLookup;
use mecha_resources::{Configuration, Diagnostic, LoadError, load_configuration_files, load_dirs};
use parking_lot::Mutex;

use super::super::documents::holding;
use super::watch::Watch;
use super::{Depth, DocumentSet, Source, SourceError};
use crate::cli::Options;

/// How long a file or a folder has to be gone to count as taken away: some editors and most copies remove what is
/// there before they write what takes its place.
const GONE: Duration = Duration::from_millis(250);

/// `--resources-path` and `--config`.
pub(in super::super) struct Folders {
    disk: Arc<Disk>,
    watch: Watch,
}

/// What is read, and was.
struct Disk {
    options: Arc<Options>,
    vars: EnvLookup,
    /// Of the last reading; `None` before the first.
    before: Mutex<Option<Before>>,
}

#[derive(Clone)]
struct Before {
    /// The Configuration that could be used last; one that lies outside the folders is read again only when
    /// everything is.
    configuration: Configuration,
    /// Why the files of the Configuration could not be used.
    fault: Option<String>,
    /// The files that held documents.
    files: BTreeSet<Arc<str>>,
}

impl std::fmt::Debug for Folders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Folders").field("paths", &self.disk.options.resources_paths).finish_non_exhaustive()
    }
}

impl Folders {
    /// The source over the folders of `options`; watching begins with the first wait.
    pub(in super::super) fn new(options: Arc<Options>, vars: EnvLookup) -> Self {
        let watch = Watch::new(options.resources_paths.iter().map(PathBuf::from).collect());
        Self { disk: Arc::new(Disk { options, vars, before: Mutex::default() }), watch }
    }

    /// Reads beside the requests, which many or large files, or a slow disk, would hold up. Also says whether a file
    /// is gone.
    async fn read(&self, depth: Depth, before: &Before) -> (Result<DocumentSet, SourceError>, bool) {
        let (disk, before) = (self.disk.clone(), before.clone());
        let read = tokio::task::spawn_blocking(move || {
            let read = disk.read(depth, Some(&before));
            let now = read.as_ref().map(|set| holding(&set.loaded)).unwrap_or_default();
            let gone = before.files.difference(&now).any(|file| !Path::new(&**file).exists());
            (read, gone)
        });
        let failed = |e| (Err(SourceError(format!("reading the documents failed: {e}"))), false);
        read.await.unwrap_or_else(failed)
    }
}

impl Disk {
    fn read(&self, depth: Depth, before: Option<&Before>) -> Result<DocumentSet, SourceError> {
        let mut findings = Vec::new();
        let again = before.is_some();
        let stays = (depth == Depth::Watched && !self.configuration_is_watched()) || self.configuration_is_read_once();
        let known = before.filter(|_| stays);
        let (configuration, configuration_fault) = match known {
            Some(before) => (before.configuration.clone(), before.fault.clone()),
            None => match self.configuration(again) {
                Ok((configuration, notes)) => {
                    findings = notes;
                    (configuration, None)
                }
                Err(fault) => (Configuration::default(), Some(fault)),
            },
        };
        let mut loaded = load_dirs(&self.options.resources_paths)
            .map_err(|e| SourceError(format!("failed to load resources: {e}")))?;
        findings.append(&mut loaded.diagnostics);
        loaded.diagnostics = findings;
        Ok(DocumentSet { configuration, configuration_fault, loaded, ..DocumentSet::default() })
    }

    fn configuration(&self, again: bool) -> Result<(Configuration, Vec<Diagnostic>), String> {
        let files: Vec<PathBuf> = self.options.configs.iter().map(PathBuf::from).collect();
        if again && self.options.strict.degrade {
            refuse_emptied(&files)?;
        }
        let fault = |e: LoadError| format!("error loading configuration: {}", e.to_string().replace('\n', "; "));
        let read = load_configuration_files(&files, &*self.vars).map_err(fault)?;
        Ok((read.configuration, read.diagnostics))
    }

    /// Whether a `--config` file is a pipe or a device: a second reading would wait for a writer.
    fn configuration_is_read_once(&self) -> bool {
        self.options.configs.iter().any(|file| std::fs::metadata(file).is_ok_and(|m| !m.is_file() && !m.is_dir()))
    }

    /// Whether every `--config` file lies in one of the folders.
    fn configuration_is_watched(&self) -> bool {
        let folders: Vec<PathBuf> = self.options.resources_paths.iter().map(|p| canonical(Path::new(p))).collect();
        self.options.configs.iter().any(|file| {
            let parent = Path::new(file).parent().map(canonical);
            parent.is_some_and(|parent| folders.contains(&parent))
        })
    }
}

/// A writer in place begins by making the file empty: without this, its defaults would be in force meanwhile, which
/// let in who is kept out.
fn refuse_emptied(files: &[PathBuf]) -> Result<(), String> {
    let empty = |file: &&PathBuf| std::fs::read_to_string(file).is_ok_and(|text| text.trim().is_empty());
    match files.iter().find(empty) {
        Some(file) => {
            let file = file.display();
            Err(format!("error loading configuration: {file} is empty; what it said stays in force"))
        }
        None => Ok(()),
    }
}

fn canonical(path: &Path) -> PathBuf {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

#[async_trait]
impl Source for Folders {
    fn name(&self) -> &'static str {
        "disk"
    }

    async fn list(&self, depth: Depth) -> Result<DocumentSet, SourceError> {
        let before = self.disk.before.lock().clone();
        let set = match &before {
            // At the start there is nothing else to do; a thread of its own would cost more than the reading.
            None => self.disk.read(depth, None)?,
            Some(before) => match self.read(depth, before).await {
                (Ok(set), false) => set,
                _ => {
                    tokio::time::sleep(GONE).await;
                    self.read(depth, before).await.0?
                }
            },
        };
        let configuration = match (&set.configuration_fault, before) {
            (Some(_), Some(before)) => before.configuration,
            _ => set.configuration.clone(),
        };
        let (fault, files) = (set.configuration_fault.clone(), holding(&set.loaded));
        *self.disk.before.lock() = Some(Before { configuration, fault, files });
        Ok(set)
    }

    async fn changed(&self) {
        self.watch.changed().await;
    }
}
