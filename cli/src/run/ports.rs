//! Free ports for the sidecars of one run.

use super::spec::AppSpec;
use crate::error::{CliError, Result};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

/// How many times to ask the system for a port that nobody of this run has.
const ATTEMPTS: usize = 64;

/// Ports of one sidecar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ports {
    /// None when the API listens on unix sockets.
    pub(crate) http: Option<u16>,
    pub(crate) grpc: Option<u16>,
    /// None leaves the choice to the sidecar, which takes the same one each time.
    pub(crate) internal_grpc: Option<u16>,
    pub(crate) metrics: u16,
    pub(crate) profile: Option<u16>,
}

/// Who has which port in this run.
#[derive(Debug, Default)]
pub(crate) struct PortBook {
    taken: BTreeMap<u16, String>,
}

impl PortBook {
    /// Notes every port that the apps name, and refuses those named twice or used by somebody else.
    pub(crate) fn for_apps(specs: &[AppSpec]) -> Result<Self> {
        let mut book = Self::default();
        for spec in specs {
            // The app's own port: it may be taken by an app that runs already and only needs a sidecar.
            if let Some(port) = spec.app_port {
                book.claim(port, format!("the app port of {}", spec.app_id))?;
            }
        }
        for spec in specs {
            let named = [
                ("dapr-http-port", spec.http_port),
                ("dapr-grpc-port", spec.grpc_port),
                ("dapr-internal-grpc-port", spec.internal_grpc_port),
                ("metrics-port", spec.metrics_port),
                ("profile-port", spec.profile_port),
            ];
            for (flag, port) in named {
                let Some(port) = port else { continue };
                book.claim(port, format!("the {flag} of {}", spec.app_id))?;
                if let Err(error) = bind(port) {
                    return Err(CliError::new(
                        "port-taken",
                        format!("port {port} (the {flag} of {}) cannot be used: {error}", spec.app_id),
                    )
                    .hint("`mecha list` shows what runs here; without the flag a free port is chosen"));
                }
            }
        }
        Ok(book)
    }

    /// The ports of this app's sidecar; the ones it does not name are chosen.
    pub(crate) fn assign(&mut self, spec: &AppSpec) -> Result<Ports> {
        let sockets = spec.unix_domain_socket.is_some();
        Ok(Ports {
            http: if sockets { None } else { Some(self.named_or_free(spec.http_port, "HTTP", &spec.app_id)?) },
            grpc: if sockets { None } else { Some(self.named_or_free(spec.grpc_port, "gRPC", &spec.app_id)?) },
            internal_grpc: spec.internal_grpc_port,
            metrics: self.named_or_free(spec.metrics_port, "metrics", &spec.app_id)?,
            profile: match spec.options.enable_profiling {
                true => Some(self.named_or_free(spec.profile_port, "profile", &spec.app_id)?),
                false => None,
            },
        })
    }

    fn claim(&mut self, port: u16, owner: String) -> Result<()> {
        if let Some(other) = self.taken.get(&port) {
            return Err(CliError::usage("port-twice", format!("port {port} is both {other} and {owner}")));
        }
        self.taken.insert(port, owner);
        Ok(())
    }

    fn named_or_free(&mut self, named: Option<u16>, what: &str, app_id: &str) -> Result<u16> {
        if let Some(port) = named {
            return Ok(port);
        }
        for _ in 0..ATTEMPTS {
            let port = match bind(0).and_then(|listener| listener.local_addr()) {
                Ok(address) => address.port(),
                // Free for IPv4, but not for IPv6.
                Err(error) if error.kind() == ErrorKind::AddrInUse => continue,
                Err(error) => {
                    return Err(CliError::new("no-port", format!("the system has no free port: {error}")));
                }
            };
            if let std::collections::btree_map::Entry::Vacant(slot) = self.taken.entry(port) {
                slot.insert(format!("the {what} port of {app_id}"));
                return Ok(port);
            }
        }
        Err(CliError::new("no-port", "the system keeps offering ports that are taken"))
    }
}

impl Ports {
    /// Whether somebody else holds one of these ports now: the reason to try again with others.
    pub(crate) fn lost_one(&self) -> bool {
        [self.http, self.grpc, Some(self.metrics), self.profile].into_iter().flatten().any(|port| bind(port).is_err())
    }
}

/// Binds on all IPv4 addresses and, where there is IPv6, on its loopback: that fails if the port is taken on any
/// address a sidecar listens on.
fn bind(port: u16) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    match TcpListener::bind((Ipv6Addr::LOCALHOST, listener.local_addr()?.port())) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => Err(error),
        // Any other error means that this machine has no IPv6.
        _ => Ok(listener),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::runfile::tests::spec;

    #[test]
    fn chosen_ports_differ_within_a_run() {
        let apps: Vec<AppSpec> = (0..20).map(|n| spec(&format!("app{n}"))).collect();
        let mut book = PortBook::for_apps(&apps).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for app in &apps {
            let ports = book.assign(app).unwrap();
            for port in [ports.http.unwrap(), ports.grpc.unwrap(), ports.metrics] {
                assert!(seen.insert(port), "{port} was given twice");
            }
        }
    }

    #[test]
    fn a_port_named_twice_is_refused_with_both_names() {
        let first = AppSpec { http_port: Some(3999), ..spec("orders") };
        let second = AppSpec { app_port: Some(3999), ..spec("stock") };
        let error = PortBook::for_apps(&[first, second]).unwrap_err().to_string();
        assert!(error.contains("3999") && error.contains("orders") && error.contains("stock"), "{error}");
    }

    #[test]
    fn a_named_port_that_somebody_else_has_is_refused_before_anything_starts() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = other.local_addr().unwrap().port();
        let error = PortBook::for_apps(&[AppSpec { grpc_port: Some(port), ..spec("orders") }]).unwrap_err().to_string();
        assert!(error.contains(&port.to_string()) && error.contains("dapr-grpc-port"), "{error}");
    }

    #[test]
    fn with_sockets_no_api_port_is_taken() {
        let app = AppSpec { unix_domain_socket: Some("/tmp".into()), ..spec("orders") };
        let ports = PortBook::for_apps(std::slice::from_ref(&app)).unwrap().assign(&app).unwrap();
        assert_eq!((ports.http, ports.grpc), (None, None));
        assert_ne!(ports.metrics, 0);
    }
}
