//! Every listener of the process, bound before anything slow.
//!
//! A taken port is a clear error within milliseconds, and nothing is left half
//! open: either all are bound or none. Listeners are plain `std` ones, so that
//! they can outlive a rebuild of the runtime inside the process.

mod metrics;
#[cfg(unix)]
mod unix;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};

use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

pub use metrics::serve_metrics;
#[cfg(unix)]
pub use unix::{SocketFile, socket_path};

use crate::cli::{BoundPorts, Options, stable_peer_port};
use crate::handover::{Inherited, Role};

/// Connections the kernel holds for us while we are busy; it caps this itself.
const BACKLOG: i32 = 4096;

/// Most addresses of one server; a longer list is a mistake.
const MAX_ADDRESSES: usize = 64;

/// How often a port is chosen that must be free on several addresses.
const FREE_PORT_TRIES: u32 = 8;

/// One bound socket of an API server.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket; its file goes away with the value.
    #[cfg(unix)]
    Unix(std::os::unix::net::UnixListener, SocketFile),
}

/// All listeners.
#[derive(Debug)]
pub struct Listeners {
    /// HTTP API, at least one.
    pub http: Vec<Listener>,
    /// gRPC API, at least one.
    pub grpc: Vec<Listener>,
    /// Other sidecars.
    pub internal: TcpListener,
    /// Health and metadata without token; when asked for.
    pub public: Option<TcpListener>,
    /// Prometheus; unless switched off.
    pub metrics: Option<TcpListener>,
    /// Diagnostics; when asked for.
    pub profiling: Option<TcpListener>,
    /// The ports in use. For unix sockets the configured ones.
    pub ports: BoundPorts,
    /// Addresses left out because this machine has no IPv6; to be logged.
    pub warnings: Vec<String>,
}

/// A listener could not be bound. The text says what to do.
#[derive(Debug, Error)]
#[error("cannot listen on {address} for the {server}: {reason}. {}", advice(.reason, .flag))]
pub struct BindError {
    /// Which server.
    pub server: &'static str,
    /// `host:port` or path.
    pub address: String,
    /// Flag that chooses the address.
    pub flag: &'static str,
    /// From the operating system.
    pub reason: io::Error,
}

/// A server as the error texts name it.
#[derive(Clone, Copy)]
struct Server {
    name: &'static str,
    flag: &'static str,
    role: Role,
}

const HTTP: Server = Server { name: "HTTP API", flag: "--dapr-http-port", role: Role::Http };
const GRPC: Server = Server { name: "gRPC API", flag: "--dapr-grpc-port", role: Role::Grpc };
const INTERNAL: Server =
    Server { name: "internal gRPC server", flag: "--dapr-internal-grpc-port", role: Role::Internal };
const PUBLIC: Server = Server { name: "public HTTP server", flag: "--dapr-public-port", role: Role::Public };
const METRICS: Server = Server { name: "metrics server", flag: "--metrics-port", role: Role::Metrics };
const PROFILING: Server = Server { name: "profiling server", flag: "--profile-port", role: Role::Profiling };

/// Sockets of the daemon before, used where they are what would be bound.
struct Heritage(Vec<Inherited>);

impl Listeners {
    /// Binds all servers the options ask for.
    pub fn bind(options: &Options) -> Result<Self, BindError> {
        Self::bind_beside(options, Vec::new())
    }

    /// Takes what fits of `inherited` and binds the rest.
    pub fn bind_beside(options: &Options, inherited: Vec<Inherited>) -> Result<Self, BindError> {
        let mut from = Heritage(inherited);
        let mut warnings = Vec::new();
        let (http, http_port) = api(&mut from, HTTP, options, options.http_port, "http", &mut warnings)?;
        let (grpc, grpc_port) = api(&mut from, GRPC, options, options.grpc_port, "grpc", &mut warnings)?;
        let internal = internal(&mut from, options)?;
        let internal_port = port(&internal);
        let public = match options.public_port {
            Some(port) => Some(one(&mut from, PUBLIC, &options.public_listen_address, port)?),
            None => None,
        };
        let metrics = match options.metrics.enabled {
            true => Some(one(&mut from, METRICS, &options.metrics.listen_address, options.metrics.port)?),
            false => None,
        };
        let profiling = match options.profiling.enabled {
            true => Some(one(&mut from, PROFILING, "", options.profiling.port)?),
            false => None,
        };
        let ports = BoundPorts { http: http_port, grpc: grpc_port, internal: internal_port };
        Ok(Self { http, grpc, internal, public, metrics, profiling, ports, warnings })
    }

    /// Duplicates of all sockets, for a successor.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn duplicates(&self) -> io::Result<Vec<Inherited>> {
        let mut out = Vec::new();
        for (role, listeners) in [(Role::Http, &self.http), (Role::Grpc, &self.grpc)] {
            for listener in listeners {
                out.push(match listener {
                    Listener::Tcp(tcp) => Inherited { role, path: None, fd: tcp.try_clone()?.into() },
                    #[cfg(unix)]
                    Listener::Unix(unix, file) => {
                        Inherited { role, path: Some(file.path().to_owned()), fd: unix.try_clone()?.into() }
                    }
                });
            }
        }
        let others = [
            (Role::Internal, Some(&self.internal)),
            (Role::Public, self.public.as_ref()),
            (Role::Metrics, self.metrics.as_ref()),
            (Role::Profiling, self.profiling.as_ref()),
        ];
        for (role, listener) in others {
            if let Some(listener) = listener {
                out.push(Inherited { role, path: None, fd: listener.try_clone()?.into() });
            }
        }
        Ok(out)
    }
}

impl Heritage {
    fn has(&self, role: Role) -> bool {
        self.0.iter().any(|i| i.role == role)
    }

    /// The inherited socket at `address`; with port 0 at any port of it.
    fn tcp(&mut self, role: Role, address: SocketAddr) -> Option<TcpListener> {
        let fits = |i: &Inherited| {
            let local = rustix::net::getsockname(&i.fd).ok().and_then(|a| SocketAddr::try_from(a).ok());
            i.role == role
                && local.is_some_and(|l| l.ip() == address.ip() && (address.port() == 0 || address.port() == l.port()))
        };
        let found = self.0.iter().position(fits)?;
        let listener = TcpListener::from(self.0.swap_remove(found).fd);
        listener.set_nonblocking(true).ok()?;
        Some(listener)
    }

    #[cfg(unix)]
    fn unix(&mut self, role: Role, path: &std::path::Path) -> Option<Listener> {
        let found = self.0.iter().position(|i| i.role == role && i.path.as_deref() == Some(path))?;
        let listener = std::os::unix::net::UnixListener::from(self.0.swap_remove(found).fd);
        listener.set_nonblocking(true).ok()?;
        Some(Listener::Unix(listener, SocketFile::at(path)))
    }
}

impl Listener {
    /// The address as log lines show it.
    pub fn address(&self) -> String {
        match self {
            Listener::Tcp(listener) => listener.local_addr().map(|a| a.to_string()).unwrap_or_default(),
            #[cfg(unix)]
            Listener::Unix(_, file) => file.path().display().to_string(),
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address())
    }
}

/// The listeners of one API server and its port.
fn api(
    from: &mut Heritage,
    server: Server,
    options: &Options,
    wanted: u16,
    #[cfg_attr(not(unix), allow(unused_variables))] name: &str,
    warnings: &mut Vec<String>,
) -> Result<(Vec<Listener>, u16), BindError> {
    #[cfg(unix)]
    if let Some(dir) = &options.unix_domain_socket {
        let path = socket_path(dir, &options.app_id, name);
        if let Some(listener) = from.unix(server.role, &path) {
            return Ok((vec![listener], wanted));
        }
        let (listener, file) = unix::bind(&path).map_err(|reason| BindError {
            server: server.name,
            address: path.display().to_string(),
            flag: "--unix-domain-socket",
            reason,
        })?;
        return Ok((vec![Listener::Unix(listener, file)], wanted));
    }
    let mut tries = if wanted == 0 { FREE_PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        match addresses(from, server, options, wanted, warnings) {
            // Free on the first address, taken on another: choose again.
            Err(error) if tries > 0 && error.reason.kind() == io::ErrorKind::AddrInUse => {}
            other => return other,
        }
    }
}

fn addresses(
    from: &mut Heritage,
    server: Server,
    options: &Options,
    wanted: u16,
    warnings: &mut Vec<String>,
) -> Result<(Vec<Listener>, u16), BindError> {
    let mut bound = Vec::new();
    let mut used = wanted;
    for address in options.listen_addresses.iter().take(MAX_ADDRESSES) {
        match one(from, server, address, used) {
            Ok(listener) => {
                // With "any free port", all addresses share the first one's.
                used = port(&listener);
                bound.push(Listener::Tcp(listener));
            }
            Err(error) if options.listen_addresses.len() > 1 && is_missing_ipv6(address, &error.reason) => {
                warnings.push(format!("not listening on {address} for the {}: {}", server.name, error.reason));
            }
            Err(error) => return Err(error),
        }
    }
    if bound.is_empty() {
        let reason = io::Error::new(io::ErrorKind::AddrNotAvailable, "none of the addresses exists on this machine");
        return Err(failure(server, &options.listen_addresses.join(","), wanted, reason));
    }
    Ok((bound, used))
}

/// The given peer port, else the stable one, else any free one.
fn internal(from: &mut Heritage, options: &Options) -> Result<TcpListener, BindError> {
    let address = &options.internal_grpc_listen_address;
    if let Some(port) = options.internal_grpc_port {
        return one(from, INTERNAL, address, port);
    }
    // The daemon before may have had to choose; others know its port.
    let wanted = if from.has(INTERNAL.role) { 0 } else { stable_peer_port(&options.app_id) };
    match one(from, INTERNAL, address, wanted) {
        Err(error) if error.reason.kind() == io::ErrorKind::AddrInUse => one(from, INTERNAL, address, 0),
        other => other,
    }
}

fn one(from: &mut Heritage, server: Server, address: &str, port: u16) -> Result<TcpListener, BindError> {
    let mut listen = |address| match from.tcp(server.role, address) {
        Some(listener) => Ok(listener),
        None => listen(address),
    };
    let fail = |reason| failure(server, address, port, reason);
    if address.is_empty() {
        // One socket for both families; where there is no IPv6, for the other alone.
        return match listen((Ipv6Addr::UNSPECIFIED, port).into()) {
            Err(error) if is_no_ipv6(&error) => listen((Ipv4Addr::UNSPECIFIED, port).into()).map_err(fail),
            other => other.map_err(fail),
        };
    }
    let resolved = match address.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, port),
        Err(_) => {
            let mut found: Vec<SocketAddr> = (address, port).to_socket_addrs().map_err(fail)?.collect();
            found.sort_by_key(SocketAddr::is_ipv6);
            let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            found.first().copied().ok_or_else(|| fail(none()))?
        }
    };
    listen(resolved).map_err(fail)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // A restart must not wait for connections of the last run to time out.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().map(|address| address.port()).unwrap_or_default()
}

fn failure(server: Server, address: &str, port: u16, reason: io::Error) -> BindError {
    let host = match address {
        "" => "*".to_owned(),
        v6 if v6.contains(':') => format!("[{v6}]"),
        other => other.to_owned(),
    };
    BindError { server: server.name, address: format!("{host}:{port}"), flag: server.flag, reason }
}

fn is_missing_ipv6(address: &str, error: &io::Error) -> bool {
    address.contains(':') && (is_no_ipv6(error) || error.kind() == io::ErrorKind::AddrNotAvailable)
}

/// The kernel has no IPv6 at all.
fn is_no_ipv6(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
        || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
        || error.kind() == io::ErrorKind::AddrNotAvailable
}

fn advice(reason: &io::Error, flag: &str) -> String {
    match reason.kind() {
        io::ErrorKind::AddrInUse => format!("Stop the process that uses it, or choose another with {flag}"),
        io::ErrorKind::PermissionDenied => format!("Choose one this user may use with {flag}"),
        _ => format!("Check {flag} and the listen address"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Action, Env, command};

    /// Options with every port free, plus `args`.
    fn options(args: &[&str]) -> Options {
        let base = [
            "--app-id=ports-test",
            "--dapr-http-port=0",
            "--dapr-grpc-port=0",
            "--metrics-port=0",
            "--metrics-listen-address=127.0.0.1",
            "--dapr-internal-grpc-listen-address=127.0.0.1",
        ];
        let args: Vec<&str> = base.iter().chain(args).copied().collect();
        match command(&args, Env::read(|_| None)) {
            Ok(Action::Run(options)) => *options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_servers_are_bound_at_once() {
        let listeners =
            Listeners::bind(&options(&["--dapr-public-port=0", "--enable-profiling", "--profile-port=0"])).unwrap();
        assert_ne!(listeners.ports.http, 0);
        assert_ne!(listeners.ports.grpc, 0);
        assert_ne!(listeners.ports.internal, 0);
        assert!(listeners.public.is_some() && listeners.metrics.is_some() && listeners.profiling.is_some());
        let without = Listeners::bind(&options(&["--enable-metrics=false"])).unwrap();
        assert!(without.metrics.is_none() && without.public.is_none() && without.profiling.is_none());
    }

    #[test]
    fn the_unspecified_address_takes_both_families() {
        let listeners = Listeners::bind(&options(&[])).unwrap();
        let port = listeners.ports.http;
        assert!(std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
        if listen((Ipv6Addr::LOCALHOST, 0).into()).is_ok() {
            assert!(std::net::TcpStream::connect((Ipv6Addr::LOCALHOST, port)).is_ok());
        }
    }

    #[test]
    fn several_addresses_share_one_port() {
        let listeners = Listeners::bind(&options(&["--dapr-listen-addresses=127.0.0.1,[::1]"])).unwrap();
        for listener in &listeners.http {
            assert!(listener.address().ends_with(&format!(":{}", listeners.ports.http)), "{listener}");
        }
        assert_eq!(listeners.http.len() + listeners.warnings.len() / 2, 2);
    }

    #[test]
    fn a_taken_port_is_a_clear_error_at_once() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port().to_string();
        let started = std::time::Instant::now();
        for (args, part) in [
            (
                vec!["--dapr-listen-addresses=127.0.0.1".to_owned(), format!("--dapr-http-port={port}")],
                "--dapr-http-port",
            ),
            (
                vec!["--dapr-listen-addresses=127.0.0.1".to_owned(), format!("--dapr-grpc-port={port}")],
                "--dapr-grpc-port",
            ),
            (vec![format!("--dapr-internal-grpc-port={port}")], "--dapr-internal-grpc-port"),
            (vec![format!("--metrics-port={port}")], "--metrics-port"),
        ] {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let error = Listeners::bind(&options(&args)).unwrap_err().to_string();
            assert!(error.contains(&format!("127.0.0.1:{port}")) && error.contains(part), "{error}");
        }
        assert!(started.elapsed() < std::time::Duration::from_secs(10));
    }

    #[test]
    fn a_successor_uses_the_same_sockets_and_binds_what_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let first = Listeners::bind(&options(&[])).unwrap();
        let second = options(&["--dapr-public-port=0"]);
        let same = Listeners::bind_beside(&second, first.duplicates().unwrap()).unwrap();
        assert_eq!(
            (same.ports.http, same.ports.grpc, same.ports.internal),
            (first.ports.http, first.ports.grpc, first.ports.internal)
        );
        assert!(same.public.is_some());
        let port = first.ports.http;
        drop(first);
        assert!(std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok(), "the duplicate still listens");
        // Another port is asked for: that one is bound.
        let other = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let flag = format!("--dapr-http-port={other}");
        let moved = Listeners::bind_beside(&options(&[&flag]), same.duplicates().unwrap()).unwrap();
        assert_eq!((moved.ports.http, moved.ports.grpc), (other, same.ports.grpc));
        let flag = format!("--unix-domain-socket={}", dir.path().display());
        let old = Listeners::bind(&options(&[&flag])).unwrap();
        let new = Listeners::bind_beside(&options(&[&flag]), old.duplicates().unwrap()).unwrap();
        for listener in old.http.into_iter().chain(old.grpc) {
            let Listener::Unix(_, file) = listener else { panic!("a unix socket was expected") };
            file.leave();
        }
        let path = dir.path().join("dapr-ports-test-http.socket");
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
        drop(new);
        assert!(!path.exists());
    }

    #[test]
    fn a_taken_stable_peer_port_gives_way_to_a_free_one() {
        let first = Listeners::bind(&options(&[])).unwrap();
        let second = Listeners::bind(&options(&[])).unwrap();
        assert_ne!(first.ports.internal, second.ports.internal);
    }

    #[test]
    fn an_address_of_another_machine_is_refused() {
        let error = Listeners::bind(&options(&["--dapr-listen-addresses=192.0.2.1"])).unwrap_err();
        assert!(error.to_string().contains("192.0.2.1"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn unix_sockets_replace_tcp_and_go_away() {
        let dir = tempfile::tempdir().unwrap();
        let flag = format!("--unix-domain-socket={}", dir.path().display());
        let http = dir.path().join("dapr-ports-test-http.socket");
        {
            let listeners = Listeners::bind(&options(&[&flag])).unwrap();
            assert_eq!(listeners.http[0].address(), http.display().to_string());
            assert!(std::os::unix::net::UnixStream::connect(&http).is_ok());
            assert!(dir.path().join("dapr-ports-test-grpc.socket").exists());
            let error = Listeners::bind(&options(&[&flag])).unwrap_err();
            assert_eq!(error.reason.kind(), io::ErrorKind::AddrInUse);
        }
        assert!(!http.exists());
        // What a killed process left behind is taken over.
        drop(std::os::unix::net::UnixListener::bind(&http).unwrap());
        assert!(http.exists());
        let listeners = Listeners::bind(&options(&[&flag])).unwrap();
        assert!(std::os::unix::net::UnixStream::connect(&http).is_ok());
        drop(listeners);
        std::fs::write(&http, "not a socket").unwrap();
        assert!(Listeners::bind(&options(&[&flag])).is_err());
        assert_eq!(std::fs::read_to_string(&http).unwrap(), "not a socket");
    }
}
