//! The staged stop: stop fetching, finish, acknowledge, say goodbye, close.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use mecha_core::ShutdownRequest;
use mecha_core::health::Phase;
use tokio::time::{Instant, timeout, timeout_at};

use super::live::enter;
use super::runtime::{Fixtures, Runtime};
use super::servers::{FAREWELL, Servers};
use crate::handover::Departure;

/// What pub/sub gets to finish the messages in flight.
const PUBSUB_DRAIN: Duration = Duration::from_secs(30);
/// What input bindings get to finish the events in flight.
const INPUT_DRAIN: Duration = Duration::from_secs(30);
/// What the API servers get to finish the calls in flight.
const API_DRAIN: Duration = Duration::from_secs(10);
/// How long clients get to hear that their connections close where a successor serves already and nobody waits.
const HANDOVER_FAREWELL: Duration = Duration::from_secs(3);
/// What calls in flight get where a successor serves already.
const HANDOVER_DRAIN: Duration = Duration::from_secs(60);
/// What a broker that was left gets there to be read to its end; less than its calls in flight, whose streams go on
/// as long.
const HANDOVER_READ: Duration = Duration::from_secs(50);
/// What closing gets of the graceful time, half of it at most: until then a broker that was left is read on.
const CLOSING: Duration = Duration::from_secs(5);
/// How often the app's health is looked at while the stop is blocked.
const BLOCK_PAUSE: Duration = Duration::from_millis(50);
/// How long calls of a replaced runtime may go on.
const RETIRE_GRACE: Duration = Duration::from_secs(30);
/// How often it is looked whether they have ended.
const RETIRE_PAUSE: Duration = Duration::from_millis(20);

/// Why the process stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// SIGINT or SIGTERM.
    Signal,
    /// The shutdown API.
    Api,
    /// Something that may not fail has failed.
    Failure,
}

/// Stops the process gracefully within the configured time.
pub(super) async fn run(fix: &Fixtures, runtime: Arc<Runtime>, servers: Servers, cause: Cause) -> ExitCode {
    if cause == Cause::Signal
        && let Some(limit) = fix.options.block_shutdown
    {
        block(fix, &runtime, limit).await;
    }
    tracing::info!(target: "dapr.runtime", "Dapr is shutting down");
    let stages = stages(fix, runtime, servers);
    let in_time = match fix.options.graceful_shutdown {
        Some(limit) => timeout(limit, stages).await.is_ok(),
        None => {
            stages.await;
            true
        }
    };
    if !in_time {
        tracing::error!(target: "dapr.runtime", "Graceful shutdown timeout exceeded, forcing shutdown");
        return ExitCode::FAILURE;
    }
    if cause == Cause::Failure {
        return ExitCode::FAILURE;
    }
    tracing::info!(target: "dapr.runtime", "Daprd shutdown gracefully");
    ExitCode::SUCCESS
}

/// Ends the process beside a successor that serves on the same sockets. Health stays as it is: to
/// clients this is one sidecar.
pub(super) async fn hand_over(
    fix: &Fixtures,
    runtime: Arc<Runtime>,
    mut servers: Servers,
    mut successor: Departure,
) -> ExitCode {
    tracing::info!(target: "dapr.runtime", "the successor serves, this process finishes its calls and ends");
    servers.leave_sockets();
    let inputs = async {
        let pubsub = runtime.core.pubsub.manager();
        settle(&runtime, pubsub.stop_app(PUBSUB_DRAIN)).await;
        successor.settled().await;
        // Nobody else will come for what a broker still holds that was left a moment ago. Streams take events of both
        // brokers here meanwhile; they are opened at the successor once they end.
        let read = timeout(HANDOVER_READ, runtime.loader.left()).await;
        if read.is_err() {
            tracing::warn!(
                target: "dapr.runtime",
                "a broker that was left is not at its end after {HANDOVER_READ:?}; no process of this app reads it any more"
            );
        }
        pubsub.stop(PUBSUB_DRAIN).await;
        // Streams have to end before their servers can.
        runtime.core.tasks.stop();
    };
    let apis = servers.apis.leave(HANDOVER_FAREWELL, HANDOVER_DRAIN);
    let peers = servers.peers.leave(FAREWELL, HANDOVER_DRAIN);
    let metrics = servers.close_metrics(API_DRAIN);
    tokio::join!(inputs, apis, peers, metrics);
    enter(&fix.health, Phase::Drained);
    close(fix, &runtime).await;
    enter(&fix.health, Phase::Stopped);
    tracing::info!(target: "dapr.runtime", "handed over and ended");
    ExitCode::SUCCESS
}

/// Keeps all APIs serving, without input, until the time is over or the app is unhealthy.
async fn block(fix: &Fixtures, runtime: &Runtime, limit: Duration) {
    tracing::info!(
        target: "dapr.runtime",
        "Blocking graceful shutdown for {} or until app reports unhealthy...",
        mecha_resources::format_duration(limit)
    );
    enter(&fix.health, Phase::Draining);
    let watched = fix.options.app_health.is_some();
    let mut requests = runtime.core.shutdown_requests();
    let unhealthy = async {
        while !watched || runtime.gate.is_healthy() {
            tokio::time::sleep(BLOCK_PAUSE).await;
        }
    };
    // The time counts from the signal, not from the last event in flight. A stop by API does not block.
    let until = timeout(limit, async {
        tokio::select! {
            () = unhealthy => true,
            Ok(_) = requests.wait_for(|r| *r != ShutdownRequest::None) => false,
        }
    });
    let ((), blocked) = tokio::join!(settle_inputs(runtime), until);
    match blocked {
        Ok(true) => tracing::info!(target: "dapr.runtime", "App reported unhealthy, entering shutdown..."),
        Ok(false) => {}
        Err(_) => tracing::info!(target: "dapr.runtime", "Block shutdown period expired, entering shutdown..."),
    }
}

/// Stops subscriptions and input bindings; what is in flight is finished first, and nothing is
/// turned into a failure by the stop itself.
pub(super) async fn settle_inputs(runtime: &Runtime) {
    settle(runtime, runtime.core.pubsub.manager().stop(PUBSUB_DRAIN)).await;
}

async fn settle(runtime: &Runtime, pubsub: impl Future<Output = bool>) {
    let inputs = timeout(INPUT_DRAIN, runtime.inputs.stop());
    let (drained, stopped) = tokio::join!(pubsub, inputs);
    if !drained || stopped.is_err() {
        tracing::warn!(
            target: "dapr.runtime",
            "some events were still in flight at the stop; the broker delivers them again"
        );
    }
}

async fn stages(fix: &Fixtures, runtime: Arc<Runtime>, servers: Servers) {
    let graceful = fix.options.graceful_shutdown;
    let read_until = graceful.map(|limit| Instant::now() + limit.saturating_sub(CLOSING.min(limit / 2)));
    enter(&fix.health, Phase::Draining);
    // Others choose another instance from now on.
    tokio::join!(runtime.name.withdraw(), settle_inputs(&runtime));
    // A component of the next process may not read what a broker still holds that was left a moment ago.
    let left = runtime.loader.left();
    match read_until {
        Some(until) => drop(timeout_at(until, left).await),
        None => left.await,
    }
    // Streams have to end before their servers can.
    runtime.core.tasks.stop();
    servers.close(API_DRAIN).await;
    enter(&fix.health, Phase::Drained);
    close(fix, &runtime).await;
    tracing::info!(target: "dapr.runtime", "Dapr runtime stopped");
    servers.close_metrics(API_DRAIN).await;
    enter(&fix.health, Phase::Stopped);
}

/// Ends the last runtime of the process, and what outlives a runtime.
async fn close(fix: &Fixtures, runtime: &Runtime) {
    runtime.close().await;
    if let Some(workload) = &fix.workload {
        workload.shut_down().await;
    }
}

/// Closes a replaced runtime once its last call has ended, or its grace is over. `next` reads on what it had not read
/// to its end.
pub(super) async fn retire(runtime: Arc<Runtime>, next: Arc<Runtime>) {
    let deadline = Instant::now() + RETIRE_GRACE;
    runtime.loader.hand_on(&next.loader);
    drop(next);
    runtime.core.tasks.stop();
    while runtime.is_busy() && Instant::now() < deadline {
        tokio::time::sleep(RETIRE_PAUSE).await;
    }
    runtime.close().await;
}
