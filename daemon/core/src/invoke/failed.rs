//! Why a try failed, and what a policy has to know of it.

use http::Response;
use mecha_components_api::{ErrorKind, Retry as Repeatable};
use mecha_resiliency::Failure;

use super::body::Source;
use super::call::{GrpcAnswer, Reached, TransportError, grpc_code};
use super::{caller_failure, fail, target};
use crate::app::Body;
use crate::error::ApiError;

/// A try without success.
pub(super) enum Failed {
    /// On the way to a peer, or by its sidecar.
    Transport(TransportError),
    /// On the way to a server outside.
    Outside(TransportError),
    /// Before anything was sent, or by the own app's channel; final.
    Text(String),
    /// The callee answered, with a status that policies take for a failure.
    Answer(Box<Response<Body>>),
}

/// A failed try as a policy sees it.
pub(super) struct Judged {
    pub(super) failed: Failed,
    /// Whether the body can be sent again.
    pub(super) replayable: bool,
}

impl Failed {
    pub(super) fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    /// Takes an answer with an error status for a failure.
    pub(super) fn judge(answer: Response<Body>) -> Result<Response<Body>, Self> {
        let good = match answer.extensions().get::<GrpcAnswer>() {
            Some(grpc) => grpc.code == grpc_code::OK,
            None => matches!(answer.status().as_u16(), 200..400),
        };
        if good { Ok(answer) } else { Err(Self::Answer(Box::new(answer))) }
    }

    /// The error for the caller, unless it was the caller's own body that failed.
    pub(super) fn into_api(self, id: &str, source: &Source) -> ApiError {
        if let Some(own) = caller_failure(source) {
            return own;
        }
        match self {
            Self::Transport(e) if e.code == grpc_code::PERMISSION_DENIED => {
                target::failed(id, ErrorKind::PermissionDenied, e)
            }
            Self::Transport(e) => fail(id, e),
            Self::Outside(e) if e.code == grpc_code::PERMISSION_DENIED => {
                target::failed(id, ErrorKind::PermissionDenied, e.message)
            }
            Self::Outside(e) => fail(id, e.message),
            Self::Text(text) => fail(id, text),
            // Answers are handed on, never turned into errors.
            Self::Answer(answer) => fail(id, answer.status()),
        }
    }
}

impl Failure for Judged {
    fn repeatable(&self) -> Repeatable {
        if !self.replayable {
            return Repeatable::Never;
        }
        match &self.failed {
            Failed::Transport(e) | Failed::Outside(e) => match (e.reached, e.code) {
                (_, grpc_code::PERMISSION_DENIED) => Repeatable::Never,
                (Reached::No, _) => Repeatable::Always,
                (Reached::Maybe, _) => Repeatable::IfIdempotent,
            },
            Failed::Text(_) => Repeatable::IfIdempotent,
            Failed::Answer(_) => Repeatable::IfIdempotent,
        }
    }

    fn http_status(&self) -> Option<u16> {
        match &self.failed {
            Failed::Answer(answer) if self.replayable && answer.extensions().get::<GrpcAnswer>().is_none() => {
                Some(answer.status().as_u16())
            }
            _ => None,
        }
    }

    fn grpc_code(&self) -> Option<u16> {
        match &self.failed {
            Failed::Answer(answer) if self.replayable => {
                answer.extensions().get::<GrpcAnswer>().and_then(|g| u16::try_from(g.code).ok())
            }
            _ => None,
        }
    }

    /// A breaker counts what says that the callee is in trouble, not that the call was wrong.
    fn counts_as_failure(&self) -> bool {
        match &self.failed {
            Failed::Transport(e) | Failed::Outside(e) => e.code != grpc_code::PERMISSION_DENIED,
            Failed::Text(_) => true,
            Failed::Answer(answer) => match answer.extensions().get::<GrpcAnswer>() {
                Some(grpc) => matches!(
                    grpc.code,
                    grpc_code::UNKNOWN
                        | grpc_code::DEADLINE_EXCEEDED
                        | grpc_code::RESOURCE_EXHAUSTED
                        | grpc_code::INTERNAL
                        | grpc_code::UNAVAILABLE
                        | grpc_code::DATA_LOSS
                ),
                None => matches!(answer.status().as_u16(), 408 | 429 | 500..),
            },
        }
    }
}
