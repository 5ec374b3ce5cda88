use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mecha_components_api::{
    BuildCx, CancellationToken, Component, Error, ErrorKind, Instance, NameResolver, Prepared, Result, Target,
    async_trait,
};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, interval_at, sleep, timeout};

use crate::cache::Cache;
use crate::net::{Net, PORT};
use crate::wire::{Incoming, MAX_PACKET, Service, Way, browse, read};

/// How long `resolve` looks for an app that nobody has heard of.
const RESOLVE_WAIT: Duration = Duration::from_secs(2);
/// Gap between two questions for the same app, whoever asks.
const ASK_GAP: Duration = Duration::from_millis(250);
/// Known apps are asked for again this often.
const REFRESH: Duration = Duration::from_secs(30);
/// The second announcement (RFC 6762 section 8.3 wants two, one second apart).
const REPEAT: Duration = Duration::from_secs(1);
/// Our own announcement comes back within this time, where multicast works.
const ECHO_WAIT: Duration = Duration::from_secs(2);
/// The same question within this time is a copy that came by another interface.
const COPY: Duration = Duration::from_millis(250);
const COPIES_KEPT: usize = 32;
/// Packets that a lookup takes in before it answers from memory.
const BACKLOG: usize = 256;
/// Answers a second, so that nobody can make this sidecar flood the network.
const ANSWERS_PER_SECOND: u32 = 100;

/// Nothing to configure.
pub(crate) struct Config;

#[async_trait]
impl Prepared<dyn NameResolver> for Config {
    async fn build(self: Box<Self>, _: &BuildCx) -> Result<Arc<dyn NameResolver>> {
        let resolver = Mdns::new();
        if let Err(e) = resolver.open() {
            warn_no_multicast(&e.to_string());
        }
        Ok(Arc::new(resolver))
    }
}

fn warn_no_multicast(why: &str) {
    tracing::warn!(
        why,
        "multicast DNS does not work on this machine: apps will not find each other by mdns. \
         Set nameResolution.component to sqlite in the Configuration to find the apps of this machine without multicast",
    );
}

/// `nameresolution.mdns`.
pub(crate) struct Mdns {
    net: OnceLock<Net>,
    cache: Mutex<Cache>,
    /// What is announced; one service, but for tests.
    me: Mutex<Vec<Service>>,
    /// Somebody's address became known.
    news: Notify,
    /// Our own announcement came back.
    echo: Notify,
    /// Held by the one future that reads the sockets.
    reader: tokio::sync::Mutex<()>,
    answers: Mutex<Answers>,
}

impl fmt::Debug for Mdns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mdns").field("me", &*self.me.lock()).finish_non_exhaustive()
    }
}

/// What was answered lately.
#[derive(Debug)]
struct Answers {
    seen: VecDeque<(Instant, u64)>,
    second: Instant,
    given: u32,
}

impl Answers {
    /// Whether this question should be answered: it is no copy and the rate allows it.
    fn allow(&mut self, question: &[u8]) -> bool {
        let now = Instant::now();
        let mut hasher = DefaultHasher::new();
        question.hash(&mut hasher);
        let hash = hasher.finish();
        self.seen.retain(|(at, _)| now - *at < COPY);
        if self.seen.iter().any(|(_, h)| *h == hash) {
            return false;
        }
        if now - self.second >= Duration::from_secs(1) {
            (self.second, self.given) = (now, 0);
        }
        if self.given >= ANSWERS_PER_SECOND {
            return false;
        }
        self.given += 1;
        self.seen.truncate(COPIES_KEPT - 1);
        self.seen.push_front((now, hash));
        true
    }
}

impl Mdns {
    fn new() -> Self {
        Self {
            net: OnceLock::new(),
            cache: Mutex::default(),
            me: Mutex::default(),
            news: Notify::new(),
            echo: Notify::new(),
            reader: tokio::sync::Mutex::new(()),
            answers: Mutex::new(Answers { seen: VecDeque::new(), second: Instant::now(), given: 0 }),
        }
    }

    /// The sockets, opened at the first call that can.
    fn open(&self) -> std::io::Result<&Net> {
        if let Some(net) = self.net.get() {
            return Ok(net);
        }
        let net = Net::open()?;
        Ok(self.net.get_or_init(|| net))
    }

    /// Reads packets for everybody; one future at a time does, the others wait for their turn.
    async fn drive(&self, net: &Net) -> Infallible {
        let _turn = self.reader.lock().await;
        let mut buf = vec![0; MAX_PACKET];
        loop {
            let (len, from) = net.receive(&mut buf).await;
            self.take_in(net, &buf[..len], from);
        }
    }

    /// Takes in what came while nobody read, so that an app that took its leave is not
    /// given out from memory.
    fn catch_up(&self) {
        let (Some(net), Ok(_turn)) = (self.net.get(), self.reader.try_lock()) else { return };
        let mut buf = vec![0; MAX_PACKET];
        for _ in 0..BACKLOG {
            let Some((len, from)) = net.try_receive(&mut buf) else { break };
            self.take_in(net, &buf[..len], from);
        }
    }

    fn take_in(&self, net: &Net, bytes: &[u8], from: SocketAddr) {
        for (packet, way) in self.handle(bytes, from, net.is_own(from.ip())) {
            match way {
                Way::Multicast => drop(net.multicast(&packet)),
                Way::Unicast | Way::Legacy => net.unicast(&packet, from),
            }
        }
    }

    /// Understands one packet; the answers to it.
    fn handle(&self, bytes: &[u8], from: SocketAddr, from_here: bool) -> Vec<(Vec<u8>, Way)> {
        match read(bytes) {
            Some(Incoming::Query(query)) => {
                let way = |alone| match (from.port(), alone) {
                    (PORT, false) => Way::Multicast,
                    (PORT, true) => Way::Unicast,
                    _ => Way::Legacy,
                };
                let answer = |me: &Service| {
                    let (asked, alone) = query.asks(me)?;
                    Some((me.answer(asked, way(alone), &query), way(alone)))
                };
                let answers: Vec<_> = self.me.lock().iter().filter_map(answer).collect();
                if answers.is_empty() || self.answers.lock().allow(bytes) { answers } else { Vec::new() }
            }
            Some(Incoming::Found(list)) => {
                for found in list {
                    if self.me.lock().iter().any(|me| me.is(&found)) {
                        self.echo.notify_one();
                    } else if self.cache.lock().note(&found, from_here) {
                        self.news.notify_waiters();
                    }
                }
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// Asks the network for `app_id`, unless that was just done.
    fn ask(&self, net: &Net, app_id: &str) {
        if !self.cache.lock().ask(app_id, ASK_GAP) {
            return;
        }
        // An id of its own tells the copies of one question from the next question.
        let id = uuid::Uuid::new_v4().as_u128() as u16;
        if let Some(packet) = browse(app_id, id)
            && net.multicast(&packet) == 0
        {
            tracing::debug!(app_id, "no interface took the mdns question");
        }
    }

    async fn find(&self, net: &Net, app_id: &str) -> Result<Vec<Arc<str>>> {
        let mut drive = pin!(self.drive(net));
        loop {
            let mut news = pin!(self.news.notified());
            // Listening before looking, so that nothing falls in between.
            news.as_mut().enable();
            if let Some(found) = self.cache.lock().get(app_id) {
                return Ok(found);
            }
            self.ask(net, app_id);
            tokio::select! {
                () = news => {}
                () = sleep(ASK_GAP) => {}
                never = &mut drive => match never {},
            }
        }
    }
}

fn unknown(app_id: &str) -> Error {
    Error::not_found(format!("couldn't find service: {app_id}"))
}

impl Component for Mdns {}

#[async_trait]
impl NameResolver for Mdns {
    async fn resolve(&self, target: Target<'_>) -> Result<Vec<Arc<str>>> {
        self.catch_up();
        if let Some(found) = self.cache.lock().get(target.app_id) {
            return Ok(found);
        }
        // No name in DNS: nobody can have announced it, and nothing is remembered about it.
        if browse(target.app_id, 0).is_none() {
            return Err(unknown(target.app_id));
        }
        let net = self.open().map_err(|e| {
            Error::new(ErrorKind::Unavailable, "multicast DNS does not work on this machine, see nameresolution.sqlite")
                .with_source(e)
        })?;
        timeout(RESOLVE_WAIT, self.find(net, target.app_id)).await.unwrap_or_else(|_| Err(unknown(target.app_id)))
    }

    async fn announce(&self, me: Instance, up: Box<dyn FnOnce() + Send>, stop: CancellationToken) -> Result<()> {
        let uname = rustix::system::uname();
        let host = uname.nodename().to_string_lossy();
        let service = Service::new(&me.app_id, &host, std::process::id(), address(&me)).map_err(Error::invalid)?;
        // Calls to oneself need no network.
        self.cache.lock().pin(&me.app_id, service.socket_addr());
        self.me.lock().push(service.clone());
        let _withdrawn = Withdraw { of: self, service: &service };

        let mut up = Some(up);
        let mut up = move || {
            if let Some(up) = up.take() {
                up();
            }
        };
        let net = loop {
            if let Ok(net) = self.open() {
                break net;
            }
            // Warned when it was built. The sidecar works; its app is found by itself only.
            up();
            if stop.run_until_cancelled(sleep(REFRESH)).await.is_none() {
                return Ok(());
            }
        };

        let mut drive = pin!(self.drive(net));
        net.multicast(&service.announcement());
        self.ask(net, &me.app_id);
        let start = Instant::now();
        let mut repeat = pin!(tokio::time::sleep_until(start + REPEAT));
        let mut echo_late = pin!(tokio::time::sleep_until(start + ECHO_WAIT));
        let (mut repeated, mut settled) = (false, false);
        let mut refresh = interval_at(start + REFRESH, REFRESH);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                never = &mut drive => match never {},
                () = self.echo.notified(), if !settled => {
                    settled = true;
                    up();
                }
                () = &mut echo_late, if !settled => {
                    settled = true;
                    warn_no_multicast("our own announcement did not come back");
                    up();
                }
                () = &mut repeat, if !repeated => {
                    repeated = true;
                    net.multicast(&service.announcement());
                }
                _ = refresh.tick() => {
                    if net.refresh() {
                        net.multicast(&service.announcement());
                    }
                    let apps = self.cache.lock().refresh();
                    for app_id in apps {
                        self.ask(net, &app_id);
                    }
                }
            }
        }
        net.multicast(&service.goodbye());
        Ok(())
    }
}

/// Forgets our own service when the announcement ends, also when it is dropped.
struct Withdraw<'a> {
    of: &'a Mdns,
    service: &'a Service,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        self.of.me.lock().retain(|s| s != self.service);
        self.of.cache.lock().unpin(&self.service.app_id, self.service.socket_addr());
    }
}

/// Where peers dial this sidecar; a host that is no address is taken for this machine.
fn address(me: &Instance) -> SocketAddr {
    let host = me.host.trim_matches(['[', ']']);
    let ip = match host.parse::<IpAddr>() {
        Ok(ip) if !ip.is_unspecified() => ip,
        _ if host.eq_ignore_ascii_case("localhost") => Ipv4Addr::LOCALHOST.into(),
        _ => Net::host_address(),
    };
    SocketAddr::new(ip, me.port)
}

#[cfg(test)]
#[path = "resolver_tests.rs"]
mod tests;
