//! What was published and acknowledged, what the apps saw, and what became a dead letter.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mecha_tests::{Answer, Api, Call, HttpApp, HttpAppBuilder, wait_until};
use parking_lot::Mutex;
use serde_json::json;

use crate::load::Load;
use crate::support::LIMIT;

/// The record of all messages of a test.
#[derive(Clone, Default)]
pub(crate) struct Ledger {
    acknowledged: Arc<Mutex<Vec<String>>>,
    seen: Arc<Mutex<BTreeMap<String, u32>>>,
    dead: Arc<Mutex<Vec<String>>>,
}

impl Ledger {
    /// The subscriptions of an app, and what it does with a message: it takes it after `work`.
    pub(crate) fn subscribe(&self, app: HttpAppBuilder, work: Duration) -> HttpAppBuilder {
        let (seen, dead) = (Arc::clone(&self.seen), Arc::clone(&self.dead));
        app.subscribe(&json!([
            {"pubsubname": "events", "topic": "orders", "route": "/order", "deadLetterTopic": "dead"},
            {"pubsubname": "events", "topic": "dead", "route": "/dead"},
        ]))
        .on_call("POST /order", move |call: Call| {
            let seen = Arc::clone(&seen);
            async move {
                tokio::time::sleep(work).await;
                *seen.lock().entry(id(&call)).or_default() += 1;
                Answer::status(200)
            }
        })
        .on_call("POST /dead", move |call: Call| {
            dead.lock().push(id(&call));
            std::future::ready(Answer::status(200))
        })
    }

    /// A plain app with these subscriptions.
    pub(crate) async fn app(&self, work: Duration) -> HttpApp {
        self.subscribe(HttpApp::builder(), work).on("/hello", Answer::text("hi")).start().await
    }

    /// Publishes until the load ends.
    pub(crate) fn publisher(&self, load: &mut Load, name: &'static str, api: Api, pause: Duration) {
        let acknowledged = Arc::clone(&self.acknowledged);
        let api = Arc::new(api);
        load.worker("publish", pause, move |number| {
            let (acknowledged, api) = (Arc::clone(&acknowledged), Arc::clone(&api));
            async move {
                let id = format!("{name}-{number}");
                api.publish("events", "orders", "", id.clone(), &[]).await.map_err(|e| format!("{e:?}"))?;
                acknowledged.lock().push(id);
                Ok(())
            }
        });
    }

    /// Notes a message that somebody took.
    pub(crate) fn saw(&self, id: String) {
        *self.seen.lock().entry(id).or_default() += 1;
    }

    /// How many messages arrived.
    pub(crate) fn arrived(&self) -> usize {
        self.seen.lock().len()
    }

    /// Everything acknowledged has to arrive, and nothing at the dead letters. Prints what came twice.
    pub(crate) async fn settle(&self) {
        let missing = || {
            let seen = self.seen.lock();
            self.acknowledged.lock().iter().filter(|id| !seen.contains_key(*id)).cloned().collect::<Vec<_>>()
        };
        wait_until(LIMIT, "all messages", || async { missing().is_empty() }).await;
        let twice: u32 = self.seen.lock().values().map(|n| n - 1).sum();
        let dead = self.dead.lock().clone();
        assert!(dead.is_empty(), "dead letters: {dead:?}");
        println!("{} messages, 0 lost, 0 dead letters, {twice} twice", self.acknowledged.lock().len());
    }
}

fn id(call: &Call) -> String {
    call.json()["data"].as_str().unwrap_or_default().to_owned()
}
