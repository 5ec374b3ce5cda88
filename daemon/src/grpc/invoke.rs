//! `InvokeService`

use http::HeaderMap;
use mecha_core::invoke::{GrpcCall, GrpcReply, Verb, grpc_code};
use mecha_proto::Any;
use mecha_proto::common::InvokeResponse;
use mecha_proto::runtime::InvokeServiceRequest;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use super::notes::Notes;
use super::{GrpcApi, api, errors};

/// Headers of the transport, which are no metadata of the caller.
const TRANSPORT: [&str; 4] = ["grpc-encoding", "grpc-accept-encoding", "grpc-timeout", "grpc-message-type"];

/// Metadata that goes out behind the message; in the extensions of an answer.
#[derive(Clone, Debug)]
pub(super) struct Trailers(pub(super) HeaderMap);

pub(super) async fn service(
    api: &GrpcApi,
    mut request: Request<InvokeServiceRequest>,
) -> Result<Response<InvokeResponse>, Status> {
    let cx = api::context(&mut request);
    let (metadata, extensions, request) = request.into_parts();
    if let Some(notes) = extensions.get::<Notes>() {
        notes.invocation(&request.id, request.message.as_ref().map_or("", |m| &m.method));
    }
    let mut metadata = metadata.into_headers();
    for name in TRANSPORT {
        metadata.remove(name);
    }
    let message = request.message.unwrap_or_default();
    let data = message.data.unwrap_or_default();
    let extension = message.http_extension;
    let call = GrpcCall {
        id: request.id,
        method: message.method,
        data: data.value,
        type_url: data.type_url,
        content_type: message.content_type,
        verb: extension.as_ref().map_or(Verb::Missing, |e| Verb::from_number(e.verb)),
        query: extension.map(|e| e.querystring).unwrap_or_default(),
        metadata,
    };
    let reply = api.core.invoke.grpc_invoke(&cx, call).await.map_err(|e| api.fail(&e))?;
    answer(reply)
}

fn answer(reply: GrpcReply) -> Result<Response<InvokeResponse>, Status> {
    let GrpcReply { data, type_url, content_type, mut headers, status } = reply;
    if status.code != grpc_code::OK {
        headers.extend(status.trailers);
        let details = status.details.into_iter().map(|d| Any { type_url: d.type_url, value: d.value });
        let metadata = MetadataMap::from_headers(headers);
        return Err(errors::rich(Code::from(status.code), &status.message, details.collect(), metadata));
    }
    let mut res = Response::new(InvokeResponse { data: Some(Any { type_url, value: data }), content_type });
    *res.metadata_mut() = MetadataMap::from_headers(headers);
    if !status.trailers.is_empty() {
        res.extensions_mut().insert(Trailers(status.trailers));
    }
    Ok(res)
}
