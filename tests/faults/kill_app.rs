//! kill -9 of the app while it handles messages: they come again once it is back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mecha_tests::{DEADLINE, EventLedger, Sidecar, wait_until};

use crate::app_process::App;
use crate::load::{self, Load, Names};
use crate::rounds;
use crate::table::Row;

/// Events of one life of the app.
const BETWEEN: usize = 15;
/// Slow enough for a broker that hands out one event after the other.
const PACE: Duration = Duration::from_millis(150);
/// Longest wait for what was in flight.
const REDELIVERY: Duration = Duration::from_secs(60);

/// Retries of the daemon until the app is back.
const PATIENCE: &str = "\
apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata:
  name: patience
spec:
  policies:
    retries:
      patient:
        policy: constant
        duration: 200ms
        maxRetries: -1
  targets:
    components:
      tested:
        inbound:
          retry: patient
";

/// Without a policy and without dead letters, the broker delivers again.
pub(crate) async fn by_broker(row: Row) {
    run(row, false).await;
}

/// With a policy that is not used up, nothing becomes a dead letter.
pub(crate) async fn by_policy(row: Row) {
    run(row, true).await;
}

async fn run(row: Row, policy: bool) {
    let Some(ground) = row.start().await else { return };
    let place = ground.place();
    let mut app = App::new(&place.folder, policy);
    app.start().await;
    let mut builder =
        Sidecar::builder().flag("app-port", app.port().to_string()).component(row.document(load::NAME, &place));
    if policy {
        builder = builder.component(PATIENCE);
    }
    let sidecar = builder.start().await;
    let (ledger, names) = (Arc::new(EventLedger::new()), Arc::new(Names::default()));
    let load = Load::events(&sidecar, &ledger, &names, PACE).await;
    let (kills, mut cut_off) = (rounds(5, 100), 0);
    for _ in 0..kills {
        let before = app.got();
        wait_until(REDELIVERY, "the app at work", || async {
            app.got() >= before + BETWEEN && app.in_hand() > cut_off
        })
        .await;
        app.kill();
        cut_off = app.in_hand();
        // Events go on coming in meanwhile.
        let acked = load.acked();
        wait_until(DEADLINE, "events while the app is away", || async { load.acked() >= acked + 4 }).await;
        app.start().await;
    }
    let outcomes = load.finish().await;
    let failed: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.error.as_ref()).collect();
    assert!(failed.is_empty(), "publishing needs no app: {failed:?}");
    let began = Instant::now();
    let last = names.count().to_string();
    wait_until(REDELIVERY, "every acknowledged event to be handled", || async {
        (0..names.count()).map(|id| id.to_string()).all(|id| app.has_done(&id))
    })
    .await;
    app.tell(&ledger);
    let verdict = ledger.verdict();
    println!(
        "{}: {kills} kills of the app that cut off {cut_off} handlers: {verdict}, {} dead letters; the rest of {last} after {:.1?}",
        row.name,
        app.dead(),
        began.elapsed()
    );
    assert!(cut_off > 0, "no kill hit a handler");
    verdict.assert_kept();
    assert_eq!(app.dead(), 0);
}
