//! The gRPC form of errors.

use bytes::Bytes;
use mecha_core::{ApiError, Detail, Shape};
use mecha_proto::Any;
use prost::Message;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_types::pb::{BadRequest, ErrorInfo, Help, ResourceInfo, bad_request, help};

use crate::events::RpcStatus;
use crate::wire;

/// Domain of every `ErrorInfo`.
const DOMAIN: &str = "dapr.io";
/// Prefix of the types of details.
const TYPES: &str = "type.googleapis.com/google.rpc.";
/// Longest message: with its details it has to fit into the header limit of clients, which is
/// 8 KiB where it is smallest.
const MAX_MESSAGE: usize = 4096;
/// Longest value of a fact of an `ErrorInfo`, for the same reason.
const MAX_FACT: usize = 512;

/// The status of an API error.
pub(super) fn status(e: &ApiError) -> Status {
    let (_, code) = wire::statuses(e);
    let details = match e.shape() {
        Shape::Plain => Vec::new(),
        Shape::PlainHttp | Shape::Rich => e.details().iter().map(detail).collect(),
    };
    rich(code, e.message(), details, MetadataMap::new())
}

/// A status with details, given as encoded messages.
pub(super) fn rich(code: Code, message: &str, details: Vec<Any>, metadata: MetadataMap) -> Status {
    let message = cut(message, MAX_MESSAGE);
    let details = if details.is_empty() {
        Bytes::new()
    } else {
        RpcStatus { code: code as i32, message: message.to_owned(), details }.encode_to_vec().into()
    };
    Status::with_details_and_metadata(code, message, details, metadata)
}

/// A refusal that the incumbent makes of an HTTP status: its text as message and reason, the
/// number and the cause as facts.
pub(super) fn refusal(code: Code, http: u16, text: &str, cause: &str) -> Status {
    let facts = [("http.code", http.to_string()), ("http.error_message", cause.to_owned())];
    let facts = facts.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    let info = ErrorInfo { reason: text.to_owned(), domain: DOMAIN.to_owned(), metadata: facts };
    rich(code, text, vec![any("ErrorInfo", &info)], MetadataMap::new())
}

fn detail(detail: &Detail) -> Any {
    match detail {
        Detail::ErrorInfo { reason, metadata } => {
            let facts = metadata.iter().flatten().map(|(k, v)| (k.clone(), cut(v, MAX_FACT).to_owned()));
            let info =
                ErrorInfo { reason: reason.clone().into_owned(), domain: DOMAIN.to_owned(), metadata: facts.collect() };
            any("ErrorInfo", &info)
        }
        Detail::ResourceInfo { resource_type, resource_name, description } => any(
            "ResourceInfo",
            &ResourceInfo {
                resource_type: (*resource_type).to_owned(),
                resource_name: resource_name.clone(),
                owner: String::new(),
                description: cut(description, MAX_FACT).to_owned(),
            },
        ),
        Detail::BadRequest { field, description } => {
            let violation = bad_request::FieldViolation {
                field: field.clone(),
                description: description.clone(),
                ..Default::default()
            };
            any("BadRequest", &BadRequest { field_violations: vec![violation] })
        }
        Detail::Help { url, description } => {
            let link = help::Link { description: (*description).to_owned(), url: (*url).to_owned() };
            any("Help", &Help { links: vec![link] })
        }
    }
}

fn any(name: &str, message: &impl Message) -> Any {
    Any { type_url: format!("{TYPES}{name}"), value: message.encode_to_vec().into() }
}

/// The start of a text, `limit` bytes at most.
fn cut(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    let end = (0..=limit).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use mecha_components_api::ErrorKind;
    use mecha_core::codes::Code as ApiCode;
    use tonic_types::{ErrorDetail, StatusExt};

    use super::*;

    #[test]
    fn details_keep_their_order_and_plain_errors_have_none() {
        let e = ApiError::new(ApiCode::StateStoreNotSupported, ErrorKind::Unsupported, "no")
            .with_detail(Detail::Help { url: "https://example.org", description: "d" })
            .with_detail(Detail::ResourceInfo {
                resource_type: "state",
                resource_name: "s".into(),
                description: "".into(),
            })
            .with_detail(Detail::ErrorInfo { reason: "R".into(), metadata: None });
        let status = status(&e);
        assert_eq!(status.code(), Code::Unimplemented);
        let kinds: Vec<_> = status
            .get_error_details_vec()
            .into_iter()
            .map(|d| match d {
                ErrorDetail::Help(_) => "help",
                ErrorDetail::ResourceInfo(r) if r.resource_name == "s" => "resource",
                ErrorDetail::ErrorInfo(i) if i.reason == "R" && i.domain == "dapr.io" => "info",
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(kinds, ["help", "resource", "info"]);
        let plain = super::status(&ApiError::malformed("x"));
        assert!(plain.details().is_empty());
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let status = rich(Code::Internal, &"é".repeat(MAX_MESSAGE), Vec::new(), MetadataMap::new());
        assert_eq!(status.message().len(), MAX_MESSAGE);
    }
}
