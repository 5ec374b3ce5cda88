use std::collections::HashSet;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use mecha_components_api::{CancellationToken, Deliver, Delivery, Result, Verdict};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, warn};

use crate::client::Store;
use crate::clock::monotonic;
use crate::config::Consume;
use crate::group::{Claim, Claimed, GroupRef, Lease, Taken};
use crate::schema::random;
use crate::wake::Sleeper;

/// Longest time without a look at the log, for wake-ups that got lost.
const POLL: Duration = Duration::from_secs(1);
/// The same where the file system has no sockets.
const POLL_DEAF: Duration = Duration::from_millis(50);
/// After a message was released by a runtime that is not stopping, before it is taken again.
const RELEASE_PAUSE: Duration = Duration::from_millis(100);
/// Pauses after a failed request to the store.
const TROUBLE_FIRST: Duration = Duration::from_millis(100);
const TROUBLE_LAST: Duration = Duration::from_secs(5);
/// How long a verdict is offered to a failing store once the subscription stops.
const SETTLE_AT_STOP: Duration = Duration::from_secs(5);

/// One subscription.
pub(crate) struct Subscription<'a> {
    pub store: &'a Store,
    pub topic: Arc<str>,
    pub group: Arc<str>,
    pub consume: Consume,
    pub to: Arc<dyn Deliver>,
    pub stop: CancellationToken,
}

/// Why a session ended.
enum Ended {
    Stopped,
    /// The group was removed: the file was replaced, or this process slept for longer than the retention.
    Gone,
}

impl Subscription<'_> {
    /// Runs until `stop`; trouble with the store is waited out.
    pub(crate) async fn run(self) -> Result<()> {
        let mut trouble = Trouble::default();
        loop {
            let attached = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                attached = self.store.attach(self.topic.clone(), self.group.clone(), &self.consume) => attached,
            };
            match attached {
                Ok(at) => {
                    trouble = Trouble::default();
                    if let Ended::Stopped = self.session(at).await {
                        break;
                    }
                    warn!(topic = &*self.topic, group = &*self.group, "the consumer group is gone; making it again");
                }
                Err(error) => warn!(topic = &*self.topic, group = &*self.group, %error, "cannot subscribe yet"),
            }
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = sleep(trouble.next()) => {}
            }
        }
        Ok(())
    }

    async fn session(&self, at: GroupRef) -> Ended {
        let _active = self.store.activate(at);
        let sleeper = self.store.sleeper(at.topic);
        if let Err(error) = &sleeper {
            debug!(topic = &*self.topic, %error, "no wake-up socket; polling instead");
        }
        let sleeper = sleeper.ok();
        self.to.attached();
        let poll = if sleeper.is_some() { POLL } else { POLL_DEAF };
        let max = if self.consume.single { 1 } else { self.consume.max_in_flight };
        let beat = self.consume.ack_wait / 3;

        let mut held = Held { store: self.store, at, leases: HashSet::with_capacity(max) };
        let mut flight = FuturesUnordered::new();
        let mut claiming: Slot<'_, Claimed> = None;
        let mut extending: Slot<'_, Vec<Lease>> = None;
        let mut trouble = Trouble::default();
        let mut stopping = false;
        let mut gone = false;
        // There may be something to take.
        let mut look = true;
        let mut look_at = Instant::now() + poll;
        let mut not_before = Instant::now();
        let mut beat_at = Instant::now() + beat;

        loop {
            let now = Instant::now();
            if look && claiming.is_none() && !stopping && !gone && held.leases.len() < max && now >= not_before {
                look = false;
                look_at = now + poll;
                let claim = Claim {
                    at,
                    max: max - held.leases.len(),
                    single: self.consume.single,
                    lease: self.consume.ack_wait,
                };
                claiming = Some(Box::pin(self.store.claim(claim)));
            }
            if (stopping || gone) && claiming.is_none() && flight.is_empty() {
                return if stopping { Ended::Stopped } else { Ended::Gone };
            }
            tokio::select! {
                Some((lease, verdict)) = flight.next(), if !flight.is_empty() => {
                    let mut released = verdict == Verdict::Release;
                    held.leases.remove(&lease);
                    // Those that were committed together make room together.
                    while let Some(Some((lease, verdict))) = flight.next().now_or_never() {
                        released |= verdict == Verdict::Release;
                        held.leases.remove(&lease);
                    }
                    if released {
                        not_before = Instant::now() + RELEASE_PAUSE;
                        look_at = look_at.min(not_before);
                    }
                    look = true;
                }
                answer = wait(&mut claiming) => match answer {
                    Ok(Claimed::Messages { taken, next_due }) => {
                        trouble = Trouble::default();
                        if taken.is_empty() {
                            look_at = look_at.min(at_monotonic(next_due));
                        } else {
                            look = true;
                        }
                        if held.leases.is_empty() {
                            beat_at = Instant::now() + beat;
                        }
                        for message in taken {
                            held.leases.insert(message.lease);
                            flight.push(self.handle(at, message));
                        }
                    }
                    Ok(Claimed::Gone) => gone = true,
                    Err(error) => {
                        let pause = trouble.next();
                        warn!(topic = &*self.topic, group = &*self.group, %error, "cannot take messages; trying again");
                        not_before = Instant::now() + pause;
                        look_at = not_before;
                        look = true;
                    }
                },
                lost = wait(&mut extending) => match lost {
                    // Their verdicts will be refused; settling says so.
                    Ok(lost) => lost.iter().for_each(|l| debug!(offset = l.offset, "lease is over")),
                    Err(error) => {
                        debug!(topic = &*self.topic, %error, "cannot extend leases; trying again");
                        beat_at = Instant::now() + trouble.next().min(beat);
                    }
                },
                () = rung(sleeper.as_ref()), if !look && !stopping => look = true,
                () = sleep_until(look_at.max(not_before)), if !stopping && !gone && claiming.is_none() && held.leases.len() < max => look = true,
                () = sleep_until(beat_at), if extending.is_none() && !held.leases.is_empty() => {
                    beat_at = Instant::now() + beat;
                    let leases = held.leases.iter().copied().collect();
                    extending = Some(Box::pin(self.store.extend(at, leases, self.consume.ack_wait)));
                }
                () = self.stop.cancelled(), if !stopping => {
                    stopping = true;
                    // What it took meanwhile goes back.
                    claiming = None;
                }
            }
        }
    }

    /// Delivers one message and stores its verdict.
    async fn handle(&self, at: GroupRef, message: Taken) -> (Lease, Verdict) {
        let Taken { lease, attempts, data, content_type, mut metadata } = message;
        metadata.insert("mecha.offset", lease.offset.to_string());
        metadata.insert("mecha.attempt", (attempts + 1).to_string());
        let delivery = Delivery { topic: self.topic.clone(), data, metadata, content_type };
        let verdict = self.to.deliver(delivery).await;
        self.settle(at, lease, verdict).await;
        (lease, verdict)
    }

    /// Offers the verdict until the store took or refused it. Meanwhile the lease is
    /// extended like any other, so a full disk does not repeat a delivery.
    async fn settle(&self, at: GroupRef, lease: Lease, verdict: Verdict) {
        let mut trouble = Trouble::default();
        let mut stopped_at = None;
        loop {
            match self.store.settle(at, lease, verdict).await {
                Ok(true) => return,
                Ok(false) => {
                    warn!(
                        topic = &*self.topic,
                        group = &*self.group,
                        offset = lease.offset,
                        ?verdict,
                        "verdict refused: the lease ran out and the message is delivered again"
                    );
                    return;
                }
                Err(error) => {
                    let pause = trouble.next();
                    warn!(topic = &*self.topic, offset = lease.offset, %error, "cannot store a verdict; trying again");
                    if self.stop.is_cancelled()
                        && stopped_at.get_or_insert_with(Instant::now).elapsed() > SETTLE_AT_STOP
                    {
                        warn!(
                            topic = &*self.topic,
                            offset = lease.offset,
                            "gave a verdict up; the message is delivered again"
                        );
                        return;
                    }
                    sleep(pause).await;
                }
            }
        }
    }
}

/// What this session holds. Dropped in the middle, it puts everything back.
struct Held<'a> {
    store: &'a Store,
    at: GroupRef,
    leases: HashSet<Lease>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.store.abandon(self.at, self.leases.iter().copied());
    }
}

/// A request to the store that is under way.
type Slot<'a, T> = Option<Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>>;

/// Growing pauses with jitter.
#[derive(Default)]
struct Trouble {
    times: u32,
}

impl Trouble {
    fn next(&mut self) -> Duration {
        let pause = TROUBLE_FIRST.saturating_mul(1 << self.times.min(16)).min(TROUBLE_LAST);
        self.times += 1;
        pause.mul_f64(0.75 + 0.5 * random())
    }
}

/// The outcome of `slot`, which is emptied; never, while it is empty.
async fn wait<T>(slot: &mut Slot<'_, T>) -> Result<T> {
    match slot {
        Some(future) => {
            let outcome = future.await;
            *slot = None;
            outcome
        }
        None => pending().await,
    }
}

async fn rung(sleeper: Option<&Sleeper>) {
    match sleeper {
        Some(sleeper) => sleeper.rung().await,
        None => pending().await,
    }
}

/// A time of the kernel's monotonic clock on tokio's; far away without one.
fn at_monotonic(millis: Option<i64>) -> Instant {
    let far = POLL.as_millis() as u64;
    let wait = millis.map_or(far, |m| u64::try_from(m.saturating_sub(monotonic())).unwrap_or(0).clamp(1, far));
    Instant::now() + Duration::from_millis(wait)
}
