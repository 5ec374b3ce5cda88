//! The server behind a component is killed, frozen, restarted or cut off under load.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mecha_tests::{
    Api, EventLedger, Fault, HttpApp, Network, Side, Sidecar, StateLedger, component, eventually, wait_until,
};
use tonic::Code;

use crate::load::{self, Load, NAME, Names, Outcome, TOPIC};
use crate::rounds;
use crate::table::{Behind, Block, Row};

/// What a busy machine may add to a deadline before the test says that nobody kept it.
const SLACK: Duration = Duration::from_secs(10);
/// Generous: recovery is reported, and only its absence is a failure.
const RECOVERY: Duration = Duration::from_secs(60);
/// Pause of a caller between two calls.
const PACE: Duration = Duration::from_millis(10);
/// Lines that an outage may add to the log per second at most.
const LOG_RATE: f64 = 50.0;

/// What happens.
#[derive(Clone, Copy, Debug)]
enum Break {
    /// kill -9 of the server, started again later.
    Kill,
    /// The server stands still.
    Freeze,
    /// The server is stopped and started as an operator would.
    Restart,
    /// The server forgets all connections without telling.
    HalfOpen,
    /// The network between.
    Network(Network),
}

/// In the order of the day; the last ones are the ones that only a proxy can do.
const BREAKS: &[Break] = &[
    Break::Kill,
    Break::Freeze,
    Break::Restart,
    Break::HalfOpen,
    Break::Network(Network::Hang),
    Break::Network(Network::Lose(Side::Server)),
    Break::Network(Network::Lose(Side::Client)),
    Break::Network(Network::Refuse),
    Break::Network(Network::Reset),
    Break::Network(Network::CutAfter(Side::Server, 3000)),
    Break::Network(Network::Latency(Duration::from_millis(50))),
    Break::Network(Network::Slow(20_000)),
];

/// Calls that have to succeed through a network that is slow.
const THROUGH: usize = 5;

impl Break {
    /// Whether every call fails while it lasts.
    fn is_outage(self) -> bool {
        !self.is_slow() && !matches!(self, Self::Restart | Self::HalfOpen | Self::Network(Network::CutAfter(..)))
    }

    /// Whether calls go on while it lasts, and only take longer.
    fn is_slow(self) -> bool {
        matches!(self, Self::Network(Network::Latency(_) | Network::Slow(_)))
    }

    async fn begin(self, Behind { proxy, server }: &mut Behind) {
        match self {
            Self::Kill => server.kill(),
            Self::Freeze => server.freeze(),
            Self::Restart => {
                server.stop();
                server.restart();
            }
            Self::HalfOpen => proxy.strand().await,
            Self::Network(network) => proxy.set(network).await,
        }
    }

    async fn end(self, Behind { proxy, server }: &mut Behind) {
        match self {
            Self::Kill => server.restart(),
            Self::Freeze => server.thaw(),
            Self::Restart | Self::HalfOpen => {}
            Self::Network(_) => proxy.set(Network::Fine).await,
        }
    }
}

/// What is written and seen.
enum Ledger {
    State(Arc<StateLedger>),
    Events(Arc<EventLedger>, HttpApp),
}

impl Ledger {
    async fn new(block: Block) -> Self {
        match block {
            Block::State => Self::State(Arc::default()),
            Block::PubSub => {
                let ledger = Arc::default();
                let app = load::app(&ledger).start().await;
                Self::Events(ledger, app)
            }
        }
    }

    async fn load(&self, sidecar: &Sidecar, names: &Arc<Names>) -> Load {
        match self {
            Self::State(ledger) => Load::state(sidecar, ledger, names, PACE).await,
            Self::Events(ledger, _) => Load::events(sidecar, ledger, names, PACE).await,
        }
    }

    fn fault_begins(&self) {
        if let Self::Events(ledger, _) = self {
            ledger.fault_begins();
        }
    }

    fn fault_ends(&self) {
        if let Self::Events(ledger, _) = self {
            ledger.fault_ends();
        }
    }

    /// Deliveries work again: what is published now arrives.
    async fn flows(&self, api: &Api, names: &Names) {
        let Self::Events(ledger, _) = self else { return };
        let name = names.next().to_string();
        let ticket = ledger.publish(&name);
        // The same one again after an error: that is what an app would do.
        eventually("a publish after the recovery", || async {
            api.publish(NAME, TOPIC, "application/json", name.clone(), &[]).await.ok()
        })
        .await;
        ledger.acked(ticket);
        wait_until(RECOVERY, "an event after the recovery", || async { ledger.has_handled(&name) }).await;
    }
}

/// An error that a caller gets while the server is away, in the contract's words.
fn check(fault: &Fault, block: Block) {
    let (codes, messages): (&[&str], &[&str]) = match block {
        Block::State => (
            &["ERR_STATE_SAVE", "ERR_STATE_TRANSACTION", "ERR_STATE_GET"],
            &[
                "failed saving state in state store tested: ",
                "error while executing state transaction: ",
                "fail to get guarded from state store tested: ",
            ],
        ),
        Block::PubSub => (
            &["ERR_PUBSUB_PUBLISH_MESSAGE", "DAPR_PUBSUB_PUBLISH_MESSAGE"],
            &["error when publishing to topic topic in pubsub tested: "],
        ),
    };
    assert!(fault.http.is_none_or(|status| status == 500), "{fault:?}");
    assert!(fault.grpc.is_none_or(|code| code == Code::Internal), "{fault:?}");
    assert!(codes.contains(&fault.code.as_str()), "{fault:?}");
    let cause = messages.iter().find_map(|start| fault.message.strip_prefix(start));
    assert!(cause.is_some_and(|cause| cause.len() > 10), "no cause: {fault:?}");
}

pub(crate) async fn run(row: Row) {
    let Some(mut ground) = row.start().await else { return };
    let (ledger, names) = (Ledger::new(row.block).await, Arc::new(Names::default()));
    let builder = Sidecar::builder();
    let beside = builder.folder().join("beside.db");
    let mut builder = builder
        .component(row.document(NAME, &ground.place()))
        .component(component("memory", "state.in-memory", &[]))
        .component(component("file", "state.sqlite", &[("connectionString", beside.to_str().unwrap())]));
    if let Ledger::Events(_, app) = &ledger {
        builder = builder.app(app);
    }
    let mut sidecar = builder.start().await;
    let [http, reader] = sidecar.apis().await;
    let neighbours = [
        ("in-memory", Load::reads(&sidecar, "memory", PACE).await),
        ("sqlite", Load::reads(&sidecar, "file", PACE).await),
    ];
    let load = ledger.load(&sidecar, &names).await;
    for _ in 0..rounds(1, 20) {
        for kind in BREAKS {
            let name = format!("{}: {kind:?}", row.name);
            load.wait(&format!("{name}: calls before it"), Instant::now(), |outcome| outcome.error.is_none()).await;
            let report = one(*kind, row, ground.behind(), &ledger, &load, &sidecar).await;
            ledger.flows(&http, &names).await;
            ledger.fault_ends();
            println!("{name}: {report}; all flows again {:.1?} after it", report.healed.elapsed());
        }
    }
    load.finish().await;
    assert!(sidecar.runs(), "mechad is gone:\n{}", sidecar.log());
    for (name, neighbour) in neighbours {
        let outcomes = neighbour.finish().await;
        let failed: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.error.as_ref()).collect();
        assert!(failed.is_empty(), "{} calls of {name} failed: {:?}", failed.len(), failed[0]);
        println!("{}: {} calls of {name} beside it, all fine, {}", row.name, outcomes.len(), percentiles(&outcomes));
    }
    match &ledger {
        Ledger::State(ledger) => {
            load::read(&reader, ledger, &ledger.keys()).await;
            let verdict = ledger.verdict();
            println!("{}: {verdict}", row.name);
            verdict.assert_kept();
        }
        Ledger::Events(ledger, _) => {
            load::all_delivered(ledger).await;
            let verdict = ledger.verdict();
            println!("{}: {verdict}", row.name);
            verdict.assert_kept();
        }
    }
}

/// What one break did to callers.
struct Report {
    calls: usize,
    errors: usize,
    longest: Duration,
    limit: Duration,
    healed: Instant,
    recovered: Duration,
    lines: usize,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} of {} calls failed, the longest took {:.2?} (limit {:?}), calls work {:.2?} after it, {} log lines",
            self.errors, self.calls, self.longest, self.limit, self.recovered, self.lines
        )
    }
}

/// Breaks it, waits until callers noticed, heals it and waits until they work again.
async fn one(kind: Break, row: Row, behind: &mut Behind, ledger: &Ledger, load: &Load, sidecar: &Sidecar) -> Report {
    let (seen, lines) = (load.outcomes().len(), sidecar.log().lines().count());
    let began = Instant::now();
    ledger.fault_begins();
    kind.begin(behind).await;
    if kind.is_outage() {
        // A call that may have been on its way is not enough, and the second one meets connections that
        // were never answered.
        load.wait(&format!("an error during {kind:?}"), Instant::now(), |outcome| outcome.error.is_some()).await;
        load.wait(&format!("more errors during {kind:?}"), Instant::now(), |outcome| outcome.error.is_some()).await;
    }
    if kind.is_slow() {
        for _ in 0..THROUGH {
            load.wait(&format!("a call through {kind:?}"), Instant::now(), |outcome| outcome.error.is_none()).await;
        }
    }
    kind.end(behind).await;
    let healed = Instant::now();
    load.wait(&format!("the recovery from {kind:?}"), healed, |outcome| outcome.error.is_none()).await;
    load.all_work(&format!("every caller after {kind:?}")).await;
    let outcomes = load.outcomes().split_off(seen);
    let first = outcomes.iter().filter(|outcome| outcome.began >= healed && outcome.error.is_none());
    let recovered = first.map(|outcome| outcome.began + outcome.took - healed).min().unwrap_or_default();
    let faults: Vec<&Fault> = outcomes.iter().filter_map(|outcome| outcome.error.as_ref()).collect();
    faults.iter().for_each(|fault| check(fault, row.block));
    let longest = outcomes.iter().map(|outcome| outcome.took).max().unwrap_or_default();
    assert!(longest < row.limit + SLACK, "{kind:?}: a caller waited {longest:?}");
    let lines = sidecar.log().lines().count() - lines;
    let rate = lines as f64 / began.elapsed().as_secs_f64().max(1.0);
    assert!(rate < LOG_RATE, "{kind:?}: {rate:.0} log lines a second:\n{}", sidecar.log());
    Report { calls: outcomes.len(), errors: faults.len(), longest, limit: row.limit, healed, recovered, lines }
}

fn percentiles(outcomes: &[Outcome]) -> String {
    let mut took: Vec<Duration> = outcomes.iter().map(|outcome| outcome.took).collect();
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    format!("p50 {:.1?}, p99 {:.1?}, most {:.1?}", at(0.5), at(0.99), at(1.0))
}
