//! A running runtime takes on other documents. Each part is prepared as a whole before anything
//! of it changes; what cannot change at run time is refused, and the old settings go on.

use std::sync::Arc;

use mecha_components_api::{BuildCx, NameResolver, SystemClock};
use mecha_core::app::AppSubscription;
use mecha_core::invoke::{AccessControl, AccessList, AllowAll};
use mecha_core::metrics::CheckedMetrics;
use mecha_core::policies::Policies;
use mecha_core::pubsub::from_document;
use mecha_resources::{Configuration, HttpEndpoint, Located, Resiliency, Resource, Subscription};

use super::documents::Documents;
use super::runtime::{Fixtures, Runtime, TELEMETRY_LIMIT};
use super::span_headers::{self, Headers};
use super::{endpoints, names, settings};
use crate::telemetry::Telemetry;

/// A Configuration of which everything is prepared.
struct Next {
    telemetry: Option<(Telemetry, Headers)>,
    resolver: Option<Arc<dyn NameResolver>>,
    access: Option<Arc<dyn AccessControl>>,
    metrics: Option<CheckedMetrics>,
}

/// What became of the HTTPEndpoints.
#[derive(Default)]
pub(super) struct EndpointReport {
    /// Those that are new, or other than before.
    pub(super) renewed: Vec<String>,
    pub(super) failed: Vec<FailedEndpoint>,
}

/// One that cannot be made.
pub(super) struct FailedEndpoint {
    pub(super) name: String,
    pub(super) cause: String,
    /// What was there goes on.
    pub(super) kept: bool,
}

impl FailedEndpoint {
    /// The line that says so.
    pub(super) fn tell(&self) {
        let Self { name, cause, kept } = self;
        let end = if *kept { "stays as it was, the change is refused" } else { "is left out" };
        tracing::error!(target: "dapr.runtime", "HTTPEndpoint {name} {end}: {cause}");
    }
}

impl Runtime {
    /// Takes on another Configuration.
    ///
    /// # Errors
    /// Every mistake in it; nothing of it is in force then.
    pub(super) async fn apply_configuration(
        &self,
        fix: &Fixtures,
        before: &Configuration,
        next: &Configuration,
    ) -> Result<(), String> {
        let Next { telemetry, resolver, access, metrics } = self.prepare_configuration(fix, before, next).await?;
        if before.mtls != next.mtls {
            tracing::info!(
                target: "dapr.runtime",
                "Configuration: section mtls is for the certificate authority; flags decide what this sidecar does"
            );
        }

        let (rules, warnings) = settings::api_rules(next, fix.options.strict.api_rules);
        for warning in warnings {
            tracing::warn!(target: "dapr.runtime", "{warning}");
        }
        self.core.api_rules.store(Arc::new(rules));
        self.core.secrets.set_scopes(settings::secret_scopes(next));
        if let Some(metrics) = metrics {
            self.core.metrics.change(metrics);
        }
        if let Some(access) = access {
            self.core.invoke.set_access_control(access);
        }
        if let Some(resolver) = resolver {
            self.core.invoke.set_resolver(Some(resolver.clone()));
            self.name.replace(resolver, self.instance(fix), &self.outgoing).await;
        }
        if let Some((telemetry, headers)) = telemetry {
            self.replace_telemetry(telemetry, headers);
        }
        self.loader.set_denied(next.denied_components.clone().unwrap_or_default());
        if before.api_logging != next.api_logging || before.tracing != next.tracing {
            self.renew_fronts(fix, next)?;
        }
        Ok(())
    }

    async fn prepare_configuration(
        &self,
        fix: &Fixtures,
        before: &Configuration,
        next: &Configuration,
    ) -> Result<Next, String> {
        let mut mistakes: Vec<String> = settings::refuse_unbuilt(next).err().into_iter().collect();
        let access: Option<Arc<dyn AccessControl>> = match (&before.access_control, &next.access_control) {
            (old, new) if old == new => None,
            (_, None) => Some(Arc::new(AllowAll)),
            (_, Some(list)) => {
                noted(AccessList::compile(list), &mut mistakes).map(|list| Arc::new(list) as Arc<dyn AccessControl>)
            }
        };
        let resolver = match before.name_resolution == next.name_resolution {
            true => None,
            false => noted(self.other_resolver(fix, next).await, &mut mistakes),
        };
        let telemetry = match before.tracing == next.tracing {
            true => None,
            false => noted(self.other_telemetry(fix, next).await, &mut mistakes),
        };
        let metrics = match before.effective_metrics() == next.effective_metrics() {
            true => None,
            false => {
                let (checked, wrong) = settings::metrics(next, &fix.options).check();
                for mistake in wrong {
                    if fix.options.strict.degrade {
                        mistakes.push(mistake.to_string());
                    } else {
                        settings::left_out(&mistake);
                    }
                }
                Some(checked)
            }
        };
        match mistakes.is_empty() {
            true => Ok(Next { telemetry, resolver, access, metrics }),
            false => Err(mistakes.join("; ")),
        }
    }

    async fn other_resolver(&self, fix: &Fixtures, next: &Configuration) -> Result<Arc<dyn NameResolver>, String> {
        let cx = BuildCx {
            name: "nameresolution".into(),
            app_id: self.core.me.app_id.clone(),
            namespace: self.core.me.namespace.clone(),
            strict: fix.options.strict.sqlite_full,
            home: fix.home(),
            clock: Arc::new(SystemClock),
        };
        let local = fix.vars()(names::REGISTRY_VARIABLE).filter(|p| !p.is_empty());
        names::build(self.loader.registry(), next, local, fix.options.mode, &cx).await
    }

    async fn other_telemetry(&self, fix: &Fixtures, next: &Configuration) -> Result<(Telemetry, Headers), String> {
        let headers = span_headers::read(&self.core, next, "").await;
        Ok((exporters(fix, next, headers.clone())?, headers))
    }

    fn replace_telemetry(&self, telemetry: Telemetry, headers: Headers) {
        *self.span_headers.lock() = headers;
        self.core.tracer.replace(telemetry.tracer());
        let old = self.telemetry.lock().replace(telemetry);
        if let Some(old) = old {
            // Spans that run now still end there.
            self.core.tasks.spawn("flush of replaced exporters", async move {
                old.shutdown(TELEMETRY_LIMIT).await;
            });
        }
    }

    /// Headers of the exporter where one has changed in its secret store since it was read.
    pub(super) async fn changed_span_headers(&self, config: &Configuration) -> Option<Headers> {
        let before = self.span_headers.lock().clone();
        let headers = span_headers::read_again(&self.core, config, "", &before).await;
        (!span_headers::same(&headers, &before)).then_some(headers)
    }

    /// Takes on such headers.
    pub(super) fn apply_span_headers(
        &self,
        fix: &Fixtures,
        config: &Configuration,
        headers: Headers,
    ) -> Result<(), String> {
        let telemetry = exporters(fix, config, headers.clone())?;
        self.replace_telemetry(telemetry, headers);
        Ok(())
    }

    /// Takes on other policies; those with a mistake are left out.
    pub(super) fn apply_resiliency(&self, documents: &[Located<Resiliency>]) {
        let documents: Vec<Resiliency> = documents.iter().map(|d| d.value.clone()).collect();
        for doc in &documents {
            tracing::info!(target: "dapr.runtime.resiliency", "Loading Resiliency configuration: {}", doc.name());
        }
        let (policies, mistakes) = Policies::compile(&documents, self.core.metrics.clone());
        for mistake in &mistakes {
            tracing::error!(target: "dapr.runtime.resiliency", "Could not read resiliency policy {mistake}");
        }
        let policies = Arc::new(policies);
        policies.continue_apps(&self.policies.swap(policies.clone()));
        self.core.invoke.set_policies(Some(policies.clone()));
        self.loader.set_policies(policies);
    }

    /// Takes on other HTTPEndpoints. In strict mode one that cannot be made stays as it was.
    pub(super) async fn apply_endpoints(
        &self,
        fix: &Fixtures,
        documents: &[Located<HttpEndpoint>],
        strict: bool,
    ) -> EndpointReport {
        let vars = fix.vars();
        let (mut next, failed) = endpoints::build(&self.core, documents, &*vars, fix.options.strict.url_targets).await;
        let mut running = self.endpoints.lock();
        let mut report = EndpointReport::default();
        for (name, endpoint) in &mut next {
            // What did not change keeps its connections.
            if let Some(same) = running.get(name).filter(|old| *old == endpoint) {
                *endpoint = same.clone();
            } else {
                tracing::info!(target: "dapr.runtime", "Found http endpoint: {name}");
                report.renewed.push(name.to_string());
            }
        }
        for (name, cause) in failed {
            let kept = strict.then(|| running.get(name.as_str()).cloned()).flatten();
            report.failed.push(FailedEndpoint { cause, kept: kept.is_some(), name: name.clone() });
            next.extend(kept.map(|endpoint| (name.into(), endpoint)));
        }
        running.clone_from(&next);
        self.core.invoke.set_endpoints(next);
        report
    }

    /// Takes on other declarative subscriptions: new ones start before old ones stop.
    pub(super) async fn apply_subscriptions(&self, fix: &Fixtures, documents: &[Located<Subscription>]) {
        *self.subscriptions.lock() = documents.iter().map(|d| d.value.clone()).collect();
        let manager = self.core.pubsub.manager();
        manager.set_declarative(documents.iter().map(|d| from_document(&d.value)).collect()).await;
        if fix.options.strict.app_routes {
            let all = self.core.pubsub.subscriptions();
            self.close_routes(all.iter().map(|(subscription, _)| subscription));
        }
    }

    /// Closes the app's routes of subscriptions to peers.
    pub(super) fn close_routes<'s>(&self, subscriptions: impl Iterator<Item = &'s AppSubscription>) {
        let routes: Vec<String> =
            subscriptions.flat_map(|s| s.rules.iter().map(|r| r.path.clone()).chain(s.default_route.clone())).collect();
        self.core.invoke.set_internal_routes(routes.iter().map(String::as_str));
    }

    /// What the metadata API shows of the documents.
    pub(super) fn show(&self, fix: &Fixtures, documents: &Documents) {
        let names = |list: &mut dyn Iterator<Item = &str>| list.map(str::to_owned).collect();
        let endpoints = names(&mut documents.endpoints.iter().map(|d| d.value.name()));
        let resiliencies = names(&mut documents.resiliencies.iter().map(|d| d.value.name()));
        self.core.metadata.set_fixed(settings::fixed(&documents.configuration, &fix.options, endpoints, resiliencies));
    }
}

/// Exporters with all their headers.
fn exporters(fix: &Fixtures, config: &Configuration, headers: Headers) -> Result<Telemetry, String> {
    let (options, vars) = (&fix.options, fix.vars());
    let tracing = settings::tracing(config, &*vars);
    let mut telemetry = Telemetry::start(&tracing, &options.env.otel, &options.app_id).map_err(|e| e.to_string())?;
    telemetry.complete(headers).map_err(|e| e.to_string())?;
    Ok(telemetry)
}

/// What was made, or nothing and one mistake more.
fn noted<T>(made: Result<T, String>, mistakes: &mut Vec<String>) -> Option<T> {
    made.map_err(|e| mistakes.push(e)).ok()
}
