use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mecha_components_api::{Error, ErrorKind};
use uuid::Uuid;

/// How long a case waits for something that should be there within milliseconds. Generous,
/// because the machine may be busy; a case that passes never waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two looks of [`wait_until`].
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A future that owns what it needs.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How a case ended.
pub type Outcome = Result<(), Failure>;

/// Why a case failed, in words.
pub struct Failure(String);

/// One promise of a building block. `C` is what it is tried on, `K` what that declares.
pub struct Case<C: ?Sized + 'static, K: 'static> {
    /// The promise: `stale_etag_is_conflict`.
    pub name: &'static str,
    /// Whether it applies to a component that declares this.
    pub needs: fn(&K) -> bool,
    /// Tries it.
    pub run: fn(Arc<C>) -> BoxFuture<'static, Outcome>,
}

impl Failure {
    /// A failure with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Self(format!("unexpected error {:?}: {e}", e.kind()))
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// A name that nobody used before, for key spaces, topics and app ids.
#[must_use]
pub fn fresh_name() -> String {
    format!("t{}", &Uuid::new_v4().simple().to_string()[..12])
}

/// Looks at `condition` until it holds.
///
/// # Errors
/// Names `what` when it does not hold within `within`.
pub async fn wait_until<F, Fut>(within: Duration, what: &str, mut condition: F) -> Outcome
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let deadline = Instant::now() + within;
    while !condition().await {
        if Instant::now() >= deadline {
            return Err(Failure(format!("not within {within:?}: {what}")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// The kind of an error that was expected.
pub(crate) fn refused<T: fmt::Debug>(outcome: Result<T, Error>, kinds: &[ErrorKind], what: &str) -> Outcome {
    match outcome {
        Err(e) if kinds.contains(&e.kind()) => Ok(()),
        Err(e) => Err(Failure(format!("{what}: expected {kinds:?}, got {:?}: {e}", e.kind()))),
        Ok(v) => Err(Failure(format!("{what}: expected {kinds:?}, but it succeeded with {v:?}"))),
    }
}

/// Returns a [`Failure`] from the case unless the condition holds.
macro_rules! check {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::Failure::new(format!($($text)+)));
        }
    };
}

/// Returns a [`Failure`] that shows both sides unless they are equal.
macro_rules! check_eq {
    ($left:expr, $right:expr, $($text:tt)+) => {
        match (&$left, &$right) {
            (left, right) => {
                if left != right {
                    return Err($crate::Failure::new(format!("{}: got {left:?}, expected {right:?}", format!($($text)+))));
                }
            }
        }
    };
}

/// A table of cases: function, condition, and how the function's argument is made from the instance.
macro_rules! table {
    ($with:expr; $($name:ident: $needs:expr),+ $(,)?) => {
        &[$($crate::Case { name: stringify!($name), needs: $needs, run: |c| Box::pin($name($with(c))) }),+]
    };
}

pub(crate) use {check, check_eq, table};
