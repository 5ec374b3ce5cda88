use std::sync::Arc;

use bytes::Bytes;
use mecha_components_api::{ErrorKind, Invoke, Metadata, Reply};

use crate::codes::Code;
use crate::cx::Cx;
use crate::error::{ApiError, Detail, Shape};
use crate::store::{Found, OutputHandle, Store, degraded_error};

/// The output binding API.
#[derive(Debug)]
pub struct OutputApi {
    store: Arc<Store>,
}

impl OutputApi {
    /// The API over the live snapshot.
    #[must_use]
    pub fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    fn handle(&self, name: &str) -> Result<Arc<OutputHandle>, ApiError> {
        match self.store.output(name) {
            Found::Running(handle) => Ok(handle),
            Found::Degraded(cause) => {
                let e = degraded_error(name, &cause);
                Err(failed(name, e.kind(), &e.to_string()))
            }
            Found::Unknown | Found::NoneConfigured => {
                Err(failed(name, ErrorKind::Internal, &format!("couldn't find output binding {name}")))
            }
        }
    }

    /// Runs one operation of a binding.
    ///
    /// # Errors
    /// Unknown binding, missing or unknown operation, or the binding's failure, whose
    /// response metadata travels along.
    pub async fn invoke(
        &self,
        cx: &Cx,
        name: &str,
        operation: &str,
        data: Bytes,
        mut metadata: Metadata,
    ) -> Result<Reply, ApiError> {
        let h = self.handle(name)?;
        if operation.is_empty() {
            return Err(failed(name, ErrorKind::InvalidArgument, "operation field is missing from request"));
        }
        let known = h.inner.operations();
        if !known.contains(&operation) {
            let text = format!(
                "binding {name} does not support operation {operation}. supported operations:{}",
                known.join(" ")
            );
            return Err(failed(name, ErrorKind::InvalidArgument, &text));
        }
        let trace = [
            ("traceparent", &cx.trace.traceparent),
            ("tracestate", &cx.trace.tracestate),
            ("baggage", &cx.trace.baggage),
        ];
        for (key, value) in trace {
            if let Some(value) = value {
                metadata.insert(key, value.as_ref());
            }
        }
        let call = || h.inner.invoke(Invoke { operation, data: data.clone(), metadata: &metadata });
        h.ops
            .run_named(cx, operation, is_idempotent(operation), call)
            .await
            .map_err(|e| failed(name, e.kind(), &e.to_string()).with_headers(e.details().clone()))
    }
}

/// Whether an operation does no more when it is done twice. `create` may make a second one, and of
/// operations that only some bindings know nobody can tell.
fn is_idempotent(operation: &str) -> bool {
    matches!(operation, "get" | "head" | "options" | "trace" | "list" | "put" | "delete" | "query")
}

fn failed(name: &str, kind: ErrorKind, cause: &str) -> ApiError {
    ApiError::new(Code::InvokeOutputBinding, kind, format!("error invoking output binding {name}: {cause}"))
        .with_detail(Detail::ErrorInfo { reason: Code::InvokeOutputBinding.as_str().into(), metadata: None })
        .with_shape(Shape::PlainHttp)
}
