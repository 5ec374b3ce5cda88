//! The daemons under measurement, started as a user would start them.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::process::{Process, wait_until};

/// Lines of a log that are shown when a start failed.
const LOG_LINES: usize = 12;
/// How long a start may take.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A daemon binary and what it is called in tables.
#[derive(Clone, Debug)]
pub(crate) struct Binary {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// A program that runs it, with its arguments; none as a rule.
    pub(crate) under: Vec<OsString>,
}

/// What a sidecar is started with.
#[derive(Clone, Debug)]
pub(crate) struct Setup<'a> {
    pub(crate) app_id: &'a str,
    pub(crate) app: Option<(SocketAddr, &'a str)>,
    /// Documents for its resources folder, by file name.
    pub(crate) documents: &'a [(&'a str, String)],
}

/// A running sidecar in a folder of its own.
#[derive(Debug)]
pub(crate) struct Sidecar {
    process: Process,
    pub(crate) http: SocketAddr,
    pub(crate) grpc: SocketAddr,
    /// From just before exec to the first 204 of `/v1.0/healthz`.
    pub(crate) start: Duration,
}

impl Binary {
    /// The binary at `path`, named after its file.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let path = fs::canonicalize(path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        let name = path.file_name().map_or_else(|| "daemon".to_owned(), |n| n.to_string_lossy().into_owned());
        Ok(Self { name, path, under: Vec::new() })
    }

    pub(crate) fn bytes(&self) -> u64 {
        fs::metadata(&self.path).map(|m| m.len()).unwrap_or_default()
    }

    pub(crate) fn version(&self) -> String {
        let out = Command::new(&self.path).arg("--version").output();
        out.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
    }

    /// Starts a sidecar below `folder` and waits until it is ready.
    pub(crate) fn start(&self, folder: &Path, setup: &Setup<'_>) -> io::Result<Sidecar> {
        self.start_with(folder, setup, &[]).map(|(sidecar, _)| sidecar)
    }

    /// The same with more flags; beside the sidecar the folder it has for itself, with its documents in `resources`.
    pub(crate) fn start_with(
        &self,
        folder: &Path,
        setup: &Setup<'_>,
        flags: &[&str],
    ) -> io::Result<(Sidecar, PathBuf)> {
        let own = folder.join(format!("{}-{}", self.name, setup.app_id));
        let resources = own.join("resources");
        fs::create_dir_all(&resources)?;
        for (file, text) in setup.documents {
            fs::write(resources.join(file), text.replace("FOLDER", &own.display().to_string()))?;
        }
        // Sidecars of one binary find each other, not those of another one.
        let registry = folder.join(format!("{}-names.db", self.name));
        let config = own.join("config.yaml");
        fs::write(&config, configuration(&registry))?;
        let log = own.join("log.txt");
        let [http, grpc, internal, metrics] = free_ports()?;
        let mut words = self.under.iter().map(OsString::as_os_str).chain([self.path.as_os_str()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command
            .args(words)
            .args(["--app-id", setup.app_id, "--log-level", "error"])
            .args(["--dapr-listen-addresses", "127.0.0.1", "--dapr-internal-grpc-listen-address", "127.0.0.1"])
            .args(["--dapr-http-port", &http.to_string(), "--dapr-grpc-port", &grpc.to_string()])
            .args(["--dapr-internal-grpc-port", &internal.to_string(), "--metrics-port", &metrics.to_string()])
            .arg("--resources-path")
            .arg(&resources)
            .arg("--config")
            .arg(&config)
            .args(flags)
            .env("DAPR_HOST_IP", "127.0.0.1")
            .env("MECHA_HOME", own.join("home"))
            .stdin(Stdio::null())
            .stdout(File::create(&log)?)
            .stderr(File::options().append(true).open(&log)?);
        if let Some((address, protocol)) = setup.app {
            command.args(["--app-port", &address.port().to_string(), "--app-protocol", protocol]);
        }
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let began = Instant::now();
        let mut process = Process::spawn(&mut command)?;
        let ready = wait_until(START_LIMIT, "the first 204", || {
            if let Some(status) = process.ended() {
                return Err(io::Error::other(format!("it ended with {status}")));
            }
            Ok(status_of(local(http), "/v1.0/healthz") == Some(204))
        });
        let start = began.elapsed();
        if let Err(e) = ready {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
            return Err(io::Error::other(format!("{} {}: {e}\n{}", self.name, setup.app_id, tail.join("\n"))));
        }
        Ok((Sidecar { process, http: local(http), grpc: local(grpc), start }, own))
    }
}

impl Sidecar {
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Asks it to end and waits until it has.
    ///
    /// # Errors
    /// It is still there after `limit`.
    pub(crate) fn stop(mut self, limit: Duration) -> io::Result<()> {
        self.process.terminate();
        wait_until(limit, "the end of a sidecar", || Ok(self.process.ended().is_some()))
    }
}

fn configuration(registry: &Path) -> String {
    format!(
        "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata:\n  name: bench\nspec:\n  nameResolution:\n    \
         component: sqlite\n    version: v1\n    configuration:\n      connectionString: \"{}\"\n",
        registry.display()
    )
}

/// Ports that were free a moment ago.
fn free_ports<const N: usize>() -> io::Result<[u16; N]> {
    let mut held = Vec::with_capacity(N);
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}

/// Status of a GET; `None` when nobody answers.
fn status_of(address: SocketAddr, path: &str) -> Option<u16> {
    let (status, _) = get(address, path).ok()?;
    Some(status)
}

/// A GET on a connection of its own: status and body.
pub(crate) fn get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    request(address, "GET", path, "")
}

/// A request on a connection of its own: status and body.
pub(crate) fn request(address: SocketAddr, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok());
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    status.map(|s| (s, body)).ok_or_else(|| io::Error::other("no HTTP answer"))
}
