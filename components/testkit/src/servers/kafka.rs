use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::TempDir;
use uuid::Uuid;

use super::process::{Process, free_port, wait_for};

/// The version that tests/install-servers.sh fetches.
const VERSION: &str = "4.3.1";
const PROGRAM: &str = "java";
const PRODUCT: &str = "kafka";
const INSTALL: &str = "bash tests/install-servers.sh";
/// Longest wait for the broker; a busy machine is slow.
const START: Duration = Duration::from_secs(90);
/// Ports that are tried.
const TRIES: usize = 5;
/// What the log says once clients are served.
const READY: &str = "Kafka Server started";
/// A small machine that is quick to start.
const JVM: &[&str] = &[
    "-Xms64m",
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
];
/// One node that answers soon, forgets dead members soon and comes back soon after a crash.
const PROPERTIES: &str = "process.roles=broker,controller
node.id=1
num.partitions=1
num.network.threads=2
num.io.threads=2
offsets.topic.num.partitions=2
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
controller.quorum.election.timeout.ms=500
controller.quorum.election.backoff.max.ms=500
controller.quorum.fetch.timeout.ms=1000
log.index.size.max.bytes=1048576
message.max.bytes=8388608
";

/// What kind of broker to start.
#[derive(Clone, Debug, Default)]
pub struct KafkaOptions {
    properties: Vec<(String, String)>,
    users: Vec<(String, String)>,
    protocol: Option<&'static str>,
    advertised: Option<u16>,
}

/// A running Apache Kafka, broker and controller in one. Dropping it ends it and removes its data.
#[derive(Debug)]
pub struct Kafka {
    options: KafkaOptions,
    port: u16,
    dir: TempDir,
    process: Option<Process>,
}

impl KafkaOptions {
    /// A broker that anybody may use, whose topics are made on first use, with one partition.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One more property of the server.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.properties.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Asks for this login, by SASL PLAIN or SCRAM-SHA-256.
    #[must_use]
    pub fn user(mut self, name: &str, password: &str) -> Self {
        self.protocol = Some(if self.protocol == Some("SSL") { "SASL_SSL" } else { "SASL_PLAINTEXT" });
        self.users.push((name.to_owned(), password.to_owned()));
        self
    }

    /// Encrypts, with this key and chain (PEM); with `clients`, also asks for certificates they signed.
    #[must_use]
    pub fn tls(mut self, key: &str, chain: &str, clients: Option<&str>) -> Self {
        let line = |pem: &str| pem.trim().replace('\n', " ");
        self.protocol = Some(if self.users.is_empty() { "SSL" } else { "SASL_SSL" });
        self = self.set("ssl.keystore.type", "PEM").set("ssl.keystore.key", &line(key));
        self = self.set("ssl.keystore.certificate.chain", &line(chain));
        match clients {
            Some(clients) => self
                .set("ssl.truststore.type", "PEM")
                .set("ssl.truststore.certificates", &line(clients))
                .set("ssl.client.auth", "required"),
            None => self,
        }
    }

    /// Asks for a bearer token, and takes any unsigned one whose subject and times are right.
    #[must_use]
    pub fn unsigned_tokens(mut self) -> Self {
        let module = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule";
        self.protocol = Some("SASL_PLAINTEXT");
        self.set("sasl.enabled.mechanisms", "OAUTHBEARER").set(
            "listener.name.clients.oauthbearer.sasl.jaas.config",
            &format!("{module} required unsecuredLoginStringClaim_sub=\"broker\";"),
        )
    }

    /// Tells clients to come through this port of 127.0.0.1.
    #[must_use]
    pub fn advertise(mut self, port: u16) -> Self {
        self.advertised = Some(port);
        self
    }

    /// Starts it; `None` when it is not installed.
    ///
    /// # Panics
    /// When it is installed and does not start, or is required and not installed.
    #[track_caller]
    #[must_use]
    pub fn start(self) -> Option<Kafka> {
        if Kafka::missing().is_some() {
            super::absent(PRODUCT, INSTALL);
            return None;
        }
        let mut last = String::new();
        for _ in 0..TRIES {
            match Kafka::launch(self.clone()) {
                Ok(kafka) => return Some(kafka),
                Err(e) => last = e,
            }
        }
        panic!("{PRODUCT} does not start: {last}");
    }
}

impl Kafka {
    /// Starts one of its own; `None` when it is not installed.
    #[track_caller]
    #[must_use]
    pub fn start() -> Option<Self> {
        KafkaOptions::new().start()
    }

    /// The one that all tests of this process share; it ends with the process. `None` when it
    /// is not installed.
    #[track_caller]
    #[must_use]
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Kafka>> = OnceLock::new();
        let kafka = SHARED.get_or_init(|| {
            let mut kafka = Self::start()?;
            // Nothing is dropped at the end of a process, so the guard removes the folder.
            kafka.dir.disable_cleanup(true);
            kafka.process.as_mut()?.sweep(kafka.dir.path());
            Some(kafka)
        });
        kafka.as_ref()
    }

    /// How to install the server, when it is not.
    #[must_use]
    pub fn missing() -> Option<&'static str> {
        let there = super::is_installed(PROGRAM) && library().is_some_and(|folder| folder.is_dir());
        (!there).then_some(INSTALL)
    }

    fn launch(options: KafkaOptions) -> Result<Self, String> {
        let dir = TempDir::new().map_err(|e| format!("no temporary folder: {e}"))?;
        let mut kafka = Self { options, port: free_port(), dir, process: None };
        kafka.format()?;
        kafka.run()?;
        Ok(kafka)
    }

    /// Writes the settings and the identity of the cluster.
    fn format(&self) -> Result<(), String> {
        let (port, dir) = (self.port, self.dir.path());
        let controller = free_port();
        let protocol = self.options.protocol.unwrap_or("PLAINTEXT");
        let advertised = self.options.advertised.unwrap_or(port);
        let mut text = format!(
            "{PROPERTIES}listeners=CLIENTS://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},INSIDE://127.0.0.1:{inside}
advertised.listeners=CLIENTS://127.0.0.1:{advertised},INSIDE://127.0.0.1:{inside}
listener.security.protocol.map=CLIENTS:{protocol},CONTROLLER:PLAINTEXT,INSIDE:PLAINTEXT
inter.broker.listener.name=INSIDE
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
log.dirs={dir}
",
            inside = free_port(),
            dir = dir.join("data").display(),
        );
        if !self.options.users.is_empty() {
            let users: Vec<String> = self.options.users.iter().map(|(n, p)| format!("user_{n}=\"{p}\"")).collect();
            text.push_str("sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256\n");
            let login = "org.apache.kafka.common.security";
            text.push_str(&format!(
                "listener.name.clients.plain.sasl.jaas.config={login}.plain.PlainLoginModule required {};\n",
                users.join(" ")
            ));
            text.push_str(&format!(
                "listener.name.clients.scram-sha-256.sasl.jaas.config={login}.scram.ScramLoginModule required;\n"
            ));
        }
        for (name, value) in &self.options.properties {
            text.push_str(&format!("{name}={value}\n"));
        }
        let file = self.settings();
        fs::write(&file, text).map_err(|e| format!("cannot write {}: {e}", file.display()))?;
        // An id is 16 bytes in base64, and one that begins with a dash would be read as an option.
        let id = format!("m{}", &Uuid::new_v4().simple().to_string()[..20]) + "A";
        let mut args = java("kafka.tools.StorageTool")?;
        args.extend(["format", "--standalone", "-t", &id, "-c"].map(str::to_owned));
        args.push(file.display().to_string());
        for (name, password) in &self.options.users {
            args.push("--add-scram".to_owned());
            args.push(format!("SCRAM-SHA-256=[name={name},password={password}]"));
        }
        let output = Command::new(PROGRAM).args(args).stdin(Stdio::null()).output();
        match output {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(format!(
                "format: {} {}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            )),
            Err(e) => Err(format!("cannot start {PROGRAM}: {e}")),
        }
    }

    fn run(&mut self) -> Result<(), String> {
        let log = self.log();
        let mut args = java("kafka.Kafka")?;
        args.push(self.settings().display().to_string());
        let process = self.process.insert(Process::start(PROGRAM, args, &log)?);
        let mut dead = false;
        let ready = wait_for(START, || {
            dead = !process.is_alive();
            dead || tail(&log).contains(READY)
        });
        if !ready || dead {
            self.process = None;
            return Err(tail(&log));
        }
        Ok(())
    }

    fn settings(&self) -> PathBuf {
        self.dir.path().join("server.properties")
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

    /// Ends it without warning, as a crash would.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Asks it to end and waits until it has.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.terminate();
        }
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
        panic!("{PRODUCT} does not start again: {last}");
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

/// Where tests/install-servers.sh puts the jars.
fn library() -> Option<PathBuf> {
    let cache = match std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()) {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".cache"),
    };
    Some(cache.join("mecha").join(format!("kafka-{VERSION}")))
}

/// The arguments that run a class of the broker.
fn java(class: &str) -> Result<Vec<String>, String> {
    let library = library().ok_or("neither HOME nor XDG_CACHE_HOME is set")?;
    let mut args: Vec<String> = JVM.iter().map(|a| (*a).to_owned()).collect();
    args.extend(["-cp".to_owned(), format!("{}/*", library.display()), class.to_owned()]);
    Ok(args)
}

/// The end of a file.
fn tail(path: &std::path::Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(16 * 1024)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpStream};

    use super::*;

    fn listens(port: u16) -> bool {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
    }

    #[test]
    fn it_starts_dies_comes_back_and_goes() {
        let Some(mut kafka) = Kafka::start() else { return };
        let port = kafka.port();
        assert!(listens(port));
        kafka.kill();
        assert!(!listens(port));
        kafka.restart();
        assert!(listens(port));
        drop(kafka);
        assert!(!listens(port));
    }
}
