use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::process::{Process, free_port, wait_for};

const PROGRAM: &str = "redis-server";
const INSTALL: &str = "apt-get install -y --no-install-recommends redis-server";
/// Longest wait for the server to answer; a busy machine is slow.
const START: Duration = Duration::from_secs(30);
/// Ports that are tried.
const TRIES: usize = 5;

/// What kind of server to start.
#[derive(Clone, Debug, Default)]
pub struct RedisOptions {
    args: Vec<String>,
    password: Option<String>,
    sentinel: bool,
}

/// A running Redis. Dropping it ends it and removes its data.
#[derive(Debug)]
pub struct Redis {
    options: RedisOptions,
    port: u16,
    dir: TempDir,
    process: Option<Process>,
}

impl RedisOptions {
    /// In memory only.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Every write is on the disk before it is answered.
    #[must_use]
    pub fn durable(self) -> Self {
        self.arg("--appendonly").arg("yes").arg("--appendfsync").arg("always")
    }

    /// Asks for this password.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self.arg("--requirepass").arg(password)
    }

    /// A replica of another server.
    #[must_use]
    pub fn replica_of(self, port: u16) -> Self {
        self.arg("--replicaof").arg("127.0.0.1").arg(port.to_string())
    }

    /// A node of a cluster; without slots until it is given some.
    #[must_use]
    pub fn cluster(self) -> Self {
        self.arg("--cluster-enabled").arg("yes")
    }

    /// A sentinel that watches the server on `port` under the name `primary`.
    #[must_use]
    pub fn sentinel_of(mut self, port: u16) -> Self {
        self.sentinel = true;
        self.args = vec![
            format!("sentinel monitor primary 127.0.0.1 {port} 1"),
            "sentinel down-after-milliseconds primary 500".to_owned(),
            "sentinel failover-timeout primary 2000".to_owned(),
        ];
        self
    }

    /// One more word of the command line.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Starts it; `None` when it is not installed.
    ///
    /// # Panics
    /// When it is installed and does not start, or is required and not installed.
    #[track_caller]
    #[must_use]
    pub fn start(self) -> Option<Redis> {
        if !super::is_installed(PROGRAM) {
            super::absent(PROGRAM, INSTALL);
            return None;
        }
        let mut last = String::new();
        for _ in 0..TRIES {
            match Redis::launch(self.clone()) {
                Ok(redis) => return Some(redis),
                Err(e) => last = e,
            }
        }
        panic!("{PROGRAM} does not start: {last}");
    }
}

impl Redis {
    /// Starts a server that keeps its data in memory; `None` when it is not installed.
    #[track_caller]
    #[must_use]
    pub fn start() -> Option<Self> {
        RedisOptions::new().start()
    }

    /// How to install the server, when it is not.
    #[must_use]
    pub fn missing() -> Option<&'static str> {
        (!super::is_installed(PROGRAM)).then_some(INSTALL)
    }

    fn launch(options: RedisOptions) -> Result<Self, String> {
        let dir = TempDir::new().map_err(|e| format!("no temporary folder: {e}"))?;
        let mut redis = Self { options, port: free_port(), dir, process: None };
        redis.run()?;
        Ok(redis)
    }

    fn run(&mut self) -> Result<(), String> {
        let log = self.log();
        let process = Process::start(PROGRAM, self.command_line()?, &log)?;
        self.process = Some(process);
        // Another server on the same port would answer too, so ours must be alive.
        let mut dead = false;
        let ready = wait_for(START, || {
            dead = !self.process.as_ref().is_some_and(Process::is_alive);
            dead || self.answers()
        });
        if !ready || dead {
            self.process = None;
            return Err(std::fs::read_to_string(log).unwrap_or_default());
        }
        Ok(())
    }

    fn command_line(&self) -> Result<Vec<String>, String> {
        let dir = self.dir.path().to_string_lossy().into_owned();
        let port = self.port.to_string();
        if self.options.sentinel {
            // A sentinel keeps its findings in its file, so a restart must not write it anew.
            let file = self.dir.path().join("sentinel.conf");
            if !file.exists() {
                let text = format!("port {port}\nbind 127.0.0.1\ndir {dir}\n{}\n", self.options.args.join("\n"));
                std::fs::write(&file, text).map_err(|e| format!("cannot write {}: {e}", file.display()))?;
            }
            return Ok(vec![file.to_string_lossy().into_owned(), "--sentinel".to_owned()]);
        }
        let own = ["--port", &port, "--bind", "127.0.0.1", "--dir", &dir, "--save", "", "--daemonize", "no"];
        let mut args: Vec<String> = own.iter().map(|a| (*a).to_owned()).collect();
        if !self.options.args.iter().any(|a| a == "--appendonly") {
            args.extend(["--appendonly".to_owned(), "no".to_owned()]);
        }
        args.extend(self.options.args.iter().cloned());
        Ok(args)
    }

    /// Whether it takes commands: a server that is still loading does not.
    fn answers(&self) -> bool {
        let ask = || -> std::io::Result<bool> {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
            let mut socket = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            socket.write_all(b"PING\r\n")?;
            let mut reply = [0; 64];
            let n = socket.read(&mut reply)?;
            Ok(reply[..n].starts_with(b"+PONG") || reply[..n].starts_with(b"-NOAUTH"))
        };
        ask().unwrap_or(false)
    }

    /// The file with its output.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.path().join("server.log")
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:port`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Runs a command with redis-cli and gives its raw output.
    ///
    /// # Panics
    /// When the server cannot be asked or answers with an error.
    #[track_caller]
    pub fn command(&self, args: &[&str]) -> String {
        let mut cli = Command::new("redis-cli");
        cli.args(["-e", "-h", "127.0.0.1", "-p", &self.port.to_string()]).args(args);
        if let Some(password) = &self.options.password {
            cli.env("REDISCLI_AUTH", password);
        }
        match cli.output() {
            Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim_end().to_owned(),
            Ok(output) => panic!("redis-cli {args:?}: {}", String::from_utf8_lossy(&output.stderr)),
            Err(e) => panic!("redis-cli cannot be started: {e}"),
        }
    }

    /// Ends it without warning, as a crash would.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again on the same port and folder.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    pub fn restart(&mut self) {
        self.process = None;
        let mut last = String::new();
        for _ in 0..TRIES {
            match self.run() {
                Ok(()) => return,
                Err(e) => last = e,
            }
        }
        panic!("{PROGRAM} does not start again: {last}");
    }

    /// Freezes it: connections stay, nothing answers.
    pub fn freeze(&self) {
        if let Some(process) = &self.process {
            process.freeze();
        }
    }

    /// Lets a frozen one go on.
    pub fn thaw(&self) {
        if let Some(process) = &self.process {
            process.thaw();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_dies_and_comes_back_with_its_data() {
        let Some(mut redis) = RedisOptions::new().durable().start() else { return };
        assert_eq!(redis.command(&["SET", "k", "v"]), "OK");
        redis.kill();
        assert!(!redis.answers());
        redis.restart();
        assert_eq!(redis.command(&["GET", "k"]), "v");
    }

    #[test]
    fn a_dropped_one_is_gone() {
        let Some(redis) = Redis::start() else { return };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, redis.port()));
        drop(redis);
        assert!(TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err());
    }
}
