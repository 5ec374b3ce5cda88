use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use mecha_components_api::{
    BindingEvent, BuildCx, Bytes, CancellationToken, Clock, Component, ConfigErrors, Field, FieldType, InputBinding,
    Metadata, OnBindingEvent, Prepared, Registration, Result, async_trait,
};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep};

use crate::quiet::Quiet;
use crate::schedule::{Cron, Schedule};

/// Ticks whose handler still runs; past that a tick is skipped.
const MAX_CALLS: usize = 64;
/// The wall clock is looked at this often, so that a jump of it is noticed.
const MAX_SLEEP: Duration = Duration::from_secs(30);
/// A clock that was set back further than this fires the repeated times again.
const SET_BACK: i64 = 2;

const FIELDS: &[Field] = &[
    Field::new(
        "schedule",
        FieldType::Text,
        "Five or six cron fields (seconds first), @every with a duration such as @every 15m, or @hourly, @daily, \
         @weekly, @monthly, @yearly. TZ=Area/City before it names a time zone, else the machine's counts.",
    )
    .required(),
    Field::new("direction", FieldType::Text, "Only input is possible.").default("input"),
];

pub(crate) fn registration() -> Registration<dyn InputBinding> {
    Registration {
        kind: "bindings.cron",
        aliases: &[],
        versions: &["v1"],
        summary: "Calls the app on a schedule",
        fields: FIELDS,
        prepare,
    }
}

fn prepare(md: &Metadata, _: &str) -> Result<Box<dyn Prepared<dyn InputBinding>>, ConfigErrors> {
    let mut errors = ConfigErrors::new();
    let text = errors.required(md, "schedule");
    errors.finish(())?;
    let schedule = Schedule::parse(&text)
        .map_err(|m| ConfigErrors::one("schedule", format!("invalid schedule format '{text}': {m}")))?;
    Ok(Box::new(Config { schedule }))
}

struct Config {
    schedule: Schedule,
}

#[async_trait]
impl Prepared<dyn InputBinding> for Config {
    async fn build(self: Box<Self>, cx: &BuildCx) -> Result<Arc<dyn InputBinding>> {
        Ok(Arc::new(CronBinding {
            name: cx.name.clone(),
            schedule: self.schedule,
            clock: cx.clock.clone(),
            quiet: Quiet::default(),
        }))
    }
}

/// `bindings.cron`.
#[derive(Debug)]
struct CronBinding {
    name: Arc<str>,
    schedule: Schedule,
    clock: Arc<dyn Clock>,
    quiet: Quiet,
}

impl Component for CronBinding {}

#[async_trait]
impl InputBinding for CronBinding {
    async fn read(&self, to: Arc<dyn OnBindingEvent>, stop: CancellationToken) -> Result<()> {
        let mut ticks = Ticks::new(&self.schedule, &*self.clock);
        let mut calls = FuturesUnordered::new();
        to.attached();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(outcome) = calls.next() => {
                    // A tick cannot be delivered again; the runtime has logged the failure.
                    let _: Result<Option<Bytes>> = outcome;
                }
                () = ticks.next() => {
                    if calls.len() < MAX_CALLS {
                        calls.push(to.event(self.event()));
                    } else if let Some(held_back) = self.quiet.pass() {
                        tracing::warn!(component = %self.name, held_back, "cron tick skipped: {MAX_CALLS} earlier calls still run");
                    }
                }
            }
        }
        while calls.next().await.is_some() {}
        Ok(())
    }
}

impl CronBinding {
    fn event(&self) -> BindingEvent {
        let now = now(&*self.clock).strftime("%Y-%m-%d %H:%M:%S%.f +0000 UTC").to_string();
        let metadata = [("timeZone", "Local".to_owned()), ("readTimeUTC", now)].into_iter().collect();
        BindingEvent { data: Bytes::new(), metadata, content_type: None }
    }
}

fn now(clock: &dyn Clock) -> Timestamp {
    // Out of range only for a clock that is thousands of years off.
    Timestamp::try_from(clock.now()).unwrap_or(Timestamp::UNIX_EPOCH)
}

enum Ticks<'a> {
    Every(Interval),
    Wall { cron: &'a Cron, clock: &'a dyn Clock, zone: TimeZone, seen: Timestamp, due: Option<Timestamp> },
}

impl fmt::Debug for Ticks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticks")
    }
}

impl<'a> Ticks<'a> {
    fn new(schedule: &'a Schedule, clock: &'a dyn Clock) -> Self {
        match schedule {
            Schedule::Every(length) => {
                // An interval too long for the clock never ends within the life of a process.
                let first =
                    Instant::now().checked_add(*length).unwrap_or_else(|| Instant::now() + MAX_SLEEP * 1_000_000);
                let mut interval = interval_at(first, *length);
                interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
                Self::Every(interval)
            }
            Schedule::Cron(cron) => {
                let (zone, seen) = (TimeZone::system(), now(clock));
                let due = cron.next(seen, &zone);
                Self::Wall { cron, clock, zone, seen, due }
            }
        }
    }

    /// Waits for the next tick. May be dropped at any await.
    async fn next(&mut self) {
        match self {
            Self::Every(interval) => {
                interval.tick().await;
            }
            Self::Wall { cron, clock, zone, seen, due } => loop {
                let now = now(*clock);
                if seen.as_second() - now.as_second() > SET_BACK {
                    *due = cron.next(now, zone);
                }
                *seen = now;
                let wait = match *due {
                    Some(at) if at <= now => {
                        // From now on, not from `at`: what was missed is not made up.
                        *due = cron.next(now, zone);
                        return;
                    }
                    Some(at) => Duration::try_from(at.duration_since(now)).unwrap_or(MAX_SLEEP).min(MAX_SLEEP),
                    None => MAX_SLEEP,
                };
                sleep(wait).await;
            },
        }
    }
}

#[cfg(test)]
#[path = "cron_tests.rs"]
mod tests;
