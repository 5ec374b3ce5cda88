//! The loop of the leader.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};
use mecha_apiserver::trace::TraceContext;
use mecha_apiserver::{Events, FailureKind, Leadership, Role, Term, call};

use crate::Options;
use crate::clusters::Own;
use crate::decide::Challengers;
use crate::metrics::Metrics;
use crate::traces;
use crate::turn::{Context, Row, Turn, turn};
use crate::view::{View, Watches};
use crate::write::{Stopped, Writer};

/// The lease of the leader.
const LEASE: &str = "mecha-hub";
/// Changes that come together are looked at together; a longer look waits for more of them.
const TOGETHER: Duration = Duration::from_millis(10);
/// Longest wait for more changes.
const LONGEST_TOGETHER: Duration = Duration::from_secs(1);
/// Rows that are under way at the same time: so many environments get their bindings before the first of them writes
/// what people read.
const ROWS: usize = 256;
/// Pause after a turn in which something was refused; doubled up to [`LONGEST_PAUSE`] while it goes on.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// A write that has not come back by then is looked for again.
const UNSEEN_LIMIT: Duration = Duration::from_secs(5);

/// Follows, and leads whenever it is this replica's turn.
pub(crate) async fn run(options: Options, role: Role) {
    let gate = role.ready.wait_for("hub");
    let metrics = Metrics::new(&mut role.metrics.lock());
    let mut watches = Watches::start(&role);
    let stop = role.tasks.stopping().clone();
    if stop.run_until_cancelled(watches.listed()).await.is_none() {
        return;
    }
    gate.open();
    let mut leadership = Leadership::campaign(&role, LEASE, options.lease);
    let writer = Writer::new(role.client.clone(), Events::new(&role, "mecha-hub"), metrics, options.tracer.clone());
    loop {
        let Some(term) = stop.run_until_cancelled(leadership.elected()).await else { return };
        writer.metrics.leads(true);
        let mut leader = Leader::new(&options, &writer);
        tokio::select! {
            () = leader.run(&term, &mut watches) => {}
            () = leadership.deposed(&term) => {}
            () = stop.cancelled() => {}
        }
        writer.metrics.leads(false);
        if stop.is_cancelled() {
            return;
        }
    }
}

/// One term. What it holds is forgotten at the end and costs a successor nothing but time.
struct Leader<'r> {
    options: &'r Options,
    writer: &'r Writer,
    own: Own,
    challengers: Challengers,
    foreign: BTreeMap<String, String>,
    /// Bindings that were written, with the version before and the time.
    written: BTreeMap<String, (Option<String>, Instant)>,
    /// Refusals that were logged already.
    complained: BTreeSet<String>,
    /// The last decision.
    digest: String,
}

/// How a turn went.
struct Went {
    wake: Duration,
    refused: bool,
    took: Duration,
}

impl<'r> Leader<'r> {
    fn new(options: &'r Options, writer: &'r Writer) -> Self {
        Self {
            options,
            writer,
            own: Own::default(),
            challengers: Challengers::default(),
            foreign: BTreeMap::new(),
            written: BTreeMap::new(),
            complained: BTreeSet::new(),
            digest: String::new(),
        }
    }

    /// Until the lease no longer holds.
    async fn run(&mut self, term: &Term, watches: &mut Watches) {
        let mut pause = PAUSE;
        while term.holds() {
            if self.own.id.is_empty() || self.own.version.is_empty() {
                self.own = ask(self.writer.client()).await;
            }
            let went = self.one(term, watches).await;
            let wake = if went.refused {
                pause = (pause * 2).min(LONGEST_PAUSE);
                pause.min(went.wake)
            } else {
                pause = PAUSE;
                went.wake
            };
            // Whatever comes first; both are looked at in the same way.
            let changed = tokio::time::timeout(wake, watches.changed()).await;
            if changed.is_ok() {
                tokio::time::sleep(went.took.clamp(TOGETHER, LONGEST_TOGETHER)).await;
            }
        }
    }

    async fn one(&mut self, term: &Term, watches: &mut Watches) -> Went {
        let began = Instant::now();
        let view = watches.look();
        let unseen = self.unseen(&view);
        let mut span = traces::decision(&self.options.tracer);
        let traceparent = span.context().map(TraceContext::traceparent);
        let planned = turn(Context {
            view: &view,
            options: self.options,
            own: &self.own,
            foreign: &self.foreign,
            unseen: &unseen,
            challengers: &self.challengers,
            epoch: term.epoch(),
            now: Timestamp::now(),
            traceparent: traceparent.as_deref(),
        });
        let Turn { rows, wake, phases, decisions, digest, challengers } = planned;
        let writes = rows.iter().flat_map(|row| &row.writes);
        let caused = traceparent.is_some_and(|traceparent| writes.clone().any(|write| write.is_for(&traceparent)));
        if self.digest != digest || caused {
            traces::decided(&mut span, &digest, decisions, writes.count());
        } else {
            std::mem::take(&mut span).discard();
        }
        if self.digest != digest {
            tracing::info!(decision = digest, claims = decisions, "what was decided has changed");
            self.digest = digest;
        }
        let looked = began.elapsed();
        self.foreign.clear();
        let results: Vec<_> =
            stream::iter(rows).map(|row: Row| self.writer.row(term, row.writes)).buffer_unordered(ROWS).collect().await;
        let mut refused = false;
        for (bindings, stopped) in results {
            for key in bindings {
                let before = version(&view, &key);
                self.written.insert(key, (before, Instant::now()));
            }
            refused |= stopped.is_some();
            if let Some(stopped) = stopped {
                self.refused(stopped);
            }
        }
        if !refused {
            self.complained.clear();
        }
        self.challengers = challengers;
        span.end();
        self.writer.metrics.turn(began.elapsed(), decisions);
        if unseen.is_empty() {
            self.writer.metrics.claims(&phases);
        }
        let wake = if unseen.is_empty() { wake } else { wake.min(UNSEEN_LIMIT) };
        Went { wake, refused, took: looked }
    }

    /// Bindings whose last write the watch has not brought back. What is decided without it would be decided twice.
    fn unseen(&mut self, view: &View) -> BTreeSet<String> {
        self.written.retain(|key, (before, at)| at.elapsed() < UNSEEN_LIMIT && version(view, key) == *before);
        self.written.keys().cloned().collect()
    }

    fn refused(&mut self, stopped: Stopped) {
        let (what, failure) = match stopped {
            Stopped::Deposed => return,
            Stopped::Foreign { namespace } => {
                let how = format!(
                    "namespace {namespace} is there and belongs to somebody else; delete it, or give it the annotation \
                     {} with this environment as namespace/name",
                    crate::write::OWNER
                );
                self.foreign.insert(namespace, how);
                return;
            }
            Stopped::Refused(what, failure) => (what, failure),
        };
        // Somebody else was faster: the next look sees what they did.
        if failure.kind == FailureKind::Conflict {
            tracing::debug!(what, error = %failure, "a write came too late");
            return;
        }
        let line = format!("{what}: {failure}");
        if self.complained.len() < COMPLAINTS && self.complained.insert(line) {
            tracing::warn!(what, error = %failure, "a write was refused; it is tried again");
        }
    }
}

/// Most refusals that are told apart in the log.
const COMPLAINTS: usize = 256;

fn version(view: &View, key: &str) -> Option<String> {
    let (home, name) = key.split_once('/')?;
    let bindings = view.bindings_of(name);
    let binding = bindings.iter().find(|b| b.metadata.namespace.as_deref() == Some(home))?;
    binding.metadata.resource_version.clone()
}

/// What the API server says about itself; empty where it does not answer.
async fn ask(client: &Client) -> Own {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let system = call(namespaces.get_metadata_opt("kube-system")).await.ok().flatten();
    let version = call(client.apiserver_version()).await.ok();
    Own {
        id: system.and_then(|system| system.metadata.uid).unwrap_or_default(),
        version: version.map(|info| info.git_version).unwrap_or_default(),
    }
}
