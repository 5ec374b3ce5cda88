//! The one table from error kind and code to HTTP status and gRPC code.

use http::StatusCode;
use mecha_components_api::ErrorKind;
use mecha_core::ApiError;
use mecha_core::codes::Code as ApiCode;
use tonic::Code;

/// Defaults by kind.
const fn by_kind(kind: ErrorKind) -> (StatusCode, Code) {
    match kind {
        ErrorKind::InvalidArgument => (StatusCode::BAD_REQUEST, Code::InvalidArgument),
        ErrorKind::Unauthenticated => (StatusCode::UNAUTHORIZED, Code::Unauthenticated),
        ErrorKind::PermissionDenied => (StatusCode::FORBIDDEN, Code::PermissionDenied),
        ErrorKind::NotFound => (StatusCode::NOT_FOUND, Code::NotFound),
        ErrorKind::FailedPrecondition => (StatusCode::PRECONDITION_FAILED, Code::FailedPrecondition),
        ErrorKind::Conflict => (StatusCode::CONFLICT, Code::Aborted),
        ErrorKind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, Code::ResourceExhausted),
        ErrorKind::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, Code::ResourceExhausted),
        ErrorKind::Unsupported => (StatusCode::NOT_IMPLEMENTED, Code::Unimplemented),
        ErrorKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable),
        ErrorKind::Timeout => (StatusCode::GATEWAY_TIMEOUT, Code::DeadlineExceeded),
        ErrorKind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, Code::Internal),
    }
}

/// HTTP status and gRPC code of one situation. The incumbent's published codes win over the
/// defaults, because clients match them.
#[must_use]
pub fn wire(code: ApiCode, kind: ErrorKind) -> (StatusCode, Code) {
    use ApiCode as C;
    use ErrorKind as K;
    let s500 = StatusCode::INTERNAL_SERVER_ERROR;
    match (code, kind) {
        (C::StateStoreNotConfigured, K::FailedPrecondition)
        | (C::SecretStoresNotConfigured, K::FailedPrecondition)
        | (C::ConfigurationStoreNotConfigured, K::FailedPrecondition)
        | (C::LockStoreNotConfigured, K::FailedPrecondition) => (s500, Code::FailedPrecondition),
        (C::StateStoreNotSupported, K::Unsupported) => (s500, Code::Unimplemented),
        (C::NotSupportedStateOperation, _) => (StatusCode::BAD_REQUEST, Code::Unimplemented),
        // A failed store is 500 / Internal whatever the cause, but for what the caller can mend.
        (
            C::StateGet
            | C::StateSave
            | C::StateDelete
            | C::StateBulkGet
            | C::StateBulkDelete
            | C::StateTransaction
            | C::StateQuery,
            kind,
        ) => match kind {
            K::Conflict | K::InvalidArgument | K::TooLarge => by_kind(kind),
            _ => (s500, Code::Internal),
        },
        (C::PubSubNotFound | C::PubSubEmpty | C::TopicNameEmpty, _) => (StatusCode::NOT_FOUND, Code::InvalidArgument),
        (C::PubSubNotConfigured, _) => (StatusCode::BAD_REQUEST, Code::FailedPrecondition),
        (C::PubSubCloudEventsSer, _) => (s500, Code::InvalidArgument),
        (C::PubSubPublishMessage | C::PublishOutbox, kind) => match kind {
            K::InvalidArgument | K::TooLarge => by_kind(kind),
            _ => (s500, Code::Internal),
        },
        (C::DirectInvoke, kind) => match kind {
            K::NotFound | K::PermissionDenied => by_kind(kind),
            // Set where a loop is cut.
            K::FailedPrecondition => (StatusCode::LOOP_DETECTED, Code::FailedPrecondition),
            K::TooLarge => by_kind(kind),
            _ => (s500, Code::Internal),
        },
        (C::InvokeOutputBinding, kind) => match kind {
            K::InvalidArgument => (StatusCode::BAD_REQUEST, Code::InvalidArgument),
            _ => (s500, Code::Internal),
        },
        (C::SecretStoreNotFound, _) => (StatusCode::UNAUTHORIZED, Code::InvalidArgument),
        (C::SecretGet, _)
        | (C::ConfigurationGet | C::ConfigurationSubscribe | C::ConfigurationUnsubscribe, _)
        | (C::TryLock | C::Unlock, _)
        | (C::CryptoKey | C::Crypto, _)
        | (C::AppChannelNil | C::HealthNotReady | C::OutboundHealthNotReady | C::HealthAppIdNotMatch, _) => {
            (s500, Code::Internal)
        }
        (C::CryptoProvidersNotConfigured, _) => (s500, Code::FailedPrecondition),
        (C::ActorNoPlacement | C::ActorNoAppChannel, _) => (StatusCode::BAD_REQUEST, Code::Unavailable),
        (C::ActorInstanceMissing, _) => (StatusCode::BAD_REQUEST, Code::Internal),
        (_, kind) => by_kind(kind),
    }
}

/// The statuses of an error.
#[must_use]
pub fn statuses(e: &ApiError) -> (StatusCode, Code) {
    if let Some((http, grpc)) = e.status() {
        return (StatusCode::from_u16(http).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), Code::from(grpc));
    }
    wire(e.code(), e.kind())
}
