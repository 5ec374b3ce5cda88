//! `/v1.0/bindings`

use bytes::Bytes;
use http::StatusCode;
use mecha_core::{ApiError, Core, Cx};

use super::decode::{Fields, merged, metadata_of_query, slice_of, text};
use super::respond::{Answer, add_metadata, json, no_content};

pub(super) async fn invoke(
    core: &Core,
    cx: &Cx,
    name: &str,
    query: Option<&str>,
    body: Bytes,
) -> Result<Answer, ApiError> {
    let bad = |e| ApiError::malformed(format!("failed deserializing HTTP body: {e}"));
    let f = text(&body).and_then(|t| Fields::parse(t, "a JSON object {operation, data}")).map_err(bad)?;
    let operation: String = f.get("operation").map_err(bad)?;
    let metadata = merged(f.metadata("metadata").map_err(bad)?, &metadata_of_query(query));
    let data = f.raw("data").map_or(Bytes::from_static(b"null"), |raw| slice_of(&body, raw));
    let reply = core.output.invoke(cx, name, &operation, data, metadata).await?;
    let mut res = reply.data.map_or_else(no_content, |data| json(StatusCode::OK, data));
    add_metadata(res.headers_mut(), reply.metadata.iter());
    Ok(res)
}
