use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use simple_dns::rdata::{A, AAAA, PTR, RData, SRV, TXT};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, ResourceRecord, TYPE};

/// Largest packet of RFC 6762 section 17.
pub(crate) const MAX_PACKET: usize = 9000;
/// Life time of our records, seconds (RFC 6762 section 10).
const TTL: u32 = 120;
/// Life time in an answer to a resolver that knows no multicast (section 6.7).
const LEGACY_TTL: u32 = 10;
const DOMAIN: &str = "local";
const ALL_TYPES: &str = "_services._dns-sd._udp.local";

/// What one sidecar makes known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) app_id: String,
    service: String,
    instance: String,
    target: String,
    port: u16,
    address: IpAddr,
}

/// An instance that a packet speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) app_id: String,
    /// Full name of the instance, lower case.
    pub(crate) instance: String,
    pub(crate) addresses: Vec<SocketAddr>,
    /// The instance takes its leave.
    pub(crate) gone: bool,
}

/// What a packet asks of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Which instances are there?
    Browse,
    /// The records of this instance.
    Instance,
    /// Which services are there at all?
    Types,
}

/// How an answer travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To everybody.
    Multicast,
    /// To the asker, who wants it so.
    Unicast,
    /// To an asker that is no multicast DNS speaker.
    Legacy,
}

impl Service {
    /// `Err` says which name does not fit into DNS.
    pub(crate) fn new(app_id: &str, host: &str, pid: u32, address: SocketAddr) -> Result<Self, String> {
        // A label holds 63 bytes; process id and port need up to 16 of them.
        let mut end = host.len().min(46);
        while !host.is_char_boundary(end) {
            end -= 1;
        }
        let host = host[..end].trim_matches('.');
        let host = if host.is_empty() { "localhost" } else { host };
        let this = Self {
            app_id: app_id.to_owned(),
            service: service_name(app_id),
            instance: format!("{host}:{pid}.{}", service_name(app_id)),
            // A name of its own: the machine's `<host>.local` belongs to its own responder,
            // and a loopback address must not be announced for it.
            target: format!("{}-{pid}-{}.{DOMAIN}", host.replace('.', "-"), address.port()),
            port: address.port(),
            address: address.ip(),
        };
        for name in [&this.service, &this.instance, &this.target] {
            parse(name).ok_or_else(|| format!("'{name}' does not fit into a DNS name"))?;
        }
        if app_id.is_empty() || app_id.contains(['\\', '=']) || app_id.len() > 255 {
            return Err(format!("the app id '{app_id}' cannot be announced by DNS"));
        }
        Ok(this)
    }

    pub(crate) fn socket_addr(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    /// Whether `found` is this very service.
    pub(crate) fn is(&self, found: &Found) -> bool {
        self.app_id == found.app_id
            && self.instance.eq_ignore_ascii_case(&found.instance)
            && found.addresses.iter().any(|a| a.port() == self.port)
    }

    /// Unasked announcement of all records.
    pub(crate) fn announcement(&self) -> Vec<u8> {
        self.pack(Asked::Instance, TTL, None)
    }

    /// Withdrawal of all records.
    pub(crate) fn goodbye(&self) -> Vec<u8> {
        self.pack(Asked::Instance, 0, None)
    }

    /// The answer to a question of `query`.
    pub(crate) fn answer(&self, asked: Asked, way: Way, query: &Query<'_>) -> Vec<u8> {
        match way {
            Way::Multicast => self.pack(asked, TTL, None),
            Way::Unicast => self.pack(asked, TTL, Some(query)),
            Way::Legacy => self.pack(asked, LEGACY_TTL, Some(query)),
        }
    }

    fn pack(&self, asked: Asked, ttl: u32, to: Option<&Query<'_>>) -> Vec<u8> {
        let mut packet = Packet::new_reply(to.map_or(0, |q| q.0.id()));
        packet.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
        if let Some(query) = to {
            packet.questions.clone_from(&query.0.questions);
        }
        let ptr = |name, to| record(name, ttl, RData::PTR(PTR(Name::new_unchecked(to))));
        let (service, instance) = (self.service.as_str(), self.instance.as_str());
        // Only records that are unique to this instance flush caches, and as the
        // incumbent does only where all of them are told at once.
        let flush = asked == Asked::Instance;
        let mut text = TXT::new();
        // Its length was checked when the service was made.
        let _ = text.add_string(&self.app_id);
        let target = Name::new_unchecked(&self.target);
        let srv = SRV { priority: 0, weight: 0, port: self.port, target };
        // The target before its addresses: readers in one pass need that order.
        let details = [
            record(instance, ttl, RData::SRV(srv)).with_cache_flush(flush),
            record(instance, ttl, RData::TXT(text)).with_cache_flush(flush),
        ];
        let address = match self.address {
            IpAddr::V4(ip) => RData::A(A::from(ip)),
            IpAddr::V6(ip) => RData::AAAA(AAAA::from(ip)),
        };
        let address = record(&self.target, ttl, address).with_cache_flush(flush);
        match asked {
            Asked::Types => packet.answers.push(ptr(ALL_TYPES, service)),
            Asked::Browse => {
                packet.answers.push(ptr(service, instance));
                packet.additional_records.extend(details);
                packet.additional_records.push(address);
            }
            Asked::Instance => {
                packet.answers.extend(details);
                packet.answers.push(ptr(service, instance));
                packet.answers.push(address);
            }
        }
        // Only a name longer than DNS allows fails, and those were refused.
        packet.build_bytes_vec_compressed().unwrap_or_default()
    }
}

fn record<'a>(name: &'a str, ttl: u32, data: RData<'a>) -> ResourceRecord<'a> {
    ResourceRecord::new(Name::new_unchecked(name), CLASS::IN, ttl, data)
}

fn service_name(app_id: &str) -> String {
    format!("{}.{DOMAIN}", app_id.trim_matches('.'))
}

fn parse(name: &str) -> Option<Name<'_>> {
    // The library would skip an empty label, and the name would be another one.
    if name.contains("..") { None } else { Name::new(name).ok() }
}

/// The question for all instances of an app; `None` for an id that is no DNS name.
pub(crate) fn browse(app_id: &str, id: u16) -> Option<Vec<u8>> {
    let name = service_name(app_id);
    let mut packet = Packet::new_query(id);
    packet.questions.push(Question::new(parse(&name)?, TYPE::PTR.into(), QCLASS::CLASS(CLASS::IN), false));
    packet.build_bytes_vec().ok()
}

/// A packet from the network.
pub(crate) enum Incoming<'a> {
    /// Questions.
    Query(Query<'a>),
    /// Records of instances.
    Found(Vec<Found>),
}

/// Questions of somebody.
pub(crate) struct Query<'a>(Packet<'a>);

impl Query<'_> {
    /// What it asks about `service`, and whether the answer should go to the asker alone.
    pub(crate) fn asks(&self, service: &Service) -> Option<(Asked, bool)> {
        self.0.questions.iter().find_map(|q| {
            let name = text(&q.qname);
            let wants = |t| matches!(q.qtype, QTYPE::ANY) || q.qtype == QTYPE::TYPE(t);
            let asked = if name.eq_ignore_ascii_case(&service.service) && wants(TYPE::PTR) {
                Asked::Browse
            } else if name.eq_ignore_ascii_case(&service.instance) && (wants(TYPE::SRV) || wants(TYPE::TXT)) {
                Asked::Instance
            } else if name.eq_ignore_ascii_case(ALL_TYPES) && wants(TYPE::PTR) {
                Asked::Types
            } else {
                return None;
            };
            Some((asked, q.unicast_response))
        })
    }
}

/// Reads a packet; what is broken or of no use is `None`.
pub(crate) fn read(bytes: &[u8]) -> Option<Incoming<'_>> {
    if bytes.len() > MAX_PACKET {
        return None;
    }
    let packet = Packet::parse(bytes).ok()?;
    if packet.has_flags(PacketFlag::RESPONSE) {
        return Some(Incoming::Found(found(&packet)));
    }
    // With authority records it is a probe, which wants no answer.
    packet.name_servers.is_empty().then_some(Incoming::Query(Query(packet)))
}

fn found(packet: &Packet<'_>) -> Vec<Found> {
    let records = || packet.answers.iter().chain(&packet.name_servers).chain(&packet.additional_records);
    let mut app_ids: HashMap<String, &str> = HashMap::new();
    let mut addresses: HashMap<String, Vec<IpAddr>> = HashMap::new();
    for record in records() {
        match &record.rdata {
            RData::TXT(txt) => {
                let mut strings = txt.iter_raw();
                if let Some((app_id, None)) = strings.next()
                    && let Ok(app_id) = std::str::from_utf8(app_id)
                {
                    app_ids.insert(key(&record.name), app_id);
                }
            }
            RData::A(a) => addresses.entry(key(&record.name)).or_default().push(Ipv4Addr::from(a.address).into()),
            RData::AAAA(a) => addresses.entry(key(&record.name)).or_default().push(Ipv6Addr::from(a.address).into()),
            _ => {}
        }
    }
    records()
        .filter_map(|record| {
            let RData::SRV(srv) = &record.rdata else { return None };
            let instance = key(&record.name);
            let app_id = app_ids.get(&instance)?;
            // The text alone proves nothing: the name must lie below the app's own.
            let below = instance.strip_suffix(&service_name(app_id).to_ascii_lowercase())?;
            if !below.ends_with('.') {
                return None;
            }
            let ips = addresses.get(&key(&srv.target)).map(Vec::as_slice).unwrap_or_default();
            Some(Found {
                app_id: (*app_id).to_owned(),
                addresses: ips.iter().map(|ip| SocketAddr::new(*ip, srv.port)).collect(),
                gone: record.ttl == 0,
                instance,
            })
        })
        .collect()
}

/// A name as text, without escapes: labels here hold no dots of their own.
fn text(name: &Name<'_>) -> String {
    let labels: Vec<_> = name.as_bytes().map(String::from_utf8_lossy).collect();
    labels.join(".")
}

/// A name for comparing; DNS does not tell case apart.
fn key(name: &Name<'_>) -> String {
    text(name).to_ascii_lowercase()
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
