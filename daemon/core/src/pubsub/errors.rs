//! The errors of publishing, with the details the contract names.

use std::collections::BTreeMap;

use mecha_components_api::{Error, ErrorKind};

use crate::codes::Code;
use crate::error::{ApiError, Detail};
use crate::store::degraded_error;

/// gRPC `INVALID_ARGUMENT`.
const GRPC_INVALID: i32 = 3;

/// Where an error happened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub app_id: &'a str,
    pub pubsub: &'a str,
    pub topic: &'a str,
}

impl Place<'_> {
    /// No component of this name.
    pub(super) fn not_found(&self) -> ApiError {
        ApiError::new(Code::PubSubNotFound, ErrorKind::InvalidArgument, format!("pubsub {} is not found", self.pubsub))
            .with_status(404, GRPC_INVALID)
            .with_detail(self.info("DAPR_PUBSUB_NOT_FOUND", None, false))
    }

    /// The component should run and does not.
    pub(super) fn degraded(&self, cause: &str) -> ApiError {
        let e = degraded_error(self.pubsub, cause);
        let kind = e.kind();
        self.broker(&e, kind)
    }

    /// The name of the component is empty.
    pub(super) fn name_empty(&self) -> ApiError {
        self.rich(
            Code::PubSubEmpty,
            ErrorKind::InvalidArgument,
            "pubsub name is empty".into(),
            self.info("DAPR_PUBSUB_NAME_EMPTY", None, false),
        )
        .with_status(404, GRPC_INVALID)
    }

    /// The topic is empty.
    pub(super) fn topic_empty(&self) -> ApiError {
        self.rich(
            Code::TopicNameEmpty,
            ErrorKind::InvalidArgument,
            format!("topic is empty in pubsub {}", self.pubsub),
            self.info("DAPR_PUBSUB_TOPIC_NAME_EMPTY", None, false),
        )
        .with_status(404, GRPC_INVALID)
    }

    /// The request metadata is not valid.
    pub(super) fn bad_metadata(&self, cause: &str) -> ApiError {
        self.rich(
            Code::PubSubRequestMetadata,
            ErrorKind::InvalidArgument,
            format!("failed deserializing metadata. Error: {cause}"),
            self.info("DAPR_PUBSUB_METADATA_DESERIALIZATION", Some(cause), true),
        )
    }

    /// The broker would read the topic as a pattern.
    pub(super) fn pattern(&self) -> ApiError {
        let topic = self.topic;
        let message =
            format!("topic {topic} in pubsub {} is a pattern; publish to one topic by its full name", self.pubsub);
        ApiError::malformed(message)
    }

    /// The input claims to be a CloudEvent and is none.
    pub(super) fn no_cloud_event(&self) -> ApiError {
        self.rich(
            Code::PubSubCloudEventsSer,
            ErrorKind::InvalidArgument,
            "cannot create cloudevent".into(),
            self.info("DAPR_PUBSUB_CLOUD_EVENT_CREATION", Some("a CloudEvent must be a JSON object"), true),
        )
        .with_status(500, GRPC_INVALID)
    }

    /// The entries of a bulk are not valid.
    pub(super) fn bad_entries(&self, cause: &str) -> ApiError {
        let about = format!("error marshaling events to bytes for topic {} pubsub {}", self.topic, self.pubsub);
        ApiError::new(Code::PubSubEventsSer, ErrorKind::InvalidArgument, format!("{about}. error: {cause}"))
            .with_detail(self.resource(about))
            .with_detail(self.info("DAPR_PUBSUB_MARSHAL_EVENTS", Some(cause), true))
    }

    /// A scope forbids it.
    pub(super) fn forbidden(&self) -> ApiError {
        let message = format!("topic {} is not allowed for app id {}", self.topic, self.app_id);
        let info = self.info("DAPR_PUBSUB_FORBIDDEN", Some(&message), true);
        self.rich(Code::PubSubForbidden, ErrorKind::PermissionDenied, message.clone(), info)
    }

    /// The broker failed or refused.
    pub(super) fn refused(&self, cause: &Error) -> ApiError {
        let kind = match cause.kind() {
            ErrorKind::TooLarge => ErrorKind::TooLarge,
            _ => ErrorKind::Internal,
        };
        self.broker(cause, kind)
    }

    fn broker(&self, cause: &Error, kind: ErrorKind) -> ApiError {
        let cause = cause.to_string();
        let message = format!("error when publishing to topic {} in pubsub {}: {cause}", self.topic, self.pubsub);
        let info = self.info("DAPR_PUBSUB_PUBLISH_MESSAGE", Some(&cause), true);
        self.rich(Code::PubSubPublishMessage, kind, message, info)
    }

    fn rich(&self, code: Code, kind: ErrorKind, message: String, info: Detail) -> ApiError {
        ApiError::new(code, kind, message.clone()).with_detail(self.resource(message)).with_detail(info)
    }

    fn resource(&self, description: String) -> Detail {
        Detail::ResourceInfo { resource_type: "pubsub", resource_name: self.pubsub.to_owned(), description }
    }

    fn info(&self, reason: &'static str, error: Option<&str>, topic: bool) -> Detail {
        let mut facts = BTreeMap::from([("appID".to_owned(), self.app_id.to_owned())]);
        if topic {
            facts.insert("topic".to_owned(), self.topic.to_owned());
        }
        if let Some(error) = error {
            facts.insert("error".to_owned(), error.to_owned());
        }
        Detail::ErrorInfo { reason: reason.into(), metadata: Some(facts) }
    }
}
