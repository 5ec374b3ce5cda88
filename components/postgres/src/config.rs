//! The metadata that every PostgreSQL component shares: where the server is and how to talk to it.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use mecha_components_api::{ConfigErrors, Field, FieldType, Metadata, parse_go_duration};
use tokio_postgres::config::{ChannelBinding, LoadBalanceHosts, SslMode, SslNegotiation, TargetSessionAttrs};

use crate::dsn::Settings;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(20);
const MIN_TIMEOUT: Duration = Duration::from_secs(1);
/// As in pgx, where it can be changed in the connection string too.
const DEFAULT_IDLE: Duration = Duration::from_secs(30 * 60);
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60 * 60);
const LARGEST_POOL: i64 = 10_000;

/// Together they find a silent peer within 14 s: 5 s of quiet, then a probe every 3 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
const KEEPALIVE_RETRIES: u32 = 3;
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(12);
/// Longest wait for one address to answer a connection attempt, so that the next one gets its turn.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Keys of pgx and libpq that have no meaning here and are accepted in silence.
const IGNORED: &[&str] = &[
    "client_encoding",
    "description_cache_capacity",
    "fallback_application_name",
    "gssencmode",
    "min_read_buffer_size",
    "pool_health_check_period",
    "pool_max_conn_lifetime_jitter",
    "pool_min_conns",
    "sslcompression",
    "sslsni",
    "statement_cache_capacity",
];

/// The keys, documented once for all four components.
pub(crate) const FIELDS: [Field; 14] = [
    Field::new(
        "connectionString",
        FieldType::Text,
        "Connection string of libpq: `key=value` pairs or `postgres://user:password@host:port/database?sslmode=…`. \
         Without `sslmode`, TLS is used and verified when the server offers it; on loopback it is not verified. \
         `require` verifies like `verify-full`; `allow` and `prefer` do not verify.",
    )
    .secret()
    .aliases(&["url"]),
    Field::new("host", FieldType::Text, "Host name or socket folder; several are separated by commas."),
    Field::new("hostaddr", FieldType::Text, "IP address to dial instead of looking `host` up."),
    Field::new("port", FieldType::Text, "Port; one for all hosts or one per host.").default("5432"),
    Field::new("database", FieldType::Text, "Database; by default the name of the user."),
    Field::new("user", FieldType::Text, "User."),
    Field::new("password", FieldType::Text, "Password.").secret(),
    Field::new(
        "sslRootCert",
        FieldType::Text,
        "PEM file, or PEM text, of the authorities that may sign the server's certificate; by default those of the system.",
    ),
    Field::new(
        "mecha.insecureSkipTLSVerify",
        FieldType::Boolean,
        "Accepts any certificate of the server. For tests; prefer `sslRootCert`.",
    )
    .default("false"),
    Field::new(
        "timeout",
        FieldType::Duration,
        "Longest time of one operation with all its retries; at least 1s, bare numbers are seconds.",
    )
    .default("20s")
    .aliases(&["timeoutInSeconds"]),
    Field::new("maxConns", FieldType::Integer, "Most connections at once; 0 is the number of processors, at least 4.")
        .default("0"),
    Field::new(
        "connectionMaxIdleTime",
        FieldType::Duration,
        "Connections that were not used for this long are closed; bare numbers are seconds.",
    )
    .default("30m")
    .aliases(&["connMaxIdleTime"]),
    Field::new(
        "queryExecMode",
        FieldType::Text,
        "How statements are sent: `cache_statement` prepares each once per connection; `cache_describe`, `describe_exec` \
         and `exec` prepare nothing that outlives a round trip, for poolers; `simple_protocol` sends text only.",
    )
    .default("cache_statement"),
    Field::new("useAzureAD", FieldType::Boolean, "Not supported; must be false. Its sibling is `useAWSIAM`.")
        .default("false")
        .aliases(&["useAWSIAM"]),
];

/// [`FIELDS`] and the fields of one component.
pub(crate) const fn with_fields<const N: usize, const M: usize>(own: [Field; N]) -> [Field; M] {
    let mut all = [FIELDS[0]; M];
    let mut i = 0;
    while i < M {
        all[i] = if i < N { own[i] } else { FIELDS[i - N] };
        i += 1;
    }
    all
}

/// How statements travel. Statements of ours have known parameter types, so the three modes
/// in the middle come to the same: one round trip, nothing kept on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Prepared once per connection.
    Cached,
    /// Parsed for each call.
    OneShot,
    /// One text with the values in it.
    Simple,
}

/// Whom a TLS connection trusts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Chain and host name.
    Full,
    /// The chain only (`verify-ca`).
    Chain,
    /// Everybody.
    Anybody,
}

/// How connections are secured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tls {
    pub(crate) trust: Trust,
    /// File or PEM text; `None` are the authorities of the system.
    pub(crate) roots: Option<String>,
    /// Files of the client's certificate chain and key.
    pub(crate) identity: Option<(String, String)>,
}

/// How to reach one server.
#[derive(Clone, Debug)]
pub(crate) struct PgConfig {
    /// For the driver; it hides the password in `Debug`.
    pub(crate) connect: tokio_postgres::Config,
    /// `None` when no connection is encrypted.
    pub(crate) tls: Option<Tls>,
    pub(crate) timeout: Duration,
    pub(crate) max_conns: usize,
    pub(crate) max_idle: Duration,
    pub(crate) max_lifetime: Duration,
    pub(crate) mode: Mode,
    /// Whether sessions get a `statement_timeout`, so that an abandoned statement ends on the server too.
    pub(crate) limit_statements: bool,
}

impl PgConfig {
    /// Reads the shared keys, noting mistakes in `errors`.
    pub(crate) fn read(md: &Metadata, errors: &mut ConfigErrors) -> Self {
        let mut settings = settings(md, errors);
        let timeout = timeout(md, errors);
        let mode_name = md
            .get_non_empty("queryExecMode")
            .map(str::to_owned)
            .or_else(|| settings.take("default_query_exec_mode"))
            .unwrap_or_default();
        settings.take("default_query_exec_mode");
        let mode = errors.keep("queryExecMode", mode(&mode_name), Mode::Cached);
        let max_conns = max_conns(md, &mut settings, errors);
        let max_idle = idle(md, &mut settings, errors);
        let max_lifetime = lifetime(&mut settings, errors);
        for key in ["useAzureAD", "useAWSIAM"] {
            if errors.bool(md, key, false) {
                errors.push(key, format!("'{key}' is not supported; use a password or a client certificate"));
            }
        }
        let skip = errors.bool(md, "mecha.insecureSkipTLSVerify", false);
        let mut connect = tokio_postgres::Config::new();
        let tls = match apply(&mut settings, skip, &mut connect) {
            Ok(tls) => tls,
            Err(message) => {
                errors.push("connectionString", message);
                None
            }
        };
        let limit_statements = mode == Mode::Cached
            && !matches!(mode_name.as_str(), "cache_describe" | "describe_exec")
            && !connect.get_options().is_some_and(|o| o.contains("statement_timeout"));
        Self { connect, tls, timeout, max_conns, max_idle, max_lifetime, mode, limit_statements }
    }
}

/// The connection string with the keys that override parts of it.
fn settings(md: &Metadata, errors: &mut ConfigErrors) -> Settings {
    let text = md.get_non_empty("connectionString").or_else(|| md.get_non_empty("url"));
    let mut settings = match text.map(Settings::parse) {
        Some(Ok(settings)) => settings,
        Some(Err(message)) => {
            errors.push("connectionString", format!("failed to parse connection string: {message}"));
            Settings::default()
        }
        None => {
            if md.get_non_empty("host").or_else(|| md.get_non_empty("hostaddr")).is_none() {
                errors.push("connectionString", "failed to build connection string");
            }
            Settings::default()
        }
    };
    let overrides = [
        ("host", "host"),
        ("hostaddr", "hostaddr"),
        ("port", "port"),
        ("database", "dbname"),
        ("user", "user"),
        ("password", "password"),
        ("sslRootCert", "sslrootcert"),
    ];
    for (key, setting) in overrides {
        if let Some(value) = md.get_non_empty(key) {
            settings.set(setting, value);
        }
    }
    settings
}

/// `timeout`, shared by the components that have no connection of their own yet.
fn timeout(md: &Metadata, errors: &mut ConfigErrors) -> Duration {
    let key = if md.contains("timeout") { "timeout" } else { "timeoutInSeconds" };
    let timeout = errors.duration(md, key, Duration::from_secs(1), DEFAULT_TIMEOUT);
    if timeout < MIN_TIMEOUT {
        errors.push(key, "invalid value for 'timeout': must be greater than 1s");
    }
    timeout.max(MIN_TIMEOUT)
}

fn mode(name: &str) -> Result<Mode, String> {
    match name {
        "" | "cache_statement" => Ok(Mode::Cached),
        "cache_describe" | "describe_exec" | "exec" => Ok(Mode::OneShot),
        "simple_protocol" => Ok(Mode::Simple),
        other => Err(format!(
            "invalid queryExecMode metadata value: {other}; use cache_statement, or for poolers cache_describe, \
             describe_exec, exec or simple_protocol"
        )),
    }
}

fn max_conns(md: &Metadata, settings: &mut Settings, errors: &mut ConfigErrors) -> usize {
    let in_string = settings.take("pool_max_conns").map(|v| {
        let parsed = v.parse::<i64>().map_err(|_| "'pool_max_conns' must be an integer".to_owned());
        errors.keep("connectionString", parsed, 0)
    });
    let count = match errors.int(md, "maxConns", 0) {
        0 => in_string.unwrap_or(0),
        count => count,
    };
    if !(0..=LARGEST_POOL).contains(&count) {
        errors.push("maxConns", format!("'maxConns' must be between 0 and {LARGEST_POOL}"));
    }
    match usize::try_from(count) {
        Ok(count) if count > 0 => count,
        _ => std::thread::available_parallelism().map_or(4, usize::from).max(4),
    }
}

fn idle(md: &Metadata, settings: &mut Settings, errors: &mut ConfigErrors) -> Duration {
    let key = if md.contains("connectionMaxIdleTime") { "connectionMaxIdleTime" } else { "connMaxIdleTime" };
    let in_string =
        settings.take("pool_max_conn_idle_time").and_then(|v| parse_go_duration(&v, Duration::from_secs(1)));
    let fallback = in_string.unwrap_or(DEFAULT_IDLE);
    let given = errors.duration(md, key, Duration::from_secs(1), fallback);
    if given.is_zero() { fallback } else { given }
}

fn lifetime(settings: &mut Settings, errors: &mut ConfigErrors) -> Duration {
    match settings.take("pool_max_conn_lifetime").map(|v| parse_go_duration(&v, Duration::from_secs(1))) {
        None => DEFAULT_LIFETIME,
        Some(Some(lifetime)) if !lifetime.is_zero() => lifetime,
        Some(_) => {
            errors.push("connectionString", "'pool_max_conn_lifetime' must be a positive duration such as 1h");
            DEFAULT_LIFETIME
        }
    }
}

/// Hands every setting to the driver and decides about TLS.
fn apply(settings: &mut Settings, skip: bool, to: &mut tokio_postgres::Config) -> Result<Option<Tls>, String> {
    let hosts = settings.take("host");
    let addresses = settings.take("hostaddr");
    let mut local = true;
    for host in hosts.as_deref().into_iter().flat_map(|h| h.split(',')).map(str::trim) {
        to.host(host);
        local &= is_local(host);
    }
    for address in addresses.as_deref().into_iter().flat_map(|a| a.split(',')).map(str::trim) {
        let address: IpAddr = address.parse().map_err(|_| "'hostaddr' must be an IP address")?;
        to.hostaddr(address);
        local &= address.is_loopback();
    }
    if hosts.is_none() && addresses.is_none() {
        to.host("localhost");
    }
    let count = to.get_hosts().len().max(to.get_hostaddrs().len());
    if !to.get_hosts().is_empty() && !to.get_hostaddrs().is_empty() && to.get_hosts().len() != to.get_hostaddrs().len()
    {
        return Err("there must be as many values of 'hostaddr' as of 'host'".into());
    }
    for port in settings.take("port").as_deref().unwrap_or("5432").split(',') {
        to.port(port.trim().parse().ok().filter(|p| *p > 0).ok_or("'port' must be a number from 1 to 65535")?);
    }
    if to.get_ports().len() > 1 && to.get_ports().len() != count {
        return Err("there must be one 'port', or as many as there are hosts".into());
    }
    if let Some(user) = settings.take("user") {
        to.user(user);
    }
    if let Some(password) = settings.take("password") {
        to.password(password);
    }
    if let Some(database) = settings.take("dbname") {
        to.dbname(database);
    }
    to.application_name(settings.take("application_name").unwrap_or_else(|| "mechad".to_owned()));
    sockets(settings, to)?;
    to.target_session_attrs(match settings.take("target_session_attrs").as_deref() {
        // Of several servers only one takes writes, and the list does not say which.
        None if count > 1 => TargetSessionAttrs::ReadWrite,
        None | Some("any" | "prefer-standby") => TargetSessionAttrs::Any,
        Some("read-write" | "primary") => TargetSessionAttrs::ReadWrite,
        Some("read-only" | "standby") => TargetSessionAttrs::ReadOnly,
        Some(_) => return Err("'target_session_attrs' must be any, read-write, read-only, primary or standby".into()),
    });
    match settings.take("load_balance_hosts").as_deref() {
        None | Some("disable") => {}
        Some("random") => {
            to.load_balance_hosts(LoadBalanceHosts::Random);
        }
        Some(_) => return Err("'load_balance_hosts' must be disable or random".into()),
    }
    to.channel_binding(match settings.take("channel_binding").as_deref() {
        None | Some("prefer") => ChannelBinding::Prefer,
        Some("disable") => ChannelBinding::Disable,
        Some("require") => ChannelBinding::Require,
        Some(_) => return Err("'channel_binding' must be disable, prefer or require".into()),
    });
    let tls = tls(settings, skip, local, to)?;
    let mut options = settings.take("options").unwrap_or_default();
    for key in IGNORED {
        settings.take(key);
    }
    for key in ["passfile", "service", "servicefile", "sslpassword", "sslcrl", "sslcrldir", "krbsrvname"] {
        if settings.take(key).is_some() {
            return Err(format!("'{key}' is not supported in the connection string"));
        }
    }
    // As in libpq's `options`, everything else is a parameter of the session.
    for (key, value) in settings.rest() {
        if !options.is_empty() {
            options.push(' ');
        }
        let value = value.replace('\\', "\\\\").replace(' ', "\\ ");
        options.push_str(&format!("-c {key}={value}"));
    }
    if !options.is_empty() {
        to.options(options);
    }
    Ok(tls)
}

fn sockets(settings: &mut Settings, to: &mut tokio_postgres::Config) -> Result<(), String> {
    let mut number = |key: &str| match settings.take(key) {
        None => Ok(None),
        Some(v) => v.trim().parse::<u32>().map(Some).map_err(|_| format!("'{key}' must be a whole number")),
    };
    let seconds = |n: u32| Duration::from_secs(n.into());
    // Zero means "no limit" in libpq; every wait has one here.
    let connect = number("connect_timeout")?.filter(|n| *n > 0).map_or(CONNECT_TIMEOUT, seconds);
    to.connect_timeout(connect);
    to.keepalives(number("keepalives")?.is_none_or(|n| n != 0));
    to.keepalives_idle(number("keepalives_idle")?.filter(|n| *n > 0).map_or(KEEPALIVE_IDLE, seconds));
    to.keepalives_interval(number("keepalives_interval")?.filter(|n| *n > 0).map_or(KEEPALIVE_INTERVAL, seconds));
    to.keepalives_retries(number("keepalives_count")?.filter(|n| *n > 0).unwrap_or(KEEPALIVE_RETRIES));
    let millis = |n: u32| Duration::from_millis(n.into());
    to.tcp_user_timeout(number("tcp_user_timeout")?.filter(|n| *n > 0).map_or(TCP_USER_TIMEOUT, millis));
    Ok(())
}

/// libpq's `sslmode`, stricter in two places: nothing named means verified unless the server is
/// on this machine, and `require` verifies too.
fn tls(
    settings: &mut Settings,
    skip: bool,
    local: bool,
    to: &mut tokio_postgres::Config,
) -> Result<Option<Tls>, String> {
    let roots = settings.take("sslrootcert").filter(|r| r != "system");
    let identity = match (settings.take("sslcert"), settings.take("sslkey")) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        _ => return Err("'sslcert' and 'sslkey' go together".into()),
    };
    let (mode, trust) = match settings.take("sslmode").as_deref() {
        Some("disable") => (SslMode::Disable, Trust::Anybody),
        None if local && roots.is_none() => (SslMode::Prefer, Trust::Anybody),
        None => (SslMode::Prefer, Trust::Full),
        Some("allow" | "prefer") => (SslMode::Prefer, Trust::Anybody),
        Some("require" | "verify-full") => (SslMode::Require, Trust::Full),
        Some("verify-ca") => (SslMode::Require, Trust::Chain),
        Some(_) => return Err("'sslmode' must be disable, allow, prefer, require, verify-ca or verify-full".into()),
    };
    let sockets_only = to.get_hosts().iter().all(|h| !matches!(h, tokio_postgres::config::Host::Tcp(_)))
        && to.get_hostaddrs().is_empty();
    let mode = if sockets_only { SslMode::Disable } else { mode };
    to.ssl_mode(mode);
    match settings.take("sslnegotiation").as_deref() {
        None | Some("postgres") => {}
        Some("direct") if mode == SslMode::Require => {
            to.ssl_negotiation(SslNegotiation::Direct);
        }
        Some(_) => return Err("'sslnegotiation' must be postgres, or direct with an sslmode that requires TLS".into()),
    }
    let trust = if skip { Trust::Anybody } else { trust };
    Ok((mode != SslMode::Disable).then_some(Tls { trust, roots, identity }))
}

fn is_local(host: &str) -> bool {
    host == "localhost" || Path::new(host).is_absolute() || host.parse::<IpAddr>().is_ok_and(|a| a.is_loopback())
}

/// A duration whose bare numbers are seconds and whose zero or negative values are `None`.
pub(crate) fn period(md: &Metadata, errors: &mut ConfigErrors, keys: [&str; 2], default: Duration) -> Option<Duration> {
    let second = Duration::from_secs(1);
    let key = if md.contains(keys[0]) { keys[0] } else { keys[1] };
    let given = match md.get_non_empty(key).map(str::trim).and_then(|v| v.strip_prefix('-')) {
        Some(rest) if parse_go_duration(rest, second).is_some() => Duration::ZERO,
        _ => errors.duration(md, key, second, default),
    };
    (!given.is_zero()).then_some(given)
}

/// A name that can stand in SQL: letters, digits, `_` and `$`, or anything in double quotes;
/// a schema and a dot may come first.
pub(crate) fn table(md: &Metadata, errors: &mut ConfigErrors, key: &str, default: &str) -> String {
    let name = errors.text(md, key, default);
    if !is_table(&name) {
        errors.push(key, format!("'{key}' must be a table name, or a schema and a table name with a dot between"));
    }
    name
}

/// Whether `name` names a table and nothing else.
pub(crate) fn is_table(name: &str) -> bool {
    let mut parts = 0;
    let mut rest = name;
    loop {
        parts += 1;
        rest = match rest.strip_prefix('"') {
            Some(quoted) => match quoted.split_once('"') {
                Some((inner, rest)) if !inner.is_empty() && !inner.contains(['\0', '$']) => rest,
                _ => return false,
            },
            None => {
                let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
                if end == 0 || rest.starts_with(|c: char| c.is_ascii_digit()) {
                    return false;
                }
                &rest[end..]
            }
        };
        match rest.strip_prefix('.') {
            _ if rest.is_empty() => return parts <= 2,
            Some(more) => rest = more,
            None => return false,
        }
    }
}

/// The name without its schema, unquoted: what names of indices are made of.
pub(crate) fn bare(table: &str) -> &str {
    match table.strip_suffix('"') {
        Some(open) => open.rsplit_once('"').map_or(open, |(_, name)| name),
        None => table.rsplit_once('.').map_or(table, |(_, name)| name),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
