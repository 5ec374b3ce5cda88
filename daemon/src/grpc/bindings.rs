//! Output bindings.

use mecha_core::{ApiError, Core, Cx};
use mecha_proto::runtime::{InvokeBindingRequest, InvokeBindingResponse};

pub(super) async fn invoke(core: &Core, cx: &Cx, req: InvokeBindingRequest) -> Result<InvokeBindingResponse, ApiError> {
    let metadata = req.metadata.into_iter().collect();
    let reply = core.output.invoke(cx, &req.name, &req.operation, req.data, metadata).await?;
    Ok(InvokeBindingResponse { data: reply.data.unwrap_or_default(), metadata: reply.metadata.into_inner() })
}
