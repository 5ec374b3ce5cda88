//! The multi-app file (`dapr.yaml`): Dapr's format, read strictly enough that a slip is found.
//!
//! Format: dapr/cli `pkg/runfileconfig`. Keys that no version of it has are ignored with a warning, unless they
//! look like a misspelt known key, which is an error.

use super::console::Destination;
use super::spec::{self, AppSpec};
use crate::args::{SidecarOptions, port_from};
use crate::error::{CliError, Result};
use crate::home::Home;
use mecha_resources::{Diagnostic, Severity, did_you_mean};
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file looked for when a folder is named.
pub(crate) const DEFAULT_NAME: &str = "dapr.yaml";
/// More than this is no multi-app file.
const MAX_BYTES: u64 = 1024 * 1024;
const LOGS: &str = "logs";
/// Characters of a broken line that are shown.
const MAX_SHOWN: usize = 120;

/// What a multi-app file asks for.
#[derive(Debug)]
pub(crate) struct RunFile {
    /// The file, or none for standard input.
    pub(crate) path: Option<PathBuf>,
    pub(crate) apps: Vec<AppSpec>,
    /// Worth a look, but no reason not to start.
    pub(crate) warnings: Vec<Diagnostic>,
}

/// The file that `path` (a file, a folder, or `-` for standard input) stands for.
pub(crate) fn locate(path: &Path) -> Result<Option<PathBuf>> {
    if path == Path::new("-") {
        return Ok(None);
    }
    let file = if path.is_dir() { path.join(DEFAULT_NAME) } else { path.to_owned() };
    match file.canonicalize() {
        Ok(file) => Ok(Some(file)),
        Err(error) => Err(CliError::usage("run-file", format!("cannot read {}: {error}", file.display()))
            .hint("-f takes a multi-app file, or a folder with a dapr.yaml")),
    }
}

/// Reads and checks a multi-app file.
pub(crate) fn load(path: &Path, home: &Home) -> Result<RunFile> {
    let file = locate(path)?;
    let (name, base) = match &file {
        Some(file) => (file.display().to_string(), file.parent().unwrap_or(Path::new("/")).to_owned()),
        None => {
            let folder = std::env::current_dir()
                .map_err(|error| CliError::new("folder", format!("the current folder cannot be used: {error}")))?;
            ("standard input".to_owned(), folder)
        }
    };
    let read = match &file {
        Some(file) => std::fs::File::open(file).and_then(read_text),
        None => read_text(std::io::stdin()),
    };
    let text = read.map_err(|error| CliError::usage("run-file", format!("cannot read {name}: {error}")))?;
    let (apps, findings) = check(&name, &text, &base, home);
    if findings.iter().any(|finding| finding.severity == Severity::Error) {
        let lines: Vec<String> = findings.iter().map(Diagnostic::to_string).collect();
        return Err(CliError::usage("run-file", lines.join("\n")));
    }
    Ok(RunFile { path: file, apps, warnings: findings })
}

fn read_text(from: impl std::io::Read) -> std::io::Result<String> {
    let mut text = String::new();
    let size = from.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    match size as u64 > MAX_BYTES {
        true => Err(std::io::Error::other(format!("it has more than {MAX_BYTES} bytes"))),
        false => Ok(text),
    }
}

/// Reads the text of a multi-app file; relative paths start at `base`. The apps are of use only if no finding is an
/// error.
pub(crate) fn check(name: &str, text: &str, base: &Path, home: &Home) -> (Vec<AppSpec>, Vec<Diagnostic>) {
    let mut check = Check { name: name.into(), home, findings: Vec::new() };
    let apps = match serde_saphyr::from_str::<Document>(text) {
        Ok(document) => check.document(&document, base),
        Err(error) => {
            check.broken(&error, text);
            Vec::new()
        }
    };
    check.findings.sort_by_key(|finding| (finding.line, finding.column));
    (apps, check.findings)
}

/// A map whose members are all optional and remember where they stand; members it does not know are kept by name.
macro_rules! members {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $ty:ty = $key:literal $(| $alias:literal)*,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        struct $name {
            $($field: Option<Spanned<$ty>>,)*
            unknown: Vec<Spanned<String>>,
        }

        impl $name {
            const KNOWN: &[&str] = &[$($key),*];

            /// The members that are set, with their places.
            #[allow(dead_code, reason = "not every kind of map is asked for it")]
            fn set(&self) -> Vec<(&'static str, Location)> {
                let mut set = Vec::new();
                $(if let Some(value) = &self.$field { set.push(($key, value.referenced)); })*
                set
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Members;
                impl<'de> Visitor<'de> for Members {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a map with members such as ")?;
                        f.write_str(&$name::KNOWN[..$name::KNOWN.len().min(3)].join(", "))
                    }

                    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<$name, A::Error> {
                        let mut out = $name::default();
                        while let Some(key) = map.next_key::<Spanned<String>>()? {
                            match key.value.as_str() {
                                $($key $(| $alias)* => out.$field = map.next_value()?,)*
                                _ => {
                                    map.next_value::<IgnoredAny>()?;
                                    out.unknown.push(key);
                                }
                            }
                        }
                        Ok(out)
                    }
                }
                deserializer.deserialize_map(Members)
            }
        }
    };
}

members! {
    /// The whole file.
    Document {
        version: i64 = "version",
        name: String = "name",
        common: Entry = "common",
        apps: Vec<Spanned<Entry>> = "apps",
    }
}

members! {
    /// One app, or what all apps have in common.
    Entry {
        app_id: String = "appID" | "appId",
        app_dir_path: String = "appDirPath",
        app_port: i64 = "appPort",
        app_channel_address: String = "appChannelAddress",
        command: Words = "command",
        http_port: i64 = "daprHTTPPort" | "daprHttpPort",
        grpc_port: i64 = "daprGRPCPort" | "daprGrpcPort",
        internal_grpc_port: i64 = "daprInternalGRPCPort" | "daprInternalGrpcPort",
        metrics_port: i64 = "metricsPort",
        profile_port: i64 = "profilePort",
        unix_domain_socket: String = "unixDomainSocket" | "unixDomainSocketPath",
        container_image: IgnoredAny = "containerImage",
        container_image_pull_policy: IgnoredAny = "containerImagePullPolicy",
        create_service: IgnoredAny = "createService",
        config_file_path: String = "configFilePath",
        app_protocol: String = "appProtocol",
        api_listen_addresses: String = "apiListenAddresses",
        enable_profiling: bool = "enableProfiling",
        log_level: String = "logLevel",
        app_max_concurrency: i64 = "appMaxConcurrency",
        placement_host_address: String = "placementHostAddress",
        scheduler_host_address: String = "schedulerHostAddress",
        resources_path: String = "resourcesPath",
        resources_paths: Paths = "resourcesPaths",
        app_ssl: bool = "appSSL" | "appSsl",
        max_body_size: String = "maxBodySize",
        read_buffer_size: String = "readBufferSize",
        enable_app_health_check: bool = "enableAppHealthCheck",
        app_health_check_path: String = "appHealthCheckPath",
        app_health_probe_interval: i64 = "appHealthProbeInterval",
        app_health_probe_timeout: i64 = "appHealthProbeTimeout",
        app_health_threshold: i64 = "appHealthThreshold",
        enable_api_logging: bool = "enableApiLogging",
        runtime_path: IgnoredAny = "runtimePath",
        env: Env = "env",
        sidecar_log_destination: String = "daprdLogDestination",
        app_log_destination: String = "appLogDestination",
    }
}

/// Members that only an app can have.
const APP_ONLY: [&str; 13] = [
    "appID",
    "appDirPath",
    "appPort",
    "appChannelAddress",
    "command",
    "daprHTTPPort",
    "daprGRPCPort",
    "daprInternalGRPCPort",
    "metricsPort",
    "profilePort",
    "unixDomainSocket",
    "containerImage",
    "createService",
];

/// Paths: a list, or one text with commas.
#[derive(Debug, Default)]
struct Paths(Vec<String>);

/// The words of a command.
#[derive(Debug, Default)]
struct Words(Vec<String>);

/// Environment variables; numbers and booleans are taken as written.
#[derive(Debug, Default)]
struct Env(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Paths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PathList;
        impl<'de> Visitor<'de> for PathList {
            type Value = Paths;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of paths")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Paths, E> {
                Ok(Paths(text.split(',').map(|path| path.trim().to_owned()).filter(|path| !path.is_empty()).collect()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Paths, A::Error> {
                strings(seq).map(Paths)
            }
        }
        deserializer.deserialize_any(PathList)
    }
}

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordList;
        impl<'de> Visitor<'de> for WordList {
            type Value = Words;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of words such as [\"python3\", \"app.py\"]")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Words, A::Error> {
                strings(seq).map(Words)
            }
        }
        deserializer.deserialize_any(WordList)
    }
}

impl<'de> Deserialize<'de> for Env {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Variables;
        impl<'de> Visitor<'de> for Variables {
            type Value = Env;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of environment variables such as { KEY: value }")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Env, A::Error> {
                let mut out = BTreeMap::new();
                while let Some(key) = map.next_key()? {
                    out.insert(key, map.next_value::<Option<String>>()?.unwrap_or_default());
                }
                Ok(Env(out))
            }
        }
        deserializer.deserialize_map(Variables)
    }
}

fn strings<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<Vec<String>, A::Error> {
    let mut out = Vec::new();
    while let Some(text) = seq.next_element()? {
        out.push(text);
    }
    Ok(out)
}

fn value<T: Clone>(member: &Option<Spanned<T>>) -> Option<T> {
    member.as_ref().map(|member| member.value.clone())
}

fn flag(own: &Option<Spanned<bool>>, shared: &Option<Spanned<bool>>) -> bool {
    own.as_ref().or(shared.as_ref()).is_some_and(|flag| flag.value)
}

/// Collects everything that is wrong, so that it can be mended in one go.
struct Check<'a> {
    name: Arc<str>,
    home: &'a Home,
    findings: Vec<Diagnostic>,
}

impl Check<'_> {
    fn find(&mut self, severity: Severity, at: Location, path: impl Into<String>, message: impl fmt::Display) {
        self.findings.push(Diagnostic {
            file: Arc::clone(&self.name),
            document: 0,
            line: u32::try_from(at.line()).unwrap_or(u32::MAX),
            column: u32::try_from(at.column()).unwrap_or(u32::MAX),
            path: path.into(),
            severity,
            message: message.to_string(),
            suggestion: None,
        });
    }

    fn error(&mut self, at: Location, path: impl Into<String>, message: impl fmt::Display) {
        self.find(Severity::Error, at, path, message);
    }

    /// The text is no YAML, or holds a value of the wrong kind.
    fn broken(&mut self, error: &serde_saphyr::Error, text: &str) {
        let message = error.without_snippet().to_string();
        let Some(at) = error.location() else { return self.error(Location::UNKNOWN, "", message) };
        // The place stands in front; once is enough.
        let message = message.trim_end_matches(&format!(" at line {}, column {}", at.line(), at.column()));
        let line = usize::try_from(at.line()).ok().and_then(|line| text.lines().nth(line.checked_sub(1)?));
        let shown: String = line.unwrap_or_default().trim_end().chars().take(MAX_SHOWN).collect();
        self.error(at, "", format!("{message}\n  {} | {shown}", at.line()));
    }

    fn unknown(&mut self, within: &str, unknown: &[Spanned<String>], known: &[&str]) {
        for key in unknown {
            let suggestion = did_you_mean(&key.value, known.iter().copied()).map(str::to_owned);
            let (severity, message) = match suggestion {
                Some(_) => (Severity::Error, "there is no such key"),
                None => (Severity::Warning, "this key is not known and ignored"),
            };
            self.find(severity, key.referenced, format!("{within}{}", key.value), message);
            if let Some(finding) = self.findings.last_mut() {
                finding.suggestion = suggestion;
            }
        }
    }

    fn document(&mut self, document: &Document, base: &Path) -> Vec<AppSpec> {
        self.unknown("", &document.unknown, Document::KNOWN);
        match &document.version {
            None => self.error(Location::UNKNOWN, "version", "it is missing; write `version: 1`"),
            Some(version) if version.value != 1 => {
                self.error(version.referenced, "version", format!("{} is not supported; only 1 is", version.value));
            }
            Some(_) => {}
        }
        let none = Entry::default();
        let common = document.common.as_ref().map_or(&none, |common| &common.value);
        self.unknown("common.", &common.unknown, Entry::KNOWN);
        for (key, at) in common.set() {
            if APP_ONLY.contains(&key) {
                self.error(at, format!("common.{key}"), "only an app can have this; move it below apps");
            }
        }
        let shared = Shared {
            resources: self.resources("common.", common, base),
            config: self.path("common.configFilePath", &common.config_file_path, base),
        };
        let entries = document.apps.as_ref().map_or(&[][..], |apps| &apps.value);
        if entries.is_empty() {
            let at = document.apps.as_ref().map_or(Location::UNKNOWN, |apps| apps.referenced);
            self.error(at, "apps", "there is none; list at least one app with appDirPath and command");
        }
        let mut apps: Vec<AppSpec> = Vec::new();
        let mut ids: BTreeMap<String, usize> = BTreeMap::new();
        for (index, entry) in entries.iter().enumerate() {
            let Some(app) = self.app(index, entry, common, &shared, base) else { continue };
            if let Some(other) = ids.insert(app.app_id.clone(), index) {
                let at = entry.value.app_id.as_ref().map_or(entry.referenced, |id| id.referenced);
                let message = format!("{:?} is also the id of apps[{other}]", app.app_id);
                self.error(at, format!("apps[{index}].appID"), message);
            }
            apps.push(app);
        }
        apps
    }

    fn app(
        &mut self,
        index: usize,
        entry: &Spanned<Entry>,
        common: &Entry,
        shared: &Shared,
        base: &Path,
    ) -> Option<AppSpec> {
        let within = format!("apps[{index}].");
        let at = entry.referenced;
        let entry = &entry.value;
        self.unknown(&within, &entry.unknown, Entry::KNOWN);
        let Some(folder) = &entry.app_dir_path else {
            let message = "it is missing; name the app's folder, relative to this file";
            self.error(at, format!("{within}appDirPath"), message);
            return None;
        };
        let folder = self.path(&format!("{within}appDirPath"), &Some(folder.clone()), base)?;
        let folder = normal(&folder);
        if !folder.is_dir() {
            self.error(at, format!("{within}appDirPath"), format!("{} is no folder", folder.display()));
        }
        let id_at = entry.app_id.as_ref().map_or(at, |id| id.referenced);
        let id = match &entry.app_id {
            Some(id) if !id.value.is_empty() => Ok(id.value.clone()),
            _ => spec::id_of_folder(&folder),
        };
        let app_id = match id.and_then(|id| spec::check_app_id(&id).map(|()| id)) {
            Ok(id) => id,
            Err(error) => {
                self.error(id_at, format!("{within}appID"), error);
                return None;
            }
        };
        let own = self.resources(&within, entry, &folder);
        let config = self.path(&format!("{within}configFilePath"), &entry.config_file_path, &folder);
        let mut env = common.env.as_ref().map(|env| env.value.0.clone()).unwrap_or_default();
        env.extend(entry.env.iter().flat_map(|env| env.value.0.clone()));
        let app_log =
            self.destination(&within, "appLogDestination", &entry.app_log_destination, &common.app_log_destination);
        let sidecar_log = self.destination(
            &within,
            "daprdLogDestination",
            &entry.sidecar_log_destination,
            &common.sidecar_log_destination,
        );
        Some(AppSpec {
            resources: spec::resources_or_default(own, &folder, &shared.resources, self.home),
            config: spec::config_or_default(config, &folder, shared.config.as_deref(), self.home),
            command: entry.command.iter().flat_map(|words| &words.value.0).map(OsString::from).collect(),
            env,
            app_port: self.port(&within, "appPort", &entry.app_port),
            app_channel_address: value(&entry.app_channel_address),
            http_port: self.port(&within, "daprHTTPPort", &entry.http_port),
            grpc_port: self.port(&within, "daprGRPCPort", &entry.grpc_port),
            internal_grpc_port: self.port(&within, "daprInternalGRPCPort", &entry.internal_grpc_port),
            metrics_port: self.port(&within, "metricsPort", &entry.metrics_port),
            profile_port: self.port(&within, "profilePort", &entry.profile_port),
            unix_domain_socket: entry
                .unix_domain_socket
                .as_ref()
                .filter(|path| !path.value.is_empty())
                .map(|path| spec::absolute(&folder, Path::new(&path.value))),
            options: self.options(&within, entry, common),
            app_log: app_log.unwrap_or(Destination::FileAndConsole),
            sidecar_log: sidecar_log.unwrap_or(Destination::File),
            log_folder: Some(folder.join(spec::APP_FOLDER).join(LOGS)),
            app_id,
            folder,
        })
    }

    fn options(&mut self, within: &str, own: &Entry, common: &Entry) -> SidecarOptions {
        let protocol = self.choice(
            &format!("{within}appProtocol"),
            own.app_protocol.as_ref().or(common.app_protocol.as_ref()),
            &["http", "https", "grpc", "grpcs", "h2c"],
        );
        let level = self.choice(
            &format!("{within}logLevel"),
            own.log_level.as_ref().or(common.log_level.as_ref()),
            &["debug", "info", "warn", "warning", "error", "fatal", "panic"],
        );
        SidecarOptions {
            app_protocol: protocol,
            app_ssl: flag(&own.app_ssl, &common.app_ssl),
            app_max_concurrency: value(&own.app_max_concurrency).or(value(&common.app_max_concurrency)),
            enable_app_health_check: flag(&own.enable_app_health_check, &common.enable_app_health_check),
            app_health_check_path: value(&own.app_health_check_path).or(value(&common.app_health_check_path)),
            app_health_probe_interval: value(&own.app_health_probe_interval)
                .or(value(&common.app_health_probe_interval)),
            app_health_probe_timeout: value(&own.app_health_probe_timeout).or(value(&common.app_health_probe_timeout)),
            app_health_threshold: value(&own.app_health_threshold).or(value(&common.app_health_threshold)),
            log_level: level,
            enable_api_logging: value(&own.enable_api_logging).or(value(&common.enable_api_logging)),
            max_body_size: value(&own.max_body_size).or(value(&common.max_body_size)),
            read_buffer_size: value(&own.read_buffer_size).or(value(&common.read_buffer_size)),
            dapr_http_max_request_size: None,
            dapr_http_read_buffer_size: None,
            dapr_listen_addresses: value(&own.api_listen_addresses).or(value(&common.api_listen_addresses)),
            enable_profiling: flag(&own.enable_profiling, &common.enable_profiling),
            placement_host_address: value(&own.placement_host_address).or(value(&common.placement_host_address)),
            scheduler_host_address: value(&own.scheduler_host_address).or(value(&common.scheduler_host_address)),
        }
    }

    fn choice(&mut self, field: &str, member: Option<&Spanned<String>>, known: &[&str]) -> Option<String> {
        let member = member.filter(|member| !member.value.is_empty())?;
        let lower = member.value.to_lowercase();
        if known.contains(&lower.as_str()) {
            return Some(lower);
        }
        let message = format!("{:?} is not one of {}", member.value, known.join(", "));
        self.error(member.referenced, field, message);
        None
    }

    fn destination(
        &mut self,
        within: &str,
        key: &str,
        own: &Option<Spanned<String>>,
        common: &Option<Spanned<String>>,
    ) -> Option<Destination> {
        let member = own.as_ref().or(common.as_ref()).filter(|member| !member.value.is_empty())?;
        match member.value.as_str() {
            "console" => Some(Destination::Console),
            "file" => Some(Destination::File),
            "fileAndConsole" => Some(Destination::FileAndConsole),
            other => {
                let message = format!("{other:?} is not one of file, console, fileAndConsole");
                self.error(member.referenced, format!("{within}{key}"), message);
                None
            }
        }
    }

    fn port(&mut self, within: &str, key: &str, member: &Option<Spanned<i64>>) -> Option<u16> {
        let member = member.as_ref()?;
        match port_from(member.value) {
            Ok(port) => port,
            Err(reason) => {
                self.error(member.referenced, format!("{within}{key}"), reason);
                None
            }
        }
    }

    fn path(&mut self, field: &str, member: &Option<Spanned<String>>, base: &Path) -> Option<PathBuf> {
        let member = member.as_ref().filter(|member| !member.value.is_empty())?;
        let path = spec::absolute(base, Path::new(&member.value));
        if !path.exists() {
            self.error(member.referenced, field, format!("{} does not exist", path.display()));
            return None;
        }
        Some(path)
    }

    fn resources(&mut self, within: &str, entry: &Entry, base: &Path) -> Vec<PathBuf> {
        let mut out = Vec::new();
        let lists =
            entry.resources_paths.iter().flat_map(|list| list.value.0.iter().map(|path| (path, list.referenced)));
        let single = entry.resources_path.iter().map(|path| (&path.value, path.referenced));
        for (path, at) in lists.chain(single) {
            if path.is_empty() {
                continue;
            }
            let full = spec::absolute(base, Path::new(path));
            if !full.exists() {
                self.error(at, format!("{within}resourcesPaths"), format!("{} does not exist", full.display()));
            }
            out.push(full);
        }
        out
    }
}

/// What the apps share and an app may override, with paths resolved.
struct Shared {
    resources: Vec<PathBuf>,
    config: Option<PathBuf>,
}

/// Without `.` and `..`, so that ids and messages show the real folder.
fn normal(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
#[path = "runfile_tests.rs"]
pub(crate) mod tests;
