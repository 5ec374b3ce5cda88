//! Reloads leave nothing behind.

use mecha_tests::{Sidecar, component, wait_until};

use crate::load::{Load, state};
use crate::support::{Documents, LIMIT, ended, generation, long};

/// More than this after all reloads is a leak.
const SLACK_KIB: u64 = 20 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_back_at_its_base_after_many_reloads() {
    let reloads = if long() { 1_000 } else { 100 };
    let builder = Sidecar::builder().app_id("memory").switch("mecha-strict");
    let file = builder.folder().join("state.db").to_str().unwrap().to_owned();
    let store = |n: usize| {
        let busy = format!("{}ms", 2_000 + n % 7);
        component("store", "state.sqlite", &[("connectionString", &file), ("busyTimeout", &busy)])
    };
    let bus = |n: usize| component("bus", "pubsub.in-memory", &[("allowedTopics", ["a", "a,b"][n % 2])]);
    let policy = |n: usize| {
        format!(
            "apiVersion: dapr.io/v1alpha1\nkind: Resiliency\nmetadata: {{name: policies}}\nspec:\n  policies:\n    \
             timeouts: {{some: {}s}}\n  targets:\n    components:\n      store: {{outbound: {{timeout: some}}}}\n",
            20 + n % 2
        )
    };
    let sidecar = builder.document("store.yaml", &store(0)).document("bus.yaml", &bus(0)).start().await;
    let (http, documents) = (sidecar.http(), Documents::of(&sidecar));
    let calls = Load::start(sidecar.http_port(), 100, state("store"));
    let reload = async |n: usize| {
        let before = generation(&http).await;
        documents.write("store.yaml", &store(n));
        documents.write("bus.yaml", &bus(n));
        documents.write("policies.yaml", &policy(n));
        let receipt = ended(&http, before, "Component", "store").await;
        assert_eq!(receipt["outcome"], "applied", "{receipt}");
    };
    // The first ones fill caches and the ring of receipts.
    for n in 1..=30 {
        reload(n).await;
    }
    let base = sidecar.resident_kib();
    for n in 31..=30 + reloads {
        reload(n).await;
    }
    wait_until(LIMIT, "memory to be back at its base", async || sidecar.resident_kib() <= base + SLACK_KIB).await;
    println!("{reloads} reloads: {base} KiB before, {} KiB after", sidecar.resident_kib());
    calls.end("state calls over many reloads").await;
}
