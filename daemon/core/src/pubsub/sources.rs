//! Where subscriptions come from, and which one counts.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use mecha_resources::Subscription;
use tokio::time::sleep;

use super::Source;
use super::route::Routes;
use crate::app::{AppChannel, AppSubscription, BulkOptions, RouteRule};

/// Messages of a bulk where the document names no number.
const BULK_MESSAGES: usize = 100;
/// Wait of a bulk where the document names none.
const BULK_AWAIT: Duration = Duration::from_secs(1);
/// Tries to read the app's own list after the first one.
const LIST_RETRIES: u32 = 3;
const LIST_PAUSE: Duration = Duration::from_millis(500);

/// A subscription that should run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub sub: Arc<AppSubscription>,
    pub source: Source,
}

/// A document as a subscription.
#[must_use]
pub fn from_document(doc: &Subscription) -> AppSubscription {
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    AppSubscription {
        pubsub: doc.pubsubname.clone(),
        topic: doc.topic.clone(),
        metadata: doc.metadata.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        rules: doc
            .routes
            .rules
            .iter()
            .map(|r| RouteRule { matches: r.expression.clone(), path: r.path.clone() })
            .collect(),
        default_route: text(&doc.routes.default),
        dead_letter_topic: text(&doc.dead_letter_topic),
        bulk: doc
            .bulk_subscribe
            .filter(|b| b.enabled)
            .map(|b| bulk_options(b.max_messages_count, b.max_await_duration_ms)),
    }
}

/// Bulk limits with the defaults in place of zeros.
#[must_use]
pub fn bulk_options(max_messages: u32, max_await_ms: u32) -> BulkOptions {
    BulkOptions {
        max_messages: if max_messages == 0 { BULK_MESSAGES } else { max_messages as usize },
        max_await: if max_await_ms == 0 { BULK_AWAIT } else { Duration::from_millis(max_await_ms.into()) },
    }
}

/// Asks the app for its own subscriptions. An app that cannot say has none, with a log line.
pub async fn ask_app(app: &dyn AppChannel) -> Vec<AppSubscription> {
    let mut pause = LIST_PAUSE;
    for tries_left in (0..=LIST_RETRIES).rev() {
        match app.subscriptions().await {
            Ok(list) => return list.unwrap_or_default(),
            // An answer is an answer; only the way to the app may get better.
            Err(e) if tries_left > 0 && e.http_status.is_none() && e.grpc_code.is_none() => {
                tracing::warn!(
                    target: "dapr.runtime",
                    "cannot read the app's subscriptions yet: {e}. Trying again in {pause:?}"
                );
            }
            Err(e) => {
                tracing::error!(target: "dapr.runtime", "failed to subscribe to topics: {e}");
                break;
            }
        }
        sleep(pause).await;
        pause *= 2;
    }
    Vec::new()
}

/// What should run: programmatic before declarative, the first of several alike. Items that
/// can never work are left out with a log line.
pub(super) fn select(declarative: &[AppSubscription], programmatic: &[AppSubscription]) -> Vec<Wanted> {
    let mut taken = HashSet::new();
    let tagged = [(programmatic, Source::Programmatic), (declarative, Source::Declarative)];
    let mut wanted = Vec::new();
    for (sub, source) in tagged.iter().flat_map(|(list, source)| list.iter().map(move |sub| (sub, *source))) {
        if let Err(e) = check(sub) {
            tracing::error!(
                target: "dapr.runtime",
                "failed to subscribe to topics: subscription to topic '{}' of pubsub '{}' is left out: {e}",
                sub.topic, sub.pubsub,
            );
            continue;
        }
        if taken.insert((sub.pubsub.as_str(), sub.topic.as_str())) {
            wanted.push(Wanted { sub: Arc::new(sub.clone()), source });
        } else {
            tracing::warn!(
                target: "dapr.runtime",
                "two subscriptions to topic {} of pubsub {}; the {} one is left out",
                sub.topic, sub.pubsub, source.as_str(),
            );
        }
    }
    wanted
}

fn check(sub: &AppSubscription) -> Result<(), String> {
    if sub.pubsub.is_empty() {
        return Err("pubsubname is empty".into());
    }
    if sub.topic.is_empty() {
        return Err("topic is empty".into());
    }
    Routes::compile(sub).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sub(pubsub: &str, topic: &str, path: &str) -> AppSubscription {
        AppSubscription {
            pubsub: pubsub.into(),
            topic: topic.into(),
            default_route: Some(path.into()),
            ..AppSubscription::default()
        }
    }

    #[test]
    fn programmatic_ones_replace_declarative_ones_and_the_first_counts() {
        let declarative = [sub("p", "a", "/d1"), sub("p", "a", "/d2"), sub("p", "b", "/d3")];
        let got = select(&declarative, &[sub("p", "a", "/p1"), sub("q", "a", "/p2")]);
        let got: Vec<_> = got.iter().map(|w| (w.sub.default_route.as_deref().unwrap(), w.source)).collect();
        assert_eq!(got, [("/p1", Source::Programmatic), ("/p2", Source::Programmatic), ("/d3", Source::Declarative)]);
    }

    #[test]
    fn a_bad_match_leaves_only_its_own_item_out() {
        let mut bad = sub("p", "a", "/x");
        bad.rules.push(RouteRule { matches: "event.type ==".into(), path: "/y".into() });
        let got = select(&[sub("p", "a", "/d")], &[bad, sub("", "t", "/x"), sub("p", "", "/x")]);
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].sub.default_route.as_deref(), Some("/d"));
    }

    #[test]
    fn zeros_mean_the_defaults() {
        assert_eq!(bulk_options(0, 0), BulkOptions { max_messages: 100, max_await: Duration::from_secs(1) });
        assert_eq!(bulk_options(5, 20), BulkOptions { max_messages: 5, max_await: Duration::from_millis(20) });
    }
}
