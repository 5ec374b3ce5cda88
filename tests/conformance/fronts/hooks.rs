//! A [`PubSub`] that is the HTTP API of a sidecar and the app beside it.
//!
//! An app says what it subscribes to when the sidecar asks, which is at its start and when it is
//! told to build everything anew. So a change of the subscriptions here is a SIGHUP: the sidecar
//! settles what is in flight and asks again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use mecha_components_api::{
    BulkPublish, BulkReply, CancellationToken, Component, Deliver, Delivery, Error, Metadata, PubSub, PubSubCaps,
    Publish, Result, Subscribe, Verdict,
};
use mecha_testkit::wait_until;
use mecha_tests::{Answer, Call, DEADLINE, HttpApp};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::broker;
use super::wire::{Around, Daemon, TARGET, Wire};
use crate::manifest::Recipe;

#[derive(Debug)]
pub(super) struct HookClient {
    daemon: Daemon,
    hooks: Arc<Hooks>,
    caps: PubSubCaps,
    /// One change of the subscriptions at a time.
    turn: tokio::sync::Mutex<()>,
    _app: HttpApp,
}

/// What the app subscribes to, and where it takes the events.
#[derive(Default)]
struct Hooks(Mutex<Table>);

#[derive(Default)]
struct Table {
    next: u64,
    hooks: BTreeMap<u64, Hook>,
}

struct Hook {
    topic: String,
    to: Arc<dyn Deliver>,
    /// Still subscribed; without it the hook only takes what is on its way.
    listed: bool,
}

/// Takes a hook away, also when its subscription is dropped.
struct Hung {
    hooks: Weak<Hooks>,
    number: u64,
}

impl HookClient {
    pub(super) async fn start(recipe: &Recipe, dir: &Path, group: &str) -> Result<Self> {
        let hooks = Arc::new(Hooks::default());
        let (lists, takes) = (Arc::clone(&hooks), Arc::clone(&hooks));
        let app = HttpApp::builder()
            .on_call("GET /dapr/subscribe", move |_| {
                let list = lists.list();
                async move { Answer::json(&list) }
            })
            .on_call("POST /events/*", move |call| {
                let hooks = Arc::clone(&takes);
                async move { hooks.take(call).await }
            })
            .start()
            .await;
        let around = Around { app_id: group, app: Some(&app), ..Around::default() };
        let daemon = Daemon::start(Wire::Http, recipe, dir, around).await;
        let caps = broker::caps(&daemon).await?;
        Ok(Self { daemon, hooks, caps, turn: tokio::sync::Mutex::default(), _app: app })
    }

    pub(super) fn end(&self) {
        self.daemon.end();
    }

    /// Lets the sidecar ask the app again, and waits until it delivers by the answer.
    async fn apply(&self) -> Result<()> {
        let _turn = self.turn.lock().await;
        let before = self.daemon.starts()?;
        self.daemon.reload()?;
        // The end of the sidecar is an end of the waiting too.
        let again = || async { self.daemon.starts().map_or(true, |now| now > before) };
        let waited = wait_until(DEADLINE, "the sidecar asked the app again", again).await;
        waited.map_err(|late| Error::timeout(late.to_string()))?;
        self.daemon.starts().map(drop)
    }
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.lock().hooks.values().map(|h| h.topic.as_str())).finish()
    }
}

impl Hooks {
    fn hang(self: &Arc<Self>, topic: String, to: Arc<dyn Deliver>) -> Hung {
        let mut table = self.0.lock();
        let number = table.next;
        table.next += 1;
        table.hooks.insert(number, Hook { topic, to, listed: true });
        Hung { hooks: Arc::downgrade(self), number }
    }

    fn unlist(&self, number: u64) {
        if let Some(hook) = self.0.lock().hooks.get_mut(&number) {
            hook.listed = false;
        }
    }

    /// The answer to `/dapr/subscribe`.
    fn list(&self) -> Value {
        let table = self.0.lock();
        let listed = table.hooks.iter().filter(|(_, hook)| hook.listed);
        listed
            .map(|(number, hook)| {
                json!({"pubsubname": TARGET, "topic": hook.topic, "route": format!("/events/{number}")})
            })
            .collect()
    }

    /// Takes one event.
    async fn take(&self, call: Call) -> Answer {
        let number = call.target.rsplit('/').next().and_then(|n| n.parse::<u64>().ok());
        let to = number.and_then(|n| self.0.lock().hooks.get(&n).map(|hook| Arc::clone(&hook.to)));
        let (Some(to), Some(delivery)) = (to, delivery(&call)) else {
            // Nobody is there for it: not done, and not given up.
            return Answer::status(503);
        };
        match to.deliver(delivery).await {
            Verdict::Ack => Answer::json(&json!({"status": "SUCCESS"})),
            Verdict::Retry => Answer::json(&json!({"status": "RETRY"})),
            // An app cannot say this; the cases that need it are left out.
            Verdict::Release => Answer::status(500),
        }
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        if let Some(hooks) = self.hooks.upgrade() {
            hooks.0.lock().hooks.remove(&self.number);
        }
    }
}

/// The event as it was published.
fn delivery(call: &Call) -> Option<Delivery> {
    let event: Value = serde_json::from_slice(&call.body).ok()?;
    let data = BASE64_STANDARD.decode(event["data_base64"].as_str()?).ok()?;
    let content_type = event["datacontenttype"].as_str().map(str::to_owned);
    Some(Delivery {
        topic: event["topic"].as_str()?.into(),
        data: Bytes::from(data),
        metadata: Metadata::new(),
        content_type,
    })
}

#[async_trait]
impl Component for HookClient {
    async fn close(&self) {
        self.end();
    }
}

#[async_trait]
impl PubSub for HookClient {
    fn caps(&self) -> PubSubCaps {
        self.caps
    }

    async fn publish(&self, msg: Publish<'_>) -> Result<()> {
        broker::publish(&self.daemon, msg).await
    }

    async fn subscribe(&self, sub: Subscribe, to: Arc<dyn Deliver>, stop: CancellationToken) -> Result<()> {
        if !sub.metadata.is_empty() {
            return Err(Error::unsupported("no case has subscription metadata"));
        }
        let hung = self.hooks.hang(sub.topic, Arc::clone(&to));
        self.apply().await?;
        to.attached();
        stop.cancelled().await;
        self.hooks.unlist(hung.number);
        self.apply().await
    }

    fn bulk(&self) -> Option<&dyn BulkPublish> {
        Some(self)
    }
}

#[async_trait]
impl BulkPublish for HookClient {
    async fn publish_many(&self, batch: Vec<Publish<'_>>) -> Result<BulkReply> {
        broker::publish_many(&self.daemon, batch).await
    }
}
