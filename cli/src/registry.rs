//! The apps that `mecha run` runs on this machine: one file each in `~/.mecha/run`.
//!
//! The file is locked for as long as its mecha lives, so a file nobody holds is stale, whatever its process id
//! says: ids are reused, locks end with their process.

use crate::error::{CliError, Result};
use crate::home::Home;
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// More than this is no file of ours.
const MAX_RECORD_BYTES: u64 = 256 * 1024;
/// The kernel takes 107 bytes, and a draft of the name is a little longer.
const MAX_SOCKET_PATH: usize = 100;
/// How often to look again when a record is replaced while it is read.
const READ_ATTEMPTS: usize = 8;

/// What is known of a running app. Written as JSON; members are only ever added.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Record {
    pub(crate) app_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) app_port: Option<u16>,
    pub(crate) app_protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) http_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) grpc_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) metrics_port: Option<u16>,
    /// Folder of the API sockets, when the sidecar listens on those instead of ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unix_domain_socket: Option<PathBuf>,
    pub(crate) command: Vec<String>,
    /// The `mecha run` that owns the app.
    pub(crate) cli_pid: i32,
    pub(crate) sidecar_pid: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) app_pid: Option<i32>,
    /// The multi-app file the app was started from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) run_file: Option<PathBuf>,
    /// Start time, RFC 3339 in UTC.
    pub(crate) started: String,
    pub(crate) app_log: PathBuf,
    pub(crate) sidecar_log: PathBuf,
    /// Where a successor of the sidecar gets its sockets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) handover: Option<PathBuf>,
    pub(crate) resources: Vec<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) config: Option<PathBuf>,
}

/// A wish to replace a sidecar in place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UpgradeRequest {
    /// The program to run from now on.
    pub(crate) mechad: PathBuf,
}

/// What became of an [`UpgradeRequest`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct UpgradeOutcome {
    /// The sidecar that runs now.
    pub(crate) sidecar_pid: i32,
    /// Why it still is the one before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

impl Record {
    fn file_name(&self) -> String {
        format!("{}-{}.json", self.app_id, self.cli_pid)
    }

    /// The file whose presence asks the owning mecha to end this one app.
    pub(crate) fn stop_request(&self, home: &Home) -> PathBuf {
        home.run().join(format!("{}-{}.stop", self.app_id, self.cli_pid))
    }

    fn upgrade_request(&self, home: &Home) -> PathBuf {
        self.stop_request(home).with_extension("upgrade")
    }

    fn upgraded(&self, home: &Home) -> PathBuf {
        self.stop_request(home).with_extension("upgraded")
    }

    /// The socket at which this app's sidecar hands over to its successor; none where the path does not fit.
    pub(crate) fn handover_socket(&self, home: &Home) -> Option<PathBuf> {
        let path = self.stop_request(home).with_extension("sock");
        (path.as_os_str().len() <= MAX_SOCKET_PATH).then_some(path)
    }

    /// Asks the owning mecha to replace the sidecar.
    pub(crate) fn ask_upgrade(&self, home: &Home, request: &UpgradeRequest) -> Result<()> {
        // What an earlier wish left behind is no answer to this one.
        let _ = fs::remove_file(self.upgraded(home));
        place(&self.upgrade_request(home), request)?;
        self.signal(Signal::USR1)
    }

    /// Takes the wish back.
    pub(crate) fn withdraw_upgrade(&self, home: &Home) {
        let _ = fs::remove_file(self.upgrade_request(home));
    }

    /// The answer, once.
    pub(crate) fn upgrade_outcome(&self, home: &Home) -> Option<UpgradeOutcome> {
        take(&self.upgraded(home))
    }

    /// The wish, once: for the owning mecha.
    pub(crate) fn take_upgrade(&self, home: &Home) -> Option<UpgradeRequest> {
        take(&self.upgrade_request(home))
    }

    /// Answers it.
    pub(crate) fn answer_upgrade(&self, home: &Home, outcome: &UpgradeOutcome) -> Result<()> {
        place(&self.upgraded(home), outcome)
    }

    /// Asks the owning mecha to end everything it runs.
    pub(crate) fn stop_run(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Asks the owning mecha to end this app only.
    pub(crate) fn stop_app(&self, home: &Home) -> Result<()> {
        let request = self.stop_request(home);
        fs::write(&request, b"")
            .map_err(|error| CliError::new("stop", format!("cannot write {}: {error}", request.display())))?;
        self.signal(Signal::USR1)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.cli_pid)
            .ok_or_else(|| CliError::new("stop", format!("{} has no usable process id", self.app_id)))?;
        match rustix::process::kill_process(pid, signal) {
            // Gone in the meantime is what was asked for.
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(CliError::new(
                "stop",
                format!("cannot signal process {} of {}: {error}", self.cli_pid, self.app_id),
            )),
        }
    }
}

/// The record of an app this process runs; gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    path: PathBuf,
    stop_request: PathBuf,
    // Held for its lock.
    _file: File,
}

impl Registration {
    /// Writes the record.
    pub(crate) fn create(home: &Home, record: &Record) -> Result<Self> {
        let path = home.run().join(record.file_name());
        let file = write_locked(&path, record)?;
        Ok(Self { path, stop_request: record.stop_request(home), _file: file })
    }

    /// Writes the record anew.
    pub(crate) fn update(&mut self, record: &Record) -> Result<()> {
        self._file = write_locked(&self.path, record)?;
        Ok(())
    }

    /// Whether somebody asked to end this app.
    pub(crate) fn stop_requested(path: &Path) -> bool {
        path.exists()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // Best effort: what stays behind is stale and swept by the next reader.
        let _ = fs::remove_file(&self.path);
        for kind in ["stop", "upgrade", "upgraded"] {
            let _ = fs::remove_file(self.stop_request.with_extension(kind));
        }
    }
}

/// Writes a small file under its name at once.
fn place(path: &Path, value: &impl Serialize) -> Result<()> {
    let failed =
        |error: &dyn std::fmt::Display| CliError::new("upgrade", format!("cannot write {}: {error}", path.display()));
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let text = serde_json::to_vec(value).map_err(|error| failed(&error))?;
    fs::write(&draft, text).map_err(|error| failed(&error))?;
    fs::rename(&draft, path).map_err(|error| failed(&error))
}

/// Reads a small file and removes it.
fn take<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(MAX_RECORD_BYTES).read_to_end(&mut text).ok()?;
    let _ = fs::remove_file(path);
    serde_json::from_slice(&text).ok()
}

/// Writes the record under a lock, and only then under its name: a reader never sees half a record, nor one
/// that looks stale.
fn write_locked(path: &Path, record: &Record) -> Result<File> {
    let failed =
        |error: &dyn std::fmt::Display| CliError::new("run-file", format!("cannot write {}: {error}", path.display()));
    let draft = path.with_extension("json.new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .map_err(|error| failed(&error))?;
    file.try_lock().map_err(|error| failed(&error))?;
    let text = serde_json::to_vec_pretty(record).map_err(|error| failed(&error))?;
    file.write_all(&text).map_err(|error| failed(&error))?;
    fs::rename(&draft, path).map_err(|error| failed(&error))?;
    Ok(file)
}

/// The running apps, by name and age. Sweeps the files of apps that are gone.
pub(crate) fn list(home: &Home) -> Result<Vec<Record>> {
    let folder = home.run();
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(CliError::new("run-file", format!("cannot read {}: {error}", folder.display())));
        }
    };
    let mut records = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("json") => records.extend(read(&path)),
            // A request outlives its app only if the app died before it saw the request.
            Some("stop" | "upgrade" | "upgraded" | "sock") if !path.with_extension("json").exists() => {
                drop(fs::remove_file(&path))
            }
            _ => {}
        }
    }
    records.sort_by(|a, b| (&a.app_id, &a.started, a.cli_pid).cmp(&(&b.app_id, &b.started, b.cli_pid)));
    Ok(records)
}

/// A running app with this id (any instance of it); else an error that names what runs.
pub(crate) fn find(home: &Home, app_id: &str) -> Result<Record> {
    let records = list(home)?;
    let mut matching = records.iter().filter(|record| record.app_id == app_id);
    match (matching.next(), matching.next()) {
        // Any instance serves: they are the same app.
        (Some(record), _) => Ok(record.clone()),
        (None, _) => Err(unknown(app_id, &records)),
    }
}

/// "No such app", with what runs instead.
pub(crate) fn unknown(app_id: &str, records: &[Record]) -> CliError {
    let error = CliError::new("app-not-running", format!("no app with the id {app_id:?} runs here"));
    if records.is_empty() {
        return error.hint("nothing runs; `mecha run --app-id ID -- COMMAND` starts an app");
    }
    let mut names: Vec<&str> = records.iter().map(|record| record.app_id.as_str()).collect();
    names.dedup();
    match mecha_resources::did_you_mean(app_id, names.iter().copied()) {
        Some(near) => error.hint(format!("did you mean {near:?}? Running: {}", names.join(", "))),
        None => error.hint(format!("running: {}", names.join(", "))),
    }
}

/// Removes the logs in mecha's own folder that earlier runs of this app left.
pub(crate) fn sweep_logs(home: &Home, app_id: &str) -> Result<()> {
    let live: Vec<i32> = list(home)?.iter().map(|record| record.cli_pid).collect();
    for (path, pid) in own_logs(home, app_id) {
        if !live.contains(&pid) && pid != std::process::id().cast_signed() {
            // Best effort: another mecha may sweep at the same time.
            let _ = fs::remove_file(path);
        }
    }
    Ok(())
}

/// The file in mecha's own folder to which a kind of output (`app`, `sidecar`) of an app goes.
pub(crate) fn own_log(home: &Home, app_id: &str, kind: &str) -> PathBuf {
    home.logs().join(format!("{app_id}-{}.{kind}.log", std::process::id()))
}

/// The logs of an app in mecha's own folder, with the process ids of their mechas.
pub(crate) fn own_logs(home: &Home, app_id: &str) -> Vec<(PathBuf, i32)> {
    let Ok(entries) = fs::read_dir(home.logs()) else { return Vec::new() };
    let pid = |name: &str| name.strip_prefix(app_id)?.strip_prefix('-')?.split_once('.')?.0.parse().ok();
    entries.flatten().filter_map(|entry| Some((entry.path(), pid(entry.file_name().to_str()?)?))).collect()
}

fn read(path: &Path) -> Option<Record> {
    for _ in 0..READ_ATTEMPTS {
        let mut file = File::open(path).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => {
                let mut text = Vec::new();
                (&mut file).take(MAX_RECORD_BYTES).read_to_end(&mut text).ok()?;
                return serde_json::from_slice(&text).ok();
            }
            Err(TryLockError::Error(_)) => return None,
            Ok(()) => {
                // Nobody holds this file. Either its mecha is gone, or the record was just replaced.
                let same = match (file.metadata(), fs::metadata(path)) {
                    (Ok(held), Ok(named)) => (held.dev(), held.ino()) == (named.dev(), named.ino()),
                    _ => false,
                };
                if same {
                    // Best effort; somebody else may have swept it first.
                    let _ = fs::remove_file(path);
                    return None;
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn record(app_id: &str) -> Record {
        Record { app_id: app_id.into(), cli_pid: 1234, command: vec!["true".into()], ..Record::default() }
    }

    fn home() -> (tempfile::TempDir, Home) {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        home.prepare().unwrap();
        (folder, home)
    }

    #[test]
    fn a_running_app_is_listed_until_it_ends() {
        let (_folder, home) = home();
        let written = Record { app_pid: Some(77), ..record("orders") };
        let registration = Registration::create(&home, &written).unwrap();
        assert_eq!(list(&home).unwrap(), vec![written]);
        let file = home.run().join("orders-1234.json");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        drop(registration);
        assert!(list(&home).unwrap().is_empty());
        assert!(!file.exists());
    }

    #[test]
    fn a_record_nobody_holds_is_swept() {
        let (_folder, home) = home();
        let stale = home.run().join("orders-1234.json");
        fs::write(&stale, serde_json::to_vec(&record("orders")).unwrap()).unwrap();
        fs::write(home.run().join("gone-1.stop"), b"").unwrap();
        assert!(list(&home).unwrap().is_empty());
        assert!(!stale.exists());
        assert!(!home.run().join("gone-1.stop").exists());
    }

    #[test]
    fn an_unknown_app_is_answered_with_the_running_ones() {
        let (_folder, home) = home();
        let _orders = Registration::create(&home, &record("orders")).unwrap();
        let error = find(&home, "order").unwrap_err().to_string();
        assert!(error.contains("did you mean \"orders\"?"), "{error}");
    }
}
