//! Who leads: one replica of a role, by a Lease.
//!
//! A candidate takes a lease that it has seen unchanged for [`Timing::duration`] on its own clock; clocks of
//! different machines are never compared. Each take-over counts `leaseTransitions` up, and that count is the
//! epoch which a leader writes into what it owns: the API server refuses lower ones, so a leader that was frozen
//! and wakes up cannot overwrite its successor even when it has not noticed yet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::access::call;
use crate::error::{Failure, FailureKind};
use crate::patience::Patience;
use crate::role::Role;

/// How long a lease holds.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A lease that nobody renews for so long is free.
    pub duration: Duration,
    /// A leader that could not renew for so long stops leading; shorter than `duration`.
    pub give_up: Duration,
    /// Time between two tries.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { duration: Duration::from_secs(15), give_up: Duration::from_secs(10), retry: Duration::from_secs(2) }
    }
}

/// Time of one leader. Clones are the same.
#[derive(Clone, Debug)]
pub struct Term {
    epoch: i64,
    /// Until when the lease surely holds.
    until: Arc<Mutex<Instant>>,
}

impl Term {
    /// Rises with every change of the leader.
    #[must_use]
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Whether the lease surely holds at this moment. To be asked before every write: a process that was frozen
    /// has lost it while nothing told it so.
    #[must_use]
    pub fn holds(&self) -> bool {
        Instant::now() < *self.until.lock()
    }
}

/// Whether this replica leads. Clones are the same.
#[derive(Clone, Debug)]
pub struct Leadership {
    term: watch::Receiver<Option<Term>>,
}

impl Leadership {
    /// Takes part for as long as the role runs. The lease lies in the role's namespace; it is given back when the
    /// role ends, so that another replica need not wait.
    #[must_use]
    pub fn campaign(role: &Role, lease: &'static str, timing: Timing) -> Self {
        let (sender, term) = watch::channel(None);
        let candidate = Candidate {
            api: Api::namespaced(role.client.clone(), &role.namespace),
            lease,
            instance: role.instance.clone(),
            timing,
            seen: None,
            term: sender,
        };
        let stop = role.tasks.stopping().clone();
        role.tasks.spawn("leader election", async move { candidate.run(stop).await });
        Self { term }
    }

    /// The term of this replica, while it surely leads.
    #[must_use]
    pub fn term(&self) -> Option<Term> {
        self.term.borrow().clone().filter(Term::holds)
    }

    /// Returns when this replica leads.
    pub async fn elected(&mut self) -> Term {
        loop {
            if let Some(term) = self.term() {
                return term;
            }
            if self.term.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Returns when this replica has stopped leading, or leads in another term than `term`.
    pub async fn deposed(&mut self, term: &Term) {
        loop {
            let now = self.term.borrow_and_update().clone();
            if now.is_none_or(|now| now.epoch != term.epoch || !now.holds()) || self.term.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Has the term of `epoch` hold until `until`; whether that is news to those who wait for it.
fn prolong(term: &watch::Sender<Option<Term>>, epoch: i64, until: Instant) -> bool {
    let known = term.borrow().clone();
    match known.filter(|term| term.epoch == epoch) {
        Some(known) => {
            let lapsed = !known.holds();
            *known.until.lock() = until;
            // Who led has stopped at the lapse, and waits to be told that it goes on.
            if lapsed {
                term.send_modify(|_| {});
            }
            lapsed
        }
        None => {
            term.send_replace(Some(Term { epoch, until: Arc::new(Mutex::new(until)) }));
            true
        }
    }
}

struct Candidate {
    api: Api<Lease>,
    lease: &'static str,
    instance: String,
    timing: Timing,
    /// What another holder last wrote, and when it was first seen.
    seen: Option<(Option<String>, Option<MicroTime>, Instant)>,
    term: watch::Sender<Option<Term>>,
}

impl Candidate {
    async fn run(mut self, stop: tokio_util::sync::CancellationToken) {
        let mut patience = Patience::new();
        while !stop.is_cancelled() {
            let before = Instant::now();
            // A connection that was lost without a word takes one try with it, and must not take the lease.
            let turn = tokio::time::timeout(self.timing.give_up / 2, self.turn(before)).await;
            let waited = turn.is_err();
            match turn {
                Ok(Ok(())) => {
                    if patience.over() {
                        tracing::info!(lease = self.lease, "the lease can be read and written again");
                    }
                }
                Ok(Err(e)) if e.kind == FailureKind::Conflict => {}
                Ok(Err(error)) if error.kind == FailureKind::NotFound => {
                    if patience.is_out(error.kind) {
                        tracing::warn!(
                            lease = self.lease,
                            namespace = self.api.namespace().unwrap_or_default(),
                            %error,
                            "the lease cannot be made, so nobody leads: the API server serves no coordination.k8s.io/v1, \
                             or has no such namespace; it is tried again"
                        );
                    }
                }
                Ok(Err(error)) => {
                    if patience.is_out(error.kind) {
                        tracing::warn!(lease = self.lease, %error, "the lease cannot be read or written; it is tried again");
                    }
                }
                Err(_) => {
                    if patience.is_out(FailureKind::Timeout) {
                        tracing::warn!(
                            lease = self.lease,
                            "the API server does not answer about the lease; it is asked again"
                        );
                    }
                }
            }
            let lost = self.term.borrow().as_ref().is_some_and(|term| !term.holds());
            if lost {
                self.step_down("it could not be renewed in time");
            }
            if !waited {
                let _ = tokio::time::timeout(self.timing.retry, stop.cancelled()).await;
            }
        }
        self.give_back().await;
    }

    /// Reads the lease, and takes or renews it where that is right.
    async fn turn(&mut self, before: Instant) -> Result<(), Failure> {
        let Some(lease) = call(self.api.get_opt(self.lease)).await? else {
            let lease = self.written(None, 1);
            call(self.api.create(&PostParams::default(), &lease)).await?;
            self.lead(1, before);
            return Ok(());
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let epoch = i64::from(spec.lease_transitions.unwrap_or(0));
        let holder = spec.holder_identity.clone().filter(|holder| !holder.is_empty());
        let leading = self.term.borrow().as_ref().map(Term::epoch);
        if holder.as_deref() == Some(self.instance.as_str()) && leading == Some(epoch) {
            self.replace(lease, epoch).await?;
            self.lead(epoch, before);
            return Ok(());
        }
        if leading.is_some() {
            self.step_down("another replica holds it");
        }
        if holder.is_some() && holder.as_deref() != Some(self.instance.as_str()) && !self.abandoned(&spec) {
            return Ok(());
        }
        // Also after a restart under the same name: what the process before has sent may still be on its way.
        self.replace(lease, epoch + 1).await?;
        self.lead(epoch + 1, before);
        Ok(())
    }

    /// Whether the holder has not renewed for so long that the lease is free.
    fn abandoned(&mut self, spec: &LeaseSpec) -> bool {
        let now = Instant::now();
        let same = self.seen.as_ref().is_some_and(|(h, r, _)| *h == spec.holder_identity && *r == spec.renew_time);
        if !same {
            self.seen = Some((spec.holder_identity.clone(), spec.renew_time.clone(), now));
        }
        let wanted = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
        let duration = wanted.unwrap_or(self.timing.duration);
        self.seen.as_ref().is_some_and(|(_, _, since)| now.duration_since(*since) >= duration)
    }

    async fn replace(&self, old: Lease, epoch: i64) -> Result<(), Failure> {
        let lease = self.written(Some(old), epoch);
        call(self.api.replace(self.lease, &PostParams::default(), &lease)).await.map(|_| ())
    }

    /// The lease as this replica writes it; its resource version makes the write fail when it is late.
    fn written(&self, old: Option<Lease>, epoch: i64) -> Lease {
        let old = old.unwrap_or_default();
        let before = old.spec.unwrap_or_default();
        let now = MicroTime(Timestamp::now());
        let epoch = i32::try_from(epoch).unwrap_or(i32::MAX);
        let taken = before.lease_transitions != Some(epoch);
        Lease {
            metadata: ObjectMeta {
                name: Some(self.lease.to_owned()),
                resource_version: old.metadata.resource_version,
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.instance.clone()),
                lease_duration_seconds: i32::try_from(self.timing.duration.as_secs().max(1)).ok(),
                lease_transitions: Some(epoch),
                acquire_time: if taken { Some(now.clone()) } else { before.acquire_time },
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        }
    }

    /// Leads from now on. `before` is when the request left: the lease holds from no later than that.
    fn lead(&mut self, epoch: i64, before: Instant) {
        self.seen = None;
        if prolong(&self.term, epoch, before + self.timing.give_up) {
            tracing::info!(lease = self.lease, epoch, "this replica leads");
        }
    }

    fn step_down(&mut self, why: &str) {
        tracing::warn!(lease = self.lease, why, "this replica no longer leads");
        self.term.send_replace(None);
    }

    /// Lets the next one lead at once.
    async fn give_back(&mut self) {
        let Some(term) = self.term.send_replace(None) else { return };
        *term.until.lock() = Instant::now();
        let Ok(Some(lease)) = call(self.api.get_opt(self.lease)).await else { return };
        if lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref()) != Some(self.instance.as_str()) {
            return;
        }
        let mut free = self.written(Some(lease), term.epoch);
        if let Some(spec) = &mut free.spec {
            spec.holder_identity = Some(String::new());
        }
        if let Err(error) = call(self.api.replace(self.lease, &PostParams::default(), &free)).await {
            tracing::debug!(lease = self.lease, %error, "the lease could not be given back");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_term_that_lapsed_and_is_renewed_in_time_leads_again() {
        let (sender, receiver) = watch::channel(None);
        let mut leadership = Leadership { term: receiver };
        let later = Instant::now() + Duration::from_secs(3600);
        assert!(prolong(&sender, 7, later));
        let term = leadership.elected().await;
        assert!(!prolong(&sender, 7, later), "a renewal is no news");
        *term.until.lock() = Instant::now();
        leadership.deposed(&term).await;
        let again = tokio::spawn(async move { leadership.elected().await });
        tokio::task::yield_now().await;
        assert!(prolong(&sender, 7, later));
        let again = tokio::time::timeout(Duration::from_secs(30), again).await.unwrap().unwrap();
        assert!(again.holds() && again.epoch() == 7);
    }
}
