//! Documents on disk: the resources folders and the `--config` files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use mecha_core::loader::EnvLookup;
use mecha_resources::{Configuration, load_configuration_files, load_dirs};
use parking_lot::Mutex;

use super::watch::Watch;
use super::{Depth, DocumentSet, Source, SourceError};
use crate::cli::Options;

/// `--resources-path` and `--config`.
pub(in super::super) struct Folders {
    options: Arc<Options>,
    vars: EnvLookup,
    watch: Watch,
    /// The Configuration as it was read last; one that lies outside the folders is read again
    /// only when everything is.
    configuration: Mutex<Option<Configuration>>,
}

impl std::fmt::Debug for Folders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Folders").field("paths", &self.options.resources_paths).finish_non_exhaustive()
    }
}

impl Folders {
    /// The source over the folders of `options`; watching begins with the first wait.
    pub(in super::super) fn new(options: Arc<Options>, vars: EnvLookup) -> Self {
        let watch = Watch::new(options.resources_paths.iter().map(PathBuf::from).collect());
        Self { options, vars, watch, configuration: Mutex::default() }
    }

    /// A writer in place begins by making the file empty: without this, its defaults would be in force meanwhile, which
    /// let in who is kept out.
    fn refuse_emptied(&self, files: &[PathBuf]) -> Result<(), SourceError> {
        if !self.options.strict.degrade || self.configuration.lock().is_none() {
            return Ok(());
        }
        let empty = |file: &&PathBuf| std::fs::read_to_string(file).is_ok_and(|text| text.trim().is_empty());
        let refusal = |file: &PathBuf| {
            let file = file.display();
            Err(SourceError(format!("error loading configuration: {file} is empty; what it said stays in force")))
        };
        files.iter().find(empty).map_or(Ok(()), refusal)
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
        // Files are small and local, and at the start there is nothing else to do; a thread of
        // its own would cost more than the reading.
        let before = match depth {
            Depth::Watched if !self.configuration_is_watched() => self.configuration.lock().clone(),
            Depth::Watched | Depth::Everything => None,
        };
        let mut findings = Vec::new();
        let configuration = match before {
            Some(configuration) => configuration,
            None => {
                let files: Vec<PathBuf> = self.options.configs.iter().map(PathBuf::from).collect();
                self.refuse_emptied(&files)?;
                let read = load_configuration_files(&files, &*self.vars)
                    .map_err(|e| SourceError(format!("error loading configuration: {e}")))?;
                findings = read.diagnostics;
                *self.configuration.lock() = Some(read.configuration.clone());
                read.configuration
            }
        };
        let mut loaded = load_dirs(&self.options.resources_paths)
            .map_err(|e| SourceError(format!("failed to load resources: {e}")))?;
        findings.append(&mut loaded.diagnostics);
        loaded.diagnostics = findings;
        Ok(DocumentSet { configuration, loaded, ..DocumentSet::default() })
    }

    async fn changed(&self) {
        self.watch.changed().await;
    }
}
