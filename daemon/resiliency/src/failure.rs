use mecha_components_api::{Error, ErrorKind, Retry as Repeatable};

/// What the caller knows of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallClass {
    /// Doing it twice is the same as doing it once.
    pub idempotent: bool,
}

impl CallClass {
    /// Doing it twice is the same as doing it once.
    pub const IDEMPOTENT: Self = Self { idempotent: true };
    /// Doing it twice may do harm.
    pub const ONCE: Self = Self { idempotent: false };
}

/// What a policy has to know of an error.
pub trait Failure {
    /// Whether sending the same call again can help.
    fn repeatable(&self) -> Repeatable;

    /// HTTP status of the callee, if it answered with one.
    fn http_status(&self) -> Option<u16> {
        None
    }

    /// gRPC code of the callee, if it answered with one.
    fn grpc_code(&self) -> Option<u16> {
        None
    }

    /// Whether a breaker counts it: the callee is in trouble, rather than the call wrong.
    fn counts_as_failure(&self) -> bool {
        true
    }
}

impl Failure for Error {
    fn repeatable(&self) -> Repeatable {
        self.retry()
    }

    /// A stale ETag or a bad key says nothing about the health of the backend.
    fn counts_as_failure(&self) -> bool {
        match self.kind() {
            ErrorKind::Unavailable
            | ErrorKind::Timeout
            | ErrorKind::Overloaded
            | ErrorKind::Internal
            | ErrorKind::Unauthenticated => true,
            ErrorKind::InvalidArgument
            | ErrorKind::PermissionDenied
            | ErrorKind::NotFound
            | ErrorKind::FailedPrecondition
            | ErrorKind::Conflict
            | ErrorKind::TooLarge
            | ErrorKind::Unsupported => false,
        }
    }
}
