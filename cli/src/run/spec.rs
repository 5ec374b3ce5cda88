//! One app to run, with everything decided: from flags or from a multi-app file.

use super::console::Destination;
use crate::args::{OptionalPort, RunArgs, SidecarOptions};
use crate::error::{CliError, Result};
use crate::home::{Home, user_home};
use crate::kinds::deliver::Folder;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Folder of an app's own resources and logs, in the app's folder.
pub(crate) const APP_FOLDER: &str = ".dapr";
const APP_RESOURCES: &str = "resources";
const APP_CONFIG: &str = "config.yaml";
/// How documents name mecha's own folder.
const MECHA_FOLDER: &str = "~/.mecha";

/// An app to run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AppSpec {
    pub(crate) app_id: String,
    /// Folder in which app and sidecar start.
    pub(crate) folder: PathBuf,
    /// Empty: only a sidecar.
    pub(crate) command: Vec<OsString>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) app_port: Option<u16>,
    pub(crate) app_channel_address: Option<String>,
    pub(crate) http_port: Option<u16>,
    pub(crate) grpc_port: Option<u16>,
    pub(crate) internal_grpc_port: Option<u16>,
    pub(crate) metrics_port: Option<u16>,
    pub(crate) profile_port: Option<u16>,
    pub(crate) unix_domain_socket: Option<PathBuf>,
    pub(crate) resources: Vec<PathBuf>,
    pub(crate) config: PathBuf,
    pub(crate) options: SidecarOptions,
    pub(crate) app_log: Destination,
    pub(crate) sidecar_log: Destination,
    /// Folder of log files; none means mecha's own.
    pub(crate) log_folder: Option<PathBuf>,
}

impl AppSpec {
    /// The app that the flags of `mecha run` describe.
    pub(crate) fn from_args(args: &RunArgs, home: &Home) -> Result<Self> {
        let folder = std::env::current_dir()
            .map_err(|error| CliError::new("folder", format!("the current folder cannot be used: {error}")))?;
        let app_id = match &args.app_id {
            Some(id) => id.clone(),
            None => id_of_folder(&folder)?,
        };
        check_app_id(&app_id)?;
        let mut resources = Vec::new();
        if let Some(name) = &args.environment {
            resources.push(Folder::resources_of(home, name)?);
        }
        for path in &args.resources_path {
            resources.push(existing(&folder, path, "--resources-path")?);
        }
        let config = match &args.config {
            Some(path) => Some(existing(&folder, path, "--config")?),
            None => None,
        };
        let port = |port: Option<OptionalPort>| port.and_then(|port| port.0);
        Ok(Self {
            resources: resources_or_default(resources, &folder, &[], home),
            config: config_or_default(config, &folder, None, home),
            app_id,
            command: args.command.clone(),
            env: BTreeMap::new(),
            app_port: port(args.app_port),
            app_channel_address: args.app_channel_address.clone(),
            http_port: port(args.dapr_http_port),
            grpc_port: port(args.dapr_grpc_port),
            internal_grpc_port: port(args.dapr_internal_grpc_port),
            metrics_port: port(args.metrics_port),
            profile_port: port(args.profile_port),
            unix_domain_socket: args.unix_domain_socket.as_ref().map(|path| folder.join(path)),
            options: args.options.clone(),
            app_log: Destination::FileAndConsole,
            sidecar_log: Destination::FileAndConsole,
            log_folder: None,
            folder,
        })
    }

    /// The protocol the app speaks.
    pub(crate) fn protocol(&self) -> &str {
        match (self.options.app_protocol.as_deref().unwrap_or("http"), self.options.app_ssl) {
            ("http", true) => "https",
            ("grpc", true) => "grpcs",
            (protocol, _) => protocol,
        }
    }
}

/// What the sidecar and the files named after apps can bear.
pub(crate) fn check_app_id(id: &str) -> Result<()> {
    let wrong = |reason: &str| {
        Err(CliError::usage("app-id", format!("{id:?} cannot be an app id: {reason}"))
            .hint("use letters, digits, - and _"))
    };
    if id.is_empty() {
        return wrong("it is empty");
    }
    if id.contains('.') {
        return wrong("a dot separates app and namespace in calls");
    }
    if id.len() > 128 {
        return wrong("it has more than 128 bytes");
    }
    if id.starts_with('-') || id.chars().any(|c| c == '/' || c == '\\' || c.is_whitespace() || c.is_control()) {
        return wrong("it starts with a dash or holds a slash, white space or a control character");
    }
    Ok(())
}

/// The id of an app that names none: its folder's name.
pub(crate) fn id_of_folder(folder: &Path) -> Result<String> {
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let id = name.replace(|c: char| c == '.' || c.is_whitespace() || c.is_control(), "-");
    let id = id.trim_matches('-').to_owned();
    if id.is_empty() {
        return Err(CliError::usage("app-id", "the app needs an id").hint("add --app-id NAME"));
    }
    Ok(id)
}

/// `path` as an absolute path; `~/` is the user's home, `~/.mecha` mecha's own folder wherever `MECHA_HOME` has put
/// it, and anything relative starts at `base`.
pub(crate) fn absolute(base: &Path, path: &Path) -> PathBuf {
    let mecha = Home::locate().ok();
    resolved(base, path, mecha.as_ref().map(Home::root), user_home().as_deref())
}

fn resolved(base: &Path, path: &Path, mecha: Option<&Path>, user: Option<&Path>) -> PathBuf {
    if let (Ok(rest), Some(mecha)) = (path.strip_prefix(MECHA_FOLDER), mecha) {
        return mecha.join(rest);
    }
    match (path.strip_prefix("~"), user) {
        (Ok(rest), Some(user)) => user.join(rest),
        _ => base.join(path),
    }
}

fn existing(base: &Path, path: &Path, flag: &str) -> Result<PathBuf> {
    let full = absolute(base, path);
    if full.exists() {
        return Ok(full);
    }
    Err(CliError::usage("path", format!("{flag} {}: there is no such file or folder", path.display())))
}

/// The resource folders of an app: its own, else those beside it, else the shared ones, else the defaults.
pub(crate) fn resources_or_default(own: Vec<PathBuf>, folder: &Path, shared: &[PathBuf], home: &Home) -> Vec<PathBuf> {
    if !own.is_empty() {
        return own;
    }
    let beside = folder.join(APP_FOLDER).join(APP_RESOURCES);
    if beside.is_dir() {
        return vec![beside];
    }
    if !shared.is_empty() {
        return shared.to_vec();
    }
    vec![home.components()]
}

/// The Configuration of an app, by the same order.
pub(crate) fn config_or_default(own: Option<PathBuf>, folder: &Path, shared: Option<&Path>, home: &Home) -> PathBuf {
    let beside = folder.join(APP_FOLDER).join(APP_CONFIG);
    own.or_else(|| beside.is_file().then_some(beside))
        .or_else(|| shared.map(Path::to_owned))
        .unwrap_or_else(|| home.config())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_break_names_are_refused() {
        for id in ["", "a.b", "a/b", "a b", "-a", "a\nb"] {
            assert!(check_app_id(id).is_err(), "{id:?}");
        }
        for id in ["orders", "order_processor-2", "Größe"] {
            assert!(check_app_id(id).is_ok(), "{id:?}");
        }
    }

    #[test]
    fn a_folder_gives_its_name() {
        assert_eq!(id_of_folder(Path::new("/x/my app.v2")).unwrap(), "my-app-v2");
        assert!(id_of_folder(Path::new("/")).is_err());
    }

    #[test]
    fn paths_of_documents_find_the_folders_they_name() {
        let (mecha, user) = (Some(Path::new("/srv/mecha")), Some(Path::new("/home/me")));
        for (path, full) in [
            ("~/.mecha/components", "/srv/mecha/components"),
            ("~/.mecha", "/srv/mecha/"),
            ("~/.mecha-old/x", "/home/me/.mecha-old/x"),
            ("~/x", "/home/me/x"),
            ("~other/x", "/base/~other/x"),
            ("./x", "/base/./x"),
            ("x/../y", "/base/x/../y"),
            ("/abs/x", "/abs/x"),
        ] {
            assert_eq!(resolved(Path::new("/base"), Path::new(path), mecha, user), Path::new(full), "{path}");
        }
        // Nobody knows where the folders are: the path stays what it says.
        assert_eq!(resolved(Path::new("/base"), Path::new("~/.mecha/x"), None, None), Path::new("/base/~/.mecha/x"));
    }

    #[test]
    fn resources_beside_the_app_win_over_shared_ones_and_lose_to_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(Path::new("/home/mecha"));
        let shared = [PathBuf::from("/shared")];
        assert_eq!(resources_or_default(vec![], folder.path(), &[], &home), [home.components()]);
        assert_eq!(resources_or_default(vec![], folder.path(), &shared, &home), shared);
        assert_eq!(config_or_default(None, folder.path(), None, &home), home.config());
        let beside = folder.path().join(".dapr/resources");
        std::fs::create_dir_all(&beside).unwrap();
        std::fs::write(folder.path().join(".dapr/config.yaml"), "").unwrap();
        assert_eq!(resources_or_default(vec![], folder.path(), &shared, &home), [beside]);
        assert_eq!(
            config_or_default(None, folder.path(), Some(Path::new("/c")), &home),
            folder.path().join(".dapr/config.yaml")
        );
        let own = vec![PathBuf::from("/own")];
        assert_eq!(resources_or_default(own.clone(), folder.path(), &shared, &home), own);
    }
}
