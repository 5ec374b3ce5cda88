//! Locks.

use mecha_components_api::Unlocked;
use mecha_core::{ApiError, Core, Cx};
use mecha_proto::runtime::unlock_response::Status as Outcome;
use mecha_proto::runtime::{TryLockRequest, TryLockResponse, UnlockRequest, UnlockResponse};

pub(super) async fn try_lock(core: &Core, cx: &Cx, req: TryLockRequest) -> Result<TryLockResponse, ApiError> {
    let expiry = i64::from(req.expiry_in_seconds);
    let success = core.lock.try_lock(cx, &req.store_name, &req.resource_id, &req.lock_owner, expiry).await?;
    Ok(TryLockResponse { success })
}

pub(super) async fn unlock(core: &Core, cx: &Cx, req: UnlockRequest) -> Result<UnlockResponse, ApiError> {
    let status = match core.lock.unlock(cx, &req.store_name, &req.resource_id, &req.lock_owner).await? {
        Unlocked::Released => Outcome::Success,
        Unlocked::NotHeld => Outcome::LockDoesNotExist,
        Unlocked::HeldByOther => Outcome::LockBelongsToOthers,
    };
    Ok(UnlockResponse { status: status as i32 })
}
