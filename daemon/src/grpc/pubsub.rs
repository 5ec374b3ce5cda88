//! Publishing, alone and in bulk.

use mecha_core::pubsub::{BulkPublishEntry, PublishRequest};
use mecha_core::{ApiError, Core, Cx};
use mecha_proto::runtime::{
    BulkPublishRequest, BulkPublishResponse, BulkPublishResponseFailedEntry, PublishEventRequest,
};

pub(super) async fn publish(core: &Core, cx: &Cx, req: PublishEventRequest) -> Result<(), ApiError> {
    let content_type = Some(req.data_content_type).filter(|t| !t.is_empty());
    let metadata = req.metadata.into_iter().collect();
    let req = PublishRequest { pubsub: req.pubsub_name, topic: req.topic, data: req.data, content_type, metadata };
    core.pubsub.publish(cx, req).await
}

pub(super) async fn publish_bulk(
    core: &Core,
    cx: &Cx,
    req: BulkPublishRequest,
) -> Result<BulkPublishResponse, ApiError> {
    let entries = req.entries.into_iter().map(|e| BulkPublishEntry {
        entry_id: e.entry_id,
        event: e.event,
        content_type: e.content_type,
        metadata: e.metadata.into_iter().collect(),
    });
    let metadata = req.metadata.into_iter().collect();
    let failed = core.pubsub.publish_bulk(cx, &req.pubsub_name, &req.topic, entries.collect(), metadata).await?;
    let failed = failed.into_iter().map(|f| BulkPublishResponseFailedEntry { entry_id: f.entry_id, error: f.error });
    Ok(BulkPublishResponse { failed_entries: failed.collect() })
}
