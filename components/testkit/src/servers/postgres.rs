use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::process::{Process, free_port, wait_for};

const PROGRAM: &str = "postgresql";
const INSTALL: &str = "apt-get install -y --no-install-recommends postgresql";
/// Where Debian keeps the servers, by their major version.
const VERSIONS: &str = "/usr/lib/postgresql";
/// Whom root becomes: the server refuses root.
const USER: &str = "postgres";
/// Longest wait for the server to answer; a busy machine is slow, and so is recovery.
const START: Duration = Duration::from_secs(60);
/// Ports that are tried, and starts after a crash: shared memory is released a moment later.
const TRIES: usize = 20;

/// What kind of server to start.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    settings: Vec<(String, String)>,
    files: Vec<(String, String)>,
    hba: Option<String>,
    durable: bool,
}

/// A running PostgreSQL with the superuser `postgres`, trusted without a password on loopback.
/// Dropping it ends it and removes its data.
#[derive(Debug)]
pub struct Postgres {
    options: PostgresOptions,
    port: u16,
    bin: PathBuf,
    dir: TempDir,
    process: Option<Process>,
}

impl PostgresOptions {
    /// Fast: what a crash of the machine would lose is not written to the disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Every commit is on the disk before it is answered.
    #[must_use]
    pub fn durable(mut self) -> Self {
        self.durable = true;
        self
    }

    /// A line of postgresql.conf; `{dir}` stands for the folder of the server.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A file in the folder of the server that only it can read.
    #[must_use]
    pub fn file(mut self, name: &str, text: &str) -> Self {
        self.files.push((name.to_owned(), text.to_owned()));
        self
    }

    /// Lines of pg_hba.conf that come before the others.
    #[must_use]
    pub fn hba(mut self, lines: &str) -> Self {
        self.hba = Some(lines.to_owned());
        self
    }

    /// Starts it; `None` when it is not installed.
    ///
    /// # Panics
    /// When it is installed and does not start, or is required and not installed.
    #[track_caller]
    #[must_use]
    pub fn start(self) -> Option<Postgres> {
        let Some(bin) = folder() else {
            super::absent(PROGRAM, INSTALL);
            return None;
        };
        match Postgres::launch(self, bin) {
            Ok(postgres) => Some(postgres),
            Err(e) => panic!("{PROGRAM} does not start: {e}"),
        }
    }
}

impl Postgres {
    /// Starts a server whose data need not survive the machine; `None` when it is not installed.
    #[track_caller]
    #[must_use]
    pub fn start() -> Option<Self> {
        PostgresOptions::new().start()
    }

    /// How to install the server, when it is not.
    #[must_use]
    pub fn missing() -> Option<&'static str> {
        folder().is_none().then_some(INSTALL)
    }

    fn launch(options: PostgresOptions, bin: PathBuf) -> Result<Self, String> {
        let dir = TempDir::new().map_err(|e| format!("no temporary folder: {e}"))?;
        let mut postgres = Self { options, port: 0, bin, dir, process: None };
        postgres.own(postgres.dir.path())?;
        let data = postgres.data().to_string_lossy().into_owned();
        let own = ["-D", &data, "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"];
        let made = postgres.as_user("initdb", &own).output().map_err(|e| format!("cannot start initdb: {e}"))?;
        if !made.status.success() {
            return Err(String::from_utf8_lossy(&made.stderr).into_owned());
        }
        for (name, text) in &postgres.options.files {
            let path = postgres.dir.path().join(name);
            fs::write(&path, text).map_err(|e| format!("cannot write {name}: {e}"))?;
            let mode = fs::set_permissions(&path, fs::Permissions::from_mode(0o600));
            mode.map_err(|e| format!("cannot protect {name}: {e}"))?;
            postgres.own(&path)?;
        }
        if let Some(lines) = &postgres.options.hba {
            let path = postgres.data().join("pg_hba.conf");
            let rest = fs::read_to_string(&path).map_err(|e| format!("cannot read pg_hba.conf: {e}"))?;
            fs::write(&path, format!("{lines}\n{rest}")).map_err(|e| format!("cannot write pg_hba.conf: {e}"))?;
        }
        let mut last = String::new();
        for _ in 0..TRIES {
            postgres.port = free_port();
            match postgres.run() {
                Ok(()) => return Ok(postgres),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    fn run(&mut self) -> Result<(), String> {
        let log = self.log();
        let mut words = self.prefix("postgres");
        let dir = self.dir.path().to_string_lossy();
        let port = self.port.to_string();
        let data = self.data().to_string_lossy().into_owned();
        words.extend(["-D", &data, "-p", &port, "-c", "listen_addresses=127.0.0.1"].map(str::to_owned));
        words.extend(["-c".to_owned(), format!("unix_socket_directories={dir}")]);
        // In the folder, where a killed server leaves nothing behind.
        words.extend(["-c", "dynamic_shared_memory_type=mmap"].map(str::to_owned));
        if !self.options.durable {
            words.extend(
                ["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"].map(str::to_owned),
            );
        }
        for (name, value) in &self.options.settings {
            words.extend(["-c".to_owned(), format!("{name}={}", value.replace("{dir}", &dir))]);
        }
        let program = words.remove(0);
        self.process = Some(Process::start(&program, words, &log)?);
        let mut dead = false;
        let ready = wait_for(START, || {
            dead = !self.process.as_ref().is_some_and(Process::is_alive);
            dead || self.answers()
        });
        if !ready || dead {
            self.process = None;
            return Err(fs::read_to_string(log).unwrap_or_default());
        }
        Ok(())
    }

    /// The words that run `program` of the server as a user who is not root.
    fn prefix(&self, program: &str) -> Vec<String> {
        let program = self.bin.join(program).to_string_lossy().into_owned();
        if !rustix::process::geteuid().is_root() {
            return vec![program];
        }
        let user = [format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".into(), "--".into()];
        ["setpriv".to_owned()].into_iter().chain(user).chain([program]).collect()
    }

    fn as_user(&self, program: &str, args: &[&str]) -> Command {
        let words = self.prefix(program);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(args).current_dir(self.dir.path());
        command
    }

    /// Gives a file to the user that the server runs as.
    fn own(&self, path: &Path) -> Result<(), String> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let id = |flag: &str| {
            let Output { stdout, .. } = Command::new("id").args([flag, USER]).output().ok()?;
            String::from_utf8_lossy(&stdout).trim().parse::<u32>().ok()
        };
        let (user, group) = id("-u").zip(id("-g")).ok_or_else(|| format!("there is no user '{USER}'"))?;
        chown(path, Some(user), Some(group)).map_err(|e| format!("cannot give {} away: {e}", path.display()))
    }

    /// Whether it takes connections: a server that is starting or recovering refuses them.
    fn answers(&self) -> bool {
        let ask = || -> std::io::Result<bool> {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
            let mut socket = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            // Startup message, protocol 3.0.
            let body = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
            socket.write_all(&(body.len() as u32 + 4).to_be_bytes())?;
            socket.write_all(body)?;
            let mut kind = [0];
            socket.read_exact(&mut kind)?;
            if kind == *b"R" {
                // Terminate, so that the log has no complaint.
                let _ = socket.write_all(b"X\0\0\0\x04");
            }
            Ok(kind == *b"R")
        };
        ask().unwrap_or(false)
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The file with its output.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.path().join("server.log")
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A connection string for the superuser and the database `postgres`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{USER}", self.port)
    }

    /// Runs SQL with psql and gives its output, a line per row and `|` between columns.
    ///
    /// # Panics
    /// When the server cannot be asked or refuses.
    #[track_caller]
    pub fn sql(&self, text: &str) -> String {
        let output = Command::new(self.bin.join("psql"))
            .args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", &self.url(), "-c", text])
            .current_dir("/")
            .output();
        match output {
            Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim_end().to_owned(),
            Ok(output) => panic!("psql: {}", String::from_utf8_lossy(&output.stderr)),
            Err(e) => panic!("psql cannot be started: {e}"),
        }
    }

    /// Ends all its processes without warning, as a crash would.
    pub fn kill(&mut self) {
        for child in self.children() {
            let _ = kill_process(child, Signal::KILL);
        }
        self.process = None;
    }

    /// Asks it to end: sessions are told and closed.
    pub fn stop(&mut self) {
        if let Some(process) = &self.process {
            // "Fast" shutdown.
            if let Some(pid) = Pid::from_raw(process.pid()) {
                let _ = kill_process(pid, Signal::INT);
            }
            let _ = wait_for(Duration::from_secs(20), || !process.is_alive());
        }
        self.process = None;
    }

    /// Starts it again on the same port and folder.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        let mut last = String::new();
        for _ in 0..TRIES {
            match self.run() {
                Ok(()) => return,
                Err(e) => last = e,
            }
        }
        panic!("{PROGRAM} does not start again: {last}");
    }

    /// Freezes it and all its sessions: connections stay, nothing answers.
    pub fn freeze(&self) {
        if let Some(process) = &self.process {
            // The parent first, so that no new child escapes.
            process.freeze();
            for child in self.children() {
                let _ = kill_process(child, Signal::STOP);
            }
        }
    }

    /// Lets a frozen one go on.
    pub fn thaw(&self) {
        if let Some(process) = &self.process {
            for child in self.children() {
                let _ = kill_process(child, Signal::CONT);
            }
            process.thaw();
        }
    }

    /// Its sessions and helpers.
    fn children(&self) -> Vec<Pid> {
        let Some(process) = &self.process else { return Vec::new() };
        let pid = process.pid();
        let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        list.split_whitespace().filter_map(|p| p.parse().ok()).filter_map(Pid::from_raw).collect()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
        // What a killed server leaves in the kernel is for its next start; there is none.
        let pid = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let segment = pid.lines().nth(6).and_then(|line| line.split_whitespace().nth(1));
        if let Some(id) = segment {
            let _ = Command::new("ipcrm").args(["-m", id]).output();
        }
    }
}

/// The programs of the newest version that is installed.
fn folder() -> Option<PathBuf> {
    let versions = fs::read_dir(VERSIONS).ok()?.flatten();
    let version = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    versions
        .map(|entry| entry.path())
        .filter(|path| path.join("bin/postgres").is_file() && path.join("bin/psql").is_file())
        .max_by_key(|path| version(path))
        .map(|path| path.join("bin"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_dies_and_comes_back_with_its_data() {
        let Some(mut postgres) = PostgresOptions::new().durable().start() else { return };
        postgres.sql("CREATE TABLE t (a int); INSERT INTO t VALUES (7)");
        postgres.kill();
        assert!(!postgres.answers());
        postgres.restart();
        assert_eq!(postgres.sql("SELECT a FROM t"), "7");
    }

    #[test]
    fn a_frozen_one_does_not_answer_and_goes_on() {
        let Some(postgres) = Postgres::start() else { return };
        postgres.freeze();
        assert!(!postgres.answers());
        postgres.thaw();
        assert!(wait_for(START, || postgres.answers()));
    }

    #[test]
    fn a_dropped_one_is_gone() {
        let Some(postgres) = Postgres::start() else { return };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, postgres.port()));
        drop(postgres);
        assert!(TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err());
    }
}
