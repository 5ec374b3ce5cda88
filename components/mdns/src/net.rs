use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::time::Duration;

use if_addrs::IfAddr;
use parking_lot::Mutex;
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockRef, Socket, Type};
use tokio::net::UdpSocket;

pub(crate) const PORT: u16 = 5353;
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
/// Interfaces that are used at most; a container host has very many.
const MAX_INTERFACES: usize = 64;
/// Rest after a failed read, so that a broken network cannot spin the loop.
const READ_REST: Duration = Duration::from_millis(200);

/// The multicast sockets, shared with every other responder of this machine.
#[derive(Debug)]
pub(crate) struct Net {
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
    /// Also keeps sends apart: the interface is a setting of the socket.
    interfaces: Mutex<Interfaces>,
}

#[derive(Debug, Default)]
struct Interfaces {
    /// One address of each IPv4 interface.
    v4: Vec<(u32, Ipv4Addr)>,
    /// Index of each IPv6 interface.
    v6: Vec<u32>,
    own: HashSet<IpAddr>,
}

impl Net {
    /// Opens what this machine has of IPv4 and IPv6; an error when that is nothing.
    pub(crate) fn open() -> io::Result<Self> {
        let (v4, v6) = (open_v4(), open_v6());
        if let (Err(e), Err(_)) = (&v4, &v6) {
            return Err(io::Error::new(e.kind(), e.to_string()));
        }
        let net = Self { v4: v4.ok(), v6: v6.ok(), interfaces: Mutex::default() };
        if net.refresh() { Ok(net) } else { Err(io::Error::other("no network interface takes part in multicast")) }
    }

    /// Joins the groups on interfaces that came up since; whether there are any new ones.
    pub(crate) fn refresh(&self) -> bool {
        let mut next = Interfaces::default();
        let mut interfaces = self.interfaces.lock();
        // Without a fresh list the old one is the best there is.
        let Ok(list) = if_addrs::get_if_addrs() else { return false };
        for interface in list {
            let Some(index) = interface.index else { continue };
            next.own.insert(interface.ip());
            match interface.addr {
                IfAddr::V4(addr) if next.v4.len() < MAX_INTERFACES => {
                    let known = interfaces.v4.contains(&(index, addr.ip));
                    let fresh = !next.v4.iter().any(|(i, _)| *i == index);
                    if fresh && self.v4.as_ref().is_some_and(|s| known || join_v4(s, index)) {
                        next.v4.push((index, addr.ip));
                    }
                }
                IfAddr::V6(_) if next.v6.len() < MAX_INTERFACES => {
                    let known = interfaces.v6.contains(&index);
                    if !next.v6.contains(&index) && self.v6.as_ref().is_some_and(|s| known || join_v6(s, index)) {
                        next.v6.push(index);
                    }
                }
                IfAddr::V4(_) | IfAddr::V6(_) => {}
            }
        }
        let grown =
            next.v4.iter().any(|i| !interfaces.v4.contains(i)) || next.v6.iter().any(|i| !interfaces.v6.contains(i));
        *interfaces = next;
        grown
    }

    /// Sends to both groups on every interface; on how many that worked.
    pub(crate) fn multicast(&self, packet: &[u8]) -> usize {
        let interfaces = self.interfaces.lock();
        let mut sent = 0;
        if let Some(socket) = &self.v4 {
            let to = SocketAddr::from((GROUP_V4, PORT));
            for (_, address) in &interfaces.v4 {
                let chosen = SockRef::from(socket).set_multicast_if_v4(address);
                sent += usize::from(chosen.is_ok() && send(socket, packet, to));
            }
        }
        if let Some(socket) = &self.v6 {
            for index in &interfaces.v6 {
                let to = SocketAddrV6::new(GROUP_V6, PORT, 0, *index);
                sent += usize::from(send(socket, packet, to.into()));
            }
        }
        sent
    }

    /// Sends to one asker. A full socket loses the packet, as the network may.
    pub(crate) fn unicast(&self, packet: &[u8], to: SocketAddr) {
        let socket = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        if let Some(socket) = socket {
            send(socket, packet, to);
        }
    }

    /// The next packet that came from this link. May be dropped at any await.
    pub(crate) async fn receive(&self, buf: &mut [u8]) -> (usize, SocketAddr) {
        loop {
            let socket = tokio::select! {
                Some(socket) = readable(self.v4.as_ref()) => socket,
                Some(socket) = readable(self.v6.as_ref()) => socket,
                else => {
                    tokio::time::sleep(READ_REST).await;
                    continue;
                }
            };
            match socket.try_recv_from(buf) {
                Ok((len, from)) if self.is_near(from.ip()) => return (len, from),
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => tokio::time::sleep(READ_REST).await,
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// A packet that is there already, if there is one.
    pub(crate) fn try_receive(&self, buf: &mut [u8]) -> Option<(usize, SocketAddr)> {
        let sockets = [self.v4.as_ref(), self.v6.as_ref()];
        let mut waiting = sockets.into_iter().flatten().filter_map(|s| s.try_recv_from(buf).ok());
        waiting.find(|(_, from)| self.is_near(from.ip()))
    }

    /// Whether `ip` is one of this machine's.
    pub(crate) fn is_own(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.interfaces.lock().own.contains(&ip)
    }

    /// Whether a packet from `ip` can have come by link-local multicast (RFC 6762 section 11).
    /// The IPv4 socket receives nothing else where it is bound to the group.
    fn is_near(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(_) => true,
            IpAddr::V6(v6) => v6.is_unicast_link_local() || self.is_own(ip),
        }
    }

    /// An address of this machine that others can dial: IPv4 before IPv6, loopback last.
    pub(crate) fn host_address() -> IpAddr {
        let list = if_addrs::get_if_addrs().unwrap_or_default();
        let usable = |ip: &IpAddr| !ip.is_loopback() && !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let ips: Vec<IpAddr> = list.iter().map(if_addrs::Interface::ip).filter(usable).collect();
        let v4 = ips.iter().find(|ip| ip.is_ipv4());
        v4.or(ips.first()).copied().unwrap_or(Ipv4Addr::LOCALHOST.into())
    }
}

/// Sends without waiting. Not by tokio's `try_send_to`, which refuses until its
/// driver has looked at the socket once, and so would lose the first packets.
fn send(socket: &UdpSocket, packet: &[u8], to: SocketAddr) -> bool {
    SockRef::from(socket).send_to(packet, &to.into()).is_ok()
}

async fn readable(socket: Option<&UdpSocket>) -> Option<&UdpSocket> {
    let socket = socket?;
    socket.readable().await.ok()?;
    Some(socket)
}

fn shared(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    // The machine's own responder and other sidecars have the port too.
    socket.set_reuse_address(true)?;
    #[cfg(unix)]
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn open_v4() -> io::Result<UdpSocket> {
    let socket = shared(Domain::IPV4)?;
    socket.set_multicast_loop_v4(true)?;
    socket.set_multicast_ttl_v4(255)?;
    // Bound to the group, the socket hears nothing that was sent to this machine alone.
    let address = if cfg!(target_os = "linux") { GROUP_V4 } else { Ipv4Addr::UNSPECIFIED };
    socket.bind(&SocketAddrV4::new(address, PORT).into())?;
    UdpSocket::from_std(socket.into())
}

fn open_v6() -> io::Result<UdpSocket> {
    let socket = shared(Domain::IPV6)?;
    socket.set_only_v6(true)?;
    socket.set_multicast_loop_v6(true)?;
    socket.set_multicast_hops_v6(255)?;
    socket.bind(&SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, PORT, 0, 0).into())?;
    UdpSocket::from_std(socket.into())
}

fn joined(outcome: io::Result<()>) -> bool {
    match outcome {
        Ok(()) => true,
        // Joined before, under another address of the interface.
        Err(e) => e.kind() == io::ErrorKind::AddrInUse,
    }
}

fn join_v4(socket: &UdpSocket, index: u32) -> bool {
    joined(SockRef::from(socket).join_multicast_v4_n(&GROUP_V4, &InterfaceIndexOrAddress::Index(index)))
}

fn join_v6(socket: &UdpSocket, index: u32) -> bool {
    joined(SockRef::from(socket).join_multicast_v6(&GROUP_V6, index))
}
