//! The connection to the operator: made for ever, listed after each start.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{Stream, StreamExt, select_all};
use mecha_components_api::Clock as _;
use mecha_proto::operator as wire;
use mecha_proto::operator::ResourceEventType;
use mecha_proto::operator::operator_client::OperatorClient;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::Shared;
use super::documents::{Item, Kind};
use crate::identity::ControlPlane;

/// First and longest pause between two connections. The longest is that of the incumbent.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Limit of one list.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// A list of a whole namespace; the same as the control plane's own limit.
const MAX_MESSAGE: usize = 64 << 20;
/// A connection that lasted this long starts the pauses anew.
const HEALTHY: Duration = Duration::from_secs(30);

/// Where the operator is, and what is asked of it.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) plane: ControlPlane,
    pub(super) namespace: String,
    /// Names of the Configurations in use, the last one wins.
    pub(super) configurations: Vec<String>,
    pub(super) relist_every: Duration,
}

/// Keeps the mirror up to date.
pub(super) struct Link {
    settings: Settings,
    shared: Arc<Shared>,
}

type Client = OperatorClient<Channel>;
type Events = Pin<Box<dyn Stream<Item = Result<(Kind, Bytes, i32), Status>> + Send>>;

/// Why a connection ended, or none came about.
#[derive(Debug)]
struct Broken(String);

impl From<Status> for Broken {
    fn from(status: Status) -> Self {
        Self(format!("{:?}: {}", status.code(), status.message()))
    }
}

impl Link {
    pub(super) fn new(settings: Settings, shared: Arc<Shared>) -> Self {
        if !settings.plane.is_secure() {
            tracing::warn!(
                target: "dapr.runtime",
                "the connection to the operator at {} is not encrypted", settings.plane.address()
            );
        }
        Self { settings, shared }
    }

    pub(super) async fn run(self) -> Infallible {
        let jitter = mecha_components_api::SystemClock;
        let mut pause = PAUSE.0;
        loop {
            let began = Instant::now();
            let Err(Broken(cause)) = self.connection().await;
            if began.elapsed() >= HEALTHY {
                pause = PAUSE.0;
            }
            // Sidecars of a whole cluster must not come back at one moment.
            let nanos = jitter.now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
            let wait = pause.mul_f64(0.5 + f64::from(nanos % 1000) / 2000.0);
            let kept = if *self.shared.listings.borrow() > 0 { "; the last documents stay in use" } else { "" };
            tracing::warn!(
                target: "dapr.runtime.hotreload",
                "no connection to the operator at {}, trying again in {wait:?}{kept}: {cause}", self.settings.plane.address()
            );
            sleep(wait).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// One connection, to its end.
    async fn connection(&self) -> Result<Infallible, Broken> {
        let channel = self.settings.plane.connect().await.map_err(Broken)?;
        let mut client =
            OperatorClient::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(1 << 20);
        // Streams first: what changes while the lists are read is told by them.
        let mut events = self.streams(&mut client).await?;
        self.list(&mut client).await?;
        tracing::info!(target: "dapr.runtime.hotreload", "following the operator at {}", self.settings.plane.address());
        let every = self.settings.relist_every.max(Duration::from_millis(100));
        let mut tick = interval_at(Instant::now() + every, every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok((kind, json, change))) => self.apply(kind, &json, change),
                    Some(Err(status)) => return Err(status.into()),
                    None => return Err(Broken("its streams have ended".to_owned())),
                },
                _ = tick.tick() => self.list(&mut client).await?,
                () = self.shared.relist.notified() => self.list(&mut client).await?,
            }
        }
    }

    async fn streams(&self, client: &mut Client) -> Result<Events, Broken> {
        let namespace = || self.settings.namespace.clone();
        let mut all: Vec<Events> = Vec::new();
        macro_rules! follow {
            ($kind:expr, $method:ident, $request:ident, $field:ident) => {
                match timeout(CALL_LIMIT, client.$method(wire::$request { namespace: namespace() })).await {
                    Ok(Ok(stream)) => {
                        let events = stream.into_inner().map(|e| e.map(|e| ($kind, e.$field, e.r#type)));
                        // One that ends ends the connection: what it would have said is listed then.
                        let end = futures_util::stream::once(async {
                            Err(Status::unavailable(concat!("the stream ", stringify!($method), " has ended")))
                        });
                        all.push(Box::pin(events.chain(end)));
                    }
                    // An operator without it: the lists have to do.
                    Ok(Err(status)) if status.code() == Code::Unimplemented => {}
                    Ok(Err(status)) => return Err(status.into()),
                    Err(_) => return Err(Broken(format!("no answer within {CALL_LIMIT:?}"))),
                }
            };
        }
        follow!(Kind::Component, component_update, ComponentUpdateRequest, component);
        follow!(Kind::Subscription, subscription_update, SubscriptionUpdateRequest, subscription);
        follow!(Kind::HttpEndpoint, http_endpoint_update, HttpEndpointUpdateRequest, http_endpoints);
        follow!(Kind::Configuration, configuration_update, ConfigurationUpdateRequest, configuration);
        follow!(Kind::Resiliency, resiliency_update, ResiliencyUpdateRequest, resiliency);
        if all.is_empty() {
            all.push(Box::pin(futures_util::stream::pending()));
        }
        Ok(Box::pin(select_all(all)))
    }

    /// Lists everything, and replaces the mirror at once when all of it came.
    async fn list(&self, client: &mut Client) -> Result<(), Broken> {
        let lists = async {
            let namespace = || self.settings.namespace.clone();
            let components = client.list_components(wire::ListComponentsRequest { namespace: namespace() }).await?;
            let subscriptions =
                client.list_subscriptions_v2(wire::ListSubscriptionsRequest { namespace: namespace() }).await?;
            let endpoints =
                client.list_http_endpoints(wire::ListHttpEndpointsRequest { namespace: namespace() }).await?;
            let resiliencies = client.list_resiliency(wire::ListResiliencyRequest { namespace: namespace() }).await?;
            let mut configurations = Vec::new();
            for name in &self.settings.configurations {
                let request = wire::GetConfigurationRequest { name: name.clone(), namespace: namespace() };
                let found = client.get_configuration(request).await.map_err(|status| {
                    Broken(format!("Configuration {name}: {:?}: {}", status.code(), status.message()))
                })?;
                configurations.push(found.into_inner().configuration);
            }
            Ok::<_, Broken>([
                (Kind::Component, components.into_inner().components),
                (Kind::Subscription, subscriptions.into_inner().subscriptions),
                (Kind::HttpEndpoint, endpoints.into_inner().http_endpoints),
                (Kind::Resiliency, resiliencies.into_inner().resiliencies),
                (Kind::Configuration, configurations),
            ])
        };
        let lists = timeout(CALL_LIMIT * 2, lists)
            .await
            .map_err(|_| Broken(format!("no complete list within {:?}", CALL_LIMIT * 2)))??;
        let mut changed = false;
        {
            let mut mirror = self.shared.mirror.lock();
            for (kind, resources) in lists {
                let items = resources.iter().filter_map(|json| self.read(kind, json)).collect();
                changed |= mirror.replace(kind, items);
            }
        }
        if changed {
            self.shared.version.send_modify(|v| *v += 1);
        }
        self.shared.listings.send_modify(|n| *n += 1);
        Ok(())
    }

    fn apply(&self, kind: Kind, json: &Bytes, change: i32) {
        let Some(item) = self.read(kind, json) else { return };
        if kind == Kind::Configuration && !self.settings.configurations.contains(&item.name) {
            return;
        }
        let name = item.name.clone();
        let deleted = change == ResourceEventType::Deleted as i32;
        let changed = {
            let mut mirror = self.shared.mirror.lock();
            if deleted { mirror.remove(kind, &name) } else { mirror.set(kind, item) }
        };
        if changed {
            tracing::debug!(target: "dapr.runtime.hotreload", "the operator tells of {} {name}", kind.name());
            self.shared.version.send_modify(|v| *v += 1);
        }
    }

    /// A resource, if it can be read and is ours. One that cannot does not stop the others.
    fn read(&self, kind: Kind, json: &Bytes) -> Option<Item> {
        match Item::read(kind, json, &self.settings.namespace) {
            Ok(item) => item,
            Err(e) => {
                tracing::error!(
                    target: "dapr.runtime.loader",
                    "a {} from the operator is left out: {e}", kind.name()
                );
                None
            }
        }
    }
}
