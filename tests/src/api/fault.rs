use serde_json::Value;
use tonic::{Code, Status};

use crate::grpc::status_details;
use crate::http::Reply;

/// An error as a front gave it.
#[derive(Clone, Debug)]
pub struct Fault {
    /// HTTP status.
    pub http: Option<u16>,
    /// gRPC code.
    pub grpc: Option<Code>,
    /// `errorCode`; over gRPC the reason of the `ErrorInfo`.
    pub code: String,
    /// Message.
    pub message: String,
    /// Details in the form of the HTTP API.
    pub details: Vec<Value>,
    /// The whole body over HTTP.
    pub body: String,
}

/// What a fault must be, on either front.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    /// HTTP status.
    pub http: u16,
    /// gRPC code.
    pub grpc: Code,
    /// `errorCode` over HTTP.
    pub code: &'static str,
    /// Reason of the `ErrorInfo` over gRPC, and over HTTP where the error is a rich one; empty: none is sent.
    pub reason: &'static str,
    /// The message, or its beginning when it ends in `…`.
    pub message: &'static str,
}

impl Fault {
    /// As an answer with an error status says it.
    #[must_use]
    pub fn of_reply(reply: &Reply) -> Self {
        let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        Self {
            http: Some(reply.status),
            grpc: None,
            code: reply.code(),
            message: if body["message"].is_string() { reply.message() } else { reply.text() },
            details: body["details"].as_array().cloned().unwrap_or_default(),
            body: reply.text(),
        }
    }

    /// As the status of a call says it.
    #[must_use]
    pub fn of_status(status: &Status) -> Self {
        let details = status_details(status);
        let reason = details.iter().find_map(|detail| detail["reason"].as_str()).unwrap_or_default().to_owned();
        Self {
            http: None,
            grpc: Some(status.code()),
            code: reason,
            message: status.message().to_owned(),
            details,
            body: String::new(),
        }
    }

    /// The detail of this type, such as `ErrorInfo`.
    #[must_use]
    pub fn detail(&self, name: &str) -> Option<&Value> {
        let wanted = format!("type.googleapis.com/google.rpc.{name}");
        self.details.iter().find(|detail| detail["@type"] == wanted.as_str())
    }

    /// Types of the details in order, without their prefix.
    #[must_use]
    pub fn detail_names(&self) -> Vec<&str> {
        let kinds = self.details.iter().filter_map(|detail| detail["@type"].as_str());
        kinds.map(|kind| kind.trim_start_matches("type.googleapis.com/google.rpc.")).collect()
    }

    /// The fault is what the contract says.
    #[track_caller]
    pub fn is(&self, expected: &Expect) {
        match expected.message.strip_suffix('…') {
            Some(start) => assert!(self.message.starts_with(start), "message of {self:?}, expected {expected:?}"),
            None => assert_eq!(self.message, expected.message, "message of {self:?}"),
        }
        if let Some(status) = self.http {
            assert_eq!(status, expected.http, "HTTP status of {self:?}");
            assert_eq!(self.code, expected.code, "errorCode of {self:?}");
            if !self.details.is_empty() {
                let reason = self.detail("ErrorInfo").map_or(Value::Null, |info| info["reason"].clone());
                assert_eq!(reason, expected.reason, "reason in {self:?}");
            }
        }
        if let Some(code) = self.grpc {
            assert_eq!(code, expected.grpc, "gRPC code of {self:?}");
            assert_eq!(self.code, expected.reason, "reason in {self:?}");
        }
    }
}
