use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::wire::Found;

/// How long an address is trusted after it was last heard.
const ADDRESS_TTL: Duration = Duration::from_secs(60);
/// An app that nobody asked for this long is no longer refreshed.
const IDLE: Duration = Duration::from_secs(600);
const MAX_APPS: usize = 1024;
const MAX_ADDRESSES: usize = 256;

/// Addresses of the apps that somebody asked for. Others are not remembered, so
/// that the network cannot fill the memory.
#[derive(Debug, Default)]
pub(crate) struct Cache(HashMap<String, App>);

#[derive(Debug)]
struct App {
    addresses: Vec<Address>,
    turn: usize,
    used: Instant,
    asked: Option<Instant>,
}

#[derive(Debug)]
struct Address {
    at: SocketAddr,
    text: Arc<str>,
    instance: String,
    /// `None` never ends: it is our own.
    until: Option<Instant>,
}

impl Address {
    fn is_live(&self, now: Instant) -> bool {
        self.until.is_none_or(|end| now < end)
    }
}

impl Cache {
    fn app(&mut self, app_id: &str) -> &mut App {
        let now = Instant::now();
        if !self.0.contains_key(app_id) {
            if self.0.len() >= MAX_APPS
                && let Some(oldest) = self.0.iter().min_by_key(|(_, a)| a.used).map(|(id, _)| id.clone())
            {
                self.0.remove(&oldest);
            }
            self.0.insert(app_id.to_owned(), App { addresses: Vec::new(), turn: 0, used: now, asked: None });
        }
        self.0.entry(app_id.to_owned()).or_insert_with(|| App {
            addresses: Vec::new(),
            turn: 0,
            used: now,
            asked: None,
        })
    }

    /// All live addresses, a different one first each time; IPv6 only where there is no IPv4.
    pub(crate) fn get(&mut self, app_id: &str) -> Option<Vec<Arc<str>>> {
        let now = Instant::now();
        let app = self.0.get_mut(app_id)?;
        app.used = now;
        let of = |v4: bool| app.addresses.iter().filter(move |a| a.at.is_ipv4() == v4 && a.is_live(now));
        let mut live: Vec<Arc<str>> = of(true).map(|a| a.text.clone()).collect();
        if live.is_empty() {
            live = of(false).map(|a| a.text.clone()).collect();
        }
        if live.is_empty() {
            return None;
        }
        let first = app.turn % live.len();
        app.turn = app.turn.wrapping_add(1);
        live.rotate_left(first);
        Some(live)
    }

    /// Whether the question for `app_id` is due: never asked, or not within `gap`.
    /// From now on answers for it are remembered.
    pub(crate) fn ask(&mut self, app_id: &str, gap: Duration) -> bool {
        let now = Instant::now();
        let app = self.app(app_id);
        app.used = now;
        let due = app.asked.is_none_or(|at| now - at >= gap);
        if due {
            app.asked = Some(now);
        }
        due
    }

    /// Our own address, which needs no network to be found.
    pub(crate) fn pin(&mut self, app_id: &str, at: SocketAddr) {
        let app = self.app(app_id);
        app.addresses.retain(|a| a.at != at);
        app.addresses.push(Address { at, text: at.to_string().into(), instance: String::new(), until: None });
    }

    /// Takes our own address away again.
    pub(crate) fn unpin(&mut self, app_id: &str, at: SocketAddr) {
        if let Some(app) = self.0.get_mut(app_id) {
            app.addresses.retain(|a| a.at != at);
        }
    }

    /// Notes what a packet said; `true` when somebody may wait for it. A loopback
    /// address counts only when the packet came from this machine.
    pub(crate) fn note(&mut self, found: &Found, from_here: bool) -> bool {
        let Some(app) = self.0.get_mut(&found.app_id) else { return false };
        if found.gone {
            // Containers that share a host name can share the name of an instance, too:
            // where addresses are told, only those go.
            let leaves = |a: &Address| found.addresses.is_empty() || found.addresses.contains(&a.at);
            app.addresses.retain(|a| a.until.is_none() || a.instance != found.instance || !leaves(a));
            return false;
        }
        let now = Instant::now();
        let until = Some(now + ADDRESS_TTL);
        let mut noted = false;
        for at in found.addresses.iter().filter(|a| is_usable(a, from_here)) {
            noted = true;
            if let Some(known) = app.addresses.iter_mut().find(|a| a.at == *at) {
                if known.until.is_some() {
                    (known.until, known.instance) = (until, found.instance.clone());
                }
                continue;
            }
            app.addresses.retain(|a| a.is_live(now));
            if app.addresses.len() < MAX_ADDRESSES {
                let text = at.to_string().into();
                app.addresses.push(Address { at: *at, text, instance: found.instance.clone(), until });
            }
        }
        noted
    }

    /// Drops what is stale and names the apps to ask for again.
    pub(crate) fn refresh(&mut self) -> Vec<String> {
        let now = Instant::now();
        for app in self.0.values_mut() {
            app.addresses.retain(|a| a.is_live(now));
        }
        self.0.retain(|_, app| now - app.used < IDLE || app.addresses.iter().any(|a| a.until.is_none()));
        self.0.keys().cloned().collect()
    }
}

fn is_usable(at: &SocketAddr, from_here: bool) -> bool {
    let ip = at.ip();
    // A link-local IPv6 address means nothing without the interface, which the record cannot name.
    let nowhere = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    at.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !nowhere && (from_here || !ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(app_id: &str, instance: &str, addresses: &[&str]) -> Found {
        let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        Found { app_id: app_id.into(), instance: instance.into(), addresses, gone: false }
    }

    fn get(cache: &mut Cache, app_id: &str) -> Vec<String> {
        cache.get(app_id).unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn takes_turns_and_prefers_ipv4() {
        let mut cache = Cache::default();
        cache.ask("a", Duration::ZERO);
        assert!(cache.note(&found("a", "i6", &["[fd00::1]:1"]), false));
        assert_eq!(get(&mut cache, "a"), ["[fd00::1]:1"]);
        cache.note(&found("a", "i1", &["10.0.0.1:1"]), false);
        cache.note(&found("a", "i2", &["10.0.0.2:2"]), false);
        let firsts: Vec<String> = (0..4).map(|_| get(&mut cache, "a").remove(0)).collect();
        assert_eq!(get(&mut cache, "a").len(), 2);
        assert_eq!(firsts[0], firsts[2]);
        assert_ne!(firsts[0], firsts[1]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_ends_with_its_time_or_its_leave() {
        let mut cache = Cache::default();
        cache.ask("a", Duration::ZERO);
        cache.note(&found("a", "i1", &["10.0.0.1:1"]), false);
        tokio::time::advance(ADDRESS_TTL / 2).await;
        cache.note(&found("a", "i2", &["10.0.0.2:2"]), false);
        tokio::time::advance(ADDRESS_TTL / 2).await;
        assert_eq!(get(&mut cache, "a"), ["10.0.0.2:2"]);
        cache.note(&Found { gone: true, ..found("a", "i2", &["10.0.0.3:3"]) }, false);
        assert_eq!(get(&mut cache, "a"), ["10.0.0.2:2"]);
        cache.note(&Found { gone: true, ..found("a", "i2", &[]) }, false);
        assert!(cache.get("a").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_was_asked_for_is_remembered() {
        let mut cache = Cache::default();
        assert!(!cache.note(&found("a", "i", &["10.0.0.1:1"]), false));
        assert!(cache.get("a").is_none());
        for app in 0..MAX_APPS * 2 {
            cache.ask(&app.to_string(), Duration::ZERO);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(cache.0.len(), MAX_APPS);
        for port in 1..=u16::try_from(MAX_ADDRESSES * 2).unwrap() {
            let last = (MAX_APPS * 2 - 1).to_string();
            cache.note(&found(&last, "i", &[&format!("10.0.0.1:{port}")]), false);
        }
        assert_eq!(get(&mut cache, &(MAX_APPS * 2 - 1).to_string()).len(), MAX_ADDRESSES);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_cannot_be_dialled_is_not_believed() {
        let mut cache = Cache::default();
        cache.ask("a", Duration::ZERO);
        let bad = ["127.0.0.1:1", "[::1]:1", "0.0.0.0:1", "224.0.0.1:1", "[fe80::1]:1", "10.0.0.1:0"];
        assert!(!cache.note(&found("a", "i", &bad), false));
        assert!(cache.note(&found("a", "i", &bad), true));
        assert_eq!(get(&mut cache, "a"), ["127.0.0.1:1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn our_own_address_stays_and_others_join_it() {
        let mut cache = Cache::default();
        let own = "10.0.0.9:9".parse().unwrap();
        cache.pin("me", own);
        tokio::time::advance(IDLE * 2).await;
        assert_eq!(cache.refresh(), ["me"]);
        cache.note(&Found { gone: true, ..found("me", "", &[]) }, false);
        cache.note(&found("me", "twin", &["10.0.0.8:8"]), false);
        assert_eq!(get(&mut cache, "me").len(), 2);
        cache.unpin("me", own);
        assert_eq!(get(&mut cache, "me"), ["10.0.0.8:8"]);
    }

    #[tokio::test(start_paused = true)]
    async fn questions_have_a_gap_and_end_when_nobody_asks() {
        let mut cache = Cache::default();
        let gap = Duration::from_millis(200);
        assert!(cache.ask("a", gap));
        assert!(!cache.ask("a", gap));
        tokio::time::advance(gap).await;
        assert!(cache.ask("a", gap));
        assert_eq!(cache.refresh(), ["a"]);
        tokio::time::advance(IDLE).await;
        assert!(cache.refresh().is_empty());
    }
}
