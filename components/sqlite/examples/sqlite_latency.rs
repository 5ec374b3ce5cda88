//! Prints the memory of an open store and how long gets and sets take:
//! `cargo run --release -p mecha-sqlite --example sqlite_latency [FOLDER]`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mecha_components_api::{
    BuildCx, Concurrency, Consistency, GetState, Lookup, Metadata, Registry, SetState, StateStore, Value,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const CALLS: usize = 20_000;

async fn open(folder: &str) -> Result<Arc<dyn StateStore>, Failure> {
    let mut registry = Registry::new();
    mecha_sqlite::register(&mut registry);
    let Lookup::Found(registration) = Registry::find(&registry.state, "state.sqlite", "") else {
        return Err("not registered".into());
    };
    let md: Metadata = [("connectionString", format!("{folder}/latency.db"))].into_iter().collect();
    Ok((registration.prepare)(&md, "v1")?.build(&BuildCx::for_app("bench", "bench", folder)).await?)
}

async fn set(store: &dyn StateStore, key: &str) -> Result<(), Failure> {
    let md = Metadata::new();
    let value = Value::Json(vec![b'1'; 1024].into());
    let req = SetState {
        key,
        value,
        etag: None,
        concurrency: Concurrency::LastWrite,
        consistency: Consistency::Eventual,
        ttl: None,
        content_type: None,
        metadata: &md,
    };
    Ok(store.set(req).await?)
}

async fn get(store: &dyn StateStore, key: &str) -> Result<(), Failure> {
    let md = Metadata::new();
    let item = store.get(GetState { key, consistency: Consistency::Eventual, metadata: &md }).await?;
    item.map(drop).ok_or_else(|| "absent".into())
}

async fn run(name: &str, store: &Arc<dyn StateStore>, callers: usize, write: bool) -> Result<(), Failure> {
    let begin = Instant::now();
    let mut tasks = Vec::new();
    for caller in 0..callers {
        let store = Arc::clone(store);
        tasks.push(tokio::spawn(async move {
            let mut took = Vec::with_capacity(CALLS / callers);
            for i in 0..CALLS / callers {
                let key = format!("key-{}", (caller * 7919 + i) % 1000);
                let before = Instant::now();
                if write {
                    set(&*store, &key).await?
                } else {
                    get(&*store, &key).await?
                }
                took.push(before.elapsed());
            }
            Ok::<_, Failure>(took)
        }));
    }
    let mut took: Vec<Duration> = Vec::new();
    for task in tasks {
        took.extend(task.await??);
    }
    took.sort();
    let rate = took.len() as f64 / begin.elapsed().as_secs_f64();
    println!("{name:<22} {rate:>9.0}/s  p50 {:>9.1?}  p99 {:>9.1?}", took[took.len() / 2], took[took.len() * 99 / 100]);
    Ok(())
}

/// Resident memory of this process; 0 where /proc does not tell.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| ".".into());
    let before = resident_kib();
    let store = open(&folder).await?;
    set(&*store, "first").await?;
    get(&*store, "first").await?;
    println!("memory: {} KiB more once the store is open", resident_kib().saturating_sub(before));
    for i in 0..1000 {
        set(&*store, &format!("key-{i}")).await?;
    }
    run("get, 1 caller", &store, 1, false).await?;
    run("get, 64 callers", &store, 64, false).await?;
    run("set, 1 caller", &store, 1, true).await?;
    run("set, 64 callers", &store, 64, true).await?;
    store.close().await;
    Ok(())
}
