//! The closed list of metric names, kinds and label sets.

/// How a series behaves and what unit its values have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Only grows; counts records.
    Counter,
    /// Last value wins.
    Gauge,
    /// Distribution over fixed bounds.
    Histogram(Scale),
}

/// The bucket bounds a histogram uses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scale {
    /// Milliseconds; replaced by the Configuration's `latencyDistributionBuckets`.
    LatencyMs,
    /// Bytes.
    Bytes,
}

/// What the text format says about one metric.
#[derive(Clone, Copy, Debug)]
pub struct Desc {
    /// Slash-separated view name; `component/state/count` is scraped as
    /// `dapr_component_state_count`. Our own start with `mecha/` and keep that prefix.
    pub path: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// Labels besides `app_id`, sorted by name.
    pub labels: &'static [&'static str],
    /// One line for `# HELP`.
    pub help: &'static str,
}

impl Desc {
    /// The name as scraped.
    pub fn scraped_name(&self) -> String {
        let plain = self.path.replace(['/', '.'], "_");
        if plain.starts_with("mecha_") { plain } else { format!("dapr_{plain}") }
    }
}

const LATENCY: Kind = Kind::Histogram(Scale::LatencyMs);
const BYTES: Kind = Kind::Histogram(Scale::Bytes);
const COUNTER: Kind = Kind::Counter;
const GAUGE: Kind = Kind::Gauge;

const INGRESS: &[&str] = &["component", "namespace", "process_status", "status", "topic"];
const BULK_INGRESS: &[&str] = &["component", "namespace", "process_status", "topic"];
const EGRESS: &[&str] = &["component", "namespace", "success", "topic"];
const INPUT: &[&str] = &["component", "namespace", "success"];
const OPERATION: &[&str] = &["component", "namespace", "operation", "success"];
const HTTP: &[&str] = &["method", "path", "status"];
const RESILIENCY: &[&str] = &["flow_direction", "name", "namespace", "policy", "status", "target"];

macro_rules! metrics {
    ($($variant:ident $path:literal $kind:ident $labels:expr, $help:literal;)+) => {
        /// Every metric the daemon can report.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        #[repr(usize)]
        pub enum Metric {
            $(#[doc = concat!("`", $path, "`: ", $help)] $variant,)+
        }

        impl Metric {
            /// All metrics, in declaration order.
            pub const ALL: &'static [Metric] = &[$(Metric::$variant,)+];

            /// Name, kind, labels and help text.
            pub const fn desc(self) -> Desc {
                match self {
                    $(Metric::$variant => Desc { path: $path, kind: $kind, labels: $labels, help: $help },)+
                }
            }
        }
    };
}

metrics! {
    PubsubIngressCount "component/pubsub_ingress/count" COUNTER INGRESS, "Messages that came from a pub/sub component.";
    PubsubIngressLatencies "component/pubsub_ingress/latencies" LATENCY INGRESS, "Time the app took for a message, ms.";
    PubsubIngressBulkCount "component/pubsub_ingress/bulk/count" COUNTER BULK_INGRESS, "Bulk deliveries to the app.";
    PubsubIngressBulkEventCount "component/pubsub_ingress/bulk/event_count" COUNTER BULK_INGRESS, "Messages inside bulk deliveries.";
    PubsubIngressBulkLatencies "component/pubsub_ingress/bulk/latencies" LATENCY BULK_INGRESS, "Time the app took for a bulk delivery, ms.";
    PubsubEgressCount "component/pubsub_egress/count" COUNTER EGRESS, "Messages published.";
    PubsubEgressLatencies "component/pubsub_egress/latencies" LATENCY EGRESS, "Time until the broker confirmed, ms.";
    PubsubEgressBulkCount "component/pubsub_egress/bulk/count" COUNTER EGRESS, "Bulk publish calls.";
    PubsubEgressBulkEventCount "component/pubsub_egress/bulk/event_count" COUNTER EGRESS, "Messages inside bulk publish calls.";
    PubsubEgressBulkLatencies "component/pubsub_egress/bulk/latencies" LATENCY EGRESS, "Time until the broker confirmed a bulk, ms.";
    InputBindingCount "component/input_binding/count" COUNTER INPUT, "Events an input binding gave to the app.";
    InputBindingLatencies "component/input_binding/latencies" LATENCY INPUT, "Time the app took for a binding event, ms.";
    OutputBindingCount "component/output_binding/count" COUNTER OPERATION, "Output binding calls.";
    OutputBindingLatencies "component/output_binding/latencies" LATENCY OPERATION, "Output binding latency, ms.";
    StateCount "component/state/count" COUNTER OPERATION, "State store operations.";
    StateLatencies "component/state/latencies" LATENCY OPERATION, "State store latency, ms.";
    ConfigurationCount "component/configuration/count" COUNTER OPERATION, "Configuration store operations.";
    ConfigurationLatencies "component/configuration/latencies" LATENCY OPERATION, "Configuration store latency, ms.";
    SecretCount "component/secret/count" COUNTER OPERATION, "Secret store operations.";
    SecretLatencies "component/secret/latencies" LATENCY OPERATION, "Secret store latency, ms.";

    HttpServerRequestCount "http/server/request_count" COUNTER HTTP, "Requests served on the HTTP API.";
    HttpServerResponseCount "http/server/response_count" COUNTER HTTP, "Answers given on the HTTP API.";
    HttpServerLatency "http/server/latency" LATENCY HTTP, "HTTP API latency, ms.";
    HttpServerRequestBytes "http/server/request_bytes" BYTES &[], "Request body sizes, bytes.";
    HttpServerResponseBytes "http/server/response_bytes" BYTES &[], "Response body sizes, bytes.";
    HttpClientSentBytes "http/client/sent_bytes" BYTES HTTP, "Body bytes sent to the app over HTTP.";
    HttpClientReceivedBytes "http/client/received_bytes" BYTES &[], "Body bytes received from the app over HTTP.";
    HttpClientRoundtripLatency "http/client/roundtrip_latency" LATENCY HTTP, "Time from the first byte sent to the app to the last received, ms.";
    HttpClientCompletedCount "http/client/completed_count" COUNTER HTTP, "HTTP calls to the app that ended.";
    HttpHealthprobesCompletedCount "http/healthprobes/completed_count" COUNTER &["status"], "HTTP health probes of the app.";
    HttpHealthprobesRoundtripLatency "http/healthprobes/roundtrip_latency" LATENCY &["status"], "HTTP health probe latency, ms.";

    GrpcServerReceivedBytes "grpc.io/server/received_bytes_per_rpc" BYTES &["grpc_server_method"], "Bytes received per RPC.";
    GrpcServerSentBytes "grpc.io/server/sent_bytes_per_rpc" BYTES &["grpc_server_method"], "Bytes sent per RPC.";
    GrpcServerLatency "grpc.io/server/server_latency" LATENCY &["grpc_server_method", "grpc_server_status"], "gRPC server latency, ms.";
    GrpcServerCompletedRpcs "grpc.io/server/completed_rpcs" COUNTER &["grpc_server_method", "grpc_server_status"], "RPCs served.";
    GrpcClientSentBytes "grpc.io/client/sent_bytes_per_rpc" BYTES &["grpc_client_method"], "Bytes sent per outgoing RPC.";
    GrpcClientReceivedBytes "grpc.io/client/received_bytes_per_rpc" BYTES &["grpc_client_method"], "Bytes received per outgoing RPC.";
    GrpcClientRoundtripLatency "grpc.io/client/roundtrip_latency" LATENCY &["grpc_client_method", "grpc_client_status"], "Outgoing gRPC latency, ms.";
    GrpcClientCompletedRpcs "grpc.io/client/completed_rpcs" COUNTER &["grpc_client_method", "grpc_client_status"], "Outgoing RPCs that ended.";
    GrpcHealthprobesCompletedCount "grpc.io/healthprobes/completed_count" COUNTER &["grpc_client_status"], "gRPC health probes of the app.";
    GrpcHealthprobesRoundtripLatency "grpc.io/healthprobes/roundtrip_latency" LATENCY &["grpc_client_status"], "gRPC health probe latency, ms.";

    ComponentLoaded "runtime/component/loaded" COUNTER &[], "Components loaded.";
    ComponentInitTotal "runtime/component/init_total" COUNTER &["component"], "Components initialised, by type.";
    ComponentInitFailTotal "runtime/component/init_fail_total" COUNTER &["component", "componentName", "reason"], "Components that failed to initialise.";

    MtlsInitTotal "runtime/mtls/init_total" COUNTER &[], "Starts that obtained an identity.";
    MtlsWorkloadCertRotatedTotal "runtime/mtls/workload_cert_rotated_total" COUNTER &[], "Certificates that followed the first.";
    MtlsWorkloadCertRotatedFailTotal "runtime/mtls/workload_cert_rotated_fail_total" COUNTER &["reason"], "Renewals of the certificate that failed.";

    InvocationReqSentTotal "runtime/service_invocation/req_sent_total" COUNTER &["dst_app_id", "type"], "Invocation requests sent to other apps.";
    InvocationReqRecvTotal "runtime/service_invocation/req_recv_total" COUNTER &["src_app_id"], "Invocation requests received from other apps.";
    InvocationResSentTotal "runtime/service_invocation/res_sent_total" COUNTER &["dst_app_id", "status"], "Invocation responses sent.";
    InvocationResRecvTotal "runtime/service_invocation/res_recv_total" COUNTER &["src_app_id", "status", "type"], "Invocation responses received.";
    InvocationResRecvLatencyMs "runtime/service_invocation/res_recv_latency_ms" LATENCY &["src_app_id", "status"], "Time until an invocation response came, ms.";

    ResiliencyLoaded "resiliency/loaded" COUNTER &["name", "namespace"], "Resiliency documents loaded.";
    ResiliencyCount "resiliency/count" COUNTER RESILIENCY, "Policies executed.";
    ResiliencyActivationsTotal "resiliency/activations_total" COUNTER RESILIENCY, "Policies that had to act.";
    ResiliencyCbState "resiliency/cb_state" GAUGE RESILIENCY, "1 for the state a circuit breaker is in, 0 for the others.";

    ErrorCodeTotal "error_code/total" COUNTER &["category", "error_code"], "Errors answered, by code.";

    SwapTotal "mecha/swap/total" COUNTER &["kind", "outcome"], "Changes of documents, by how they ended.";
    SwapLatencies "mecha/swap/latencies" LATENCY &["kind"], "Time from the begin of a change until callers met the new one, ms.";
    SwapInFlightTotal "mecha/swap/in_flight_total" COUNTER &["kind", "result"], "Calls and events in flight at a switch, by what became of them.";
    ReloadRefused "mecha/reload/refused" GAUGE &["kind"], "Documents that are not in force as they stand.";
    HandoverTotal "mecha/handover/total" COUNTER &["outcome"], "Hand-overs of the listening sockets: takenOver by this process, or failed, so that this process goes on.";
    HandoverLatencies "mecha/handover/latencies" LATENCY &["stage"], "Time from the first word to the process before until it let go (serving), and until its subscriptions and input bindings were at rest (settled), ms.";
    Moves "mecha/moves" GAUGE &["phase"], "Components that a control part moves, by the phase of the move.";
    DeliveryConnected "mecha/delivery/connected" GAUGE &[], "1 while the agent of the cluster is followed, else 0.";
    DeliverySetsTotal "mecha/delivery/sets_total" COUNTER &[], "Sets of documents that the agent has sent.";
    DeliverySetAge "mecha/delivery/set_age_seconds" GAUGE &[], "Time since the documents in force came from the agent.";
    DeliveryRestored "mecha/delivery/restored" GAUGE &[], "1 while the documents in force are those of the snapshot, because the agent has not answered since the start.";
    SnapshotAge "mecha/delivery/snapshot_age_seconds" GAUGE &[], "Age of the snapshot that the next start may use.";
    MetricsOverflowTotal "mecha/metrics/overflow_total" COUNTER &["metric"], "Lookups that went to the overflow series because a metric had too many label sets.";
    CertificateSecondsLeft "mecha/identity/certificate_seconds_left" GAUGE &[], "What is left of the certificate of this workload, seconds.";
    TrustAnchorsSecondsLeft "mecha/identity/trust_anchors_seconds_left" GAUGE &[], "What is left of the trust anchor that lasts longest, seconds.";
    LogDroppedTotal "mecha/log/dropped_total" COUNTER &[], "Log lines dropped because the output was too slow.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn labels_are_sorted_and_names_are_unique() {
        let mut seen = HashSet::new();
        for metric in Metric::ALL {
            let desc = metric.desc();
            assert!(desc.labels.is_sorted(), "{}", desc.path);
            assert!(!desc.labels.contains(&"app_id"), "{}", desc.path);
            assert!(seen.insert(desc.scraped_name()), "{}", desc.path);
            assert!(!desc.help.contains('\n'));
        }
    }

    #[test]
    fn scraped_names_are_those_of_the_contract() {
        assert_eq!(Metric::StateCount.desc().scraped_name(), "dapr_component_state_count");
        assert_eq!(Metric::GrpcServerCompletedRpcs.desc().scraped_name(), "dapr_grpc_io_server_completed_rpcs");
        assert_eq!(Metric::MetricsOverflowTotal.desc().scraped_name(), "mecha_metrics_overflow_total");
    }
}
