use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// What went wrong, in the vocabulary that decides the HTTP and gRPC status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The caller's input is wrong; sending it again cannot help.
    InvalidArgument,
    /// The backend refused our credentials.
    Unauthenticated,
    /// The identity is known and may not do this.
    PermissionDenied,
    /// The named thing does not exist.
    NotFound,
    /// The backend is not in a state that allows the call.
    FailedPrecondition,
    /// Somebody else was first: a stale ETag, a lost race.
    Conflict,
    /// The input is larger than a limit.
    TooLarge,
    /// Shed or rate limited.
    Overloaded,
    /// The component does not have this power.
    Unsupported,
    /// The backend cannot be reached.
    Unavailable,
    /// A deadline passed.
    Timeout,
    /// A defect or a broken backend answer.
    Internal,
}

/// Whether sending the same call again can help. The *caller* knows whether the
/// call is idempotent, the component knows how far it got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// The call never reached the backend.
    Always,
    /// The outcome is unknown: the backend may have done it.
    IfIdempotent,
    /// The answer is final.
    Never,
}

/// Shorthand for results of component calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

struct Inner {
    kind: ErrorKind,
    retry: Retry,
    message: Cow<'static, str>,
    details: BTreeMap<String, String>,
    source: Option<Source>,
}

/// A component error: kind, retryability, a message for people, and the cause.
///
/// One pointer wide, so that `Result<Bytes, Error>` stays small on the hot path.
/// Messages and details must never hold secrets or payloads.
pub struct Error(Box<Inner>);

impl Error {
    /// An error of `kind` with the retryability that kind usually has.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        let retry = match kind {
            ErrorKind::Unavailable | ErrorKind::Overloaded => Retry::Always,
            ErrorKind::Timeout | ErrorKind::Internal => Retry::IfIdempotent,
            ErrorKind::InvalidArgument
            | ErrorKind::Unauthenticated
            | ErrorKind::PermissionDenied
            | ErrorKind::NotFound
            | ErrorKind::FailedPrecondition
            | ErrorKind::Conflict
            | ErrorKind::TooLarge
            | ErrorKind::Unsupported => Retry::Never,
        };
        Self(Box::new(Inner { kind, retry, message: message.into(), details: BTreeMap::new(), source: None }))
    }

    /// Bad input from the caller.
    #[must_use]
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    /// The named thing does not exist.
    #[must_use]
    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// A stale ETag or a lost race.
    #[must_use]
    pub fn conflict(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }

    /// The backend cannot be reached; nothing was sent.
    #[must_use]
    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    /// A deadline passed; the outcome is unknown.
    #[must_use]
    pub fn timeout(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Timeout, message)
    }

    /// The component does not have this power.
    #[must_use]
    pub fn unsupported(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// A defect or a broken backend answer.
    #[must_use]
    pub fn internal(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// Replaces the retryability.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.0.retry = retry;
        self
    }

    /// Attaches the cause. Its `Display` is shown after the message.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Adds a fact that the API hands to the caller, such as the response
    /// metadata of a failed output binding.
    #[must_use]
    pub fn with_detail(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.details.insert(key.into(), value.into());
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether sending the call again can help.
    #[must_use]
    pub fn retry(&self) -> Retry {
        self.0.retry
    }

    /// The message without the cause.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Facts for the caller, see [`Error::with_detail`].
    #[must_use]
    pub fn details(&self) -> &BTreeMap<String, String> {
        &self.0.details
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("retry", &self.0.retry)
            .field("message", &self.0.message)
            .field("source", &self.0.source)
            .finish_non_exhaustive()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|e| e as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_one_pointer_wide() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }

    #[test]
    fn display_shows_message_and_cause() {
        let e = Error::unavailable("cannot reach redis").with_source("connection refused");
        assert_eq!(e.to_string(), "cannot reach redis: connection refused");
        assert_eq!(e.retry(), Retry::Always);
    }
}
