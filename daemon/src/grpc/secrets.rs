//! Secrets.

use std::collections::BTreeMap;

use mecha_components_api::SecretMap;
use mecha_core::{ApiError, Core, Cx};
use mecha_proto::runtime::{
    GetBulkSecretRequest, GetBulkSecretResponse, GetSecretRequest, GetSecretResponse, SecretResponse,
};

pub(super) async fn get(core: &Core, cx: &Cx, req: GetSecretRequest) -> Result<GetSecretResponse, ApiError> {
    let metadata = req.metadata.into_iter().collect();
    let secret = core.secrets.get(cx, &req.store_name, &req.key, &metadata).await?;
    Ok(GetSecretResponse { data: plain(&secret) })
}

pub(super) async fn list(core: &Core, cx: &Cx, req: GetBulkSecretRequest) -> Result<GetBulkSecretResponse, ApiError> {
    let metadata = req.metadata.into_iter().collect();
    let all = core.secrets.list(cx, &req.store_name, &metadata).await?;
    let data = all.into_iter().map(|(name, secret)| (name, SecretResponse { secrets: plain(&secret) })).collect();
    Ok(GetBulkSecretResponse { data })
}

fn plain(secret: &SecretMap) -> BTreeMap<String, String> {
    secret.iter().map(|(k, v)| (k.clone(), v.expose().to_owned())).collect()
}
