//! What surrounds every component call: policy and counters, resolved when the component is
//! built, so that a call looks nothing up.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use mecha_components_api::{Error, Result};
use mecha_resiliency::CallClass;

use crate::cx::Cx;
use crate::metrics::{Following, Metrics, OpBlock, OpMetrics};
use crate::policies::Guarded;

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

impl Operation {
    const COUNTED: [Self; 9] = [
        Self::Get,
        Self::Set,
        Self::Delete,
        Self::BulkGet,
        Self::BulkDelete,
        Self::Transaction,
        Self::Query,
        Self::Subscribe,
        Self::Unsubscribe,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Set => "set",
            Self::Delete => "delete",
            Self::BulkGet => "bulk_get",
            Self::BulkDelete => "bulk_delete",
            Self::Transaction => "transaction",
            Self::Query => "query",
            Self::Subscribe => "subscribe",
            Self::Unsubscribe => "unsubscribe",
            Self::Publish => "publish",
            Self::BulkPublish => "bulk_publish",
            Self::TryLock => "try_lock",
            Self::Unlock => "unlock",
            Self::Invoke => "invoke",
        }
    }
}

/// Policies and counters of one component.
#[derive(Clone, Debug, Default)]
pub struct Ops(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    policies: ArcSwap<Both>,
    counted: Following<[OpMetrics; Operation::COUNTED.len()]>,
    named: Following<HashMap<Box<str>, OpMetrics>>,
}

/// The policies of both directions; replaced as a pair when Resiliency documents change.
#[derive(Debug, Default)]
struct Both {
    outbound: Guarded,
    inbound: Guarded,
}

impl Ops {
    /// For a component whose operations are those of [`Operation`].
    #[must_use]
    pub fn new(
        metrics: &Metrics,
        block: Option<OpBlock>,
        component: &str,
        outbound: Guarded,
        inbound: Guarded,
    ) -> Self {
        let counted = match block {
            Some(block) => {
                let component = component.to_owned();
                metrics.follow(move |m| Operation::COUNTED.map(|op| m.operation(block, &component, op.as_str())))
            }
            None => Following::default(),
        };
        let policies = ArcSwap::from_pointee(Both { outbound, inbound });
        Self(Arc::new(Inner { policies, counted, named: Following::default() }))
    }

    /// For an output binding, whose operations are its own.
    #[must_use]
    pub fn named(metrics: &Metrics, component: &str, operations: &[&'static str], outbound: Guarded) -> Self {
        let (component, operations) = (component.to_owned(), operations.to_vec());
        let named = metrics.follow(move |m| {
            let counts = |op: &&str| ((*op).into(), m.operation(OpBlock::OutputBinding, &component, op));
            operations.iter().map(counts).collect()
        });
        let policies = ArcSwap::from_pointee(Both { outbound, inbound: Guarded::none() });
        Self(Arc::new(Inner { policies, named, ..Inner::default() }))
    }

    /// The policy for events of the component on their way to the app.
    #[must_use]
    pub fn inbound(&self) -> Guarded {
        self.0.policies.load().inbound.clone()
    }

    /// Puts other policies over the calls that begin from now on. Breakers go on where those
    /// of the policies before stand.
    pub fn set_policies(&self, outbound: Guarded, inbound: Guarded) {
        let before = self.0.policies.load_full();
        let (outbound, inbound) = (outbound.after(&before.outbound), inbound.after(&before.inbound));
        self.0.policies.store(Arc::new(Both { outbound, inbound }));
    }

    /// Runs one component call under the component's outbound policy. `idempotent` says
    /// whether an unknown outcome may be tried again.
    ///
    /// # Errors
    /// The component's error, or the policy's when it gave up.
    pub async fn run<T, F, Fut>(&self, _cx: &Cx, op: Operation, idempotent: bool, call: F) -> Result<T>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        let began = Instant::now();
        let result = self.guarded(idempotent, call).await;
        if let Some(metrics) = self.0.counted.get().get(op as usize) {
            metrics.record(result.is_ok(), began.elapsed());
        }
        result
    }

    /// Like [`Ops::run`], for output bindings, whose operations are their own.
    ///
    /// # Errors
    /// The component's error, or the policy's when it gave up.
    pub async fn run_named<T, F, Fut>(&self, _cx: &Cx, name: &str, idempotent: bool, call: F) -> Result<T>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        let began = Instant::now();
        let result = self.guarded(idempotent, call).await;
        if let Some(metrics) = self.0.named.get().get(name) {
            metrics.record(result.is_ok(), began.elapsed());
        }
        result
    }

    async fn guarded<T, F, Fut>(&self, idempotent: bool, mut call: F) -> Result<T>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        // A copy of nothing, or of one pointer: a policy that is replaced lets this call end under it.
        let outbound = self.0.policies.load().outbound.clone();
        outbound.run("", CallClass { idempotent }, |_| call()).await.map_err(Error::from)
    }
}
