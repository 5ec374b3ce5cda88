//! `/v1.0/metadata`

use bytes::Bytes;
use http::StatusCode;
use mecha_core::metadata::Document;
use mecha_core::pubsub::Source;
use mecha_core::{ApiError, Core};
use serde_json::{Map, Value, json};

use super::respond::{Answer, json_value, no_content};

pub(super) fn get(core: &Core) -> Answer {
    json_value(StatusCode::OK, &encode(&core.document()))
}

pub(super) fn set(core: &Core, key: &str, body: &Bytes) -> Result<Answer, ApiError> {
    if core.metadata.set(key.to_owned(), String::from_utf8_lossy(body).into_owned()) {
        return Ok(no_content());
    }
    Err(ApiError::malformed("the extended metadata has too many entries; reuse one of its keys"))
}

/// Member names are as mixed as the incumbent's; empty members are left out.
fn encode(doc: &Document) -> Value {
    let mut out = Map::new();
    out.insert("id".into(), doc.id.as_str().into());
    out.insert("runtimeVersion".into(), doc.runtime_version.into());
    if !doc.fixed.features.is_empty() {
        out.insert("enabledFeatures".into(), json!(doc.fixed.features));
    }
    if !doc.components.is_empty() {
        let list = doc.components.iter().map(|c| {
            let mut one = Map::new();
            one.insert("name".into(), c.name.as_ref().into());
            one.insert("type".into(), c.kind.as_ref().into());
            one.insert("version".into(), c.version.as_ref().into());
            if !c.capabilities.is_empty() {
                one.insert("capabilities".into(), json!(c.capabilities));
            }
            Value::Object(one)
        });
        out.insert("components".into(), list.collect());
    }
    out.insert("extended".into(), json!(doc.extended));
    if !doc.subscriptions.is_empty() {
        out.insert("subscriptions".into(), doc.subscriptions.iter().map(subscription).collect());
    }
    let names = |list: &[String]| Value::from_iter(list.iter().map(|n| json!({"name": n})));
    if !doc.fixed.http_endpoints.is_empty() {
        out.insert("httpEndpoints".into(), names(&doc.fixed.http_endpoints));
    }
    if let Some(app) = &doc.fixed.app {
        let mut one = Map::new();
        one.insert("port".into(), app.port.into());
        one.insert("protocol".into(), app.protocol.as_str().into());
        one.insert("channelAddress".into(), app.channel_address.as_str().into());
        if app.max_concurrency > 0 {
            one.insert("maxConcurrency".into(), app.max_concurrency.into());
        }
        if let Some(h) = &app.health {
            let mut health = Map::new();
            if !h.path.is_empty() {
                health.insert("healthCheckPath".into(), h.path.as_str().into());
            }
            health.insert("healthProbeInterval".into(), h.interval.as_str().into());
            health.insert("healthProbeTimeout".into(), h.timeout.as_str().into());
            health.insert("healthThreshold".into(), h.threshold.into());
            one.insert("health".into(), Value::Object(health));
        }
        out.insert("appConnectionProperties".into(), Value::Object(one));
    }
    out.insert("actorRuntime".into(), json!({"runtimeStatus": "DISABLED", "hostReady": false}));
    if !doc.fixed.resiliencies.is_empty() {
        out.insert("resiliencies".into(), names(&doc.fixed.resiliencies));
    }
    Value::Object(out)
}

fn subscription((sub, source): &(mecha_core::app::AppSubscription, Source)) -> Value {
    let mut one = Map::new();
    one.insert("pubsubname".into(), sub.pubsub.as_str().into());
    one.insert("topic".into(), sub.topic.as_str().into());
    if !sub.metadata.is_empty() {
        one.insert("metadata".into(), sub.metadata.iter().map(|(k, v)| (k.to_owned(), Value::from(v))).collect());
    }
    let mut rules: Vec<Value> = sub
        .rules
        .iter()
        .map(|r| {
            let mut rule = Map::new();
            if !r.matches.is_empty() {
                rule.insert("match".into(), r.matches.as_str().into());
            }
            rule.insert("path".into(), r.path.as_str().into());
            Value::Object(rule)
        })
        .collect();
    if let Some(path) = &sub.default_route {
        rules.push(json!({"path": path}));
    }
    if !rules.is_empty() {
        one.insert("rules".into(), Value::Array(rules));
    }
    one.insert("deadLetterTopic".into(), sub.dead_letter_topic.as_deref().unwrap_or_default().into());
    let source = match source {
        Source::Declarative => "DECLARATIVE",
        Source::Programmatic => "PROGRAMMATIC",
        Source::Streaming => "STREAMING",
    };
    one.insert("type".into(), source.into());
    Value::Object(one)
}
