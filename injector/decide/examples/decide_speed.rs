//! How long one decision takes: `cargo run --release -p mecha-decide --example decide_speed`.
//!
//! Prints one line per chain with p50, p99 and the slowest of the decisions; ends with status 1 where a
//! p99 is above its aim, so that a gate can run it.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use mecha_decide::{
    Backend, ClaimRequest, Cluster, Gravity, Hysteresis, Inventory, PlacementRequest, decide_backend, decide_clusters,
};
use mecha_resources::kinds::{AppPlacementSpec, CapabilityBackendSpec, CapabilityKind, Taint, TaintEffect};
use serde_json::json;

const CLUSTERS: usize = 5_000;
const BACKENDS: usize = 200;
const ROUNDS: usize = 500;
const REGIONS: [&str; 5] = ["eu-west", "eu-central", "us-east", "us-west", "ap-south"];

fn fleet() -> Inventory<Cluster> {
    let cluster = |i: usize| {
        let name = format!("cluster-{i:05}");
        let region = REGIONS[i % REGIONS.len()].to_owned();
        let labels = [
            ("tier".to_owned(), if i.is_multiple_of(3) { "prod" } else { "dev" }.to_owned()),
            ("region".to_owned(), region.clone()),
        ];
        let attributes = [
            ("name".to_owned(), name.clone()),
            ("region".to_owned(), region),
            ("kubernetes.minor".to_owned(), (30 + i % 8).to_string()),
        ];
        let taint = Taint { key: "upgrade".to_owned(), value: "1.37".to_owned(), effect: TaintEffect::NoNewBindings };
        let cluster = Cluster {
            labels: labels.into(),
            accepted: true,
            available: Some(true),
            attributes: attributes.into(),
            taints: if i.is_multiple_of(50) { vec![taint] } else { Vec::new() },
            cpu: Some(((i as u64 * 7_919) % 320_000, 320_000)),
            latency_us: Some((i as u64 * 104_729) % 90_000),
            cost: (i % 100) as u32,
            ..Cluster::default()
        };
        (name, cluster)
    };
    (0..CLUSTERS).map(cluster).collect()
}

fn offers() -> Inventory<Backend> {
    let backend = |i: usize| {
        let spec: CapabilityBackendSpec = serde_json::from_value(json!({
            "kind": "state",
            "component": {"type": "state.postgresql", "version": "v2"},
            "features": ["crud", "etag", "transactional", "ttl"],
            "traits": {"residency": if i.is_multiple_of(4) { "us" } else { "eu" }, "durability": "replicated"},
            "topology": {"region": REGIONS[i % REGIONS.len()]},
            "capacity": {"bindings": 500},
            "cost": i % 100,
            "source": {"none": {}},
        }))
        .expect("the spec is right");
        let backend = Backend {
            labels: [("engine".to_owned(), if i.is_multiple_of(2) { "postgres" } else { "redis" }.to_owned())].into(),
            verified: Some(spec.features.iter().cloned().collect()),
            spec,
            ready: Some(true),
            bound: (i * 13 % 500) as u32,
            latency_us: (0..8).map(|c| (format!("cluster-{c:05}"), (i as u64 * 31 + c) % 60_000)).collect(),
            expected_latency_us: None,
            unreachable: BTreeMap::new(),
        };
        (format!("backend-{i:03}"), backend)
    };
    (0..BACKENDS).map(backend).collect()
}

fn measure(what: &str, aim: Duration, mut decide: impl FnMut(usize)) -> bool {
    (0..20).for_each(&mut decide);
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|round| {
            let begin = Instant::now();
            decide(round);
            begin.elapsed()
        })
        .collect();
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    let (p50, p99, worst) = (at(50), at(99), at(100));
    println!("{what}: p50 {p50:?}, p99 {p99:?}, slowest {worst:?}, aim {aim:?} at p99, {ROUNDS} decisions");
    p99 <= aim
}

fn main() -> ExitCode {
    let (mut clusters, backends) = (fleet(), offers());
    let spec: AppPlacementSpec = serde_json::from_value(json!({
        "appId": "orders-api",
        "clusters": {"min": 2, "max": 3},
        "replicas": {"total": 12, "divide": "Weighted"},
        "constraints": [
            {"attribute": "region", "operator": "In", "values": ["eu-west", "eu-central"]},
            {"attribute": "kubernetes.minor", "operator": "Gt", "values": ["31"]},
        ],
        "hints": [{"prefer": "dataGravity", "weight": 50}, {"prefer": "freeCapacity", "weight": 30}, {"prefer": "sticky", "weight": 20}],
        "spread": [{"key": "region", "minGroups": 2, "whenUnsatisfiable": "DoNotSchedule"}],
    }))
    .expect("the spec is right");
    let gravity = Gravity { backend: "pg-eu".to_owned(), region: "eu-west".to_owned(), ..Gravity::default() };
    let placement = PlacementRequest {
        spec,
        class_selector: serde_json::from_value(json!({"matchLabels": {"tier": "prod"}})).ok(),
        apis: Default::default(),
        backends: vec![gravity],
        current: Vec::new(),
        challenger: None,
        hysteresis: Hysteresis::default(),
    };
    let one = clusters.get("cluster-00003").cloned().expect("the fleet has it");
    let placed = measure(&format!("clusters, {CLUSTERS} candidates"), Duration::from_millis(5), |round| {
        // Something changes between any two decisions, as it does in a fleet.
        let changed = Cluster { cost: (round % 100) as u32, ..one.clone() };
        clusters.insert("cluster-00003", changed);
        black_box(decide_clusters(&placement, &clusters, 0));
    });
    let infeasible = PlacementRequest {
        class_selector: serde_json::from_value(json!({"matchLabels": {"tier": "nothing"}})).ok(),
        ..placement.clone()
    };
    let refused = measure(&format!("clusters, {CLUSTERS} candidates, none fits"), Duration::from_millis(5), |_| {
        black_box(decide_clusters(&infeasible, &clusters, 0));
    });
    let claim = ClaimRequest {
        kind: CapabilityKind::State,
        selector: serde_json::from_value(json!({"matchLabels": {"engine": "postgres"}})).expect("a selector"),
        features: ["crud", "ttl"].map(str::to_owned).into(),
        constraints: serde_json::from_value(json!([{"attribute": "residency", "operator": "In", "values": ["eu"]}]))
            .expect("constraints"),
        hints: serde_json::from_value(json!([{"prefer": "latency", "weight": 60}, {"prefer": "cost", "weight": 40}]))
            .expect("hints"),
        tenancy: None,
        targets: ["cluster-00003", "cluster-00006"].map(str::to_owned).into(),
        current: None,
        hysteresis: Hysteresis::default(),
    };
    let bound = measure(&format!("backends, {BACKENDS} candidates"), Duration::from_micros(500), |_| {
        black_box(decide_backend(&claim, &backends, &clusters, 0));
    });
    if placed && refused && bound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
