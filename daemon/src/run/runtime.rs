//! One runtime: everything built from one set of documents. SIGHUP builds the next one beside it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mecha_components_api::{BuildCx, Instance, Registry, SystemClock};
use mecha_core::app::AppProtocol;
use mecha_core::bindings::Inputs;
use mecha_core::health::Health;
use mecha_core::invoke::{AccessList, DenyAll, Invoke, InvokeParts};
use mecha_core::loader::{EnvLookup, Loader, LoaderCx};
use mecha_core::metrics::Metrics;
use mecha_core::policies::Policies;
use mecha_core::trace::Mode;
use mecha_core::{Core, CoreParts, Identity, Tasks};
use mecha_resources::{Configuration, Resource};
use parking_lot::Mutex;

use super::apply::FailedEndpoint;
use super::documents::Documents;
use super::endpoints::Endpoints;
use super::span_headers::{self, Headers};
use super::{names, settings};
use crate::app::{self, AppTarget, Gate};
use crate::cli::{self, BoundPorts, Options};
use crate::grpc::{GrpcOptions, GrpcService, router};
use crate::http::{Cors, HttpApi, HttpOptions};
use crate::identity::{PeerDial, Workload};
use crate::logging::LogLosses;
use crate::peer::{Client, Dial, PeerServer, Pool, PoolSettings, TcpDial};
use crate::proxy::{GrpcProxy, OwnApp, ProxyApp};
use crate::telemetry::Telemetry;
use crate::token::ApiToken;

/// What a stop gives one component to become idle.
const COMPONENT_DRAIN: Duration = Duration::from_secs(5);
/// What a stop gives the exporters to send what waits.
pub(super) const TELEMETRY_LIMIT: Duration = Duration::from_secs(2);

/// A built runtime.
pub(super) struct Runtime {
    pub(super) core: Arc<Core>,
    /// What requests come in by; some settings need new ones.
    pub(super) fronts: ArcSwap<Fronts>,
    pub(super) inputs: Arc<Inputs>,
    pub(super) gate: Arc<Gate>,
    pub(super) loader: Arc<Loader>,
    pub(super) policies: ArcSwap<Policies>,
    /// Declarative subscriptions.
    pub(super) subscriptions: Mutex<Vec<mecha_resources::Subscription>>,
    pub(super) endpoints: Mutex<Endpoints>,
    pub(super) telemetry: Mutex<Option<Telemetry>>,
    /// Headers of the exporter from secret stores, as they were read last.
    pub(super) span_headers: Mutex<Headers>,
    /// How others find this sidecar; begins once it serves.
    pub(super) name: names::Announcement,
    /// Connections to peers and the announcement; they outlive the APIs.
    pub(super) outgoing: Tasks,
    identity: Identity,
    pool: Arc<Pool>,
    app_target: Option<AppTarget>,
}

/// The servers' services over one runtime.
pub(super) struct Fronts {
    pub(super) http: Arc<HttpApi>,
    pub(super) grpc: GrpcService,
    pub(super) peers: Arc<PeerServer>,
}

/// What stays the same over every runtime of the process.
#[derive(Clone)]
pub(super) struct Fixtures {
    pub(super) options: Arc<Options>,
    pub(super) ports: BoundPorts,
    pub(super) host_address: String,
    pub(super) health: Arc<Health>,
    /// Who this process is to peers and control plane; `None` where neither asks.
    pub(super) workload: Option<Arc<Workload>>,
    /// Log lines that never got out, for the metrics.
    pub(super) log_losses: LogLosses,
}

impl Fixtures {
    /// Looks a variable up: those the daemon adds, then the environment.
    pub(super) fn vars(&self) -> EnvLookup {
        let overlay: BTreeMap<String, String> = cli::overlay(&self.options, &self.host_address, self.ports);
        Arc::new(move |name| overlay.get(name).cloned().or_else(|| std::env::var(name).ok()))
    }

    /// How peers are dialled.
    fn peer_dial(&self) -> Arc<dyn Dial> {
        match &self.workload {
            Some(workload) if workload.secures_peers() => Arc::new(PeerDial(workload.clone())),
            _ => Arc::new(TcpDial),
        }
    }

    pub(super) fn home(&self) -> PathBuf {
        self.options.home.clone().unwrap_or_else(|| std::env::temp_dir().join("mecha"))
    }
}

impl Runtime {
    /// Builds a runtime up to "outbound ready". It goes on with the counts of `before`.
    ///
    /// # Errors
    /// What the contract ends the process for.
    pub(super) async fn build(fix: &Fixtures, docs: &Documents, before: Option<&Self>) -> Result<Self, String> {
        let options = &fix.options;
        let vars = fix.vars();
        let config = &docs.configuration;
        settings::refuse_unbuilt(config)?;

        let tracing = settings::tracing(config, &*vars);
        let telemetry = Telemetry::start(&tracing, &options.env.otel, &options.app_id).map_err(|e| e.to_string())?;
        let metrics_config = settings::metrics(config, options);
        let (metrics, mistakes) = match before {
            Some(old) => Metrics::succeed(&old.core.metrics, metrics_config),
            None => Metrics::lenient(metrics_config),
        };
        mistakes.iter().for_each(settings::left_out);
        let metrics = Arc::new(metrics);
        if let Some(workload) = &fix.workload {
            workload.report_to(metrics.clone());
        }

        let resiliencies: Vec<_> = docs.resiliencies.iter().map(|d| d.value.clone()).collect();
        for doc in &resiliencies {
            tracing::info!(target: "dapr.runtime.resiliency", "Loading Resiliency configuration: {}", doc.name());
        }
        let (policies, mistakes) = Policies::compile(&resiliencies, metrics.clone());
        for mistake in mistakes {
            tracing::error!(target: "dapr.runtime.resiliency", "Could not read resiliency policy {mistake}");
        }

        let identity = Identity {
            app_id: options.app_id.as_str().into(),
            namespace: options.env.namespace.clone().unwrap_or_default().into(),
            pod_name: options.env.pod_name.clone().unwrap_or_default().into(),
        };
        let gate = Arc::new(Gate::new(options.app_max_concurrency));
        let app_target = options.app_port.map(|port| AppTarget {
            protocol: protocol(options.app_protocol),
            host: options.app_channel_address.clone(),
            port,
            max_concurrency: options.app_max_concurrency,
            token: options.env.app_token.as_ref().map(|t| t.expose().to_owned()),
            max_body: options.max_body_size,
            app_id: options.app_id.clone(),
        });
        let app = match &app_target {
            Some(target) => Some(app::channel(target, gate.clone(), metrics.clone())?),
            None => None,
        };
        let max_body = usize::try_from(options.max_body_size).unwrap_or(usize::MAX);
        let outgoing = Tasks::new();
        let pool_settings =
            PoolSettings { max_idle: options.env.peer_idle, sweep: options.env.peer_sweep, ..PoolSettings::default() };
        let pool = Pool::new(fix.peer_dial(), pool_settings, outgoing.clone());
        let transport = Arc::new(Client::new(pool.clone(), max_body));
        let invoke = Arc::new(Invoke::new(InvokeParts {
            identity: identity.clone(),
            host_address: fix.host_address.clone(),
            host_name: cli::host_name(),
            app: app.clone(),
            transport,
            metrics: metrics.clone(),
            declared_urls_only: options.strict.url_targets,
            close_internal_routes: options.strict.app_routes,
            max_body,
        }));
        let core = Arc::new(Core::new(CoreParts {
            identity: identity.clone(),
            health: fix.health.clone(),
            metrics: metrics.clone(),
            tracer: telemetry.tracer().clone(),
            app,
            invoke: invoke.clone(),
        }));
        if let Some(before) = before {
            core.swaps.succeed(&before.core.swaps);
        }
        if let Some(list) = &config.access_control {
            match AccessList::compile(list) {
                Ok(list) => invoke.set_access_control(Arc::new(list)),
                // A list that is not understood must not let anybody in.
                Err(e) if options.strict.degrade => {
                    tracing::error!(target: "dapr.runtime", "{e}; calls from other apps are refused");
                    invoke.set_access_control(Arc::new(DenyAll));
                }
                Err(e) => return Err(e),
            }
        }
        let (rules, warnings) = settings::api_rules(config, options.strict.api_rules);
        for warning in warnings {
            tracing::warn!(target: "dapr.runtime", "{warning}");
        }
        core.api_rules.store(Arc::new(rules));
        core.secrets.set_scopes(settings::secret_scopes(config));

        let mut registry = Registry::new();
        mecha_components::register_all(&mut registry);
        let build_cx = BuildCx {
            name: "nameresolution".into(),
            app_id: identity.app_id.clone(),
            namespace: identity.namespace.clone(),
            strict: options.strict.sqlite_full,
            home: fix.home(),
            clock: Arc::new(SystemClock),
        };
        let local = vars(names::REGISTRY_VARIABLE).filter(|p| !p.is_empty());
        let name = match names::build(&registry, config, local, options.mode, &build_cx).await {
            Ok(resolver) => {
                invoke.set_resolver(Some(resolver.clone()));
                names::Announcement::prepare(resolver, instance(fix, &identity), &outgoing)
            }
            Err(e) if options.strict.degrade => {
                tracing::error!(target: "dapr.runtime", "other apps cannot be found by name: {e}");
                names::Announcement::default()
            }
            Err(e) => return Err(e),
        };

        let fronts = fronts(fix, config, &core, &pool, app_target.as_ref(), &gate, &outgoing)?;
        let policies = Arc::new(policies);
        invoke.set_policies(Some(policies.clone()));
        let inputs = Arc::new(Inputs::new(options.app_binding_options_timeout));
        let loader = Loader::new(
            core.clone(),
            registry,
            policies.clone(),
            LoaderCx {
                strict: options.strict.degrade,
                scoped_secrets: options.strict.secret_scopes,
                strict_components: options.strict.sqlite_full,
                home: fix.home(),
                clock: Arc::new(SystemClock),
                env: vars.clone(),
                default_secret_store: String::new(),
                denied: config.denied_components.clone().unwrap_or_default(),
                left_out: mecha_components::left_out,
            },
        );
        let loader = Arc::new(loader.with_inputs(inputs.clone()));
        let runtime = Self {
            fronts: ArcSwap::from_pointee(fronts),
            inputs,
            loader,
            policies: ArcSwap::new(policies),
            subscriptions: Mutex::new(docs.subscriptions.iter().map(|d| d.value.clone()).collect()),
            endpoints: Mutex::default(),
            core: core.clone(),
            gate,
            telemetry: Mutex::new(Some(telemetry)),
            span_headers: Mutex::default(),
            name,
            outgoing,
            identity,
            pool,
            app_target,
        };
        runtime.show(fix, &Documents { endpoints: Vec::new(), ..docs.clone() });
        if let Err(e) = runtime.loader.load_all(docs.wanted()).await {
            runtime.close().await;
            return Err(e.to_string());
        }
        let headers = span_headers::read(&core, config, "").await;
        runtime.span_headers.lock().clone_from(&headers);
        let completed = runtime.telemetry.lock().as_mut().map_or(Ok(()), |t| t.complete(headers));
        if let Err(e) = completed {
            runtime.close().await;
            return Err(e.to_string());
        }
        runtime.apply_endpoints(fix, &docs.endpoints, false).await.failed.iter().for_each(FailedEndpoint::tell);
        runtime.show(fix, docs);
        Ok(runtime)
    }

    /// Makes new services of the servers, for settings that the old ones cannot change.
    pub(super) fn renew_fronts(&self, fix: &Fixtures, config: &Configuration) -> Result<(), String> {
        let target = self.app_target.as_ref();
        let fronts = fronts(fix, config, &self.core, &self.pool, target, &self.gate, &self.outgoing)?;
        self.fronts.store(Arc::new(fronts));
        Ok(())
    }

    /// This sidecar, as others should find it.
    pub(super) fn instance(&self, fix: &Fixtures) -> Instance {
        instance(fix, &self.identity)
    }

    /// Whether calls are under way on it: each holds the front it came in by.
    pub(super) fn is_busy(&self) -> bool {
        let fronts = self.fronts.load();
        Arc::strong_count(&fronts.http) > 1 || Arc::strong_count(&fronts.peers) > 1 || fronts.grpc.is_busy()
    }

    /// Ends what is left once no API uses the runtime any more: background work, components,
    /// outgoing connections, telemetry. Called once.
    pub(super) async fn close(&self) {
        self.core.tasks.shut_down().await;
        self.loader.close_sides().await;
        let snapshot = self.core.store.edit(std::mem::take).await;
        let limit = COMPONENT_DRAIN;
        for info in &snapshot.listed {
            tracing::info!(target: "dapr.runtime", "Shutting down component {}", info.name);
        }
        let mecha_core::store::Snapshot { state, pubsub, input, output, secrets, configuration, lock, .. } = snapshot;
        macro_rules! close_all {
            ($($map:ident),*) => {$(
                for handle in $map.into_values() {
                    mecha_core::store::drain(handle, limit).await;
                }
            )*};
        }
        close_all!(input, pubsub, output, state, configuration, lock, secrets);
        self.outgoing.shut_down().await;
        let telemetry = self.telemetry.lock().take();
        if let Some(telemetry) = telemetry
            && !telemetry.shutdown(TELEMETRY_LIMIT).await
        {
            tracing::warn!(target: "dapr.runtime", "some spans could not be exported before the stop");
        }
    }
}

fn fronts(
    fix: &Fixtures,
    config: &Configuration,
    core: &Arc<Core>,
    pool: &Arc<Pool>,
    app_target: Option<&AppTarget>,
    gate: &Arc<Gate>,
    outgoing: &Tasks,
) -> Result<Fronts, String> {
    let options = &fix.options;
    let max_body = usize::try_from(options.max_body_size).unwrap_or(usize::MAX);
    let proxy = Arc::new(GrpcProxy::new(
        core.invoke.clone(),
        pool.clone(),
        own_app(app_target, gate, outgoing)?,
        core.tracer.mode() == Mode::Off,
        max_body,
    ));
    let peers = PeerServer::new(core.invoke.clone(), Some(proxy.clone()), max_body);
    let peers = Arc::new(peers.with_tracer(core.tracer.clone()));
    let token = || options.env.api_token.as_ref().and_then(|t| ApiToken::new(t.expose()));
    let log = settings::api_log(config, options);
    let http = HttpOptions {
        max_body: options.max_body_size,
        token: token(),
        cors: Cors::new(&origins(options)),
        log,
        check_origin: options.strict.host_check,
    };
    let http = Arc::new(HttpApi::new(core.clone(), http));
    let grpc = GrpcOptions { max_body: options.max_body_size, token: token(), log };
    Ok(Fronts { http, grpc: router(core.clone(), grpc, Some(proxy)), peers })
}

fn instance(fix: &Fixtures, me: &Identity) -> Instance {
    let listen = fix.options.internal_grpc_listen_address.as_str();
    let local = ["127.0.0.1", "localhost", "[::1]", "::1"].contains(&listen);
    Instance {
        app_id: me.app_id.to_string(),
        namespace: me.namespace.to_string(),
        host: if local { listen.to_owned() } else { fix.host_address.clone() },
        port: fix.ports.internal,
        instance_id: uuid::Uuid::new_v4().to_string(),
    }
}

/// Where proxied gRPC calls for the own app go.
fn own_app(target: Option<&AppTarget>, gate: &Arc<Gate>, tasks: &Tasks) -> Result<OwnApp, String> {
    let Some(target) = target else { return Ok(OwnApp::None) };
    if !target.protocol.is_grpc() {
        return Ok(OwnApp::Other(target.protocol.as_str()));
    }
    let token = target.token.as_deref().map(http::HeaderValue::from_str).transpose();
    Ok(OwnApp::Grpc(ProxyApp {
        pool: Pool::new(app::dial(target)?, PoolSettings::default(), tasks.clone()),
        address: target.authority(),
        tls: target.protocol.is_tls(),
        token: token.map_err(|_| "APP_API_TOKEN holds characters no header can carry")?,
        admission: Some(gate.clone()),
    }))
}

fn origins(options: &Options) -> String {
    match &options.allowed_origins {
        cli::Origins::Off => String::new(),
        cli::Origins::Any => "*".to_owned(),
        cli::Origins::List(list) => list.join(","),
    }
}

fn protocol(p: cli::AppProtocol) -> AppProtocol {
    match p {
        cli::AppProtocol::Http => AppProtocol::Http,
        cli::AppProtocol::Https => AppProtocol::Https,
        cli::AppProtocol::H2c => AppProtocol::H2c,
        cli::AppProtocol::Grpc => AppProtocol::Grpc,
        cli::AppProtocol::Grpcs => AppProtocol::Grpcs,
    }
}
