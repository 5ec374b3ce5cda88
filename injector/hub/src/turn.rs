//! One look at everything: what should be written, without writing it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use mecha_resources::kinds::ClaimPhase;

use crate::Options;
use crate::backends::backends;
use crate::claims::claim;
use crate::classes::classes;
use crate::clusters::{Own, own};
use crate::decide::{Challengers, Decided, decide};
use crate::environments::environment;
use crate::placements::placements;
use crate::swaps::{deadline, milliseconds};
use crate::view::{Facts as _, View};
use crate::write::Write;

/// What a turn looks at.
#[derive(Clone, Copy)]
pub(crate) struct Context<'c> {
    pub(crate) view: &'c View,
    pub(crate) options: &'c Options,
    pub(crate) own: &'c Own,
    /// Namespaces that belong to somebody else, with what to do about it.
    pub(crate) foreign: &'c BTreeMap<String, String>,
    /// Bindings whose last write has not come back yet, as namespace/name.
    pub(crate) unseen: &'c BTreeSet<String>,
    pub(crate) challengers: &'c Challengers,
    pub(crate) epoch: i64,
    pub(crate) now: Timestamp,
    /// Trace context of this look, for what is decided by it.
    pub(crate) traceparent: Option<&'c str>,
}

/// Writes in their order. Another row does not depend on them.
#[derive(Default)]
pub(crate) struct Row {
    pub(crate) writes: Vec<Write>,
    /// When to look again.
    pub(crate) wake: Option<Timestamp>,
    pub(crate) phases: BTreeMap<ClaimPhase, u32>,
    pub(crate) pending: Vec<String>,
}

/// What should be written, and when to look again.
pub(crate) struct Turn {
    pub(crate) rows: Vec<Row>,
    pub(crate) wake: Duration,
    pub(crate) phases: BTreeMap<ClaimPhase, u32>,
    pub(crate) decisions: usize,
    /// Names what was decided; `mecha dev` prints the same one for the same documents.
    pub(crate) digest: String,
    pub(crate) challengers: Challengers,
}

/// Works out a turn. The same arguments give the same turn.
pub(crate) fn turn(context: Context<'_>) -> Turn {
    let Context { view, options, now, .. } = context;
    let decided = decide(view, options, context.challengers, milliseconds(now));
    let alone = |writes: Vec<Write>| Row { writes, ..Row::default() };
    let mut rows = vec![alone(own(view, &options.cluster_name, context.own, now))];
    // Consent is written before anything moves by it.
    rows.extend(classes(view, &decided, now).into_iter().map(alone));
    for stored in &view.environments {
        let namespace = decided.world.namespace_of(&stored.object());
        let unseen = |key: &String| key.rsplit('/').next() == Some(namespace.as_str());
        if !context.unseen.iter().any(unseen) {
            rows.push(environment(&context, &decided, stored));
        }
    }
    rows.extend(homeless(&context, &decided));
    rows.extend(placements(view, &decided, now).into_iter().map(alone));
    rows.extend(backends(view, &decided, now).into_iter().map(alone));
    let mut phases = BTreeMap::new();
    for (phase, count) in rows.iter().flat_map(|row| &row.phases) {
        *phases.entry(*phase).or_default() += count;
    }
    let challengers = Challengers::of(&decided.evaluation.memory);
    let wake = wake(&context, &challengers, &rows);
    rows.retain(|row| !row.writes.is_empty());
    Turn {
        rows,
        wake,
        phases,
        decisions: decided.evaluation.claims.len(),
        digest: decided.evaluation.digest.to_string(),
        challengers,
    }
}

/// Claims whose namespace belongs to no environment.
fn homeless(context: &Context<'_>, decided: &Decided) -> Vec<Row> {
    let homeless = context.view.claims.iter().filter(|c| decided.world.environment_of(c.namespace()).is_none());
    homeless
        .map(|stored| {
            let written = claim(context.view, decided, stored, &[], context.now);
            let phases = if stored.leaving() { BTreeMap::new() } else { BTreeMap::from([(written.phase, 1)]) };
            let writes = written.first.into_iter().chain(written.last).collect();
            Row { writes, phases, ..Row::default() }
        })
        .collect()
}

/// Time to the next moment at which something happens without an edit.
fn wake(context: &Context<'_>, challengers: &Challengers, rows: &[Row]) -> Duration {
    let moves = context.view.all_bindings().flat_map(|binding| &binding.spec.entries);
    let deadlines = moves.filter_map(|entry| deadline(entry.swap.as_ref()?)).filter(|at| *at > context.now);
    let hold = i64::try_from(context.options.hysteresis.hold_ms).unwrap_or(i64::MAX);
    let held = challengers.all().filter_map(|challenger| {
        let since = i64::try_from(challenger.since_ms).ok()?;
        Timestamp::from_millisecond(since.saturating_add(hold)).ok()
    });
    // Those whose time is over have been looked at.
    let held = held.filter(|at| *at > context.now);
    let next = deadlines.chain(held).chain(rows.iter().filter_map(|row| row.wake)).min();
    let until = next.and_then(|at| Duration::try_from(at.duration_since(context.now)).ok());
    until.map_or(context.options.resync, |until| until.min(context.options.resync)).max(SHORTEST)
}

/// Clocks are read to the second in places; looking more often than this finds nothing new.
const SHORTEST: Duration = Duration::from_millis(100);
