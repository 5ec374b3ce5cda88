//! Roots that follow each other while certificates are asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use mecha_issuer::{Options, ROOT_SECRET, ROTATE_ANNOTATION};
use parking_lot::Mutex;

use crate::cluster::{AUDIENCE, Cluster, LIMIT, SYSTEM, leads_to, names, request, send};

/// Workloads that ask at once.
const ASKING: usize = 4;
const PUBLISH_WAIT: Duration = Duration::from_secs(1);

/// Certificates and their ends.
type Issued = Vec<(Vec<u8>, SystemTime)>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roots_follow_each_other_under_load_and_every_certificate_holds_until_its_end() {
    let Some(cluster) = Cluster::start().await else { return };
    let rotations = if std::env::var_os("MECHA_TEST_LONG").is_some() { 100 } else { 5 };
    cluster.namespace("shop");
    cluster.account("shop", "orders");
    let options = Options {
        leaf_ttl: Duration::from_secs(3),
        publish_wait: PUBLISH_WAIT,
        requests_per_second: 10_000,
        ..Options::default()
    };
    // Two replicas share the work; requests go to either.
    let (first, _role) = cluster.issuer("a", options.clone()).await;
    let (second, _other) = cluster.issuer("b", options).await;
    let pod = cluster.pod("shop", "orders-1", "orders", "orders").await;
    let token = cluster.token("shop", "orders", Some(&pod), AUDIENCE).await;
    cluster.bundle("shop").await;

    let cluster = Arc::new(cluster);
    let stop = Arc::new(AtomicBool::new(false));
    let alive = Arc::new(Mutex::new(Issued::new()));
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..ASKING {
        let (cluster, stop, alive, token) = (cluster.clone(), stop.clone(), alive.clone(), token.clone());
        let issuer = if worker % 2 == 0 { first.clone() } else { second.clone() };
        workers.spawn(async move {
            let mut issued = 0_usize;
            while !stop.load(Ordering::Relaxed) {
                // What a peer of this workload has mounted, and may go on using for as long as new roots wait.
                let mounted = cluster.bundle("shop").await;
                let read = Instant::now();
                let answer = send(&issuer, mounted.clone(), request("shop", "orders", &token)).await;
                let late = read.elapsed() > PUBLISH_WAIT / 2;
                let certificate = match answer {
                    Ok(answer) => answer.workload_certificate.to_vec(),
                    Err(status) if late && status.code() == tonic::Code::Unavailable => continue,
                    Err(status) => panic!("a request failed: {status}"),
                };
                if !late {
                    leads_to(&certificate, &mounted).expect("a peer that read its bundle before");
                }
                leads_to(&certificate, &issuer.bundle().borrow().clone()).expect("whoever verifies in the process");
                let end = names(&certificate).1;
                alive.lock().push((certificate, end));
                issued += 1;
            }
            issued
        });
    }

    let mut seen = Vec::new();
    for turn in 0..rotations {
        let before = first.bundle().borrow().ders().next().unwrap().clone();
        let annotation = format!("{ROTATE_ANNOTATION}=turn-{turn}");
        let patch = ["-n", SYSTEM, "annotate", "--overwrite", "secret", ROOT_SECRET, annotation.as_str()];
        cluster.server.kubectl(&patch);
        let mut bundle = first.bundle();
        let switched = async {
            while bundle.borrow_and_update().ders().next() == Some(&before) {
                bundle.changed().await.unwrap();
            }
        };
        tokio::time::timeout(LIMIT, switched).await.unwrap_or_else(|_| panic!("rotation {turn} did not come"));
        seen.push(before);
        let now = SystemTime::now();
        let mounted = cluster.bundle("shop").await;
        let mut alive = alive.lock();
        // A second for what this check itself takes.
        alive.retain(|(_, end)| *end > now + Duration::from_secs(1));
        for (certificate, _) in alive.iter() {
            leads_to(certificate, &mounted).expect("a certificate outlives the rotation");
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut issued = 0;
    while let Some(worker) = workers.join_next().await {
        issued += worker.unwrap();
    }
    assert!(issued > rotations, "{issued} certificates in {rotations} rotations");
    println!("{issued} certificates under {rotations} rotations");
    seen.dedup();
    assert_eq!(seen.len(), rotations, "each rotation brought another root");

    // At the end one root is left, in every place.
    let mut bundle = first.bundle();
    let alone = async {
        while bundle.borrow_and_update().len() > 1 {
            bundle.changed().await.unwrap();
        }
    };
    tokio::time::timeout(LIMIT, alone).await.expect("former roots leave the bundle");
    let last = bundle.borrow().clone();
    crate::cluster::eventually("the last bundle", || async {
        (cluster.bundle("shop").await == *last && *second.bundle().borrow() == last).then_some(())
    })
    .await;
}
