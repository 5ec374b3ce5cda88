//! Handles grouped by what reports them, so that callers name things and not
//! label positions.

use std::time::Duration;

use super::{Counter, Gauge, Histogram, Metric, Metrics, PathSide};

/// A component latency below this is noise of the scheduler and is not recorded.
const LATENCY_FLOOR: Duration = Duration::from_millis(1);

/// Building blocks whose metrics have component, operation and success.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OpBlock {
    /// `component/state/*`
    State,
    /// `component/secret/*`
    Secret,
    /// `component/configuration/*`
    Configuration,
    /// `component/output_binding/*`
    OutputBinding,
}

/// Counts and latencies of one operation of one component, by success.
#[derive(Clone, Debug, Default)]
pub struct OpMetrics {
    /// Index 1 is success.
    count: [Counter; 2],
    latency: [Histogram; 2],
    /// Messages in a bulk call; only some operations have it.
    events: Option<[Counter; 2]>,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProcessStatus {
    /// Acknowledged.
    Success,
    /// To be delivered again.
    Retry,
    /// Given up.
    Drop,
}

/// Counts and latencies of messages of one topic.
#[derive(Clone, Debug, Default)]
pub struct IngressMetrics {
    count: [Counter; 3],
    latency: [Histogram; 3],
}

/// Counts and latencies of bulk deliveries of one topic.
#[derive(Clone, Debug, Default)]
pub struct BulkIngressMetrics {
    count: Counter,
    latency: Histogram,
    events: [Counter; 3],
}

/// One HTTP exchange, on either side.
#[derive(Clone, Copy, Debug)]
pub struct HttpExchange<'a> {
    /// Request method.
    pub method: &'a str,
    /// Path without query, as received or sent.
    pub path: &'a str,
    /// Status of the answer; 0 when there was none.
    pub status: u16,
    /// Request body.
    pub request_bytes: u64,
    /// Response body.
    pub response_bytes: u64,
    /// Until the last byte of the answer.
    pub elapsed: Duration,
}

/// One RPC, on either side.
#[derive(Clone, Copy, Debug)]
pub struct RpcExchange<'a> {
    /// Full method, `/package.Service/Method`.
    pub method: &'a str,
    /// Name of the gRPC code as Go spells it: `OK`, `NotFound`.
    pub status: &'a str,
    /// Bytes of the request messages.
    pub request_bytes: u64,
    /// Bytes of the response messages.
    pub response_bytes: u64,
    /// Until the status.
    pub elapsed: Duration,
}

/// Which way a resiliency policy guards.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FlowDirection {
    /// To the app.
    Inbound,
    /// From the app.
    Outbound,
}

/// The kinds of resiliency policy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PolicyKind {
    /// `retry`
    Retry,
    /// `timeout`
    Timeout,
    /// `circuitbreaker`
    CircuitBreaker,
}

/// State of a circuit breaker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CircuitState {
    /// Calls pass.
    Closed,
    /// A few trial calls pass.
    HalfOpen,
    /// Calls fail at once.
    Open,
    /// Not known yet.
    Unknown,
}

/// Counts of one policy on one target. For breakers the handles depend on the
/// state, for the others the `status` label is empty.
#[derive(Clone, Debug, Default)]
pub struct PolicyMetrics {
    count: [Counter; 4],
    activations: [Counter; 4],
    state: Option<[Gauge; 4]>,
}

impl OpMetrics {
    /// Records one call.
    pub fn record(&self, success: bool, elapsed: Duration) {
        let at = usize::from(success);
        self.count[at].inc();
        if elapsed >= LATENCY_FLOOR {
            self.latency[at].record_ms(elapsed);
        }
    }

    /// Records one bulk call that carried `events` messages.
    pub fn record_bulk(&self, success: bool, events: u64, elapsed: Duration) {
        self.record(success, elapsed);
        if let Some(counters) = &self.events {
            counters[usize::from(success)].add(events);
        }
    }
}

impl ProcessStatus {
    const ALL: [ProcessStatus; 3] = [ProcessStatus::Success, ProcessStatus::Retry, ProcessStatus::Drop];

    const fn lower(self) -> &'static str {
        match self {
            ProcessStatus::Success => "success",
            ProcessStatus::Retry => "retry",
            ProcessStatus::Drop => "drop",
        }
    }

    const fn upper(self) -> &'static str {
        match self {
            ProcessStatus::Success => "SUCCESS",
            ProcessStatus::Retry => "RETRY",
            ProcessStatus::Drop => "DROP",
        }
    }
}

impl IngressMetrics {
    /// Records one message.
    pub fn record(&self, process: ProcessStatus, elapsed: Duration) {
        self.count[process as usize].inc();
        if elapsed >= LATENCY_FLOOR {
            self.latency[process as usize].record_ms(elapsed);
        }
    }
}

impl BulkIngressMetrics {
    /// Records one delivery of several messages.
    pub fn delivered(&self, elapsed: Duration) {
        self.count.inc();
        if elapsed >= LATENCY_FLOOR {
            self.latency.record_ms(elapsed);
        }
    }

    /// Counts messages of a delivery by what became of them.
    pub fn events(&self, process: ProcessStatus, n: u64) {
        self.events[process as usize].add(n);
    }
}

impl CircuitState {
    const ALL: [CircuitState; 4] =
        [CircuitState::Closed, CircuitState::HalfOpen, CircuitState::Open, CircuitState::Unknown];

    const fn label(self) -> &'static str {
        match self {
            CircuitState::Closed => "closed",
            CircuitState::HalfOpen => "half-open",
            CircuitState::Open => "open",
            CircuitState::Unknown => "unknown",
        }
    }
}

impl PolicyMetrics {
    /// The policy guarded a call. `state` matters for breakers only.
    pub fn executed(&self, state: CircuitState) {
        self.count[state as usize].inc();
    }

    /// The policy had to act: a retry, a timeout, a breaker that opened or
    /// refused.
    pub fn activated(&self, state: CircuitState) {
        self.activations[state as usize].inc();
    }

    /// The breaker is in `state` now.
    pub fn breaker_state(&self, state: CircuitState) {
        if let Some(gauges) = &self.state {
            for each in CircuitState::ALL {
                gauges[each as usize].set(if each == state { 1.0 } else { 0.0 });
            }
        }
    }
}

impl Metrics {
    /// Handles for one operation of one component. Operations are `get`,
    /// `set`, `delete`, `bulk_get`, `bulk_delete`, `transaction`, `query`,
    /// `subscribe`, `unsubscribe`, or the binding's own.
    pub fn operation(&self, block: OpBlock, component: &str, operation: &str) -> OpMetrics {
        let now = self.now.load();
        let (count, latency) = match block {
            OpBlock::State => (Metric::StateCount, Metric::StateLatencies),
            OpBlock::Secret => (Metric::SecretCount, Metric::SecretLatencies),
            OpBlock::Configuration => (Metric::ConfigurationCount, Metric::ConfigurationLatencies),
            OpBlock::OutputBinding => (Metric::OutputBindingCount, Metric::OutputBindingLatencies),
        };
        let labels = |success| [component, &*self.namespace, operation, success];
        OpMetrics {
            count: SUCCESS.map(|success| now.counter(count, &labels(success))),
            latency: SUCCESS.map(|success| now.histogram(latency, &labels(success))),
            events: None,
        }
    }

    /// Handles for events of one input binding.
    pub fn input_binding(&self, component: &str) -> OpMetrics {
        let now = self.now.load();
        let labels = |success| [component, &*self.namespace, success];
        OpMetrics {
            count: SUCCESS.map(|success| now.counter(Metric::InputBindingCount, &labels(success))),
            latency: SUCCESS.map(|success| now.histogram(Metric::InputBindingLatencies, &labels(success))),
            events: None,
        }
    }

    /// Handles for publishing to one topic.
    pub fn publish(&self, component: &str, topic: &str) -> OpMetrics {
        let now = self.now.load();
        let labels = |success| [component, &*self.namespace, success, topic];
        OpMetrics {
            count: SUCCESS.map(|success| now.counter(Metric::PubsubEgressCount, &labels(success))),
            latency: SUCCESS.map(|success| now.histogram(Metric::PubsubEgressLatencies, &labels(success))),
            events: None,
        }
    }

    /// Handles for bulk publishing to one topic.
    pub fn bulk_publish(&self, component: &str, topic: &str) -> OpMetrics {
        let now = self.now.load();
        let labels = |success| [component, &*self.namespace, success, topic];
        OpMetrics {
            count: SUCCESS.map(|success| now.counter(Metric::PubsubEgressBulkCount, &labels(success))),
            latency: SUCCESS.map(|success| now.histogram(Metric::PubsubEgressBulkLatencies, &labels(success))),
            events: Some(SUCCESS.map(|success| now.counter(Metric::PubsubEgressBulkEventCount, &labels(success)))),
        }
    }

    /// Handles for messages of one subscribed topic. `status` is the label of
    /// that name; empty unless a caller has something to say there.
    pub fn ingress(&self, component: &str, topic: &str, status: &str) -> IngressMetrics {
        let now = self.now.load();
        let labels = |process: ProcessStatus| [component, &*self.namespace, process.lower(), status, topic];
        IngressMetrics {
            count: ProcessStatus::ALL.map(|process| now.counter(Metric::PubsubIngressCount, &labels(process))),
            latency: ProcessStatus::ALL.map(|process| now.histogram(Metric::PubsubIngressLatencies, &labels(process))),
        }
    }

    /// Handles for bulk deliveries of one subscribed topic.
    pub fn bulk_ingress(&self, component: &str, topic: &str) -> BulkIngressMetrics {
        let now = self.now.load();
        let labels = |process| [component, &*self.namespace, process, topic];
        BulkIngressMetrics {
            count: now.counter(Metric::PubsubIngressBulkCount, &labels("")),
            latency: now.histogram(Metric::PubsubIngressBulkLatencies, &labels("")),
            events: ProcessStatus::ALL
                .map(|process| now.counter(Metric::PubsubIngressBulkEventCount, &labels(process.upper()))),
        }
    }

    /// Handles for one resiliency policy. `name` is the document's, `target`
    /// is `app_<id>`, `actor_<type>` or `<Type>_<component>`.
    pub fn policy(&self, name: &str, kind: PolicyKind, flow: FlowDirection, target: &str) -> PolicyMetrics {
        let now = self.now.load();
        let flow = match flow {
            FlowDirection::Inbound => "inbound",
            FlowDirection::Outbound => "outbound",
        };
        let policy = match kind {
            PolicyKind::Retry => "retry",
            PolicyKind::Timeout => "timeout",
            PolicyKind::CircuitBreaker => "circuitbreaker",
        };
        let breaker = kind == PolicyKind::CircuitBreaker;
        let status = |state: CircuitState| if breaker { state.label() } else { "" };
        let labels = |state| [flow, name, &*self.namespace, policy, status(state), target];
        let count = |metric| CircuitState::ALL.map(|state| now.counter(metric, &labels(state)));
        PolicyMetrics {
            count: count(Metric::ResiliencyCount),
            activations: count(Metric::ResiliencyActivationsTotal),
            state: breaker.then(|| CircuitState::ALL.map(|state| now.gauge(Metric::ResiliencyCbState, &labels(state)))),
        }
    }

    /// A resiliency document was loaded.
    pub fn resiliency_loaded(&self, name: &str) {
        self.counter(Metric::ResiliencyLoaded, &[name, &self.namespace]).inc();
    }

    /// A request was answered on the HTTP API.
    pub fn http_served(&self, exchange: HttpExchange<'_>) {
        let now = self.now.load();
        if !now.enabled {
            return;
        }
        let path = now.http.path(PathSide::Api, exchange.path);
        let status = StatusText::of(exchange.status);
        let labels = [now.http.method(exchange.method), &*path, status.as_str()];
        now.counter(Metric::HttpServerRequestCount, &labels).inc();
        if now.http.increased_cardinality() {
            now.counter(Metric::HttpServerResponseCount, &labels).inc();
        }
        now.histogram(Metric::HttpServerLatency, &labels).record_ms(exchange.elapsed);
        now.histogram(Metric::HttpServerRequestBytes, &[]).record(exchange.request_bytes as f64);
        now.histogram(Metric::HttpServerResponseBytes, &[]).record(exchange.response_bytes as f64);
    }

    /// The app answered an HTTP call, health probes excepted.
    pub fn http_called(&self, exchange: HttpExchange<'_>) {
        let now = self.now.load();
        if !now.enabled {
            return;
        }
        let path = now.http.path(PathSide::App, exchange.path);
        let status = StatusText::of(exchange.status);
        let labels = [now.http.method(exchange.method), &*path, status.as_str()];
        now.counter(Metric::HttpClientCompletedCount, &labels).inc();
        now.histogram(Metric::HttpClientRoundtripLatency, &labels).record_ms(exchange.elapsed);
        now.histogram(Metric::HttpClientSentBytes, &labels).record(exchange.request_bytes as f64);
        now.histogram(Metric::HttpClientReceivedBytes, &[]).record(exchange.response_bytes as f64);
    }

    /// An HTTP health probe of the app ended; status 0 when there was no answer.
    pub fn http_probed(&self, status: u16, elapsed: Duration) {
        let now = self.now.load();
        let status = StatusText::of(status);
        now.counter(Metric::HttpHealthprobesCompletedCount, &[status.as_str()]).inc();
        now.histogram(Metric::HttpHealthprobesRoundtripLatency, &[status.as_str()]).record_ms(elapsed);
    }

    /// An RPC was served.
    pub fn grpc_served(&self, rpc: RpcExchange<'_>) {
        let now = self.now.load();
        now.histogram(Metric::GrpcServerReceivedBytes, &[rpc.method]).record(rpc.request_bytes as f64);
        now.histogram(Metric::GrpcServerSentBytes, &[rpc.method]).record(rpc.response_bytes as f64);
        now.histogram(Metric::GrpcServerLatency, &[rpc.method, rpc.status]).record_ms(rpc.elapsed);
        now.counter(Metric::GrpcServerCompletedRpcs, &[rpc.method, rpc.status]).inc();
    }

    /// An outgoing RPC ended.
    pub fn grpc_called(&self, rpc: RpcExchange<'_>) {
        let now = self.now.load();
        now.histogram(Metric::GrpcClientSentBytes, &[rpc.method]).record(rpc.request_bytes as f64);
        now.histogram(Metric::GrpcClientReceivedBytes, &[rpc.method]).record(rpc.response_bytes as f64);
        now.histogram(Metric::GrpcClientRoundtripLatency, &[rpc.method, rpc.status]).record_ms(rpc.elapsed);
        now.counter(Metric::GrpcClientCompletedRpcs, &[rpc.method, rpc.status]).inc();
    }

    /// A gRPC health probe of the app ended.
    pub fn grpc_probed(&self, status: &str, elapsed: Duration) {
        let now = self.now.load();
        now.counter(Metric::GrpcHealthprobesCompletedCount, &[status]).inc();
        now.histogram(Metric::GrpcHealthprobesRoundtripLatency, &[status]).record_ms(elapsed);
    }

    /// This process serves in the place of another, `elapsed` after its first word to it.
    pub fn took_over(&self, elapsed: Duration) {
        self.counter(Metric::HandoverTotal, &["takenOver"]).inc();
        self.histogram(Metric::HandoverLatencies, &["serving"]).record_ms(elapsed);
    }

    /// The subscriptions and input bindings of the process before were at rest, `elapsed` after the first word to it.
    pub fn took_over_inputs(&self, elapsed: Duration) {
        self.histogram(Metric::HandoverLatencies, &["settled"]).record_ms(elapsed);
    }

    /// A successor did not take over.
    pub fn hand_over_failed(&self) {
        self.counter(Metric::HandoverTotal, &["failed"]).inc();
    }

    /// A component was loaded from a document.
    pub fn component_loaded(&self) {
        self.counter(Metric::ComponentLoaded, &[]).inc();
    }

    /// A component of this type was initialised.
    pub fn component_initialised(&self, kind: &str) {
        self.counter(Metric::ComponentInitTotal, &[kind]).inc();
    }

    /// A component failed; `reason` is a word such as `creation` or `init`.
    pub fn component_failed(&self, kind: &str, name: &str, reason: &str) {
        self.counter(Metric::ComponentInitFailTotal, &[kind, name, reason]).inc();
    }

    /// An invocation request left for `dst`; `streaming` as sent on the peer protocol.
    pub fn invocation_request_sent(&self, dst: &str, streaming: bool) {
        self.counter(Metric::InvocationReqSentTotal, &[dst, transfer(streaming)]).inc();
    }

    /// An invocation request of `src` came in.
    pub fn invocation_request_received(&self, src: &str) {
        self.counter(Metric::InvocationReqRecvTotal, &[src]).inc();
    }

    /// An invocation answer went to `dst`.
    pub fn invocation_response_sent(&self, dst: &str, status: i32) {
        self.counter(Metric::InvocationResSentTotal, &[dst, &status.to_string()]).inc();
    }

    /// An invocation answer of `src` came in.
    pub fn invocation_response_received(&self, src: &str, status: i32, streaming: bool, elapsed: Duration) {
        let now = self.now.load();
        let status = status.to_string();
        now.counter(Metric::InvocationResRecvTotal, &[src, &status, transfer(streaming)]).inc();
        now.histogram(Metric::InvocationResRecvLatencyMs, &[src, &status]).record_ms(elapsed);
    }

    /// An error was answered. Does nothing unless the Configuration asks for it.
    pub fn error_code(&self, category: &str, code: &str) {
        let now = self.now.load();
        if now.record_error_codes {
            now.counter(Metric::ErrorCodeTotal, &[category, code]).inc();
        }
    }
}

/// Index equals `usize::from(success)`.
const SUCCESS: [&str; 2] = ["false", "true"];

const fn transfer(streaming: bool) -> &'static str {
    if streaming { "streaming" } else { "unary" }
}

/// A status code as text, without an allocation.
struct StatusText([u8; 5], u8);

impl StatusText {
    fn of(mut status: u16) -> Self {
        let mut digits = [0; 5];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (status % 10) as u8;
            status /= 10;
            if status == 0 {
                return Self(digits, at as u8);
            }
        }
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0[usize::from(self.1)..]).unwrap_or_default()
    }
}
