//! Where the daemon is: its stable peer port, the address it announces, and
//! the variables documents may use to name both.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use sha2::{Digest, Sha256};

use super::Options;

/// First port of the range stable peer ports come from.
const FIRST_PEER_PORT: u16 = 47_300;

/// Documentation addresses: nothing is sent, the kernel only picks a route.
const PROBES: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)), 80),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8888)), 80),
];

/// The ports the daemon really listens on, for [`overlay`].
#[derive(Clone, Copy, Debug)]
pub struct BoundPorts {
    /// HTTP API.
    pub http: u16,
    /// gRPC API.
    pub grpc: u16,
    /// Peers.
    pub internal: u16,
}

/// The port for other sidecars when none is given: the same for the same app,
/// folder, user and host, so restarts keep it.
pub fn stable_peer_port(app_id: &str) -> u16 {
    let dir = std::env::current_dir().map(|dir| dir.to_string_lossy().into_owned()).unwrap_or_default();
    stable_port(app_id, &dir, &rustix::process::getuid().as_raw().to_string(), &host_name())
}

/// This machine's name; the `instance` of log lines.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn stable_port(app_id: &str, dir: &str, uid: &str, host: &str) -> u16 {
    let hash = Sha256::digest(format!("{app_id}|{dir}|{uid}|{host}"));
    FIRST_PEER_PORT + u16::from_le_bytes([hash[0], hash[1]]) % (u16::MAX - FIRST_PEER_PORT)
}

/// The address announced to others: `DAPR_HOST_IP`, else the source address of
/// a route to the outside, else the best of the interfaces, else loopback.
pub fn host_address(configured: Option<&str>) -> String {
    if let Some(address) = configured {
        return address.to_owned();
    }
    let routed = PROBES.iter().find_map(|probe| {
        let any: SocketAddr =
            if probe.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(probe).ok()?;
        let address = socket.local_addr().ok()?.ip();
        (!address.is_unspecified() && !address.is_loopback()).then_some(address)
    });
    let address = routed.or_else(|| {
        let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
        best(interfaces.into_iter().map(|interface| interface.ip()))
    });
    address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)).to_string()
}

/// Public v4, global v6, private v4, unique-local v6, link-local; never loopback.
fn best(addresses: impl Iterator<Item = IpAddr>) -> Option<IpAddr> {
    let rank = |address: &IpAddr| match address {
        IpAddr::V4(v4) if v4.is_loopback() || v4.is_unspecified() => None,
        IpAddr::V4(v4) if v4.is_link_local() => Some(4),
        IpAddr::V4(v4) if v4.is_private() => Some(2),
        IpAddr::V4(_) => Some(0),
        IpAddr::V6(v6) if v6.is_loopback() || v6.is_unspecified() || v6.is_multicast() => None,
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(5),
        IpAddr::V6(v6) if v6.is_unique_local() => Some(3),
        IpAddr::V6(_) => Some(1),
    };
    addresses.filter_map(|address| Some((rank(&address)?, address))).min().map(|(_, address)| address)
}

/// The variables the daemon adds for `$VAR` in documents. They are a map that
/// is looked at before the environment; the environment itself is never changed.
pub fn overlay(options: &Options, host_address: &str, ports: BoundPorts) -> BTreeMap<String, String> {
    let app_port = options.app_port.map(|port| port.to_string()).unwrap_or_default();
    [
        ("APP_ID", options.app_id.clone()),
        ("APP_PORT", app_port),
        ("HOST_ADDRESS", host_address.to_owned()),
        ("DAPR_PORT", ports.internal.to_string()),
        ("DAPR_GRPC_PORT", ports.grpc.to_string()),
        ("DAPR_HTTP_PORT", ports.http.to_string()),
        ("DAPR_METRICS_PORT", options.metrics.port.to_string()),
        ("DAPR_PROFILE_PORT", options.profiling.port.to_string()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_port_depends_on_app_folder_user_and_host() {
        let port = stable_port("shop", "/work", "1000", "box");
        assert_eq!(port, stable_port("shop", "/work", "1000", "box"));
        let others = [
            stable_port("cart", "/work", "1000", "box"),
            stable_port("shop", "/home", "1000", "box"),
            stable_port("shop", "/work", "1001", "box"),
            stable_port("shop", "/work", "1000", "xob"),
        ];
        assert!(others.iter().all(|other| *other != port));
        assert_eq!(stable_peer_port("shop"), stable_peer_port("shop"));
    }

    #[test]
    fn the_peer_port_follows_the_published_recipe() {
        // sha256("shop|/work|1000|box") computed with coreutils.
        assert_eq!(stable_port("shop", "/work", "1000", "box"), 55_695);
    }

    proptest::proptest! {
        #[test]
        fn the_peer_port_is_in_its_range(app in "\\PC{0,20}") {
            let port = stable_port(&app, "d", "1", "h");
            proptest::prop_assert!((FIRST_PEER_PORT..u16::MAX).contains(&port));
        }
    }

    #[test]
    fn the_best_interface_address_wins() {
        let order = ["203.0.113.9", "2001:db8::1", "10.0.0.1", "fd00::1", "169.254.1.1", "fe80::1"];
        let parsed: Vec<IpAddr> = order.iter().map(|text| text.parse().unwrap()).collect();
        for from in 0..parsed.len() {
            let mut rest = parsed[from..].to_vec();
            rest.reverse();
            rest.push(IpAddr::V4(Ipv4Addr::LOCALHOST));
            assert_eq!(best(rest.into_iter()), Some(parsed[from]));
        }
        assert_eq!(best([IpAddr::V6(Ipv6Addr::LOCALHOST)].into_iter()), None);
    }

    #[test]
    fn a_configured_address_is_taken_as_it_is() {
        assert_eq!(host_address(Some("10.1.2.3")), "10.1.2.3");
        assert!(host_address(None).parse::<IpAddr>().is_ok());
    }
}
