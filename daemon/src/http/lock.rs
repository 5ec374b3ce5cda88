//! `/v1.0-alpha1/lock` and `/v1.0-alpha1/unlock`

use bytes::Bytes;
use http::StatusCode;
use mecha_components_api::Unlocked;
use mecha_core::{ApiError, Core, Cx};
use serde_json::json;

use super::decode::text;
use super::proto_json::Members;
use super::respond::{Answer, json_value};

pub(super) async fn try_lock(core: &Core, cx: &Cx, store: &str, body: Bytes) -> Result<Answer, ApiError> {
    let m = members(&body)?;
    let (resource, owner, expiry) = (m.text("resourceId")?, m.text("lockOwner")?, m.int("expiryInSeconds")?);
    let success = core.lock.try_lock(cx, store, &resource, &owner, expiry).await?;
    Ok(json_value(StatusCode::OK, &json!({"success": success})))
}

pub(super) async fn unlock(core: &Core, cx: &Cx, store: &str, body: Bytes) -> Result<Answer, ApiError> {
    let m = members(&body)?;
    let outcome = core.lock.unlock(cx, store, &m.text("resourceId")?, &m.text("lockOwner")?).await?;
    let status = match outcome {
        Unlocked::Released => 0,
        Unlocked::NotHeld => 1,
        Unlocked::HeldByOther => 2,
    };
    Ok(json_value(StatusCode::OK, &json!({"status": status})))
}

fn members(body: &Bytes) -> Result<Members, ApiError> {
    text(body).and_then(Members::parse).map_err(|e| ApiError::malformed(format!("failed deserializing HTTP body: {e}")))
}
