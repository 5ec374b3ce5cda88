//! Follows the documents: one task compares what the source says with what runs and applies the
//! difference. It also tries again what failed, and looks for secrets that changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mecha_components_api::CancellationToken;
use mecha_core::metrics::Metrics;
use mecha_core::policies::Policies;
use mecha_core::swap::{Change, Drained, Subject};
use mecha_resources::{Configuration, HttpEndpoint, Located, Resiliency, Resource, SpecHash, Subscription};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::apply::EndpointReport;
use super::documents::{self, Documents, Finding, Kept};
use super::live::Live;
use super::runtime::{Fixtures, Runtime};
use super::source::{Depth, DocumentSet, Source};
use super::{app_side, span_headers, stop};

/// Longest wait for the end of a change.
const QUIET_LIMIT: Duration = Duration::from_millis(500);
/// Pause between two looks at secrets that documents refer to.
const SECRETS: Duration = Duration::from_secs(2);
/// What a change that is under way gets to end when the process stops.
const STOP_LIMIT: Duration = Duration::from_secs(1);
/// Something far away, where nothing is to be done at a time.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// The task that follows the documents.
pub(super) struct Reloads {
    task: JoinHandle<()>,
    hangup: Arc<Notify>,
    stop: CancellationToken,
    attached: Attached,
}

/// The task that brings a runtime and its app together.
pub(super) type Attached = Arc<Mutex<JoinHandle<()>>>;

struct Reloader {
    fix: Fixtures,
    live: Arc<Live>,
    source: Arc<dyn Source>,
    attached: Attached,
    /// What runs, or should.
    current: Documents,
    hangup: Arc<Notify>,
    stop: CancellationToken,
    /// When components want to be looked at again.
    next_try: Option<Instant>,
    /// Whether components draw on secret stores.
    draws: bool,
    /// Whether a component of the set is still built.
    building: bool,
    /// Whether the source does not know yet that a set is in force.
    unsaid: bool,
    /// Kind and name of documents that stay as they were because of what their files say, with the cause.
    broken: BTreeMap<(&'static str, String), String>,
}

impl Reloads {
    /// Starts to follow `source`. `current` is what the runtime was built from.
    pub(super) fn start(
        fix: Fixtures,
        live: Arc<Live>,
        source: Arc<dyn Source>,
        current: Documents,
        attached: JoinHandle<()>,
    ) -> Self {
        source.attach(&live);
        let (hangup, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let attached = Arc::new(Mutex::new(attached));
        let reloader = Reloader {
            fix,
            live,
            source,
            attached: attached.clone(),
            current,
            hangup: hangup.clone(),
            stop: stop.clone(),
            // What failed at the start is looked at soon.
            next_try: Some(Instant::now() + QUIET_LIMIT),
            draws: false,
            building: false,
            unsaid: false,
            broken: BTreeMap::new(),
        };
        Self { task: tokio::spawn(reloader.run()), hangup, stop, attached }
    }

    /// SIGHUP.
    pub(super) fn hang_up(&self) {
        self.hangup.notify_one();
    }

    /// Ends the following, and the wait for the app.
    pub(super) async fn end(self) {
        self.stop.cancel();
        let mut task = self.task;
        if timeout(STOP_LIMIT, &mut task).await.is_err() {
            task.abort();
        }
        self.attached.lock().abort();
    }
}

impl Reloader {
    async fn run(mut self) {
        let period = self.fix.options.reconcile_interval;
        let mut relist = Instant::now() + period;
        let mut secrets = Instant::now() + SECRETS;
        let mut announced = false;
        loop {
            // Read each time: a Configuration may turn it on or off.
            let hot = self.current.configuration.feature("HotReload");
            if hot && !announced {
                announced = true;
                tracing::info!(
                    target: "dapr.runtime",
                    "Hot reloading enabled. Daprd will reload 'Component', 'Subscription', 'Configuration', \
                     'HTTPEndpoint' and 'Resiliency' resources."
                );
                for kind in [Configuration::KIND, HttpEndpoint::KIND, Resiliency::KIND] {
                    tracing::info!(
                        target: "dapr.runtime.hotreload",
                        "Starting to watch {kind} updates for SIGHUP reload"
                    );
                }
            }
            let next_try = self.next_try.unwrap_or_else(|| Instant::now() + NEVER);
            let (source, draws, runtime) = (self.source.clone(), self.draws, self.live.load());
            let changed = async move {
                if !hot {
                    std::future::pending::<()>().await;
                }
                source.changed().await;
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.hangup.notified() => self.hung_up().await,
                () = changed => {
                    self.wait_until_quiet().await;
                    self.list(Depth::Watched).await;
                }
                () = sleep_until(relist) => {
                    relist = Instant::now() + period;
                    if hot {
                        self.list(Depth::Watched).await;
                    }
                }
                () = sleep_until(next_try) => self.look_again().await,
                () = runtime.loader.built() => self.look_again().await,
                () = sleep_until(secrets), if hot && draws => {
                    secrets = Instant::now() + SECRETS;
                    self.look_again().await;
                }
            }
        }
    }

    async fn wait_until_quiet(&self) {
        let end = Instant::now() + QUIET_LIMIT;
        while Instant::now() < end && timeout(self.source.quiet(), self.source.changed()).await.is_ok() {
            // A source that says "changed" at once each time must not spin.
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// SIGHUP: strict applies what differs, bare builds the runtime anew.
    async fn hung_up(&mut self) {
        tracing::info!(target: "dapr.runtime", "Received signal 'hangup'; restarting");
        if self.fix.options.strict.degrade {
            return self.list(Depth::Everything).await;
        }
        let set = match self.source.list(Depth::Everything).await {
            Ok(set) => set,
            Err(e) => return self.give_up(&e.to_string()),
        };
        if let Some(fault) = &set.configuration_fault {
            return self.give_up(fault);
        }
        let next = documents::select(set, &self.fix.options);
        documents::report(&next.findings);
        self.rebuild(next).await;
    }

    /// Builds the next runtime beside the current one, switches, and drains the old one.
    async fn rebuild(&mut self, next: Documents) {
        let began = Instant::now();
        let old = self.live.load();
        let built = Runtime::build(&self.fix, &next, Some(&old)).await;
        let runtime = match built {
            Ok(runtime) => Arc::new(runtime),
            Err(e) => return self.give_up(&e),
        };
        self.attached.lock().abort();
        stop::settle_inputs(&old).await;
        self.live.replace(runtime.clone());
        // Same name, same address: taking it back later would take the next one's back.
        old.name.hand_on();
        runtime.name.begin();
        *self.attached.lock() = tokio::spawn(app_side::attach(runtime.clone(), self.fix.options.clone(), began));
        // Requests that began on the old runtime finish there.
        tokio::spawn(stop::retire(old, runtime));
        self.current = next;
        self.next_try = Some(Instant::now() + QUIET_LIMIT);
    }

    /// Bare mode's end of a reload that may not fail.
    fn give_up(&self, cause: &str) {
        tracing::error!(target: "dapr.runtime", "Fatal error from runtime: {cause}");
        self.live.load().core.request_failure();
    }

    async fn list(&mut self, depth: Depth) {
        match self.source.list(depth).await {
            Ok(set) => {
                self.apply(set).await;
                self.unsaid = true;
                self.say_applied();
            }
            Err(e) => {
                // Nothing is known of what is wanted, so nothing changes.
                let (runtime, name) = (self.live.load(), self.source.name());
                let pending = runtime.core.swaps.begin(plain(Configuration::KIND, name, Change::Updated));
                if !is_known(&runtime, Configuration::KIND, name, &e.to_string()) {
                    tracing::error!(
                        target: "dapr.runtime.hotreload",
                        "the documents cannot be read, everything stays as it was: {e}"
                    );
                }
                pending.refused(&e.to_string(), true);
            }
        }
    }

    /// Lets the source know once that a set is in force, as far as it can be.
    fn say_applied(&mut self) {
        if !self.building && std::mem::take(&mut self.unsaid) {
            self.source.applied();
        }
    }

    /// Looks again at components that failed or were still built, and at secrets.
    async fn look_again(&mut self) {
        let runtime = self.live.load();
        let report = runtime.loader.retry().await;
        self.note(&runtime, report);
        self.say_applied();
        if self.draws && self.current.endpoints.iter().any(|d| !d.secret_store.is_empty()) {
            self.apply_endpoints(&runtime, self.current.endpoints.clone(), false).await;
        }
        if span_headers::any(&self.current.configuration) {
            self.look_at_span_headers(&runtime).await;
        }
    }

    /// A Configuration whose exporter has headers in a secret store is another one when they change there.
    async fn look_at_span_headers(&self, runtime: &Runtime) {
        let configuration = &self.current.configuration;
        let Some(headers) = runtime.changed_span_headers(configuration).await else { return };
        let name = configuration_name(configuration);
        let pending = runtime.core.swaps.begin(plain(Configuration::KIND, &name, Change::Updated));
        match runtime.apply_span_headers(&self.fix, configuration, headers) {
            Ok(()) => done(pending, runtime),
            Err(cause) => self.refused(runtime, pending, Configuration::KIND, &name, &cause),
        }
    }

    fn note(&mut self, runtime: &Runtime, report: mecha_core::loader::Report) {
        self.next_try = report.next_try;
        self.building = report.building;
        self.draws = report.draws
            || self.current.endpoints.iter().any(|d| !d.secret_store.is_empty())
            || span_headers::any(&self.current.configuration);
        if report.fatal.is_some() {
            runtime.core.request_failure();
        }
        // The loader has accepted what it was given, which is not what the files say.
        for ((kind, name), cause) in &self.broken {
            runtime.core.swaps.refuse(kind, name, cause);
        }
    }

    /// Brings what runs in line with a set.
    async fn apply(&mut self, set: DocumentSet) {
        let strict = self.fix.options.strict.degrade;
        let runtime = self.live.load();
        runtime.core.swaps.accept(Configuration::KIND, self.source.name());
        let fault = set.configuration_fault.clone();
        let mut next = documents::select(set, &self.fix.options);
        let news: Vec<Finding> = next.findings.iter().filter(|f| !self.current.findings.contains(f)).cloned().collect();
        documents::report(&news);
        let mut broken = BTreeMap::new();
        if strict {
            for Kept { kind, name, cause } in next.keep_broken(&self.current) {
                let id = (kind, name);
                if self.broken.get(&id) != Some(&cause) {
                    tracing::error!(
                        target: "dapr.runtime.hotreload",
                        "{kind} {} stays as it was, its document cannot be used: {cause}", id.1
                    );
                    runtime.core.swaps.begin(plain(kind, &id.1, Change::Updated)).refused(&cause, true);
                }
                broken.insert(id, cause);
            }
        }
        for (kind, name) in self.broken.keys().filter(|id| !broken.contains_key(*id)) {
            runtime.core.swaps.accept(kind, name);
        }
        self.broken = broken;
        self.current.findings.clone_from(&next.findings);

        if let Some(cause) = fault {
            let name = configuration_name(&self.current.configuration);
            let pending = runtime.core.swaps.begin(plain(Configuration::KIND, &name, Change::Updated));
            self.refused(&runtime, pending, Configuration::KIND, &name, &cause);
            next.configuration = self.current.configuration.clone();
        } else if next.configuration != self.current.configuration {
            self.changed_for_restart(Configuration::KIND, &configuration_name(&next.configuration), Change::Updated);
            let pending = runtime.core.swaps.begin(plain(
                Configuration::KIND,
                &configuration_name(&next.configuration),
                Change::Updated,
            ));
            let applied = runtime.apply_configuration(&self.fix, &self.current.configuration, &next.configuration);
            match applied.await {
                Ok(()) => {
                    accept_all(&runtime, Configuration::KIND, |_| false);
                    done(pending, &runtime);
                    self.current.configuration = next.configuration.clone();
                }
                Err(cause) if !strict => return self.give_up(&cause),
                Err(cause) => {
                    let name = configuration_name(&next.configuration);
                    self.refused(&runtime, pending, Configuration::KIND, &name, &cause);
                    next.configuration = self.current.configuration.clone();
                }
            }
        } else {
            accept_all(&runtime, Configuration::KIND, |_| false);
        }
        self.apply_resiliency(&runtime, &next.resiliencies, strict);
        let report = runtime.loader.reconcile(next.wanted()).await;
        self.current.components.clone_from(&next.components);
        self.current.moves.clone_from(&next.moves);
        let endpoints = next.endpoints.clone();
        self.apply_endpoints(&runtime, endpoints, true).await;
        self.apply_subscriptions(&runtime, &next.subscriptions).await;
        runtime.show(&self.fix, &self.current);
        self.note(&runtime, report);
    }

    fn apply_resiliency(&mut self, runtime: &Runtime, next: &[Located<Resiliency>], strict: bool) {
        let before = &self.current.resiliencies;
        let mut changes = differences(before, next);
        let mut wanted = next.to_vec();
        let broken = |name: &str| self.broken.contains_key(&(Resiliency::KIND, name.to_owned()));
        // Here, since what came of an edit that is taken back is no change.
        accept_all(runtime, Resiliency::KIND, |name| broken(name) || changes.iter().any(|(n, _)| n == name));
        if strict {
            changes.retain(|(name, change)| {
                let Some(cause) = mistakes(next, name) else { return true };
                let pending = runtime.core.swaps.begin(plain(Resiliency::KIND, name, *change));
                self.refused(runtime, pending, Resiliency::KIND, name, &cause);
                stay(&mut wanted, before, name);
                false
            });
        }
        if changes.is_empty() {
            return;
        }
        let pending: Vec<_> = changes
            .iter()
            .map(|(name, change)| {
                self.changed_for_restart(Resiliency::KIND, name, *change);
                runtime.core.swaps.begin(plain(Resiliency::KIND, name, *change))
            })
            .collect();
        runtime.apply_resiliency(&wanted);
        pending.into_iter().for_each(|pending| done(pending, runtime));
        self.current.resiliencies = wanted;
    }

    async fn apply_endpoints(&mut self, runtime: &Runtime, next: Vec<Located<HttpEndpoint>>, edited: bool) {
        let strict = self.fix.options.strict.degrade;
        let changes = differences(&self.current.endpoints, &next);
        let waiting = runtime.core.swaps.refused().iter().any(|r| r.kind == HttpEndpoint::KIND);
        if edited && changes.is_empty() && !waiting {
            return;
        }
        let pending: Vec<_> = changes
            .iter()
            .map(|(name, change)| {
                self.changed_for_restart(HttpEndpoint::KIND, name, *change);
                (name, runtime.core.swaps.begin(plain(HttpEndpoint::KIND, name, *change)))
            })
            .collect();
        let EndpointReport { renewed, failed } = runtime.apply_endpoints(&self.fix, &next, strict).await;
        let swaps = &runtime.core.swaps;
        // What a secret has changed, or taken away, without an edit.
        let edited = |name: &str| changes.iter().any(|(n, _)| n == name);
        let touched = renewed.iter().chain(failed.iter().map(|f| &f.name)).filter(|name| !edited(name));
        let others = touched.map(|name| (name, swaps.begin(plain(HttpEndpoint::KIND, name, Change::Updated))));
        let others: Vec<_> = others.collect();
        for (name, pending) in pending.into_iter().chain(others) {
            let Some(failure) = failed.iter().find(|f| f.name == *name) else {
                done(pending, runtime);
                continue;
            };
            if !is_known(runtime, HttpEndpoint::KIND, name, &failure.cause) {
                failure.tell();
            }
            pending.refused(&failure.cause, failure.kept);
        }
        for name in next.iter().map(|d| d.value.name()) {
            // One whose file is broken stands here as it was.
            let broken = self.broken.contains_key(&(HttpEndpoint::KIND, name.to_owned()));
            if !broken && !failed.iter().any(|f| f.name == name) {
                swaps.accept(HttpEndpoint::KIND, name);
            }
        }
        self.current.endpoints = next;
    }

    async fn apply_subscriptions(&mut self, runtime: &Runtime, next: &[Located<Subscription>]) {
        let changes = differences(&self.current.subscriptions, next);
        if changes.is_empty() {
            return;
        }
        let pending: Vec<_> = changes
            .iter()
            .map(|(name, change)| runtime.core.swaps.begin(plain(Subscription::KIND, name, *change)))
            .collect();
        runtime.apply_subscriptions(&self.fix, next).await;
        for ((name, change), pending) in changes.iter().zip(pending) {
            match change {
                Change::Removed => tracing::info!(
                    target: "dapr.runtime.hotreload",
                    "Closing existing Subscription to reload: {name}"
                ),
                Change::Added | Change::Updated => {
                    tracing::info!(target: "dapr.runtime.hotreload", "Adding Subscription for processing: {name}");
                    tracing::info!(target: "dapr.runtime.hotreload", "Subscription updated: {name}");
                }
            }
            done(pending, runtime);
        }
        self.current.subscriptions = next.to_vec();
    }

    /// The line of a change for which the incumbent builds its runtime anew.
    fn changed_for_restart(&self, kind: &str, name: &str, change: Change) {
        let event = match change {
            Change::Added => "CREATED",
            Change::Updated => "UPDATED",
            Change::Removed => "DELETED",
        };
        tracing::info!(
            target: "dapr.runtime.hotreload",
            "Received {kind} {event} event: {name} - triggering SIGHUP reload"
        );
    }

    fn refused(
        &self,
        runtime: &Runtime,
        pending: mecha_core::swap::Pending,
        kind: &'static str,
        name: &str,
        cause: &str,
    ) {
        if !is_known(runtime, kind, name, cause) {
            tracing::error!(
                target: "dapr.runtime.hotreload",
                "{kind} {name} stays as it was, the change is refused: {cause}"
            );
        }
        pending.refused(cause, true);
    }
}

/// Whether it is refused for this reason already.
fn is_known(runtime: &Runtime, kind: &str, name: &str, cause: &str) -> bool {
    runtime.core.swaps.refused().iter().any(|r| r.kind == kind && r.name == name && r.reason == cause)
}

/// What is refused of a kind is in force or gone by now, but for those that `stays` names.
fn accept_all(runtime: &Runtime, kind: &'static str, stays: impl Fn(&str) -> bool) {
    for refused in runtime.core.swaps.refused().iter().filter(|r| r.kind == kind && !stays(&r.name)) {
        runtime.core.swaps.accept(kind, &refused.name);
    }
}

fn plain(kind: &'static str, name: &str, change: Change) -> Subject {
    Subject { kind, name: name.to_owned(), change, from: None, to: None }
}

/// A change that has nothing to drain.
fn done(mut pending: mecha_core::swap::Pending, runtime: &Runtime) {
    if let Some(receipt) = pending.receipt() {
        runtime.core.swaps.accept(receipt.kind, &receipt.name);
    }
    pending.switched(0);
    pending.ended(Drained::default());
}

/// What is wrong in the policies of this name.
fn mistakes(documents: &[Located<Resiliency>], name: &str) -> Option<String> {
    let mine = documents.iter().filter(|d| d.value.name() == name).map(|d| d.value.clone());
    let (_, mistakes) = Policies::compile(&mine.collect::<Vec<_>>(), Arc::new(Metrics::disabled()));
    (!mistakes.is_empty()).then(|| mistakes.join("; "))
}

/// Puts the documents of `before` with this name in the place of those of `now`.
fn stay<T: Resource + Clone>(now: &mut Vec<Located<T>>, before: &[Located<T>], name: &str) {
    let place = now.iter().position(|d| d.value.name() == name).unwrap_or(now.len());
    now.retain(|d| d.value.name() != name);
    now.splice(place..place, before.iter().filter(|d| d.value.name() == name).cloned());
}

fn configuration_name(configuration: &Configuration) -> String {
    match configuration.meta.name.as_str() {
        "" => "default".to_owned(),
        name => name.to_owned(),
    }
}

/// Names whose content is not the same in both lists, deleted ones first, then updated, then new.
fn differences<T: Resource>(before: &[Located<T>], next: &[Located<T>]) -> Vec<(String, Change)> {
    let hash = |list: &[Located<T>], name: &str| -> Vec<SpecHash> {
        list.iter().filter(|d| d.value.name() == name).map(|d| d.value.spec_hash()).collect()
    };
    let names = |list: &[Located<T>]| -> BTreeSet<String> { list.iter().map(|d| d.value.name().to_owned()).collect() };
    let (old, new) = (names(before), names(next));
    let removed = old.difference(&new).map(|n| (n.clone(), Change::Removed));
    let updated = old.intersection(&new).filter(|n| hash(before, n) != hash(next, n));
    let added = new.difference(&old).map(|n| (n.clone(), Change::Added));
    removed.chain(updated.map(|n| (n.clone(), Change::Updated))).chain(added).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mecha_resources::Loaded;

    fn subscriptions(yaml: &str) -> Vec<Located<Subscription>> {
        let mut loaded = Loaded::default();
        loaded.read_text("subs.yaml", yaml);
        assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
        loaded.subscriptions
    }

    fn subscription(name: &str, topic: &str) -> String {
        format!(
            "apiVersion: dapr.io/v2alpha1\nkind: Subscription\nmetadata: {{name: {name}}}\n\
             spec: {{pubsubname: bus, topic: {topic}, routes: {{default: /x}}}}\n---\n"
        )
    }

    #[test]
    fn only_content_makes_a_difference() {
        let before = subscriptions(&(subscription("a", "1") + &subscription("b", "2") + &subscription("c", "3")));
        // Another order and another place are no difference.
        let same = subscriptions(&(subscription("c", "3") + &subscription("a", "1") + &subscription("b", "2")));
        assert!(differences(&before, &same).is_empty());
        let next = subscriptions(&(subscription("a", "1") + &subscription("b", "9") + &subscription("d", "4")));
        let expected =
            [("c", Change::Removed), ("b", Change::Updated), ("d", Change::Added)].map(|(n, c)| (n.to_owned(), c));
        assert_eq!(differences(&before, &next), expected);
    }
}
