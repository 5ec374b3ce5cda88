//! An [`OutputBinding`] that is the bindings API of a sidecar.

use std::path::Path;

use async_trait::async_trait;
use mecha_components_api::{Component, Error, Invoke, OutputBinding, Reply, Result};
use mecha_proto::runtime::InvokeBindingRequest;
use mecha_tests::Fault;

use super::wire::{Around, Daemon, TARGET, Wire, as_json, error, metadata, pairs};
use crate::manifest::Recipe;

#[derive(Debug)]
pub(super) struct OutputClient {
    daemon: Daemon,
    operations: &'static [&'static str],
}

impl OutputClient {
    pub(super) async fn start(wire: Wire, recipe: &Recipe, dir: &Path) -> std::result::Result<Self, String> {
        let around = Around { app_id: "conformance", ..Around::default() };
        let daemon = Daemon::start(wire, recipe, dir, around).await;
        let capabilities = daemon.capabilities().await?;
        if !capabilities.iter().any(|c| c == "OUTPUT_BINDING") {
            return Err(format!("the metadata API lists {capabilities:?} for an output binding"));
        }
        // The API names the operations where it refuses one.
        let refusal = match daemon.api.binding(TARGET, "no-such-operation", "", &[]).await {
            Err(fault) => fault.message,
            Ok(answer) => return Err(format!("an unknown operation was answered with {answer:?}")),
        };
        let Some((_, names)) = refusal.split_once("supported operations:") else {
            return Err(format!("the refusal of an unknown operation names no operations: {refusal}"));
        };
        // Once per entry and front, for the life of the run.
        let names: Vec<&'static str> = names.split(' ').map(|n| &*n.to_owned().leak()).collect();
        Ok(Self { daemon, operations: names.leak() })
    }
}

#[async_trait]
impl Component for OutputClient {
    async fn close(&self) {
        self.daemon.end();
    }
}

#[async_trait]
impl OutputBinding for OutputClient {
    fn operations(&self) -> &'static [&'static str] {
        self.operations
    }

    async fn invoke(&self, req: Invoke<'_>) -> Result<Reply> {
        match self.daemon.wire() {
            Wire::Http => {
                let unsayable = || Error::unsupported("JSON bodies have no form for bytes");
                let data = as_json(&req.data).ok_or_else(unsayable)?;
                let answer = self.daemon.api.binding(TARGET, req.operation, &data, &pairs(req.metadata)).await;
                let (data, found) = answer.map_err(|e| error(&e))?;
                Ok(Reply { data, metadata: metadata(found), content_type: None })
            }
            // The harness takes text only.
            Wire::Grpc => {
                let request = InvokeBindingRequest {
                    name: TARGET.to_owned(),
                    data: req.data,
                    metadata: req.metadata.clone().into_inner(),
                    operation: req.operation.to_owned(),
                };
                let done = self.daemon.grpc.clone().invoke_binding(request).await;
                let done = done.map_err(|status| error(&Fault::of_status(&status)))?.into_inner();
                Ok(Reply { data: Some(done.data), metadata: metadata(done.metadata), content_type: None })
            }
        }
    }
}
