//! HTTP servers outside: declared ones and bare URLs, and which addresses may be reached.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use http::{HeaderMap, Uri};

use super::method::Method;

/// An HTTP server outside that can be invoked by name or by URL.
#[derive(Clone, PartialEq)]
pub struct Endpoint {
    /// Name of the document, or the URL.
    pub name: Arc<str>,
    /// Absolute URL that method paths are appended to; without trailing slash.
    pub base_url: String,
    /// Headers added to every call. Values may be secrets.
    pub headers: HeaderMap,
    /// Trust and identity for TLS.
    pub tls: Option<EndpointTls>,
    /// Which addresses it may resolve to.
    pub guard: AddressGuard,
}

/// TLS of an endpoint, as PEM.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct EndpointTls {
    /// Roots instead of those of the system.
    pub root_ca: Option<String>,
    /// Client certificate chain.
    pub certificate: Option<String>,
    /// Its key.
    pub private_key: Option<String>,
}

/// Which addresses calls to the outside may reach. Asked after name resolution, for the
/// address that is really dialled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AddressGuard {
    /// Every address.
    #[default]
    Open,
    /// No link-local or metadata address, loopback only by a loopback name.
    Strict,
}

impl Endpoint {
    /// An endpoint at `base_url`.
    ///
    /// # Errors
    /// When it is no absolute `http` or `https` URL, or holds a query or credentials.
    pub fn new(name: &str, base_url: &str) -> Result<Self, String> {
        let uri: Uri = base_url.parse().map_err(|_| format!("invalid URL {base_url}"))?;
        let scheme_known = matches!(uri.scheme_str(), Some("http" | "https"));
        let authority = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
        if !scheme_known || authority.is_empty() {
            return Err(format!("invalid URL {base_url}: an absolute http or https URL is expected"));
        }
        if authority.contains('@') {
            return Err("invalid URL: credentials in the URL are not supported, use a header".to_owned());
        }
        if base_url.contains(['?', '#']) {
            return Err(format!("invalid URL {base_url}: it may not have a query or a fragment"));
        }
        Ok(Self {
            name: name.into(),
            base_url: base_url.trim_end_matches('/').to_owned(),
            headers: HeaderMap::new(),
            tls: None,
            guard: AddressGuard::Open,
        })
    }

    /// The URL of a call.
    ///
    /// # Errors
    /// When method or query cannot be part of a URL.
    pub fn url(&self, method: &Method, query: &str) -> Result<Uri, String> {
        let mut text = self.base_url.clone();
        if !method.as_str().is_empty() {
            method.write_path(&mut text).map_err(|e| e.to_string())?;
        }
        if !query.is_empty() {
            text.push('?');
            text.push_str(query);
        }
        text.parse().map_err(|e| format!("invalid URL: {e}"))
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("name", &self.name)
            .field("base_url", &self.base_url)
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .field("guard", &self.guard)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for EndpointTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointTls").finish_non_exhaustive()
    }
}

/// Addresses at which clouds serve credentials, besides the link-local ranges: AWS over
/// IPv6, Alibaba, Oracle, Azure.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192), Ipv4Addr::new(168, 63, 129, 16)];

impl AddressGuard {
    /// Whether a connection for `host` (as the URL spells it, without port) may go to `address`.
    #[must_use]
    pub fn allows(self, host: &str, address: IpAddr) -> bool {
        if self == Self::Open {
            return true;
        }
        match embedded_v4(address) {
            IpAddr::V4(v4) if v4.is_link_local() || METADATA_V4.contains(&v4) => false,
            IpAddr::V4(v4) if v4.is_unspecified() || v4.is_broadcast() || v4.is_multicast() => false,
            IpAddr::V6(v6) if v6.is_unicast_link_local() || v6 == METADATA_V6 => false,
            IpAddr::V6(v6) if v6.is_unspecified() || v6.is_multicast() => false,
            ip if ip.is_loopback() => names_loopback(host),
            _ => true,
        }
    }
}

/// The IPv4 address inside an IPv6 one: mapped, compatible, NAT64 or 6to4. A gateway would
/// reach the inner address, so that is the one to judge.
fn embedded_v4(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    if let Some(v4) = v6.to_ipv4_mapped() {
        return IpAddr::V4(v4);
    }
    let s = v6.segments();
    let v4 = |hi: u16, lo: u16| {
        let [a, b] = hi.to_be_bytes();
        let [c, d] = lo.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        [0x64, 0xff9b, 0, 0, 0, 0, hi, lo] => v4(hi, lo),
        [0x2002, hi, lo, ..] => v4(hi, lo),
        [0, 0, 0, 0, 0, 0, hi, lo] if hi != 0 => v4(hi, lo),
        _ => address,
    }
}

fn names_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_joined() {
        let method = |m| Method::new(m).unwrap();
        let e = Endpoint::new("e", "https://example.com/base/").unwrap();
        assert_eq!(e.url(&method("a b"), "x=1&x=2").unwrap(), "https://example.com/base/a%20b?x=1&x=2");
        assert_eq!(e.url(&method(""), "").unwrap(), "https://example.com/base");
        for bad in ["ftp://x", "example.com", "http://u:p@x", "http://x?y=1", "http://", "http://x/#f"] {
            assert!(Endpoint::new("e", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn strict_refuses_dangerous_addresses() {
        let ok = |host: &str, ip: &str| AddressGuard::Strict.allows(host, ip.parse().unwrap());
        for ip in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "::a9fe:a9fe",
            "fe80::1",
            "fd00:ec2::254",
            "100.100.100.200",
            "192.0.0.192",
            "168.63.129.16",
            "0.0.0.0",
            "::",
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
        ] {
            assert!(!ok("evil.example", ip), "{ip}");
        }
        for ip in ["10.0.0.1", "192.168.1.1", "93.184.216.34", "2606:2800::1"] {
            assert!(ok("fine.example", ip), "{ip}");
        }
        assert!(ok("localhost", "127.0.0.1") && ok("127.0.0.1", "127.0.0.1") && ok("[::1]", "::1"));
        assert!(AddressGuard::Open.allows("x", "169.254.169.254".parse().unwrap()));
    }
}
