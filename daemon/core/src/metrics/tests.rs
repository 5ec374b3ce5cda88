use std::time::Duration;

use super::*;

fn metrics() -> Metrics {
    Metrics::new(MetricsConfig::new("shop", "default")).unwrap()
}

fn lines(metrics: &Metrics, prefix: &str) -> Vec<String> {
    metrics.encode().lines().filter(|line| line.starts_with(prefix)).map(str::to_owned).collect()
}

#[test]
fn a_series_appears_with_its_first_value_and_has_all_labels_sorted() {
    let metrics = metrics();
    let get = metrics.operation(OpBlock::State, "statestore", "get");
    assert!(lines(&metrics, "dapr_component_state").is_empty());
    get.record(true, Duration::from_micros(200));
    get.record(true, Duration::from_micros(200));
    get.record(false, Duration::from_millis(7));
    assert_eq!(
        lines(&metrics, "dapr_component_state_count"),
        [
            r#"dapr_component_state_count{app_id="shop",component="statestore",namespace="default",operation="get",success="false"} 1"#,
            r#"dapr_component_state_count{app_id="shop",component="statestore",namespace="default",operation="get",success="true"} 2"#,
        ]
    );
    // A latency under a millisecond is not recorded.
    assert!(
        lines(&metrics, "dapr_component_state_latencies_count").iter().all(|line| line.contains(r#"success="false""#))
    );
    assert!(metrics.encode().contains("# TYPE dapr_component_state_count counter\n"));
    assert!(metrics.encode().contains("# TYPE dapr_component_state_latencies histogram\n"));
}

#[test]
fn empty_labels_are_present() {
    let metrics = metrics();
    metrics.ingress("pubsub", "orders", "").record(ProcessStatus::Success, Duration::ZERO);
    metrics.bulk_ingress("pubsub", "orders").delivered(Duration::ZERO);
    metrics.bulk_ingress("pubsub", "orders").events(ProcessStatus::Drop, 3);
    assert_eq!(
        lines(&metrics, "dapr_component_pubsub_ingress"),
        [
            r#"dapr_component_pubsub_ingress_bulk_count{app_id="shop",component="pubsub",namespace="default",process_status="",topic="orders"} 1"#,
            r#"dapr_component_pubsub_ingress_bulk_event_count{app_id="shop",component="pubsub",namespace="default",process_status="DROP",topic="orders"} 3"#,
            r#"dapr_component_pubsub_ingress_count{app_id="shop",component="pubsub",namespace="default",process_status="success",status="",topic="orders"} 1"#,
        ]
    );
}

#[test]
fn histogram_buckets_are_cumulative_and_inclusive() {
    let metrics = metrics();
    let exchange = HttpExchange {
        method: "GET",
        path: "/v1.0/state/s/k",
        status: 200,
        request_bytes: 1_048_576,
        response_bytes: 0,
        elapsed: Duration::from_millis(2),
    };
    metrics.http_served(exchange);
    metrics.http_served(HttpExchange { request_bytes: u64::from(u32::MAX) * 4, ..exchange });
    let bytes = lines(&metrics, "dapr_http_server_request_bytes");
    assert!(bytes.contains(&r#"dapr_http_server_request_bytes_bucket{app_id="shop",le="262144"} 0"#.to_owned()));
    assert!(bytes.contains(&r#"dapr_http_server_request_bytes_bucket{app_id="shop",le="1.048576e+06"} 1"#.to_owned()));
    assert!(bytes.contains(&r#"dapr_http_server_request_bytes_bucket{app_id="shop",le="+Inf"} 2"#.to_owned()));
    assert!(bytes.contains(&r#"dapr_http_server_request_bytes_count{app_id="shop"} 2"#.to_owned()));
    let latency = lines(&metrics, "dapr_http_server_latency");
    let labels = r#"app_id="shop",method="GET",path="/v1.0/state/s",status="200""#;
    assert!(latency.contains(&format!(r#"dapr_http_server_latency_bucket{{{labels},le="1"}} 0"#)));
    assert!(latency.contains(&format!(r#"dapr_http_server_latency_bucket{{{labels},le="2"}} 2"#)));
    assert!(latency.contains(&format!("dapr_http_server_latency_sum{{{labels}}} 4")));
    assert_eq!(latency.len(), LATENCY_MS.len() + 1 + 2);
}

#[test]
fn latency_buckets_can_be_replaced() {
    let mut config = MetricsConfig::new("shop", "");
    config.latency_buckets_ms = Some(vec![5.0, 50.0]);
    let metrics = Metrics::new(config.clone()).unwrap();
    metrics.http_probed(200, Duration::from_millis(20));
    let buckets = lines(&metrics, "dapr_http_healthprobes_roundtrip_latency_bucket");
    assert_eq!(buckets.len(), 3);
    assert!(buckets[1].ends_with(r#"le="50"} 1"#));
    config.latency_buckets_ms = Some(vec![5.0, 5.0]);
    assert_eq!(Metrics::new(config).unwrap_err(), MetricsError::Buckets(vec![5.0, 5.0]));
}

#[test]
fn too_many_label_sets_share_one_overflow_series() {
    let mut config = MetricsConfig::new("shop", "");
    config.series_cap = 3;
    let metrics = Metrics::new(config).unwrap();
    for at in 0..100 {
        metrics.invocation_request_received(&format!("app-{at}"));
    }
    let lines = lines(&metrics, "dapr_runtime_service_invocation_req_recv_total");
    assert_eq!(lines.len(), 4);
    assert!(lines.contains(
        &r#"dapr_runtime_service_invocation_req_recv_total{app_id="shop",src_app_id="overflow"} 97"#.to_owned()
    ));
    assert!(metrics.encode().contains(
        r#"mecha_metrics_overflow_total{app_id="shop",metric="dapr_runtime_service_invocation_req_recv_total"} 97"#
    ));
}

#[test]
fn rules_rewrite_label_values() {
    let rule = |name: &str, label: &str, new: &str, pattern: &str| MetricRule {
        name: name.into(),
        labels: vec![LabelRule { name: label.into(), regex: vec![(new.into(), pattern.into())] }],
    };
    let mut config = MetricsConfig::new("shop", "");
    config.rules = vec![rule("dapr_http_server_request_count", "path", "/orders/{id}", "/orders/[^/]+")];
    let metrics = Metrics::new(config.clone()).unwrap();
    for id in ["1", "2"] {
        metrics.http_served(HttpExchange {
            method: "GET",
            path: &format!("/orders/{id}"),
            status: 200,
            request_bytes: 0,
            response_bytes: 0,
            elapsed: Duration::ZERO,
        });
    }
    assert_eq!(
        lines(&metrics, "dapr_http_server_request_count"),
        [r#"dapr_http_server_request_count{app_id="shop",method="GET",path="/orders/{id}",status="200"} 2"#]
    );
    assert_eq!(lines(&metrics, "dapr_http_server_response_count").len(), 2);

    config.rules = vec![rule("http/server/request_counts", "path", "x", "y")];
    assert!(matches!(Metrics::new(config.clone()), Err(MetricsError::UnknownMetric(_))));
    config.rules = vec![rule("http/server/request_count", "verb", "x", "y")];
    assert!(Metrics::new(config.clone()).unwrap_err().to_string().contains("app_id, method, path, status"));
    config.rules = vec![rule("http/server/request_count", "path", "x", "(")];
    assert!(matches!(Metrics::new(config), Err(MetricsError::Regex { .. })));
}

#[test]
fn disabled_metrics_report_the_process_only() {
    let mut config = MetricsConfig::new("shop", "");
    config.enabled = false;
    for metrics in [Metrics::new(config).unwrap(), Metrics::disabled()] {
        metrics.component_loaded();
        metrics.operation(OpBlock::Secret, "s", "get").record(true, Duration::from_secs(1));
        let text = metrics.encode();
        assert!(!text.contains("dapr_"));
        #[cfg(target_os = "linux")]
        assert!(text.contains("# TYPE process_resident_memory_bytes gauge\n"));
    }
}

#[test]
fn counts_go_on_over_a_rebuild_and_old_handles_still_count() {
    let old = metrics();
    let publish = old.publish("pubsub", "t");
    publish.record(true, Duration::ZERO);
    let mut config = MetricsConfig::new("shop", "default");
    config.latency_buckets_ms = Some(vec![1.0]);
    let (new, mistakes) = Metrics::succeed(&old, config);
    assert!(mistakes.is_empty());
    publish.record(true, Duration::ZERO);
    new.publish("pubsub", "t").record(true, Duration::from_millis(9));
    let line = &lines(&new, "dapr_component_pubsub_egress_count")[0];
    assert!(line.ends_with(" 3"), "{line}");
    assert_eq!(lines(&new, "dapr_component_pubsub_egress_latencies_bucket").len(), 2);
}

#[test]
fn one_state_of_a_breaker_is_one() {
    let metrics = metrics();
    let breaker = metrics.policy("res", PolicyKind::CircuitBreaker, FlowDirection::Outbound, "app_b");
    breaker.breaker_state(CircuitState::HalfOpen);
    breaker.executed(CircuitState::Open);
    let states = lines(&metrics, "dapr_resiliency_cb_state");
    assert_eq!(states.len(), 4);
    let on: Vec<_> = states.iter().filter(|line| line.ends_with(" 1")).collect();
    assert_eq!(
        on,
        [
            r#"dapr_resiliency_cb_state{app_id="shop",flow_direction="outbound",name="res",namespace="default",policy="circuitbreaker",status="half-open",target="app_b"} 1"#
        ]
    );
    assert!(lines(&metrics, "dapr_resiliency_count")[0].contains(r#"status="open""#));
    let retry = metrics.policy("res", PolicyKind::Retry, FlowDirection::Inbound, "app_b");
    retry.executed(CircuitState::Closed);
    assert!(lines(&metrics, "dapr_resiliency_count")[0].contains(r#"policy="retry",status="""#));
}

#[test]
fn error_codes_are_counted_only_when_asked_for() {
    let metrics = metrics();
    metrics.error_code("state", "ERR_STATE_GET");
    assert!(lines(&metrics, "dapr_error_code_total").is_empty());
    let mut config = MetricsConfig::new("shop", "default");
    config.record_error_codes = true;
    let metrics = Metrics::new(config).unwrap();
    metrics.error_code("state", "ERR_STATE_GET");
    assert_eq!(
        lines(&metrics, "dapr_error_code_total"),
        [r#"dapr_error_code_total{app_id="shop",category="state",error_code="ERR_STATE_GET"} 1"#]
    );
}

#[test]
fn label_values_are_escaped() {
    let metrics = metrics();
    metrics.component_failed("state.x", "a\"b\\c\nd", "init");
    assert!(metrics.encode().contains(r#"componentName="a\"b\\c\nd""#));
}

#[test]
fn parallel_writers_lose_nothing() {
    let metrics = metrics();
    let exchange = RpcExchange {
        method: "/p.S/M",
        status: "OK",
        request_bytes: 10,
        response_bytes: 10,
        elapsed: Duration::from_millis(1),
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..1000).for_each(|_| metrics.grpc_served(exchange)));
        }
    });
    assert!(lines(&metrics, "dapr_grpc_io_server_completed_rpcs")[0].ends_with(" 4000"));
    let latency = lines(&metrics, "dapr_grpc_io_server_server_latency");
    assert!(latency.iter().any(|line| line.contains("_sum{") && line.ends_with(" 4000")));
}

#[test]
fn mistakes_cost_the_setting_not_the_start() {
    let rule = |name: &str, label: &str, pattern: &str| MetricRule {
        name: name.into(),
        labels: vec![LabelRule { name: label.into(), regex: vec![("x".into(), pattern.into())] }],
    };
    let mut config = MetricsConfig::new("shop", "default");
    config.latency_buckets_ms = Some(vec![2.0, 1.0]);
    config.http.path_matching = vec!["no-slash".into(), "/orders/{id}".into()];
    config.rules = vec![
        rule("runtime/actor/timers", "actor_type", "a"),
        rule("component/state/count", "store", "a"),
        rule("component/state/count", "component", "("),
        rule("component/state/count", "component", "^st.*$"),
    ];
    let (metrics, mistakes) = Metrics::lenient(config);
    assert_eq!(mistakes.len(), 5, "{mistakes:?}");
    metrics.operation(OpBlock::State, "statestore", "get").record(true, Duration::from_millis(9));
    assert!(lines(&metrics, "dapr_component_state_count")[0].contains(r#"component="x""#));
    assert_eq!(lines(&metrics, "dapr_component_state_latencies_bucket").len(), LATENCY_MS.len() + 1);
    assert_eq!(metrics.now.load().http.path(PathSide::App, "/orders/7"), "/orders/{id}");
}

#[test]
fn the_configuration_document_is_taken_over() {
    let document = mecha_resources::Metrics {
        enabled: Some(false),
        record_error_codes: Some(true),
        latency_distribution_buckets: vec![5, 50],
        http: Some(mecha_resources::HttpMetrics {
            increased_cardinality: Some(false),
            path_matching: vec!["/a".into()],
            exclude_verbs: Some(true),
        }),
        rules: vec![mecha_resources::MetricRule {
            name: "r".into(),
            labels: vec![mecha_resources::MetricLabel {
                name: "l".into(),
                regex: [("new".to_owned(), "old".to_owned())].into(),
            }],
        }],
        workflow: None,
    };
    let config = MetricsConfig::new("shop", "default").with_document(&document);
    assert!(!config.enabled && config.record_error_codes);
    assert_eq!(config.latency_buckets_ms, Some(vec![5.0, 50.0]));
    assert!(!config.http.increased_cardinality && config.http.exclude_verbs);
    assert_eq!(config.http.path_matching, ["/a"]);
    assert_eq!(config.rules[0].labels[0].regex, [("new".to_owned(), "old".to_owned())]);
    let plain = MetricsConfig::new("shop", "default").with_document(&mecha_resources::Metrics::default());
    assert!(plain.enabled && !plain.record_error_codes && plain.http.increased_cardinality);
    assert_eq!(plain.latency_buckets_ms, None);
}
