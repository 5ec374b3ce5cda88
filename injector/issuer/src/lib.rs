//! Issues certificates to workloads whose service account token the API server vouches for.
//!
//! The service is `dapr.proto.sentry.v1.CA`, so stock sidecars get their certificates here as well. A request
//! counts when the API server authenticates its token, the token is bound to a pod, and that pod is still there,
//! of that service account, and of the app id asked for.
//!
//! There is one root at a time, which signs leaves itself: an issuer below it would lie in the same Secret and be
//! read by the same account. Roots follow each other without a gap, see [`ROTATE_ANNOTATION`]; any replica takes
//! the steps, since each is one write guarded by the Secret's resource version.
//!
//! What runs beside it in one process takes [`Issuer::bundle`] to verify clients, and [`Issuer::control`] for
//! certificates of its own.

mod authority;
mod bundle;
mod control;
mod generations;
mod metrics;
mod request;
mod roots;
mod serve;
mod workload;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use mecha_apiserver::trace::Tracer;
use mecha_apiserver::{Events, Failure, FailureKind, Patience, Role, Selection, follow};
use mecha_identity::{Bundle, Clients, Live, SpiffeId};
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use authority::AuthorityError;
pub use request::RequestError;

use crate::bundle::{Published, Publisher};
use crate::generations::Timing;
use crate::metrics::Metrics;
use crate::roots::{Keeper, Roots, Store};
use crate::serve::{Gate, Service};
use crate::workload::Workloads;

/// Secret with the roots, in the namespace of the control part. Only the agent's account may read it.
pub const ROOT_SECRET: &str = "mecha-trust-root";
/// Annotation of [`ROOT_SECRET`] that asks for another root: any text that was not there before. Without it roots
/// change at two thirds of their life.
pub const ROTATE_ANNOTATION: &str = "mecha.dev/rotate";
/// ConfigMap with the trust bundle, in the namespace of the control part and in all that have injected pods.
pub const BUNDLE_CONFIG_MAP: &str = "mecha-trust-bundle";
/// Its key: all roots as PEM.
pub const BUNDLE_KEY: &str = "ca.crt";
/// Label of namespaces that get the trust bundle before their first injected pod.
pub const BUNDLE_LABEL: &str = "mecha.dev/trust-bundle";
/// Label of injected pods.
const INJECTED: &str = "dapr.io/sidecar-injected=true";

/// How certificates are issued.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the service listens.
    pub listen: SocketAddr,
    /// Trust domain of the control part.
    pub trust_domain: String,
    /// Audiences of which a token must have one; empty: `dapr.io/sentry` and the service's own SPIFFE id, as
    /// stock sidecars have.
    pub audiences: Vec<String>,
    /// Service accounts of the control namespace, and the ids of the control part (such as `dapr-placement`)
    /// that pods of theirs get.
    pub control_accounts: BTreeMap<String, Vec<String>>,
    /// Life of a workload's certificate.
    pub leaf_ttl: Duration,
    /// Life of a root.
    pub root_life: Duration,
    /// Time between the publication of a new root and its first signature: what mounted ConfigMaps need to reach
    /// every sidecar.
    pub publish_wait: Duration,
    /// Requests that are looked at at once.
    pub requests_at_once: usize,
    /// Requests that are looked at in a second, on average.
    pub requests_per_second: u32,
    /// DNS names of the service in its own certificate; empty: those of its Service `dapr-sentry`.
    pub dns_names: Vec<String>,
    /// Makes the spans of requests.
    pub tracer: Tracer,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, 50001)),
            trust_domain: "cluster.local".to_owned(),
            audiences: Vec::new(),
            control_accounts: BTreeMap::new(),
            leaf_ttl: Duration::from_secs(24 * 3600),
            root_life: Duration::from_secs(365 * 24 * 3600),
            publish_wait: Duration::from_secs(5 * 60),
            requests_at_once: 64,
            requests_per_second: 200,
            dns_names: Vec::new(),
            tracer: Tracer::off(),
        }
    }
}

/// Why the issuer does not start, or a certificate of the control part not come to be.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// The address cannot be had.
    #[error("the issuer cannot listen on {0}: {1}; choose another address or stop who listens there")]
    Listen(SocketAddr, #[source] std::io::Error),
    /// The API server does not do what it is asked.
    #[error("Secret {ROOT_SECRET} at the API server: {0}")]
    Api(#[from] Failure),
    /// The Secret holds no usable root.
    #[error("Secret {ROOT_SECRET}: {0}")]
    Root(#[from] AuthorityError),
    /// The control part's own certificate.
    #[error("{0}")]
    Own(String),
}

/// A running issuer. Clones are the same; it ends with its role.
#[derive(Clone)]
pub struct Issuer {
    inner: Arc<Inner>,
}

struct Inner {
    address: SocketAddr,
    roots: Arc<Roots>,
    bundle: watch::Receiver<Arc<Bundle>>,
    metrics: Arc<Metrics>,
    trust_domain: String,
    role: Role,
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer").field("address", &self.inner.address).finish_non_exhaustive()
    }
}

impl Issuer {
    /// Reads or makes the root, then serves, in tasks of `role`. Waits for an API server that is not there yet, and for
    /// the right to ask it.
    ///
    /// # Errors
    /// The address is taken, or the Secret holds something else.
    pub async fn start(options: Options, role: &Role) -> Result<Self, IssuerError> {
        let gate = role.ready.wait_for("the root of certificates");
        let listener = TcpListener::bind(options.listen).await.map_err(|e| IssuerError::Listen(options.listen, e))?;
        let address = listener.local_addr().map_err(|e| IssuerError::Listen(options.listen, e))?;
        let timing =
            Timing { root_life: options.root_life, leaf_ttl: options.leaf_ttl, publish_wait: options.publish_wait };
        let store = Store {
            api: Api::namespaced(role.client.clone(), &role.namespace),
            trust_domain: options.trust_domain.clone(),
            timing,
        };
        let roots = Arc::new(Roots::new(patiently(&store).await?, options.leaf_ttl)?);
        let metrics = Arc::new(Metrics::register(&mut role.metrics.lock()));
        let issuer = Self {
            inner: Arc::new(Inner {
                address,
                bundle: plain_bundle(&roots, role),
                roots,
                metrics,
                trust_domain: options.trust_domain.clone(),
                role: role.clone(),
            }),
        };
        issuer.keep_roots(store);
        issuer.serve(options, listener)?;
        gate.open();
        Ok(issuer)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }

    /// The roots in force, for whoever verifies certificates in this process.
    #[must_use]
    pub fn bundle(&self) -> watch::Receiver<Arc<Bundle>> {
        self.inner.bundle.clone()
    }

    /// Bundle and certificate for a part of the control part in this process, such as `dapr-operator`. They are
    /// kept current as long as the role runs. `dns` are further names in the certificate.
    ///
    /// # Errors
    /// The name makes no id, or the root signs nothing any more.
    pub fn control(&self, part: &str, dns: &[String]) -> Result<Arc<Live>, IssuerError> {
        let Inner { roots, metrics, trust_domain, role, .. } = &*self.inner;
        let id = SpiffeId::control(trust_domain, &role.namespace, part).map_err(|e| IssuerError::Own(e.to_string()))?;
        let live = Live::new(self.inner.bundle.borrow().as_ref().clone());
        live.set_identity(control::certificate(roots, &id, dns)?);
        control::keep(live.clone(), roots.clone(), id, dns.to_vec(), metrics.clone(), &role.tasks);
        Ok(live)
    }

    /// Starts what keeps the Secret and the ConfigMaps.
    fn keep_roots(&self, store: Store) {
        let Inner { roots, metrics, role, .. } = &*self.inner;
        let own = |name: &str| Selection {
            namespace: Some(role.namespace.clone()),
            fields: Some(format!("metadata.name={name}")),
            ..Selection::default()
        };
        let everywhere = |labels: &str| Selection { labels: Some(labels.to_owned()), ..Selection::default() };
        let maps = Selection { fields: Some(format!("metadata.name={BUNDLE_CONFIG_MAP}")), ..Selection::default() };
        let (published, seen) = watch::channel(Published::default());
        let publisher = Publisher {
            client: role.client.clone(),
            control_namespace: role.namespace.clone(),
            pods: follow(role.client.clone(), &everywhere(INJECTED), &role.tasks),
            namespaces: follow(role.client.clone(), &everywhere(&format!("{BUNDLE_LABEL}=true")), &role.tasks),
            maps: follow(role.client.clone(), &maps, &role.tasks),
            bundle: roots.bundle(),
            published,
            metrics: metrics.clone(),
        };
        let keeper = Keeper {
            store,
            roots: roots.clone(),
            followed: follow::<Secret>(role.client.clone(), &own(ROOT_SECRET), &role.tasks),
            namespace: role.namespace.clone(),
            published: seen,
            events: Events::new(role, "mecha-issuer"),
            metrics: metrics.clone(),
        };
        role.tasks.run("trust bundles", publisher.run());
        role.tasks.run("roots", keeper.run());
    }

    fn serve(&self, options: Options, listener: TcpListener) -> Result<(), IssuerError> {
        let Inner { roots, metrics, role, .. } = &*self.inner;
        let namespace = &role.namespace;
        let own = "dapr-sentry";
        let dns = if options.dns_names.is_empty() {
            vec![format!("{own}.{namespace}.svc"), format!("{own}.{namespace}.svc.cluster.local")]
        } else {
            options.dns_names
        };
        let tls = self.control(own, &dns)?.server_config(Clients::Anybody);
        let audiences = if options.audiences.is_empty() {
            let id = format!("spiffe://{}/ns/{namespace}/{own}", options.trust_domain);
            vec!["dapr.io/sentry".to_owned(), id]
        } else {
            options.audiences
        };
        let workloads = Workloads {
            client: role.client.clone(),
            audiences,
            control_namespace: namespace.clone(),
            control_trust_domain: options.trust_domain,
            control_accounts: options.control_accounts,
        };
        let service = Service {
            workloads: Arc::new(workloads),
            roots: roots.clone(),
            metrics: metrics.clone(),
            gate: Arc::new(Gate::new(options.requests_at_once, options.requests_per_second)),
            tracer: options.tracer,
        };
        role.tasks.spawn("issuer", serve::serve(listener, tls, service, role.tasks.clone()));
        Ok(())
    }
}

/// Runs an issuer until its role ends. A program that needs its bundle uses [`Issuer::start`] instead.
///
/// # Errors
/// As [`Issuer::start`].
pub async fn run(options: Options, role: Role) -> Result<(), IssuerError> {
    let stop = role.tasks.stopping().clone();
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        started = Issuer::start(options, &role) => started?,
    };
    stop.cancelled().await;
    Ok(())
}

/// Pause between two tries to reach the API server.
const PAUSE: Duration = Duration::from_secs(2);

async fn patiently(store: &Store) -> Result<generations::Generations, IssuerError> {
    let mut patience = Patience::new();
    loop {
        match store.load_or_begin().await {
            // A server that starts knows neither accounts nor their rights before it has read them.
            Err(IssuerError::Api(failure)) if failure.kind != FailureKind::Invalid => {
                if patience.is_out(failure.kind) {
                    tracing::warn!(error = %failure, "the root cannot be read yet; it is tried again");
                }
                tokio::time::sleep(PAUSE).await;
            }
            other => return other,
        }
    }
}

/// The bundle without its number.
fn plain_bundle(roots: &Arc<Roots>, role: &Role) -> watch::Receiver<Arc<Bundle>> {
    let mut numbered = roots.bundle();
    let (sender, receiver) = watch::channel(numbered.borrow_and_update().bundle.clone());
    role.tasks.run("trust bundle", async move {
        while numbered.changed().await.is_ok() {
            sender.send_replace(numbered.borrow_and_update().bundle.clone());
        }
    });
    receiver
}
