//! `~/.mecha`: where mecha keeps defaults, data and the list of running apps.

use crate::error::{CliError, Result};
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Only the user may look inside: data and logs of apps lie here.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// The folder of this user's mecha (`MECHA_HOME`, else `~/.mecha`).
#[derive(Clone, Debug)]
pub(crate) struct Home {
    root: PathBuf,
}

impl Home {
    /// Finds the folder; creates nothing.
    pub(crate) fn locate() -> Result<Self> {
        if let Some(root) = std::env::var_os("MECHA_HOME").filter(|value| !value.is_empty()) {
            let root = std::path::absolute(&root)
                .map_err(|error| CliError::new("home", format!("cannot use MECHA_HOME: {error}")))?;
            return Ok(Self { root });
        }
        let user = user_home().ok_or_else(|| {
            CliError::new("home", "HOME is not set, so there is no place for mecha's files")
                .hint("set MECHA_HOME to a folder of your own")
        })?;
        Ok(Self { root: user.join(".mecha") })
    }

    #[cfg(test)]
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Components that exist when nobody names any.
    pub(crate) fn components(&self) -> PathBuf {
        self.root.join("components")
    }

    /// The Configuration used when nobody names one.
    pub(crate) fn config(&self) -> PathBuf {
        self.root.join("config.yaml")
    }

    /// Files of the embedded stores.
    pub(crate) fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// Documents that `mecha dev` has decided, by environment.
    pub(crate) fn environments(&self) -> PathBuf {
        self.root.join("environments")
    }

    /// One file per running app.
    pub(crate) fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// What apps and sidecars printed, unless their log went elsewhere.
    pub(crate) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The registry through which sidecars of this user find each other.
    pub(crate) fn names(&self) -> PathBuf {
        self.run().join("names.db")
    }

    /// Creates the folders, and the default documents where they have never been written. Returns whether the
    /// defaults are new. A document that somebody deleted stays deleted.
    pub(crate) fn prepare(&self) -> Result<bool> {
        for folder in [self.root.clone(), self.data(), self.run(), self.logs()] {
            create_folder(&folder)?;
        }
        write_once(&self.config(), &default_config())?;
        let components = self.components();
        if components.exists() {
            return Ok(false);
        }
        // Written aside and moved into place, so that another mecha never sees half of the defaults.
        let draft = self.root.join(format!(".components-{}", std::process::id()));
        create_folder(&draft)?;
        write_once(&draft.join("statestore.yaml"), &default_state_store(&self.data()))?;
        write_once(&draft.join("pubsub.yaml"), DEFAULT_PUBSUB)?;
        match fs::rename(&draft, &components) {
            Ok(()) => Ok(true),
            Err(error) => {
                // Cleaning up is best effort: the folder is ours and nobody reads it.
                let _ = fs::remove_dir_all(&draft);
                if components.exists() { Ok(false) } else { Err(unusable(&components, &error)) }
            }
        }
    }
}

/// The user's home folder.
pub(crate) fn user_home() -> Option<PathBuf> {
    std::env::var_os("HOME").filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn create_folder(path: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path).map_err(|error| unusable(path, &error))
}

fn write_once(path: &Path, text: &str) -> Result<()> {
    match fs::OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path) {
        Ok(mut file) => file.write_all(text.as_bytes()).map_err(|error| unusable(path, &error)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(unusable(path, &error)),
    }
}

fn unusable(path: &Path, error: &std::io::Error) -> CliError {
    CliError::new("home", format!("cannot write {}: {error}", path.display()))
        .hint("mecha keeps its files in ~/.mecha; MECHA_HOME names another folder")
}

fn default_state_store(data: &Path) -> String {
    // A JSON string is a YAML string, whatever characters the path holds.
    let file = serde_json::Value::from(data.join("state.db").display().to_string());
    format!(
        "# The state store of `mecha run` when no resources are named. Edit it as you like; `mecha run` writes it\n\
         # only if this folder does not exist.\n\
         apiVersion: dapr.io/v1alpha1\n\
         kind: Component\n\
         metadata:\n  name: statestore\n\
         spec:\n  type: state.sqlite\n  version: v1\n  metadata:\n    \
         - name: connectionString\n      value: {file}\n    \
         - name: actorStateStore\n      value: \"true\"\n"
    )
}

const DEFAULT_PUBSUB: &str = "\
# The broker of `mecha run` when no resources are named: embedded, durable, shared by all sidecars of this user
# on this machine. Edit it as you like; `mecha run` writes it only if this folder does not exist.
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: pubsub
spec:
  type: pubsub.mecha
  version: v1
  metadata: []
";

fn default_config() -> String {
    "# The Configuration of `mecha run` when none is named. Edit it as you like.\n\
     apiVersion: dapr.io/v1alpha1\n\
     kind: Configuration\n\
     metadata:\n  name: mecha\n\
     spec:\n  tracing:\n    samplingRate: \"0\"\n"
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_run_writes_defaults_and_later_runs_keep_edits() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(&folder.path().join("home"));
        assert!(home.prepare().unwrap());
        let store = fs::read_to_string(home.components().join("statestore.yaml")).unwrap();
        let store: serde_json::Value = serde_saphyr::from_str(&store).unwrap();
        assert_eq!(store["spec"]["type"], "state.sqlite");
        assert_eq!(store["spec"]["metadata"][0]["value"], home.data().join("state.db").display().to_string().as_str());
        assert_eq!(store["spec"]["metadata"][1]["value"], "true");
        let pubsub: serde_json::Value =
            serde_saphyr::from_str(&fs::read_to_string(home.components().join("pubsub.yaml")).unwrap()).unwrap();
        assert_eq!(pubsub["spec"]["type"], "pubsub.mecha");
        let config: serde_json::Value = serde_saphyr::from_str(&fs::read_to_string(home.config()).unwrap()).unwrap();
        assert_eq!(config["spec"]["tracing"]["samplingRate"], "0");

        fs::remove_file(home.components().join("pubsub.yaml")).unwrap();
        fs::write(home.config(), "edited").unwrap();
        assert!(!home.prepare().unwrap());
        assert!(!home.components().join("pubsub.yaml").exists());
        assert_eq!(fs::read_to_string(home.config()).unwrap(), "edited");
    }

    #[test]
    fn only_the_user_may_look_inside() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(&folder.path().join("home"));
        home.prepare().unwrap();
        assert_eq!(fs::metadata(home.root()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(home.config()).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
