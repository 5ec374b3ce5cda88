//! What the API server answers when it does not do what it is asked.

use std::fmt;
use std::time::Duration;

/// What kind of answer it is; decides what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// There is no such object, or no such kind.
    NotFound,
    /// The object has changed since it was read, another manager owns the field, or it exists already.
    Conflict,
    /// A rule of the kind or a policy refuses the content: the same request never succeeds.
    Invalid,
    /// A right is missing.
    Forbidden,
    /// The credentials are not accepted.
    Unauthenticated,
    /// The server is busy and says so.
    Busy,
    /// No answer in time: it may have happened or not.
    Timeout,
    /// The server cannot be reached or failed.
    Unavailable,
}

/// A request that failed.
#[derive(Debug)]
pub struct Failure {
    /// What kind of failure.
    pub kind: FailureKind,
    message: String,
    source: Option<kube::Error>,
}

impl Failure {
    pub(crate) fn timeout(limit: Duration) -> Self {
        let message = format!("the API server did not answer within {limit:?}");
        Self { kind: FailureKind::Timeout, message, source: None }
    }

    /// Whether the same request may succeed later without anybody changing anything else.
    #[must_use]
    pub fn passes(&self) -> bool {
        matches!(self.kind, FailureKind::Busy | FailureKind::Timeout | FailureKind::Unavailable)
    }
}

/// The kind of a failed request.
#[must_use]
pub fn kind_of(error: &kube::Error) -> FailureKind {
    let kube::Error::Api(status) = error else { return FailureKind::Unavailable };
    match status.code {
        401 => FailureKind::Unauthenticated,
        403 => FailureKind::Forbidden,
        404 => FailureKind::NotFound,
        409 => FailureKind::Conflict,
        408 | 504 => FailureKind::Timeout,
        429 => FailureKind::Busy,
        400..=499 => FailureKind::Invalid,
        _ => FailureKind::Unavailable,
    }
}

impl From<kube::Error> for Failure {
    fn from(source: kube::Error) -> Self {
        let kind = kind_of(&source);
        let message = match &source {
            kube::Error::Api(status) => status.message.clone(),
            // The outer text of a connection's failure says nothing, the inner ones do.
            other => chain(other),
        };
        Self { kind, message, source: Some(source) }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(inner) = next {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        next = inner.source();
    }
    text
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}
