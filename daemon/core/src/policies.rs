//! From Resiliency documents to the policies that stand over calls.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use mecha_resiliency::{
    Backoff, BreakerGroup, BreakerSpec, CallClass, Change, CodeSet, Failure, Guard, Observe, Policy, PolicyKind, Retry,
    RunError, State, Trip, built_in,
};
use mecha_resources::{AppTarget, BreakerPolicy, ComponentTarget, PolicyNames, Resiliency, RetryPolicy, RetryShape};
use parking_lot::Mutex;

use crate::metrics::{CircuitState, FlowDirection, Following, Metrics, PolicyKind as Kind, PolicyMetrics};

/// Growth limit of an exponential retry where the document gives none.
const DEFAULT_MAX_INTERVAL: Duration = Duration::from_secs(60);
/// Pause of a constant retry where the document gives none.
const DEFAULT_PAUSE: Duration = Duration::from_secs(5);
/// Built-in policies that documents redefine keep at least this many retries.
const MIN_BUILT_IN_RETRIES: u32 = 3;

/// Levels of the defaults for apps, the most specific first; components have their own.
const APP_LEVELS: [&str; 2] = ["App", ""];
/// Kinds of policy in the names of defaults.
const TIMEOUT: &str = "Timeout";
const RETRY: &str = "Retry";
const BREAKER: &str = "CircuitBreaker";

/// A policy with its metrics. Without a policy, running through it costs nothing.
#[derive(Clone, Debug, Default)]
pub struct Guarded {
    inner: Option<Arc<Inner>>,
}

#[derive(Debug)]
struct Inner {
    policy: Policy,
    metrics: Observer,
}

#[derive(Clone, Debug, Default)]
struct Observer {
    timeout: Following<PolicyMetrics>,
    retry: Following<PolicyMetrics>,
    breaker: Following<PolicyMetrics>,
    target: Box<str>,
}

impl Guarded {
    /// No policy at all.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Whether it does nothing.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.inner.is_none()
    }

    /// The same policy, whose breakers go on where those of `before` stand.
    #[must_use]
    pub fn after(self, before: &Self) -> Self {
        let (Some(inner), Some(before)) = (&self.inner, &before.inner) else { return self };
        let guard = inner.policy.guard_after(&before.policy);
        match guard {
            None => self,
            Some(guard) => {
                let policy = inner.policy.guarded_by(guard);
                Self { inner: Some(Arc::new(Inner { policy, metrics: inner.metrics.clone() })) }
            }
        }
    }

    /// Whether a failed call may be sent again, so that its body has to be kept.
    #[must_use]
    pub fn may_retry(&self) -> bool {
        self.inner.as_ref().is_some_and(|i| i.policy.may_retry())
    }

    /// Makes a call under the policy; `key` picks the breaker where there is one for each.
    ///
    /// # Errors
    /// The last attempt's error, or the policy's.
    pub async fn run<T, E, F, A>(&self, key: &str, class: CallClass, mut attempt: A) -> Result<T, RunError<E>>
    where
        E: Failure,
        F: Future<Output = Result<T, E>>,
        A: FnMut(u32) -> F,
    {
        match &self.inner {
            None => attempt(0).await.map_err(RunError::Failed),
            Some(inner) => inner.policy.run_keyed(key, class, &inner.metrics, attempt).await,
        }
    }
}

fn circuit(state: State) -> CircuitState {
    match state {
        State::Closed => CircuitState::Closed,
        State::HalfOpen => CircuitState::HalfOpen,
        State::Open => CircuitState::Open,
    }
}

impl Observe for Observer {
    fn applied(&self, kind: PolicyKind, state: Option<State>) {
        let state = state.map_or(CircuitState::Unknown, circuit);
        match kind {
            PolicyKind::Timeout => self.timeout.get().executed(state),
            PolicyKind::Retry => self.retry.get().executed(state),
            PolicyKind::CircuitBreaker => self.breaker.get().executed(state),
        }
    }

    fn timed_out(&self, after: Duration) {
        self.timeout.get().activated(CircuitState::Unknown);
        tracing::debug!(target: "dapr.runtime", "a call to {} was cut off after {after:?}", self.target);
    }

    fn retrying(&self, retry: u32, pause: Duration) {
        // One activation per call, as the incumbent counts.
        if retry == 1 {
            self.retry.get().activated(CircuitState::Unknown);
        }
        tracing::warn!(
            target: "dapr.runtime",
            "Error processing operation {}. Retrying in {pause:?}…", self.target
        );
    }

    fn recovered(&self, retries: u32) {
        tracing::info!(
            target: "dapr.runtime",
            "Recovered processing operation {} after {retries} attempts", self.target
        );
    }

    fn breaker_changed(&self, change: Change) {
        let state = circuit(change.to);
        if state == CircuitState::Open {
            self.breaker.get().activated(state);
        }
        self.breaker.get().breaker_state(state);
        tracing::warn!(
            target: "dapr.runtime",
            "Circuit breaker of {} changed from {} to {}", self.target, change.from.as_str(), change.to.as_str()
        );
    }
}

/// Component type as default policies and metric targets spell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum ComponentKind {
    Statestore,
    Pubsub,
    Binding,
    Secretstore,
    Configuration,
    Lock,
    Crypto,
}

impl ComponentKind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Statestore => "Statestore",
            Self::Pubsub => "Pubsub",
            Self::Binding => "Binding",
            Self::Secretstore => "Secretstore",
            Self::Configuration => "Configuration",
            Self::Lock => "Lock",
            Self::Crypto => "Crypto",
        }
    }
}

#[derive(Debug, Default)]
struct Named {
    /// Name of the document, for metrics.
    timeouts: BTreeMap<String, (Arc<str>, Duration)>,
    retries: BTreeMap<String, (Arc<str>, Retry)>,
    breakers: BTreeMap<String, (Arc<str>, BreakerSpec)>,
    apps: BTreeMap<String, AppTarget>,
    components: BTreeMap<String, ComponentTarget>,
}

impl Named {
    fn has_defaults(&self, levels: &[&str]) -> bool {
        levels.iter().any(|level| {
            self.timeouts.contains_key(&default_name(level, TIMEOUT))
                || self.retries.contains_key(&default_name(level, RETRY))
                || self.breakers.contains_key(&default_name(level, BREAKER))
        })
    }
}

fn default_name(level: &str, suffix: &str) -> String {
    format!("Default{level}{suffix}Policy")
}

/// All policies of this sidecar.
#[derive(Debug)]
pub struct Policies {
    named: Named,
    /// Whether a default stands over calls to apps that no document names.
    app_defaults: bool,
    metrics: Arc<Metrics>,
    /// Made on first use, so that breaker state is shared by all calls to one app.
    apps: Mutex<BTreeMap<String, Guarded>>,
}

impl Policies {
    /// Compiles documents; later ones win by name. Mistakes are returned beside it, each a sentence;
    /// the policy they concern is left out.
    #[must_use]
    pub fn compile(documents: &[Resiliency], metrics: Arc<Metrics>) -> (Self, Vec<String>) {
        let mut named = Named::default();
        let mut mistakes = Vec::new();
        for doc in documents {
            let name: Arc<str> = doc.meta.name.as_str().into();
            for (policy, limit) in &doc.timeouts {
                named.timeouts.insert(policy.clone(), (name.clone(), *limit));
            }
            for (policy, spec) in &doc.retries {
                named.retries.insert(policy.clone(), (name.clone(), retry(policy, spec)));
            }
            for (policy, spec) in &doc.circuit_breakers {
                match breaker(policy, spec) {
                    Ok(spec) => {
                        named.breakers.insert(policy.clone(), (name.clone(), spec));
                    }
                    Err(e) => mistakes.push(format!("resiliency {name}: circuit breaker {policy}: {e}")),
                }
            }
            named.apps.extend(doc.targets.apps.clone());
            named.components.extend(doc.targets.components.clone());
            metrics.resiliency_loaded(&name);
        }
        let app_defaults = named.has_defaults(&APP_LEVELS);
        (Self { named, app_defaults, metrics, apps: Mutex::default() }, mistakes)
    }

    /// Lets the breakers over calls to apps go on where those of `before` stand.
    pub fn continue_apps(&self, before: &Self) {
        let known: Vec<(String, Guarded)> = before.apps.lock().iter().map(|(id, g)| (id.clone(), g.clone())).collect();
        for (id, old) in known {
            let new = self.app(&id).after(&old);
            if let Some(slot) = self.apps.lock().get_mut(&id) {
                *slot = new;
            }
        }
    }

    /// Calls to a component.
    #[must_use]
    pub fn outbound(&self, kind: ComponentKind, component: &str) -> Guarded {
        let names = self.named.components.get(component).map(|t| &t.outbound);
        self.component(kind, component, names, FlowDirection::Outbound)
    }

    /// Events of a component on their way to the app.
    #[must_use]
    pub fn inbound(&self, kind: ComponentKind, component: &str) -> Guarded {
        let names = self.named.components.get(component).map(|t| &t.inbound);
        self.component(kind, component, names, FlowDirection::Inbound)
    }

    fn component(
        &self,
        kind: ComponentKind,
        component: &str,
        names: Option<&PolicyNames>,
        flow: FlowDirection,
    ) -> Guarded {
        let direction = if flow == FlowDirection::Inbound { "Inbound" } else { "Outbound" };
        let of_kind = format!("{}Component{direction}", kind.as_str());
        let of_all = format!("Component{direction}");
        let target = format!("{}_{component}", kind.as_str());
        self.guard(&target, flow, names, &[&of_kind, &of_all, "Component", ""], None)
    }

    /// Calls to another app; breakers are kept per method.
    #[must_use]
    pub fn app(&self, id: &str) -> Guarded {
        // The usual case, and on the path of every invocation.
        if !self.app_defaults && !self.names_app(id) {
            return Guarded::none();
        }
        if let Some(known) = self.apps.lock().get(id) {
            return known.clone();
        }
        let target = self.named.apps.get(id);
        let capacity =
            target.and_then(|t| t.circuit_breaker_cache_size).map_or(BreakerGroup::APP_CAPACITY, |n| n as usize);
        let names = target.map(|t| &t.policies);
        let target = format!("app_{id}");
        let guarded = self.guard(&target, FlowDirection::Outbound, names, &APP_LEVELS, Some(capacity));
        let mut apps = self.apps.lock();
        // Ids come from callers, so the map must not grow with their typing mistakes.
        if self.named.apps.contains_key(id) || (!guarded.is_none() && apps.len() < 10_000) {
            apps.insert(id.to_owned(), guarded.clone());
        }
        guarded
    }

    /// Whether a document names the app as a target; defaults alone do not.
    #[must_use]
    pub fn names_app(&self, id: &str) -> bool {
        self.named.apps.contains_key(id)
    }

    /// A built-in retry policy, or what a document made of it.
    #[must_use]
    pub fn built_in(&self, name: &str) -> Option<Retry> {
        match self.named.retries.get(name) {
            Some((_, own)) => Some(own.clone().with_at_least(MIN_BUILT_IN_RETRIES)),
            None => built_in(name),
        }
    }

    /// A target's own policies, or the most specific default of each kind.
    fn guard(
        &self,
        target: &str,
        flow: FlowDirection,
        names: Option<&PolicyNames>,
        levels: &[&str],
        breakers: Option<usize>,
    ) -> Guarded {
        let n = &self.named;
        let pick = |own: Option<&str>, suffix: &str, known: &dyn Fn(&str) -> bool| -> Option<String> {
            match own {
                Some(name) => (!name.is_empty() && known(name)).then(|| name.to_owned()),
                None => levels.iter().map(|l| default_name(l, suffix)).find(|name| known(name)),
            }
        };
        let timeout = pick(names.map(|n| n.timeout.as_str()), TIMEOUT, &|k| n.timeouts.contains_key(k));
        let retry = pick(names.map(|n| n.retry.as_str()), RETRY, &|k| n.retries.contains_key(k));
        let breaker = pick(names.map(|n| n.circuit_breaker.as_str()), BREAKER, &|k| n.breakers.contains_key(k));
        let timeout = timeout.and_then(|name| n.timeouts.get(&name));
        let retry = retry.and_then(|name| n.retries.get(&name));
        let breaker = breaker.and_then(|name| n.breakers.get(&name));
        let guard = match (breaker, breakers) {
            (None, _) => Guard::None,
            (Some((_, spec)), Some(capacity)) => Guard::Each(Arc::new(BreakerGroup::new(spec.clone(), capacity))),
            (Some((_, spec)), None) => {
                let now = tokio::time::Instant::now();
                Guard::One(Arc::new(mecha_resiliency::Breaker::new(spec.clone(), now)))
            }
        };
        let policy = Policy::with_guard(target, timeout.map(|t| t.1), retry.map(|r| r.1.clone()), guard);
        if policy.is_empty() {
            return Guarded::none();
        }
        let handles = |doc: Option<&Arc<str>>, kind| match doc {
            Some(doc) => {
                let (doc, target) = (doc.clone(), target.to_owned());
                self.metrics.follow(move |m| m.policy(&doc, kind, flow, &target))
            }
            None => Following::default(),
        };
        let metrics = Observer {
            timeout: handles(timeout.map(|t| &t.0), Kind::Timeout),
            retry: handles(retry.map(|r| &r.0), Kind::Retry),
            breaker: handles(breaker.map(|b| &b.0), Kind::CircuitBreaker),
            target: target.into(),
        };
        Guarded { inner: Some(Arc::new(Inner { policy, metrics })) }
    }
}

fn retry(name: &str, spec: &RetryPolicy) -> Retry {
    let backoff = match spec.policy {
        RetryShape::Constant => Backoff::Constant { pause: spec.duration.unwrap_or(DEFAULT_PAUSE) },
        RetryShape::Exponential => Backoff::exponential(spec.max_interval.unwrap_or(DEFAULT_MAX_INTERVAL)),
    };
    let codes =
        |list: &Option<mecha_resources::CodeList>| list.as_ref().map(|l| CodeSet::new(l.ranges().iter().copied()));
    let retry = Retry {
        backoff,
        max_retries: spec.max_retries.and_then(|n| u32::try_from(n).ok()),
        http: codes(&spec.http_status_codes),
        grpc: codes(&spec.grpc_status_codes),
    };
    if built_in(name).is_some() { retry.with_at_least(MIN_BUILT_IN_RETRIES) } else { retry }
}

fn breaker(name: &str, spec: &BreakerPolicy) -> Result<BreakerSpec, String> {
    let mut out = BreakerSpec::new(name);
    if let Some(n) = spec.max_requests.filter(|n| *n > 0) {
        out.max_requests = n;
    }
    if let Some(interval) = spec.interval {
        out.interval = interval;
    }
    if let Some(timeout) = spec.timeout.filter(|t| !t.is_zero()) {
        out.timeout = timeout;
    }
    if let Some(trip) = spec.trip.as_deref().filter(|t| !t.is_empty()) {
        out.trip = Trip::parse(trip).map_err(|e| e.to_string())?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mecha_components_api::{Error, Result};

    fn policies(yaml: &str) -> Policies {
        let mut loaded = mecha_resources::Loaded::default();
        loaded.read_text("test.yaml", yaml);
        let docs: Vec<_> = loaded.resiliencies.into_iter().map(|d| d.value).collect();
        assert_eq!(docs.len(), 1, "{:?}", loaded.diagnostics);
        Policies::compile(&docs, Arc::new(Metrics::disabled())).0
    }

    const DOC: &str = "
apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: {name: r}
spec:
  policies:
    retries:
      three: {policy: constant, duration: 1ms, maxRetries: 3}
      DefaultStatestoreComponentOutboundRetryPolicy: {policy: constant, duration: 1ms, maxRetries: 1}
      DefaultRetryPolicy: {policy: constant, duration: 1ms, maxRetries: 2}
  targets:
    components:
      mine: {outbound: {retry: three}}
";

    async fn calls(guarded: &Guarded) -> u32 {
        let mut n = 0;
        let _: Result<(), _> = guarded
            .run("", CallClass::IDEMPOTENT, |_| {
                n += 1;
                std::future::ready(Err::<(), _>(Error::unavailable("down")))
            })
            .await
            .map_err(Error::from);
        n
    }

    #[tokio::test(start_paused = true)]
    async fn own_policies_win_then_the_most_specific_default() {
        let p = policies(DOC);
        assert_eq!(calls(&p.outbound(ComponentKind::Statestore, "mine")).await, 4);
        assert_eq!(calls(&p.outbound(ComponentKind::Statestore, "other")).await, 2);
        assert_eq!(calls(&p.outbound(ComponentKind::Pubsub, "other")).await, 3);
        assert_eq!(calls(&p.app("shop")).await, 3);
        // A target with own policies takes no default for the direction it leaves out.
        assert_eq!(calls(&p.inbound(ComponentKind::Statestore, "mine")).await, 1);
    }

    #[tokio::test]
    async fn without_documents_nothing_stands_over_a_call() {
        let (p, mistakes) = Policies::compile(&[], Arc::new(Metrics::disabled()));
        assert!(mistakes.is_empty());
        assert!(p.outbound(ComponentKind::Statestore, "x").is_none() && p.app("y").is_none());
    }
}
