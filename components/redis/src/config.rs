//! The metadata that every Redis component shares: where the server is and how to talk to it.

use std::fmt;
use std::time::Duration;

use mecha_components_api::{ConfigErrors, Metadata, Secret, parse_go_duration};

const DEFAULT_PORT: u16 = 6379;
const MILLISECOND: Duration = Duration::from_millis(1);
/// Lost connections are found within this time, whatever the timeouts are.
pub(crate) const LONGEST_SILENCE: Duration = Duration::from_secs(15);
/// What "no limit" means here: every wait ends.
const LONGEST: Duration = Duration::from_secs(60);

/// The metadata keys of all Redis components, and those of one.
macro_rules! redis_fields {
    (min_retry: $min:literal; $($extra:expr),* $(,)?) => {
        &[
            Field::new("redisHost", FieldType::Text, "Address as `host` or `host:port`; a comma-separated list for a cluster or sentinels.").required(),
            Field::new("redisPort", FieldType::Integer, "Port, when the address names none; both must agree when both do.").default("6379"),
            Field::new("redisUsername", FieldType::Text, "User of the server's access control list."),
            Field::new("redisPassword", FieldType::Text, "Password of the user, or of the server.").secret(),
            Field::new("sentinelUsername", FieldType::Text, "User at the sentinels."),
            Field::new("sentinelPassword", FieldType::Text, "Password at the sentinels.").secret(),
            Field::new("useEntraID", FieldType::Boolean, "Login by a token of Entra ID; not available in this build.").default("false").aliases(&["useAzureAD"]),
            Field::new("enableTLS", FieldType::Boolean, "Encrypts, and verifies the server's certificate.").default("false"),
            Field::new("insecureSkipTLSVerify", FieldType::Boolean, "Accepts any certificate. For tests only.").default("false"),
            Field::new("clientCert", FieldType::Text, "Client certificate chain in PEM; needs clientKey."),
            Field::new("clientKey", FieldType::Text, "Private key of clientCert in PEM.").secret(),
            Field::new("mecha.caCert", FieldType::Text, "Certificates in PEM that are trusted instead of the system's."),
            Field::new("redisType", FieldType::Text, "`node` or `cluster`.").default("node"),
            Field::new("redisDB", FieldType::Integer, "Number of the database; a cluster has only one.").default("0"),
            Field::new("failover", FieldType::Boolean, "The address is that of sentinels, which name the server.").default("false"),
            Field::new("sentinelMasterName", FieldType::Text, "Name of the primary at the sentinels; needed for failover."),
            Field::new("redisMaxRetries", FieldType::Integer, "How often a call is sent again when it surely did nothing; -1 never.").default("3").aliases(&["maxRetries"]),
            Field::new("redisMinRetryInterval", FieldType::Duration, "First pause between two tries; bare numbers are milliseconds, -1 none.").default($min).aliases(&["maxRetryBackoff"]),
            Field::new("redisMaxRetryInterval", FieldType::Duration, "Longest pause between two tries; bare numbers are milliseconds, -1 none.").default("512ms"),
            Field::new("dialTimeout", FieldType::Duration, "Longest time to connect and log in; bare numbers are milliseconds.").default("5s"),
            Field::new("readTimeout", FieldType::Duration, "Longest time of one read with all its tries; bare numbers are milliseconds, -1 is 60s.").default("3s"),
            Field::new("writeTimeout", FieldType::Duration, "Longest time of one write with all its tries; default is readTimeout.").default("3s"),
            Field::new("poolSize", FieldType::Integer, "Accepted without effect: one connection carries all calls."),
            Field::new("poolTimeout", FieldType::Duration, "Accepted without effect: one connection carries all calls."),
            Field::new("maxConnAge", FieldType::Duration, "Accepted without effect: one connection carries all calls."),
            Field::new("minIdleConns", FieldType::Integer, "Accepted without effect: one connection carries all calls."),
            Field::new("idleCheckFrequency", FieldType::Duration, "Accepted without effect: TCP keep-alive finds dead connections."),
            Field::new("idleTimeout", FieldType::Duration, "Accepted without effect: the connection is kept."),
            $($extra),*
        ]
    };
}
pub(crate) use redis_fields;

/// How to reach one Redis.
#[derive(Clone)]
pub(crate) struct RedisConfig {
    /// Nodes of the cluster, sentinels, or the one server.
    pub(crate) hosts: Vec<(String, u16)>,
    pub(crate) topology: Topology,
    pub(crate) login: Login,
    pub(crate) sentinel_login: Login,
    pub(crate) tls: Option<Tls>,
    pub(crate) db: i64,
    pub(crate) retries: Retries,
    /// Longest time to connect and log in.
    pub(crate) dial: Duration,
    /// Longest time of one read, tries included.
    pub(crate) read: Duration,
    /// Longest time of one write, tries included.
    pub(crate) write: Duration,
}

/// What stands behind the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Topology {
    Node,
    Cluster,
    /// Sentinels that know the primary by this name.
    Sentinel(String),
}

/// User and password; both may be missing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Login {
    pub(crate) username: Option<String>,
    pub(crate) password: Option<Secret>,
}

/// How to encrypt.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    /// Accept any certificate.
    pub(crate) insecure: bool,
    /// Chain and key of the client.
    pub(crate) client: Option<(String, Secret)>,
    /// Roots instead of the system's.
    pub(crate) roots: Option<String>,
}

/// How often, and after which pauses, a call that did nothing is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Retries {
    pub(crate) max: u32,
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
}

/// The blocks whose defaults and old key names differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    State,
    Lock,
    Configuration,
    PubSub,
    Binding,
}

/// Shows no credentials.
impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("hosts", &self.hosts)
            .field("topology", &self.topology)
            .field("tls", &self.tls.is_some())
            .field("db", &self.db)
            .finish_non_exhaustive()
    }
}

impl RedisConfig {
    /// The servers and the database, for [`mecha_components_api::Component::place`].
    pub(crate) fn place(&self) -> String {
        let hosts: Vec<String> = self.hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect();
        format!("{}/{}", hosts.join(","), self.db)
    }

    /// Reads the shared keys, noting mistakes in `errors`.
    pub(crate) fn read(md: &Metadata, errors: &mut ConfigErrors, block: Block) -> Self {
        let given = errors.text(md, "redisType", "node");
        let cluster = given.eq_ignore_ascii_case("cluster");
        if !cluster && !given.eq_ignore_ascii_case("node") {
            errors.push("redisType", "'redisType' must be node or cluster");
        }
        let topology = if errors.bool(md, "failover", false) {
            Topology::Sentinel(errors.required(md, "sentinelMasterName"))
        } else if cluster {
            Topology::Cluster
        } else {
            Topology::Node
        };
        let token = if md.contains("useEntraID") { "useEntraID" } else { "useAzureAD" };
        if errors.bool(md, token, false) {
            errors.push(token, format!("'{token}': login by a token of Entra ID is not available in this build; use redisUsername and redisPassword"));
        }
        let hosts = hosts(md, errors, topology != Topology::Node);
        let db = errors.int(md, "redisDB", 0);
        if db < 0 {
            errors.push("redisDB", "'redisDB' must not be negative");
        }
        for key in ["poolSize", "minIdleConns"] {
            errors.int(md, key, 0);
        }
        for key in ["poolTimeout", "maxConnAge", "idleCheckFrequency", "idleTimeout"] {
            span(md, errors, key, Duration::ZERO);
        }
        let read = limit(md, errors, "readTimeout", Duration::from_secs(3));
        Self {
            hosts,
            topology,
            login: Login::read(md, "redisUsername", "redisPassword"),
            sentinel_login: Login::read(md, "sentinelUsername", "sentinelPassword"),
            tls: tls(md, errors),
            db,
            retries: Retries::read(md, errors, block),
            dial: limit(md, errors, "dialTimeout", Duration::from_secs(5)),
            read,
            write: limit(md, errors, "writeTimeout", read),
        }
    }

    /// A server that says nothing for so long, although it was asked, may be gone.
    pub(crate) fn silence(&self) -> Duration {
        self.read.min(self.write).min(LONGEST_SILENCE)
    }

    /// The address for messages.
    pub(crate) fn address(&self) -> String {
        let hosts: Vec<String> = self.hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect();
        hosts.join(",")
    }
}

impl Login {
    fn read(md: &Metadata, username: &str, password: &str) -> Self {
        Self {
            username: md.get_non_empty(username).map(str::to_owned),
            password: md.get_non_empty(password).map(Secret::new),
        }
    }
}

impl Retries {
    fn read(md: &Metadata, errors: &mut ConfigErrors, block: Block) -> Self {
        let old_names = matches!(block, Block::State | Block::Lock);
        let named = |new: &'static str, old: &'static str| {
            if old_names && !md.contains(new) && md.contains(old) { old } else { new }
        };
        let first = if old_names { Duration::from_secs(2) } else { MILLISECOND * 8 };
        let longest = if block == Block::Configuration { Duration::from_secs(2) } else { MILLISECOND * 512 };
        let max = match errors.int(md, named("redisMaxRetries", "maxRetries"), 3) {
            // As the incumbent's client reads it: nothing given.
            0 => 3,
            n => u32::try_from(n.min(100)).unwrap_or(0),
        };
        Self {
            max,
            first: span(md, errors, named("redisMinRetryInterval", "maxRetryBackoff"), first).unwrap_or_default(),
            longest: span(md, errors, "redisMaxRetryInterval", longest).unwrap_or_default(),
        }
    }

    /// The pause before try `again` (from 1), between half of it and all of it by `luck` in 0..1.
    pub(crate) fn pause(&self, again: u32, luck: f64) -> Duration {
        let full = self.first.saturating_mul(1 << again.saturating_sub(1).min(16)).min(self.longest);
        full.mul_f64(0.5 + luck.clamp(0.0, 1.0) / 2.0)
    }
}

/// Go durations and bare milliseconds; a negative value switches it off.
pub(crate) fn span(md: &Metadata, errors: &mut ConfigErrors, key: &str, default: Duration) -> Option<Duration> {
    match md.get_non_empty(key).map(str::trim).and_then(|v| v.strip_prefix('-')) {
        Some(rest) if parse_go_duration(rest, MILLISECOND).is_some() => None,
        _ => Some(errors.duration(md, key, MILLISECOND, default)),
    }
}

/// A limit of a wait: zero is the default, off is as long as anything may take.
fn limit(md: &Metadata, errors: &mut ConfigErrors, key: &str, default: Duration) -> Duration {
    match span(md, errors, key, default) {
        Some(Duration::ZERO) => default,
        Some(given) => given.min(LONGEST),
        None => LONGEST,
    }
}

fn hosts(md: &Metadata, errors: &mut ConfigErrors, several: bool) -> Vec<(String, u16)> {
    let text = errors.required(md, "redisHost");
    let port = match errors.int(md, "redisPort", 0) {
        0 => None,
        n => match u16::try_from(n) {
            Ok(port) => Some(port),
            Err(_) => {
                errors.push("redisPort", "'redisPort' must be between 1 and 65535");
                None
            }
        },
    };
    let mut hosts = Vec::new();
    let parts: Vec<&str> = if several { text.split(',').collect() } else { vec![&text] };
    for part in parts.into_iter().map(str::trim).filter(|p| !p.is_empty()) {
        match host(part) {
            Ok((_, Some(own))) if port.is_some_and(|p| p != own) => {
                errors.push("redisPort", format!("'redisHost' names port {own} and 'redisPort' another one"));
            }
            Ok((host, own)) => hosts.push((host, own.or(port).unwrap_or(DEFAULT_PORT))),
            Err(message) => errors.push("redisHost", message),
        }
    }
    hosts
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`; a bare IPv6 address has no port.
fn host(text: &str) -> Result<(String, Option<u16>), String> {
    let malformed = || {
        // Whoever writes a URL writes the password into it, too.
        let given = if text.contains('@') { String::new() } else { format!(", not '{text}'") };
        format!("'redisHost' must look like redis.example:6379, without scheme, user and password{given}")
    };
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(malformed)?;
        (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or_else(malformed)?) })
    } else {
        match text.split_once(':') {
            Some((_, rest)) if rest.contains(':') => (text, None),
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == '/' || c == '@') {
        return Err(malformed());
    }
    let port = match port {
        Some(port) => Some(port.parse().ok().filter(|p| *p != 0).ok_or_else(malformed)?),
        None => None,
    };
    Ok((host.to_owned(), port))
}

fn tls(md: &Metadata, errors: &mut ConfigErrors) -> Option<Tls> {
    let insecure = errors.bool(md, "insecureSkipTLSVerify", false);
    let client = match (md.get_non_empty("clientCert"), md.get_non_empty("clientKey")) {
        (Some(cert), Some(key)) => Some((cert.to_owned(), Secret::new(key))),
        (None, None) => None,
        _ => {
            errors.push("clientCert", "'clientCert' and 'clientKey' need each other");
            None
        }
    };
    let roots = md.get_non_empty("mecha.caCert").map(str::to_owned);
    let enabled = errors.bool(md, "enableTLS", false);
    if !enabled && (client.is_some() || roots.is_some()) {
        errors.push("enableTLS", "certificates are given, but 'enableTLS' is not true");
    }
    let tls = Tls { insecure, client, roots };
    if enabled && let Err(message) = crate::connect::check_certificates(&tls) {
        errors.push("clientCert", message);
    }
    enabled.then_some(tls)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_as(block: Block, pairs: &[(&str, &str)]) -> Result<RedisConfig, ConfigErrors> {
        let md: Metadata = pairs.iter().copied().collect();
        let mut errors = ConfigErrors::new();
        let config = RedisConfig::read(&md, &mut errors, block);
        errors.finish(config)
    }

    fn read(pairs: &[(&str, &str)]) -> Result<RedisConfig, ConfigErrors> {
        read_as(Block::PubSub, pairs)
    }

    #[test]
    fn defaults() {
        let config = read(&[("redisHost", "r")]).unwrap();
        assert_eq!(config.hosts, [("r".to_owned(), 6379)]);
        assert_eq!(config.topology, Topology::Node);
        assert!(config.tls.is_none());
        let seconds = (config.dial.as_secs(), config.read.as_secs(), config.write.as_secs());
        assert_eq!(seconds, (5, 3, 3));
        assert_eq!(config.retries, Retries { max: 3, first: MILLISECOND * 8, longest: MILLISECOND * 512 });
    }

    #[test]
    fn addresses() {
        let hosts = |pairs: &[(&str, &str)]| read(pairs).map(|c| c.address()).map_err(|e| e.to_string());
        assert_eq!(hosts(&[("redisHost", "a:1")]).unwrap(), "a:1");
        assert_eq!(hosts(&[("redisHost", "a"), ("redisPort", "7")]).unwrap(), "a:7");
        assert_eq!(hosts(&[("redisHost", "a:7"), ("redisPort", "7")]).unwrap(), "a:7");
        assert!(hosts(&[("redisHost", "a:1"), ("redisPort", "7")]).unwrap_err().contains("names port 1"));
        assert_eq!(hosts(&[("redisHost", "a:1, b,[::1]:3"), ("redisType", "cluster")]).unwrap(), "a:1,b:6379,::1:3");
        assert_eq!(hosts(&[("redisHost", "::1")]).unwrap(), "::1:6379");
        for bad in ["", "a:0", "a:x", "a:70000", ":1", "redis://a", "user@a", "[::1", "[::1]x"] {
            assert!(hosts(&[("redisHost", bad)]).is_err(), "{bad}");
        }
        let message = hosts(&[("redisHost", "redis://joe:hunter2@redis.example:6379")]).unwrap_err();
        assert!(message.contains("redis.example:6379") && !message.contains("hunter2"), "{message}");
    }

    #[test]
    fn old_names_count_for_state_and_lock_only() {
        let pairs = [("redisHost", "r"), ("maxRetries", "7"), ("maxRetryBackoff", "20")];
        let state = read_as(Block::State, &pairs).unwrap().retries;
        assert_eq!((state.max, state.first), (7, MILLISECOND * 20));
        assert_eq!(read(&pairs).unwrap().retries.max, 3);
    }

    #[test]
    fn minus_one_switches_off() {
        let config = read(&[
            ("redisHost", "r"),
            ("redisMaxRetries", "-1"),
            ("redisMaxRetryInterval", "-1"),
            ("readTimeout", "-1"),
        ])
        .unwrap();
        assert_eq!((config.retries.max, config.retries.longest), (0, Duration::ZERO));
        assert_eq!((config.read, config.write), (LONGEST, LONGEST));
    }

    #[test]
    fn every_mistake_is_told_and_no_secret() {
        let errors = read(&[
            ("redisPassword", "hunter2"),
            ("redisType", "ring"),
            ("redisDB", "x"),
            ("failover", "true"),
            ("useAzureAD", "true"),
            ("dialTimeout", "soon"),
            ("clientKey", "hunter2"),
        ])
        .unwrap_err();
        let fields: Vec<&str> = errors.list().iter().map(|e| e.field.as_str()).collect();
        for field in
            ["redisHost", "redisType", "redisDB", "sentinelMasterName", "useAzureAD", "dialTimeout", "clientCert"]
        {
            assert!(fields.contains(&field), "{field} is not among {fields:?}");
        }
        assert!(!errors.to_string().contains("hunter2"));
    }

    #[test]
    fn credentials_stay_out_of_debug() {
        let config = read(&[("redisHost", "r"), ("redisUsername", "joe"), ("redisPassword", "hunter2")]).unwrap();
        assert_eq!(config.login.password.as_ref().map(Secret::expose), Some("hunter2"));
        assert!(!format!("{config:?} {:?}", config.login).contains("hunter2"));
    }

    #[test]
    fn broken_certificates_are_found_before_connecting() {
        let errors = read(&[("redisHost", "r"), ("enableTLS", "true"), ("mecha.caCert", "not PEM")]).unwrap_err();
        assert!(errors.to_string().contains("mecha.caCert"), "{errors}");
    }

    proptest! {
        #[test]
        fn any_address_is_read_or_refused(text in "\\PC{0,40}|[a-z0-9.:,\\[\\]]{0,40}") {
            let _ = read(&[("redisHost", &text)]);
            let _ = read(&[("redisHost", &text), ("redisType", "cluster")]);
        }

        #[test]
        fn pauses_are_bounded(again in 0_u32..1000, luck in -1.0_f64..2.0) {
            let retries = Retries { max: 3, first: MILLISECOND * 8, longest: MILLISECOND * 512 };
            let pause = retries.pause(again, luck);
            prop_assert!(pause >= MILLISECOND * 4 && pause <= MILLISECOND * 512, "{pause:?}");
        }
    }
}
