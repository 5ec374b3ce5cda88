//! What surrounds every component call: policy, counters, span.

use std::future::Future;

use mecha_components_api::Result;

use crate::cx::Cx;

/// Operation of a component call; label `operation` of its metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum Operation {
    Get,
    Set,
    Delete,
    BulkGet,
    BulkDelete,
    Transaction,
    Query,
    Subscribe,
    Unsubscribe,
    Publish,
    BulkPublish,
    TryLock,
    Unlock,
    Invoke,
}

/// Policies and counters of one component, resolved when it is built.
#[derive(Clone, Debug, Default)]
pub struct Ops {}

impl Ops {
    /// Runs one component call under the component's outbound policy. `idempotent` says
    /// whether an unknown outcome may be tried again.
    ///
    /// # Errors
    /// The component's error, or the policy's when it gave up.
    pub async fn run<T, F, Fut>(&self, _cx: &Cx, _op: Operation, _idempotent: bool, mut call: F) -> Result<T>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        call().await
    }

    /// Like [`Ops::run`], for output bindings, whose operations are their own.
    ///
    /// # Errors
    /// The component's error, or the policy's when it gave up.
    pub async fn run_named<T, F, Fut>(
        &self,
        cx: &Cx,
        op: Operation,
        _name: &str,
        idempotent: bool,
        call: F,
    ) -> Result<T>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        self.run(cx, op, idempotent, call).await
    }
}
