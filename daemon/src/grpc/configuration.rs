//! Configuration: get, subscribe, unsubscribe.

use std::collections::BTreeMap;

use futures_util::stream;
use mecha_components_api::Changes;
use mecha_core::codes::Code;
use mecha_core::{ApiError, Core, Cx};
use mecha_proto::common::ConfigurationItem;
use mecha_proto::runtime::{
    GetConfigurationRequest, GetConfigurationResponse, SubscribeConfigurationRequest, SubscribeConfigurationResponse,
    UnsubscribeConfigurationRequest, UnsubscribeConfigurationResponse,
};

use super::api::Stream;

pub(super) async fn get(
    core: &Core,
    cx: &Cx,
    req: GetConfigurationRequest,
) -> Result<GetConfigurationResponse, ApiError> {
    let keys: Vec<&str> = req.keys.iter().map(String::as_str).collect();
    let metadata = req.metadata.into_iter().collect();
    let found = core.configuration.get(cx, &req.store_name, &keys, &metadata).await?;
    Ok(GetConfigurationResponse { items: items(found) })
}

/// The first message holds the id alone, each later one changed keys. The watch ends with the
/// stream, and the stream when the watch is ended.
pub(super) async fn subscribe(
    core: &Core,
    _: &Cx,
    req: SubscribeConfigurationRequest,
) -> Result<Stream<SubscribeConfigurationResponse>, ApiError> {
    let metadata = req.metadata.into_iter().collect();
    let watch = core.configuration.subscribe(&req.store_name, req.keys, metadata)?;
    let updates = stream::unfold((watch, true), |(mut watch, first)| async move {
        let changed = if first { BTreeMap::new() } else { items(watch.changes.recv().await?) };
        let message = SubscribeConfigurationResponse { id: watch.id.clone(), items: changed };
        Some((Ok(message), (watch, false)))
    });
    Ok(Box::pin(updates))
}

pub(super) async fn unsubscribe(
    core: &Core,
    _: &Cx,
    req: UnsubscribeConfigurationRequest,
) -> Result<UnsubscribeConfigurationResponse, ApiError> {
    match core.configuration.unsubscribe(&req.store_name, &req.id) {
        Ok(()) => Ok(UnsubscribeConfigurationResponse { ok: true, message: String::new() }),
        // An unknown id is an answer, not a failed call, as with the incumbent.
        Err(e) if e.code() == Code::ConfigurationUnsubscribe => {
            Ok(UnsubscribeConfigurationResponse { ok: false, message: e.message().to_owned() })
        }
        Err(e) => Err(e),
    }
}

fn items(changes: Changes) -> BTreeMap<String, ConfigurationItem> {
    let one = |i: mecha_components_api::ConfigItem| ConfigurationItem {
        value: i.value,
        version: i.version,
        metadata: i.metadata.into_iter().collect(),
    };
    changes.into_iter().map(|(key, item)| (key, one(item))).collect()
}
