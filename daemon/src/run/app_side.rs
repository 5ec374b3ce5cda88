//! The app's side of a start: wait for its port, ask what it wants, start what delivers to it.

use std::sync::Arc;
use std::time::Duration;

use mecha_core::app::{AppChannel, AppConfig};
use mecha_core::health::Phase;
use mecha_core::pubsub::{ask_app, from_document};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::runtime::Runtime;
use crate::app::{AppHealth, HealthEvent, HealthSettings};
use crate::cli::Options;

/// Pause between two looks at the app's port.
const PORT_PAUSE: Duration = Duration::from_millis(100);
/// Pause between two lines that say what is waited for.
const PORT_REMINDER: Duration = Duration::from_secs(10);
/// First and longest pause between two questions that the app did not answer definitely.
const ASK_PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// What the sources of events get to settle when the app turns unhealthy.
const PAUSE_LIMIT: Duration = Duration::from_secs(5);

/// Runs steps 15 to 17 of the start, then follows the app's health until the runtime stops.
pub(super) async fn attach(runtime: Arc<Runtime>, options: Arc<Options>, began: Instant) {
    let core = runtime.core.clone();
    let health = match core.app() {
        Ok(app) => {
            let app = app.clone();
            wait_for_port(&options).await;
            let health = options.app_health.as_ref().map(|h| {
                let settings = HealthSettings {
                    path: h.path.clone(),
                    interval: h.interval,
                    timeout: h.timeout,
                    threshold: h.threshold,
                };
                AppHealth::start(app.clone(), runtime.gate.clone(), settings, &core.tasks).watch()
            });
            match health {
                // The gate holds back what delivers to the app, not readiness.
                Some(health) => {
                    ready(&runtime, began).await;
                    Some((app, health))
                }
                None => {
                    deliver(&runtime, &options, app.as_ref()).await;
                    ready(&runtime, began).await;
                    None
                }
            }
        }
        Err(_) => {
            // Streams and configuration watches work without an app port.
            core.pubsub.manager().start(Vec::new(), Vec::new()).await;
            ready(&runtime, began).await;
            None
        }
    };
    if let Some((app, health)) = health {
        follow(&runtime, &options, app.as_ref(), health).await;
    }
}

async fn ready(runtime: &Runtime, began: Instant) {
    runtime.name.known().await;
    let health = &runtime.core.health;
    // A rebuild happens while the process is ready; a stop must not be undone.
    if health.phase() == Phase::Starting {
        health.reached("app");
        health.enter(Phase::Ready);
    }
    tracing::info!(
        target: "dapr.runtime",
        "dapr initialized. Status: Running. Init Elapsed {}ms", began.elapsed().as_millis()
    );
}

async fn wait_for_port(options: &Options) {
    let Some(port) = options.app_port else { return };
    tracing::info!(
        target: "dapr.runtime",
        "application protocol: {}. waiting on port {port}.  This will block until the app is listening on that port.",
        options.app_protocol
    );
    let mut reminded = Instant::now();
    loop {
        let dialled = TcpStream::connect((options.app_channel_address.as_str(), port)).await;
        if dialled.is_ok() {
            break;
        }
        if reminded.elapsed() >= PORT_REMINDER {
            reminded = Instant::now();
            tracing::info!(target: "dapr.runtime", "waiting for application to listen on port {port}");
        }
        tokio::time::sleep(PORT_PAUSE).await;
    }
    tracing::info!(target: "dapr.runtime", "application discovered on port {port}");
}

/// Asks the app and starts subscriptions and input bindings.
async fn deliver(runtime: &Runtime, options: &Options, app: &dyn AppChannel) {
    if options.skip_app_config {
        tracing::info!(target: "dapr.runtime", "Skipping programmatic dapr configuration loading");
    } else if let Some(config) = app_config(app).await
        && !config.entities.is_empty()
    {
        tracing::warn!(
            target: "dapr.runtime",
            "the app hosts actor types {:?}, which this version does not run: {}",
            config.entities,
            "actor calls answer ERR_ACTOR_NO_PLACEMENT"
        );
    }
    let programmatic = if options.skip_app_subscriptions {
        tracing::info!(target: "dapr.runtime", "Skipping programmatic subscription loading");
        Vec::new()
    } else {
        ask_app(app).await
    };
    let declarative: Vec<_> = runtime.subscriptions.lock().iter().map(from_document).collect();
    if options.strict.app_routes {
        runtime.close_routes(declarative.iter().chain(&programmatic));
    }
    runtime.core.pubsub.manager().start(declarative, programmatic).await;
    runtime.inputs.start(&runtime.core);
}

async fn app_config(app: &dyn AppChannel) -> Option<AppConfig> {
    let (mut pause, most) = ASK_PAUSE;
    let mut told = false;
    loop {
        match app.config().await {
            Ok(config) => return config,
            Err(e) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(target: "dapr.runtime", "the app's configuration is not there yet: {e}");
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(most);
            }
        }
    }
}

/// Starts deliveries when the app is healthy, pauses them when it is not.
async fn follow(runtime: &Runtime, options: &Options, app: &dyn AppChannel, mut health: watch::Receiver<HealthEvent>) {
    let mut started = false;
    loop {
        let now = *health.borrow_and_update();
        match now {
            HealthEvent::Healthy if !started => {
                started = true;
                deliver(runtime, options, app).await;
            }
            HealthEvent::Healthy => {
                runtime.core.pubsub.manager().resume().await;
                runtime.inputs.start(&runtime.core);
            }
            HealthEvent::Unhealthy if started => {
                runtime.core.pubsub.manager().pause();
                let _ = tokio::time::timeout(PAUSE_LIMIT, runtime.inputs.stop()).await;
            }
            HealthEvent::Unhealthy | HealthEvent::Unknown => {}
        }
        if health.changed().await.is_err() {
            return;
        }
    }
}
