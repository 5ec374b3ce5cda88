use std::collections::BTreeMap;

use serde::Serialize;

use crate::decode::Obj;
use crate::value::{Meta, Resource};

/// A Subscription document, v1alpha1 and v2alpha1 alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Subscription {
    /// Name, namespace, scopes.
    #[serde(flatten)]
    pub meta: Meta,
    /// Name of the pub/sub component.
    pub pubsubname: String,
    /// Topic as the app knows it.
    pub topic: String,
    /// Where events go.
    pub routes: Routes,
    /// Handed to the component.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Topic for events that cannot be delivered, empty for none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub dead_letter_topic: String,
    /// Delivery in batches.
    pub bulk_subscribe: Option<BulkSubscribe>,
}

/// Routing of events to paths of the app.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Routes {
    /// Tried in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RouteRule>,
    /// Path for events that no rule matches, empty for none. The `route` of v1alpha1.
    pub default: String,
}

/// One routing rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct RouteRule {
    /// CEL expression over `event`; empty is always true.
    #[serde(rename = "match")]
    pub expression: String,
    /// Path of the app.
    pub path: String,
}

/// Delivery in batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BulkSubscribe {
    /// Whether it is on.
    pub enabled: bool,
    /// Events in a batch at most; 0 means the default.
    pub max_messages_count: u32,
    /// Longest wait for a batch to fill, in ms; 0 means the default.
    pub max_await_duration_ms: u32,
}

impl Resource for Subscription {
    const KIND: &'static str = "Subscription";

    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl Subscription {
    pub(crate) fn decode(root: &Obj<'_>, meta: Meta, v2: bool) -> Self {
        let mut subscription = Self {
            meta,
            pubsubname: String::new(),
            topic: String::new(),
            routes: Routes::default(),
            metadata: BTreeMap::new(),
            dead_letter_topic: String::new(),
            bulk_subscribe: None,
        };
        let Some(spec) = root.required_object("spec") else { return subscription };
        subscription.pubsubname = spec.required("pubsubname");
        subscription.topic = spec.required("topic");
        subscription.dead_letter_topic = spec.text_or_empty("deadLetterTopic");
        subscription.metadata = spec.named_texts("metadata");
        subscription.routes = if v2 { routes(&spec) } else { v1_route(&spec) };
        subscription.bulk_subscribe = spec.object("bulkSubscribe").map(|bulk| BulkSubscribe {
            enabled: bulk.flag("enabled").unwrap_or_default(),
            max_messages_count: count(&bulk, "maxMessagesCount"),
            max_await_duration_ms: count(&bulk, "maxAwaitDurationMs"),
        });
        subscription
    }
}

fn v1_route(spec: &Obj<'_>) -> Routes {
    let default = spec.text_or_empty("route");
    if default.is_empty() {
        let other = if spec.has("routes") { "; 'routes' needs apiVersion dapr.io/v2alpha1" } else { "" };
        spec.warn("route", format!("is missing, so events reach no path of the app{other}"), None);
    }
    Routes { rules: Vec::new(), default }
}

fn routes(spec: &Obj<'_>) -> Routes {
    let Some(routes) = spec.object("routes") else {
        let other = if spec.has("route") { "; 'route' belongs to apiVersion dapr.io/v1alpha1" } else { "" };
        spec.warn("routes", format!("is missing, so events reach no path of the app{other}"), None);
        return Routes::default();
    };
    let rules = routes
        .objects("rules")
        .into_iter()
        .map(|rule| RouteRule { expression: rule.text_or_empty("match"), path: rule.required("path") });
    Routes { rules: rules.collect(), default: routes.text_or_empty("default") }
}

fn count(obj: &Obj<'_>, name: &'static str) -> u32 {
    let value = obj.int(name, 0..=i64::from(i32::MAX)).unwrap_or_default();
    u32::try_from(value).unwrap_or_default()
}
