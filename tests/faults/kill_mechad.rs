//! kill -9 of the daemon under load: what it acknowledged is there when it is back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mecha_tests::{DEADLINE, EventLedger, Sidecar, StateLedger, wait_until};

use crate::load::{self, Load, Names};
use crate::rounds;
use crate::table::{Block, Row};

/// Acknowledged calls to reach at least.
const ACKNOWLEDGED: usize = 1000;
/// More than any component of the table hands out at once without a verdict.
const IN_FLIGHT: usize = 100;

pub(crate) async fn run(row: Row) {
    match row.block {
        Block::State => state(row).await,
        Block::PubSub => events(row).await,
    }
}

/// Kills, and acknowledged calls between two of them.
fn plan() -> (usize, usize) {
    let kills = rounds(20, 1000);
    (kills, ACKNOWLEDGED.div_ceil(kills).max(10))
}

/// Kills meet calls at different points; the same ones each run.
fn pause(round: usize) -> Duration {
    Duration::from_micros((round as u64 * 1_370) % 20_000)
}

async fn state(row: Row) {
    let Some(ground) = row.start().await else { return };
    let mut sidecar = Sidecar::with("app", &[row.document(load::NAME, &ground.place())]).await;
    let (ledger, names) = (Arc::new(StateLedger::new()), Arc::new(Names::default()));
    let (kills, between) = plan();
    let mut known = 0;
    for round in 0..kills {
        let load = Load::state(&sidecar, &ledger, &names, Duration::ZERO).await;
        interrupt(&mut sidecar, load, between, round, || ()).await;
        // New keys sort anywhere, so all are read now and then, and in the end.
        let keys = ledger.keys();
        if keys.len() > known * 2 || round + 1 == kills {
            known = keys.len();
            let [_, reader] = sidecar.apis().await;
            load::read(&reader, &ledger, &keys).await;
        }
    }
    let verdict = ledger.verdict();
    println!("{}: {kills} kills of mechad: {verdict}", row.name);
    verdict.assert_kept();
    assert!(verdict.acked >= ACKNOWLEDGED, "{verdict}");
}

async fn events(row: Row) {
    let Some(ground) = row.start().await else { return };
    let (ledger, names) = (Arc::new(EventLedger::new()), Arc::new(Names::default()));
    let app = load::app(&ledger).start().await;
    let document = row.document(load::NAME, &ground.place());
    let mut sidecar = Sidecar::builder().app(&app).component(document).start().await;
    let (kills, between) = plan();
    for round in 0..kills {
        let load = Load::events(&sidecar, &ledger, &names, Duration::ZERO).await;
        interrupt(&mut sidecar, load, between, round, || ledger.fault()).await;
    }
    let began = Instant::now();
    load::all_delivered(&ledger).await;
    let verdict = ledger.verdict();
    println!("{}: {kills} kills of mechad: {verdict}; the rest after {:?}", row.name, began.elapsed());
    verdict.assert_kept();
    assert!(verdict.acked >= ACKNOWLEDGED, "{verdict}");
    // A kill can repeat what was in flight, and no more.
    assert!(verdict.duplicates <= kills * IN_FLIGHT, "{verdict}");
}

/// Kills the daemon once enough is acknowledged, and starts it again.
async fn interrupt(sidecar: &mut Sidecar, load: Load, enough: usize, round: usize, killed: impl FnOnce()) {
    wait_until(DEADLINE, "acknowledged calls", || async { load.acked() >= enough }).await;
    tokio::time::sleep(pause(round)).await;
    sidecar.kill().await;
    killed();
    load.finish().await;
    sidecar.again().await;
}
