//! Compares the state store with the bare driver on the same server, in turns:
//! `cargo run --release -p mecha-postgres --example postgres_latency`.
//!
//! The driver gets as many connections as the store's pool, statements prepared beforehand and
//! the same SQL; its callers share the connections.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mecha_components_api::{
    BuildCx, Concurrency, Consistency, GetState, Lookup, Metadata, Registry, SetState, StateStore, TransactOp, Value,
};
use mecha_testkit::servers::{Postgres, PostgresOptions};
use tokio_postgres::{Client, NoTls, Statement};

type Failure = Box<dyn Error + Send + Sync>;

/// Calls of one round, rounds of each kind, and connections.
const CALLS: usize = 4_000;
const ROUNDS: usize = 5;
const CONNECTIONS: usize = 4;
const KEYS: usize = 1_000;

#[derive(Clone, Copy, PartialEq)]
enum Work {
    Get,
    Set,
    Transact,
}

/// Someone who does the work.
#[derive(Clone)]
enum Way {
    Store(Arc<dyn StateStore>),
    Driver(Arc<Vec<Connection>>),
}

struct Connection {
    client: Client,
    get: Statement,
    set: Statement,
}

async fn store(server: &Postgres) -> Result<Arc<dyn StateStore>, Failure> {
    let mut registry = Registry::new();
    mecha_postgres::register(&mut registry);
    let Lookup::Found(registration) = Registry::find(&registry.state, "state.postgresql", "v2") else {
        return Err("not registered".into());
    };
    let md: Metadata = [("url", server.url()), ("maxConns", CONNECTIONS.to_string())].into_iter().collect();
    Ok((registration.prepare)(&md, "v2")?.build(&BuildCx::for_app("bench", "bench", ".")).await?)
}

async fn connection(server: &Postgres) -> Result<Connection, Failure> {
    let (client, driver) = tokio_postgres::connect(&server.url(), NoTls).await?;
    tokio::spawn(driver);
    let get = "SELECT value, etag, expires_at FROM state WHERE key = $1 AND (expires_at IS NULL OR expires_at > now())";
    let set = "INSERT INTO state (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = $2, \
               updated_at = now(), etag = gen_random_uuid(), expires_at = NULL";
    Ok(Connection { get: client.prepare(get).await?, set: client.prepare(set).await?, client })
}

impl Way {
    async fn call(&self, work: Work, caller: usize, keys: [&str; 2], value: &[u8]) -> Result<(), Failure> {
        let md = Metadata::new();
        match self {
            Self::Store(store) => {
                let put = |key| SetState {
                    key,
                    value: Value::Binary(value.to_vec().into()),
                    etag: None,
                    concurrency: Concurrency::LastWrite,
                    consistency: Consistency::Eventual,
                    ttl: None,
                    content_type: None,
                    metadata: &md,
                };
                match work {
                    Work::Get => {
                        let get = GetState { key: keys[0], consistency: Consistency::Eventual, metadata: &md };
                        store.get(get).await?.ok_or("absent")?;
                    }
                    Work::Set => store.set(put(keys[0])).await?,
                    Work::Transact => {
                        let ops = keys.map(|k| TransactOp::Set(put(k))).to_vec();
                        store.transact().ok_or("no transactions")?.transact(ops, &md).await?;
                    }
                }
            }
            Self::Driver(all) => {
                let Connection { client, get, set } = &all[caller % all.len()];
                match work {
                    Work::Get => drop(client.query_one(get, &[&keys[0]]).await?),
                    Work::Set => drop(client.execute(set, &[&keys[0], &value]).await?),
                    // Not to be shared while it lasts, so one caller per connection.
                    Work::Transact => {
                        client.batch_execute("BEGIN").await?;
                        for key in keys {
                            client.execute(set, &[&key, &value]).await?;
                        }
                        client.batch_execute("COMMIT").await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Calls per second, and how long each took.
    async fn round(&self, work: Work, callers: usize) -> Result<(f64, Vec<Duration>), Failure> {
        let begin = Instant::now();
        let tasks: Vec<_> = (0..callers)
            .map(|caller| {
                let way = self.clone();
                tokio::spawn(async move {
                    let value = [b'1'; 1024];
                    let mut took = Vec::with_capacity(CALLS / callers);
                    for i in 0..CALLS / callers {
                        let key = |n: usize| format!("key-{:04}", (caller * 7919 + i * 2 + n) % KEYS);
                        let (one, two) = (key(0), key(1));
                        let before = Instant::now();
                        way.call(work, caller, [&one, &two], &value).await?;
                        took.push(before.elapsed());
                    }
                    Ok::<_, Failure>(took)
                })
            })
            .collect();
        let mut took = Vec::with_capacity(CALLS);
        for task in tasks {
            took.extend(task.await??);
        }
        Ok((took.len() as f64 / begin.elapsed().as_secs_f64(), took))
    }
}

/// Median of the rounds' rates, p50 and p99 of all calls.
fn figures(rounds: &mut [(f64, Vec<Duration>)]) -> (f64, Duration, Duration) {
    rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
    let rate = rounds[rounds.len() / 2].0;
    let mut took: Vec<Duration> = rounds.iter().flat_map(|(_, t)| t.iter().copied()).collect();
    took.sort();
    (rate, took[took.len() / 2], took[took.len() * 99 / 100])
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let Some(server) = PostgresOptions::new().durable().start() else { return Ok(()) };
    let ours = Way::Store(store(&server).await?);
    let mut all = Vec::new();
    for _ in 0..CONNECTIONS {
        all.push(connection(&server).await?);
    }
    let bare = Way::Driver(Arc::new(all));
    for i in 0..KEYS {
        ours.call(Work::Set, 0, [&format!("key-{i:04}"), ""], &[b'1'; 1024]).await?;
    }
    println!(
        "{:<24} {:>9} {:>9} {:>6}   {:>9} {:>9} {:>6}   p99",
        "", "p50", "driver", "ratio", "rate/s", "driver", "ratio"
    );
    for (name, work) in [("get", Work::Get), ("set", Work::Set), ("transaction of 2", Work::Transact)] {
        for callers in [1, CONNECTIONS, 64] {
            if work == Work::Transact && callers > CONNECTIONS {
                continue;
            }
            let (mut a, mut b) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                a.push(ours.round(work, callers).await?);
                b.push(bare.round(work, callers).await?);
            }
            let ((rate, p50, p99), (bare_rate, bare_p50, bare_p99)) = (figures(&mut a), figures(&mut b));
            println!(
                "{:<24} {p50:>9.1?} {bare_p50:>9.1?} {:>6.2}   {rate:>9.0} {bare_rate:>9.0} {:>6.2}   {p99:.1?} / {bare_p99:.1?}",
                format!("{name}, {callers} callers"),
                p50.as_secs_f64() / bare_p50.as_secs_f64(),
                rate / bare_rate,
            );
        }
    }
    Ok(())
}
