//! What both fronts of a broker share: publishing, capabilities, members.

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mecha_components_api::{BulkReply, Error, FailedEntry, PubSub, PubSubCaps, Publish, Result};
use mecha_testkit::PubSubBench;
use parking_lot::Mutex;
use tempfile::TempDir;

use super::hooks::HookClient;
use super::streams::StreamClient;
use super::wire::{Daemon, TARGET, Wire, error, pairs};
use crate::manifest::Recipe;
use crate::plan::Ending;

/// The envelope keeps every byte of it.
const BYTES: &str = "application/octet-stream";

/// Members are sidecars; the group is their app id. For one case, and gone with it.
pub(crate) struct Members {
    wire: Wire,
    recipe: Recipe,
    dir: Arc<TempDir>,
    one_instance: bool,
    turn: tokio::sync::Mutex<()>,
    made: Mutex<Vec<Made>>,
}

#[derive(Clone)]
enum Made {
    Hooks(Arc<HookClient>),
    Streams(Arc<StreamClient>),
}

impl Members {
    pub(crate) fn new(wire: Wire, recipe: Recipe, dir: Arc<TempDir>, one_instance: bool) -> Self {
        let (turn, made) = (tokio::sync::Mutex::default(), Mutex::default());
        Self { wire, recipe, dir, one_instance, turn, made }
    }
}

impl Ending for Members {
    fn end(&self) {
        for made in self.made.lock().drain(..) {
            match made {
                Made::Hooks(client) => client.end(),
                Made::Streams(client) => client.end(),
            }
        }
    }
}

impl Made {
    fn member(self) -> Arc<dyn PubSub> {
        match self {
            Self::Hooks(client) => client,
            Self::Streams(client) => client,
        }
    }
}

#[async_trait]
impl PubSubBench for Members {
    async fn member(&self, group: &str) -> Result<Arc<dyn PubSub>> {
        let _turn = self.turn.lock().await;
        let first = self.made.lock().first().cloned();
        if let (true, Some(first)) = (self.one_instance, first) {
            return Ok(first.member());
        }
        let dir = self.dir.path();
        let made = match self.wire {
            Wire::Http => Made::Hooks(Arc::new(HookClient::start(&self.recipe, dir, group).await?)),
            Wire::Grpc => Made::Streams(Arc::new(StreamClient::start(&self.recipe, dir, group).await?)),
        };
        self.made.lock().push(made.clone());
        Ok(made.member())
    }
}

/// What the metadata API says of the broker. Batches are the API's own, for every broker.
pub(super) async fn caps(daemon: &Daemon) -> Result<PubSubCaps> {
    let mut caps = PubSubCaps::default();
    for name in daemon.capabilities().await.map_err(Error::internal)? {
        match name.as_str() {
            "SUBSCRIBE_WILDCARDS" => caps.subscribe_wildcards = true,
            "MESSAGE_TTL" => caps.message_ttl = true,
            "BULK_PUBSUB" => caps.bulk = true,
            other => return Err(Error::internal(format!("the metadata API lists the unknown capability {other}"))),
        }
    }
    Ok(caps)
}

pub(super) async fn publish(daemon: &Daemon, msg: Publish<'_>) -> Result<()> {
    let content_type = msg.content_type.unwrap_or(BYTES);
    let done = daemon.api.publish(TARGET, msg.topic, content_type, msg.data, &pairs(msg.metadata)).await;
    done.map_err(|e| error(&e))
}

pub(super) async fn publish_many(daemon: &Daemon, batch: Vec<Publish<'_>>) -> Result<BulkReply> {
    let Some(first) = batch.first() else { return Ok(Vec::new()) };
    if batch.iter().any(|msg| msg.topic != first.topic) {
        return Err(Error::unsupported("a bulk publish has one topic"));
    }
    let texts: Vec<(String, String)> =
        batch.iter().enumerate().map(|(at, msg)| (at.to_string(), BASE64_STANDARD.encode(&msg.data))).collect();
    let entries: Vec<(&str, &str, &str)> = texts.iter().map(|(id, text)| (id.as_str(), BYTES, text.as_str())).collect();
    let failed = daemon.api.bulk_publish(TARGET, first.topic, &entries, &pairs(first.metadata)).await;
    let entry = |id: String| {
        let index = id.parse().map_err(|_| Error::internal(format!("the unknown entry {id} failed")))?;
        Ok(FailedEntry { index, error: Error::internal("not published") })
    };
    failed.map_err(|e| error(&e))?.into_iter().map(entry).collect()
}
