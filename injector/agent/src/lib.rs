//! The agent role: delivers documents to sidecars, resolves their secrets, reports what they run.
//!
//! One port serves `mecha.v1.Delivery` and Dapr's `operator.v1.Operator` over mutual TLS. Who a sidecar is says its
//! certificate; it gets the documents of its namespace that are in its scope, with the values of the Secrets that
//! these name, and nothing else. Documents are those of the CapabilityBindings of one cluster and those of dapr.io
//! that people wrote; of two with one name the written one wins.
//!
//! Nothing here is kept: after a restart all of it comes from the API server and from sidecars that say what they
//! run. While the agent is away sidecars go on with what they have.
//!
//! Rights it needs, and no others:
//!
//! | Group | Kinds | Verbs | Where |
//! |---|---|---|---|
//! | `mecha.dev` | capabilitybindings | get, list, watch | namespace of its cluster |
//! | `mecha.dev` | capabilitybindings/status | patch | namespace of its cluster |
//! | `dapr.io` | components, subscriptions, configurations, resiliencies, httpendpoints | get, list, watch | everywhere |
//! | core | secrets | get, watch | everywhere; each by its name |
//! | core | pods | get, list, watch | everywhere |
//! | core | configmaps | get, list, watch, create, patch, delete | control namespace |
//! | `coordination.k8s.io` | leases | get, create, update | control namespace |
//! | `events.k8s.io` | events | create, patch | namespace of its cluster |

mod delivery;
mod desk;
mod document;
mod kinds;
mod metrics;
mod operator;
mod peers;
mod publish;
mod secrets;
mod serve;
mod sets;
mod sidecars;
mod status;
mod view;
mod waits;
mod world;

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mecha_apiserver::Role;
use mecha_apiserver::trace::Tracer;
use mecha_identity::Live;
use tokio::net::TcpListener;

use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::publish::Publisher;
use crate::secrets::Reader;
use crate::serve::{Served, serve};
use crate::sidecars::Sidecars;
use crate::world::World;

/// How the agent delivers.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where sidecars connect.
    pub listen: SocketAddr,
    /// Name of this cluster; its bindings lie in the namespace `mecha-cluster-<name>`.
    pub cluster: String,
    /// Most connections at a time.
    pub max_connections: usize,
    /// Most sidecars of our protocol at a time.
    pub max_sidecars: usize,
    /// After a start, no status is written for so long: sidecars need time to come back, and one that is missing
    /// must not look as if it had never been there.
    pub patience: Duration,
    /// Starts the spans of what is delivered.
    pub tracer: Tracer,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: (Ipv6Addr::UNSPECIFIED, 6500).into(),
            cluster: "local".to_owned(),
            max_connections: 10_000,
            max_sidecars: 5_000,
            patience: Duration::from_secs(10),
            tracer: Tracer::off(),
        }
    }
}

/// Why the agent does not deliver.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The port cannot be had.
    #[error("sidecars cannot connect at {address}: {source}; free the port or choose another")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    address: SocketAddr,
}

impl Agent {
    /// Takes the port, and serves sidecars in tasks of `role` as soon as everything has been read once. `live` is
    /// whom sidecars meet: `spiffe://<trust domain>/ns/<control namespace>/dapr-operator`.
    ///
    /// # Errors
    /// The port cannot be had.
    pub async fn start(options: Options, role: &Role, live: Arc<Live>) -> Result<Self, AgentError> {
        let wrong = |source| AgentError::Listen { address: options.listen, source };
        let listener = TcpListener::bind(options.listen).await.map_err(wrong)?;
        let address = listener.local_addr().map_err(wrong)?;
        let metrics = Metrics::register(&mut role.metrics.lock());
        let reader = Reader::new(role.client.clone(), role.tasks.clone(), metrics.clone());
        let world = Arc::new(World::new(&role.client, &options.cluster, reader, &role.tasks));
        let sidecars = Arc::new(Sidecars::new(options.max_sidecars));
        let served = Arc::new(Served {
            world: world.clone(),
            sidecars: sidecars.clone(),
            live,
            metrics: metrics.clone(),
            tracer: options.tracer.clone(),
            tasks: role.tasks.clone(),
            stop: role.tasks.stopping().clone(),
        });
        let gate = role.ready.wait_for("documents for sidecars");
        let (owned, connections, patience) = (role.clone(), options.max_connections, options.patience);
        role.tasks.spawn("agent", async move {
            let stop = owned.tasks.stopping().clone();
            if stop.run_until_cancelled(world.listed()).await.is_none() {
                return;
            }
            let composer = world.clone();
            owned.tasks.run("composer", async move { composer.run().await });
            let peers = Peers::join(&owned, sidecars.clone());
            let publisher = Publisher { world, sidecars, peers, metrics, patience };
            owned.tasks.run("status", publisher.run(owned.clone()));
            gate.open();
            serve(listener, connections, served).await;
        });
        Ok(Self { address })
    }

    /// Where sidecars connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Serves sidecars until the role ends.
///
/// # Errors
/// The port cannot be had.
pub async fn run(options: Options, role: Role, live: Arc<Live>) -> Result<(), AgentError> {
    let agent = Agent::start(options, &role, live).await?;
    tracing::info!(address = %agent.address(), "sidecars are served");
    role.tasks.stopping().cancelled().await;
    Ok(())
}
