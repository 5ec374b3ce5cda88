//! Handshakes in memory: who gets through, and what the others are told.

use std::time::{Duration, SystemTime};

use rustls::{ClientConnection, Connection, ServerConnection};

use super::*;
use crate::spiffe::SpiffeId;
use crate::testing::Ca;
use crate::verify::{explain, peer_id};

const ORDERS: &str = "spiffe://public/ns/shop/orders";
const STOCK: &str = "spiffe://public/ns/shop/stock";

fn live(roots: &str, identity: Option<Identity>) -> Arc<Live> {
    let live = Live::new(Bundle::from_pem(roots).unwrap());
    if let Some(identity) = identity {
        live.set_identity(identity);
    }
    live
}

fn orders() -> Expect {
    Expect::Workload { namespace: "shop".to_owned(), app_id: "orders".to_owned() }
}

/// Carries bytes between both ends until neither has more to say. What each end makes of it.
fn handshake(client: ClientConfig, server: ServerConfig) -> (Result<Connection, String>, Result<Connection, String>) {
    let name = "peer.invalid".try_into().unwrap();
    let mut client: Connection = ClientConnection::new(Arc::new(client), name).unwrap().into();
    let mut server: Connection = ServerConnection::new(Arc::new(server)).unwrap().into();
    let (mut at_client, mut at_server) = (None, None);
    for _ in 0..10 {
        at_server = at_server.or(carry(&mut client, &mut server));
        at_client = at_client.or(carry(&mut server, &mut client));
    }
    let told = |connection: Connection, error: Option<rustls::Error>| match error {
        Some(error) => Err(explain(&error)),
        None if connection.is_handshaking() => Err("still waiting".to_owned()),
        None => Ok(connection),
    };
    (told(client, at_client), told(server, at_server))
}

fn carry(from: &mut Connection, to: &mut Connection) -> Option<rustls::Error> {
    let mut wire = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut wire).unwrap();
    }
    let mut wire = &wire[..];
    while !wire.is_empty() {
        to.read_tls(&mut wire).unwrap();
        if let Err(e) = to.process_new_packets() {
            return Some(e);
        }
    }
    None
}

#[test]
fn both_ends_learn_who_the_other_is() {
    let ca = Ca::new("root");
    let client = live(&ca.root_pem(), Some(ca.identity(STOCK)));
    let server = live(&ca.root_pem(), Some(ca.identity(ORDERS)));
    let (at_client, at_server) = handshake(client.client_config(orders()), server.server_config(Clients::Required));
    let (at_client, at_server) = (at_client.unwrap(), at_server.unwrap());
    assert_eq!(peer_id(at_client.peer_certificates()).unwrap().as_str(), ORDERS);
    assert_eq!(peer_id(at_server.peer_certificates()).unwrap().as_str(), STOCK);
    assert_eq!(at_server.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(at_server.alpn_protocol(), Some(&b"h2"[..]));
}

#[test]
fn an_intermediate_leads_to_its_root() {
    let root = Ca::new("root");
    let ca = root.below("issuer");
    let client = live(&root.root_pem(), Some(ca.identity(STOCK)));
    let server = live(&root.root_pem(), Some(ca.identity(ORDERS)));
    let (at_client, at_server) = handshake(client.client_config(orders()), server.server_config(Clients::Required));
    assert!(at_client.is_ok() && at_server.is_ok());
}

#[test]
fn another_app_at_the_address_is_refused() {
    let ca = Ca::new("root");
    let client = live(&ca.root_pem(), Some(ca.identity(STOCK)));
    for wrong in [STOCK, "spiffe://public/ns/other/orders", "spiffe://public/ns/shop/orders/x", "spiffe://public"] {
        let server = live(&ca.root_pem(), Some(ca.identity(wrong)));
        let (at_client, at_server) = handshake(client.client_config(orders()), server.server_config(Clients::Required));
        let error = at_client.unwrap_err();
        assert_eq!(error, format!("the peer is {wrong}, expected was app orders in namespace shop"));
        assert!(at_server.is_err());
    }
    let elsewhere = live(&ca.root_pem(), Some(ca.identity("spiffe://another.domain/ns/shop/orders")));
    assert!(handshake(client.client_config(orders()), elsewhere.server_config(Clients::Required)).0.is_ok());
}

#[test]
fn the_control_plane_is_met_by_its_exact_id() {
    let ca = Ca::new("root");
    let id = SpiffeId::control("cluster.local", "mecha-system", "dapr-sentry").unwrap();
    let client = live(&ca.root_pem(), None);
    let at = |found: &str| {
        let server = live(&ca.root_pem(), Some(ca.identity(found)));
        handshake(client.client_config(Expect::Id(id.clone())), server.server_config(Clients::Anybody)).0
    };
    assert!(at("spiffe://cluster.local/ns/mecha-system/dapr-sentry").is_ok());
    assert!(at("spiffe://public/ns/mecha-system/dapr-sentry").is_err());
    assert!(at("spiffe://cluster.local/ns/mecha-system/dapr-operator").is_err());
}

#[test]
fn an_unknown_root_is_refused_on_both_sides() {
    let (ca, other) = (Ca::new("root"), Ca::new("root"));
    let good = live(&ca.root_pem(), Some(ca.identity(ORDERS)));
    let bad = live(&ca.root_pem(), Some(other.identity(ORDERS)));
    let (at_client, at_server) = handshake(good.client_config(orders()), bad.server_config(Clients::Required));
    assert_eq!(at_client.unwrap_err(), "the peer's certificate leads to no root of our trust bundle");
    assert_eq!(
        at_server.unwrap_err(),
        "the peer refused our certificate: it leads to no root of the peer's trust bundle"
    );
    let (_, at_server) = handshake(bad.client_config(orders()), good.server_config(Clients::Required));
    assert_eq!(at_server.unwrap_err(), "the peer's certificate leads to no root of our trust bundle");
}

#[test]
fn a_client_without_a_certificate_gets_in_where_none_is_asked() {
    let ca = Ca::new("root");
    let client = live(&ca.root_pem(), None);
    let server = live(&ca.root_pem(), Some(ca.identity(ORDERS)));
    let (_, at_server) = handshake(client.client_config(orders()), server.server_config(Clients::Required));
    assert_eq!(at_server.unwrap_err(), "the peer showed no certificate");
    for clients in [Clients::Optional, Clients::Anybody] {
        let (at_client, at_server) = handshake(client.client_config(orders()), server.server_config(clients));
        assert!(at_client.is_ok());
        assert_eq!(peer_id(at_server.unwrap().peer_certificates()), Err(crate::verify::PeerError::Missing));
    }
    let other = Ca::new("root");
    let client = live(&ca.root_pem(), Some(other.identity(STOCK)));
    let (_, at_server) = handshake(client.client_config(orders()), server.server_config(Clients::Optional));
    assert!(at_server.is_err(), "a bad certificate is worse than none");
}

#[test]
fn certificates_end_and_roots_end() {
    let ca = Ca::new("root");
    let client = live(&ca.root_pem(), Some(ca.identity(STOCK)));
    let server = live(&ca.root_pem(), Some(ca.ended(ORDERS)));
    let (at_client, at_server) = handshake(client.client_config(orders()), server.server_config(Clients::Required));
    assert!(at_client.unwrap_err().contains("certificate expired"));
    assert_eq!(at_server.unwrap_err(), "the peer refused our certificate: it has expired");

    let now = SystemTime::now();
    let past = Ca::between("old", now - Duration::from_secs(60), now - Duration::from_secs(30));
    let server = live(&ca.root_pem(), Some(past.identity(ORDERS)));
    let client = live(&(past.root_pem() + &ca.root_pem()), Some(ca.identity(STOCK)));
    let (at_client, _) = handshake(client.client_config(orders()), server.server_config(Clients::Required));
    assert!(at_client.unwrap_err().contains("leads to no root"));
}

#[test]
fn what_is_replaced_counts_from_the_next_handshake_on() {
    // Roots of one authority often have one name.
    let (old, new) = (Ca::new("root"), Ca::new("root"));
    let client = live(&old.root_pem(), Some(old.identity(STOCK)));
    let server = live(&old.root_pem(), Some(old.identity(ORDERS)));
    // One configuration each, made once.
    let (calls, serves) = (client.client_config(orders()), server.server_config(Clients::Required));
    let works = || {
        let (at_client, at_server) = handshake(calls.clone(), serves.clone());
        at_client.is_ok() && at_server.is_ok()
    };
    assert!(works());
    let both = old.root_pem() + &new.root_pem();
    client.set_bundle(Bundle::from_pem(&both).unwrap());
    assert!(works());
    server.set_bundle(Bundle::from_pem(&both).unwrap());
    client.set_identity(new.identity(STOCK));
    assert!(works(), "one side has moved");
    server.set_identity(new.identity(ORDERS));
    assert!(works());
    client.set_bundle(Bundle::from_pem(&new.root_pem()).unwrap());
    server.set_bundle(Bundle::from_pem(&new.root_pem()).unwrap());
    assert!(works(), "the old root is gone");
    client.set_identity(old.identity(STOCK));
    assert!(!works(), "and nothing below it is let in");
}

#[test]
fn a_server_without_identity_answers_nobody() {
    let ca = Ca::new("root");
    let client = live(&ca.root_pem(), Some(ca.identity(STOCK)));
    let server = live(&ca.root_pem(), None);
    let (at_client, at_server) = handshake(client.client_config(orders()), server.server_config(Clients::Required));
    assert!(at_client.is_err() && at_server.is_err());
    server.set_identity(ca.identity(ORDERS));
    assert!(handshake(client.client_config(orders()), server.server_config(Clients::Required)).0.is_ok());
}

#[test]
fn plain_text_is_called_by_its_name() {
    let ca = Ca::new("root");
    let server = live(&ca.root_pem(), Some(ca.identity(ORDERS)));
    let mut server = ServerConnection::new(Arc::new(server.server_config(Clients::Required))).unwrap();
    server.read_tls(&mut &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..]).unwrap();
    let error = explain(&server.process_new_packets().unwrap_err());
    assert!(error.starts_with("the peer does not speak TLS"), "{error}");
}
