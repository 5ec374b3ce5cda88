//! `Host` and `Origin` checks of strict mode: a page in a browser must not reach the API by
//! a cross-site request or by DNS rebinding.

use std::net::IpAddr;

use http::header::{HOST, HeaderMap, ORIGIN};

use super::cors::Cors;

/// Refuses a request whose `Host` is no local name, or whose `Origin` is foreign.
pub(super) fn check(headers: &HeaderMap, cors: Option<&Cors>) -> Result<(), &'static str> {
    if let Some(host) = headers.get(HOST).and_then(|v| v.to_str().ok())
        && !is_local(host)
    {
        return Err("this Host is not served; call the sidecar as localhost");
    }
    if let Some(origin) = headers.get(ORIGIN).and_then(|v| v.to_str().ok()) {
        let allowed = cors.is_some_and(|c| c.origin(headers).is_some());
        let host = origin.split_once("://").map_or(origin, |(_, host)| host);
        if !allowed && !is_local(host) {
            return Err("this Origin is not allowed; name it in --allowed-origins");
        }
    }
    Ok(())
}

/// Loopback by name or address; any IP literal is safe from rebinding.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.is_empty()
        || name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost")
        || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(host: &str, origin: Option<&str>) -> HeaderMap {
        let mut h = HeaderMap::new();
        h.insert(HOST, host.parse().unwrap());
        if let Some(o) = origin {
            h.insert(ORIGIN, o.parse().unwrap());
        }
        h
    }

    #[test]
    fn local_hosts_pass_and_foreign_ones_do_not() {
        for host in ["localhost:3500", "127.0.0.1:3500", "[::1]:3500", "LOCALHOST", "app.localhost:1"] {
            assert!(check(&headers(host, None), None).is_ok(), "{host}");
        }
        assert!(check(&headers("evil.example:3500", None), None).is_err());
    }

    #[test]
    fn foreign_origins_need_permission() {
        assert!(check(&headers("localhost", Some("http://evil.example")), None).is_err());
        assert!(check(&headers("localhost", Some("http://localhost:8080")), None).is_ok());
        let cors = Cors::new("http://shop.example");
        assert!(check(&headers("localhost", Some("http://shop.example")), cors.as_ref()).is_ok());
    }
}
