//! Name resolution: which resolver, and the announcement of this sidecar.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mecha_components_api::{BuildCx, CancellationToken, Instance, Lookup, Metadata, NameResolver, Registry};
use mecha_core::Tasks;
use mecha_resources::Configuration;

use super::settings;
use crate::cli::Mode;

/// Names a SQLite file that sidecars of one machine find each other by, where the Configuration
/// names no resolver. Multicast does not work everywhere; a file does.
pub(super) const REGISTRY_VARIABLE: &str = "MECHA_NAME_REGISTRY";

/// What taking a name back may take.
const WITHDRAW_LIMIT: Duration = Duration::from_secs(1);

/// Builds the resolver of this run.
///
/// # Errors
/// An unknown type, or settings that are not valid.
pub(super) async fn build(
    registry: &Registry,
    config: &Configuration,
    local_registry: Option<String>,
    mode: Mode,
    cx: &BuildCx,
) -> Result<Arc<dyn NameResolver>, String> {
    let named = config.name_resolution.as_ref().filter(|n| !n.component.is_empty());
    let (kind, version, metadata) = match (named, local_registry) {
        (Some(n), _) => (n.component.clone(), n.version.clone(), settings::resolver_metadata(n.configuration.expose())),
        (None, Some(path)) => {
            let md: Metadata = [("connectionString", path)].into_iter().collect();
            ("sqlite".to_owned(), String::new(), md)
        }
        (None, None) => {
            let own = if mode == Mode::Kubernetes { "kubernetes" } else { "mdns" };
            (own.to_owned(), String::new(), Metadata::new())
        }
    };
    let full = format!("nameresolution.{kind}");
    let Lookup::Found(reg) = Registry::find(&registry.resolvers, &full, &version) else {
        let known: Vec<&str> = registry.resolvers.iter().map(|r| r.kind).collect();
        return Err(format!("couldn't find name resolver {full}/{version} (known: {})", known.join(", ")));
    };
    let version = if version.is_empty() { "v1" } else { &version };
    let prepared = (reg.prepare)(&metadata, version).map_err(|e| format!("name resolution {full}: {e}"))?;
    let resolver = prepared.build(cx).await.map_err(|e| format!("name resolution {full}: {e}"))?;
    tracing::info!(target: "dapr.runtime", "Initialized name resolution to {kind}");
    Ok(resolver)
}

/// How long the start waits until others can find this sidecar.
const KNOWN_LIMIT: Duration = Duration::from_secs(2);

/// How this sidecar is known to others by name: not yet, then until it is withdrawn or handed on.
#[derive(Debug, Default)]
pub(super) struct Announcement {
    current: ArcSwap<Tokens>,
}

#[derive(Debug, Default)]
struct Tokens {
    begin: CancellationToken,
    withdraw: CancellationToken,
    hand_on: CancellationToken,
    /// Others can find this sidecar; `None` without a resolver.
    up: Option<CancellationToken>,
    done: CancellationToken,
}

impl Announcement {
    /// Prepares the announcement of `me`; nobody is told before [`Announcement::begin`].
    pub(super) fn prepare(resolver: Arc<dyn NameResolver>, me: Instance, tasks: &Tasks) -> Self {
        Self { current: ArcSwap::from_pointee(Tokens::prepare(resolver, me, tasks)) }
    }

    /// Makes this sidecar known through another resolver, and withdraws it from the one before.
    pub(super) async fn replace(&self, resolver: Arc<dyn NameResolver>, me: Instance, tasks: &Tasks) {
        let next = Arc::new(Tokens::prepare(resolver, me, tasks));
        let before = self.current.swap(next.clone());
        // First, because both may write to one place, where withdrawing would take back the new.
        before.withdraw().await;
        if before.begin.is_cancelled() {
            next.begin.cancel();
        }
    }

    /// Makes this sidecar known.
    pub(super) fn begin(&self) {
        self.current.load().begin.cancel();
    }

    /// Waits until others can find this sidecar, so that one who waits for it to be ready does.
    /// A resolver that takes longer than its limit holds nothing up.
    pub(super) async fn known(&self) {
        let tokens = self.current.load_full();
        let Some(up) = &tokens.up else { return };
        let settled = async {
            tokio::select! {
                () = up.cancelled() => {}
                () = tokens.done.cancelled() => {}
            }
        };
        let _ = tokio::time::timeout(KNOWN_LIMIT, settled).await;
    }

    /// Takes the name back, so that others stop calling, and waits until that is done.
    pub(super) async fn withdraw(&self) {
        self.current.load_full().withdraw().await;
    }

    /// Leaves the name to a successor at the same address.
    pub(super) fn hand_on(&self) {
        self.current.load().hand_on.cancel();
    }
}

impl Tokens {
    fn prepare(resolver: Arc<dyn NameResolver>, me: Instance, tasks: &Tasks) -> Self {
        let known = CancellationToken::new();
        let this = Self { up: Some(known.clone()), ..Self::default() };
        let (begin, hand_on) = (this.begin.clone(), this.hand_on.clone());
        let (withdraw, stop) = (this.withdraw.clone(), tasks.stopping().clone());
        let done = this.done.clone().drop_guard();
        tasks.spawn("name announcement", async move {
            let _done = done;
            tokio::select! {
                () = begin.cancelled() => {}
                () = stop.cancelled() => return,
            }
            let app_id = me.app_id.clone();
            let up = Box::new(move || {
                known.cancel();
                tracing::debug!(target: "dapr.runtime", "app id {app_id} is announced");
            });
            let until = withdraw.clone();
            let announced = async {
                tokio::select! {
                    ended = resolver.announce(me, up, until) => ended,
                    // Taken back in the same way as when it is withdrawn.
                    never = async { stop.cancelled().await; withdraw.cancel(); std::future::pending().await } => never,
                }
            };
            tokio::select! {
                ended = announced => if let Err(e) = ended {
                    tracing::error!(target: "dapr.runtime", "other sidecars cannot find this one by name: {e}");
                },
                // Somebody else answers under the same name and address now: there is nothing to take back.
                () = hand_on.cancelled() => {}
            }
        });
        this
    }

    async fn withdraw(&self) {
        self.withdraw.cancel();
        if self.begin.is_cancelled() {
            let _ = tokio::time::timeout(WITHDRAW_LIMIT, self.done.cancelled()).await;
        }
    }
}
