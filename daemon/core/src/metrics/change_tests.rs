//! Settings change while series count.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::*;

fn config() -> MetricsConfig {
    MetricsConfig::new("shop", "default")
}

fn change(metrics: &Metrics, edit: impl FnOnce(&mut MetricsConfig)) {
    let mut config = config();
    edit(&mut config);
    let (checked, mistakes) = config.check();
    assert!(mistakes.is_empty(), "{mistakes:?}");
    metrics.change(checked);
}

fn rule(metric: &str, label: &str, new: &str, pattern: &str) -> MetricRule {
    let regex = vec![(new.to_owned(), pattern.to_owned())];
    MetricRule { name: metric.into(), labels: vec![LabelRule { name: label.into(), regex }] }
}

/// Labels and value of each series whose name begins so.
fn lines(metrics: &Metrics, prefix: &str) -> Vec<String> {
    metrics.encode().lines().filter_map(|line| line.strip_prefix(prefix)).map(str::to_owned).collect()
}

fn get(metrics: &Metrics, path: &str) {
    metrics.http_served(HttpExchange {
        method: "GET",
        path,
        status: 200,
        request_bytes: 0,
        response_bytes: 0,
        elapsed: Duration::from_millis(20),
    });
}

const REQUESTS: &str = "dapr_http_server_request_count";

fn requests(path: &str, count: u32) -> String {
    format!(r#"{{app_id="shop",method="GET",path="{path}",status="200"}} {count}"#)
}

#[test]
fn rules_come_and_go_and_what_keeps_its_labels_counts_on() {
    let metrics = Metrics::new(config()).unwrap();
    let state = |component: &str| {
        let component = component.to_owned();
        metrics.follow(move |m| m.operation(OpBlock::State, &component, "get"))
    };
    let (plain, numbered) = (state("store"), state("store-17"));
    let both = || [&plain, &numbered].map(|s| s.get().record(true, Duration::ZERO));
    both();
    let count = |component: &str, n: u32| {
        format!(r#"{{app_id="shop",component="{component}",namespace="default",operation="get",success="true"}} {n}"#)
    };
    const NAME: &str = "dapr_component_state_count";
    change(&metrics, |c| c.rules = vec![rule("component/state/count", "component", "store-N", "store-[0-9]+")]);
    both();
    assert_eq!(lines(&metrics, NAME), [count("store", 2), count("store-N", 1)]);
    // Another rule: the kept handle is looked up by its own value, not by what the last rule made of it.
    change(&metrics, |c| c.rules = vec![rule("component/state/count", "component", "number", "store-[0-9]+")]);
    both();
    assert!(lines(&metrics, NAME).contains(&count("store", 3)));
    assert!(lines(&metrics, NAME).contains(&count("number", 1)));
    change(&metrics, |_| {});
    both();
    assert!(lines(&metrics, NAME).contains(&count("store", 4)));
    assert!(lines(&metrics, NAME).contains(&count("store-17", 1)));
}

#[test]
fn other_buckets_begin_anew_and_touch_nothing_else() {
    let metrics = Metrics::new(config()).unwrap();
    get(&metrics, "/a");
    change(&metrics, |c| c.latency_buckets_ms = Some(vec![10.0, 100.0]));
    assert_eq!(lines(&metrics, REQUESTS), [requests("/a", 1)]);
    assert!(lines(&metrics, "dapr_http_server_latency").is_empty());
    get(&metrics, "/a");
    let buckets = lines(&metrics, "dapr_http_server_latency_bucket");
    assert_eq!(buckets.len(), 3);
    assert!(buckets[1].ends_with(r#"le="100"} 1"#), "{buckets:?}");
    let sizes = lines(&metrics, "dapr_http_server_request_bytes_count");
    assert_eq!(sizes, [r#"{app_id="shop"} 2"#], "sizes have buckets of their own");
    // The same again is no change.
    change(&metrics, |c| c.latency_buckets_ms = Some(vec![10.0, 100.0]));
    get(&metrics, "/a");
    assert!(lines(&metrics, "dapr_http_server_latency_count")[0].ends_with(" 2"));
}

#[test]
fn paths_and_methods_are_labelled_as_the_settings_say() {
    let metrics = Metrics::new(config()).unwrap();
    get(&metrics, "/orders/1");
    get(&metrics, "/healthz");
    change(&metrics, |c| c.http.path_matching = vec!["/orders/{id}".into()]);
    get(&metrics, "/orders/1");
    get(&metrics, "/healthz");
    assert_eq!(lines(&metrics, REQUESTS), [requests("/healthz", 2), requests("/orders/{id}", 1)]);
    assert_eq!(lines(&metrics, "dapr_http_server_response_count").len(), 2);

    change(&metrics, |c| c.http.increased_cardinality = false);
    get(&metrics, "/orders/1");
    assert_eq!(lines(&metrics, REQUESTS), [requests("", 1), requests("/healthz", 2)]);
    assert!(lines(&metrics, "dapr_http_server_response_count").is_empty());

    change(&metrics, |c| c.http.exclude_verbs = true);
    get(&metrics, "/healthz");
    assert_eq!(lines(&metrics, REQUESTS), [r#"{app_id="shop",method="",path="/healthz",status="200"} 1"#]);
}

#[test]
fn fewer_paths_make_room_below_the_cap() {
    let full = |c: &mut MetricsConfig| c.series_cap = 3;
    let mut small = config();
    full(&mut small);
    let metrics = Metrics::new(small).unwrap();
    (0..9).for_each(|n| get(&metrics, &format!("/orders/{n}")));
    assert!(lines(&metrics, REQUESTS).contains(&requests_overflow(6)));
    change(&metrics, |c| {
        full(c);
        c.http.path_matching = vec!["/orders/{id}".into()];
    });
    (0..9).for_each(|n| get(&metrics, &format!("/orders/{n}")));
    assert!(lines(&metrics, REQUESTS).contains(&requests("/orders/{id}", 9)));
    assert!(lines(&metrics, REQUESTS).contains(&requests_overflow(6)), "what was counted stays");
}

fn requests_overflow(count: u32) -> String {
    format!(r#"{{app_id="shop",method="overflow",path="overflow",status="overflow"}} {count}"#)
}

#[test]
fn metrics_are_switched_off_and_on_with_the_handles_that_are_kept() {
    let mut off = config();
    off.enabled = false;
    let metrics = Metrics::new(off).unwrap();
    let publish = metrics.follow(|m| m.publish("bus", "orders"));
    let record = || publish.get().record(true, Duration::ZERO);
    let count = || lines(&metrics, "dapr_component_pubsub_egress_count");
    record();
    change(&metrics, |_| {});
    assert!(count().is_empty() && metrics.is_enabled());
    record();
    assert!(count()[0].ends_with(" 1"), "a handle made while all was off counts now");
    change(&metrics, |c| c.enabled = false);
    record();
    assert!(!metrics.encode().contains("dapr_"));
    change(&metrics, |_| {});
    record();
    assert!(count()[0].ends_with(" 2"), "what was counted before goes on");
}

#[test]
fn error_codes_are_counted_while_they_are_asked_for() {
    let metrics = Metrics::new(config()).unwrap();
    let count = || lines(&metrics, "dapr_error_code_total").len();
    metrics.error_code("state", "ERR_STATE_GET");
    assert_eq!(count(), 0);
    change(&metrics, |c| c.record_error_codes = true);
    metrics.error_code("state", "ERR_STATE_GET");
    assert_eq!(count(), 1);
    change(&metrics, |_| {});
    assert_eq!(count(), 0);
}

#[test]
fn nothing_is_lost_while_settings_change_under_load() {
    let metrics = Metrics::new(config()).unwrap();
    let kept = metrics.follow(|m| m.operation(OpBlock::State, "store", "get"));
    get(&metrics, "/a");
    let (stop, ready) = (AtomicBool::new(false), std::sync::Barrier::new(3));
    let made: u64 = std::thread::scope(|scope| {
        let writer = || {
            let mut made = 0;
            ready.wait();
            loop {
                kept.get().record(true, Duration::ZERO);
                get(&metrics, "/a");
                made += 1;
                if stop.load(Ordering::Relaxed) {
                    return made;
                }
            }
        };
        let writers = [scope.spawn(writer), scope.spawn(writer)];
        ready.wait();
        for n in 0..500 {
            change(&metrics, |c| {
                c.latency_buckets_ms = Some(vec![f64::from(n), 1000.0]);
                c.rules = vec![rule("http/server/request_count", "path", "/orders/{id}", &format!("/orders/{n}"))];
                c.http.path_matching = vec![format!("/never/{{n{n}}}")];
            });
        }
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().map(|writer| writer.join().unwrap()).sum()
    });
    let counted = |name: &str| -> f64 {
        let all = lines(&metrics, name);
        assert_eq!(all.len(), 1, "{all:?}");
        all[0].rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert_eq!(counted("dapr_component_state_count"), made as f64);
    assert_eq!(counted(REQUESTS), (made + 1) as f64);
}

#[test]
fn handles_that_are_gone_are_forgotten() {
    let metrics = Metrics::new(config()).unwrap();
    let kept = metrics.follow(|m| m.publish("bus", "kept"));
    for n in 0..10_000 {
        metrics.follow(move |m| m.publish("bus", &format!("{}", n % 10))).get().record(true, Duration::ZERO);
    }
    assert!(metrics.followed() < 200, "{}", metrics.followed());
    change(&metrics, |c| c.latency_buckets_ms = Some(vec![1.0]));
    assert_eq!(metrics.followed(), 1);
    kept.get().record(true, Duration::ZERO);
}
