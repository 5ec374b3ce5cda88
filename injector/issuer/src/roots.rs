//! Keeps the roots: reads and writes their Secret, and takes the steps of a rotation.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use mecha_apiserver::{Events, Failure, FailureKind, Followed, call};
use mecha_identity::Bundle;
use rcgen::PublicKeyData;
use tokio::sync::watch;

use crate::authority::{AuthorityError, Leaf, Names};
use crate::bundle::Published;
use crate::generations::{Generations, Step, Timing};
use crate::metrics::Metrics;
use crate::{IssuerError, ROOT_SECRET, ROTATE_ANNOTATION};

/// Longest pause between two looks at the clock.
const LONGEST_TICK: Duration = Duration::from_secs(30);
/// Shortest one.
const SHORTEST_TICK: Duration = Duration::from_millis(50);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Days before the end of the root at which people are told.
const ALARMS: [u64; 3] = [3, 14, 30];

/// A bundle and which of two is newer.
#[derive(Clone, Debug)]
pub(crate) struct Numbered {
    pub(crate) bundle: Arc<Bundle>,
    pub(crate) number: u64,
}

/// The roots in force, for whoever signs or publishes.
pub(crate) struct Roots {
    current: ArcSwap<Generations>,
    bundle: watch::Sender<Numbered>,
    leaf_ttl: Duration,
}

impl Roots {
    pub(crate) fn new(generations: Generations, leaf_ttl: Duration) -> Result<Self, AuthorityError> {
        let numbered = Numbered { bundle: Arc::new(generations.bundle()?), number: generations.number };
        Ok(Self { current: ArcSwap::from_pointee(generations), bundle: watch::Sender::new(numbered), leaf_ttl })
    }

    pub(crate) fn sign(
        &self,
        key: &impl PublicKeyData,
        names: Names<'_>,
        now: SystemTime,
    ) -> Result<Leaf, AuthorityError> {
        self.current.load().signing.sign(key, names, now, self.leaf_ttl)
    }

    pub(crate) fn bundle(&self) -> watch::Receiver<Numbered> {
        self.bundle.subscribe()
    }

    /// All roots in force as one text.
    pub(crate) fn bundle_pem(&self) -> String {
        self.bundle.borrow().bundle.to_pem()
    }

    /// The end of the root that signs.
    pub(crate) fn end(&self) -> SystemTime {
        self.current.load().signing.root().not_after
    }

    fn set(&self, generations: Generations) -> Result<(), AuthorityError> {
        let bundle = generations.bundle()?;
        let number = generations.number;
        self.current.store(Arc::new(generations));
        self.bundle.send_if_modified(|now| {
            let changed = now.number != number;
            *now = Numbered { bundle: Arc::new(bundle), number };
            changed
        });
        Ok(())
    }
}

/// The Secret with the roots.
#[derive(Clone)]
pub(crate) struct Store {
    pub(crate) api: Api<Secret>,
    pub(crate) trust_domain: String,
    pub(crate) timing: Timing,
}

impl Store {
    /// The roots as they are, or the first ones: of several replicas that begin at once, one makes them.
    pub(crate) async fn load_or_begin(&self) -> Result<Generations, IssuerError> {
        let now = SystemTime::now();
        let Some(secret) = call(self.api.get_opt(ROOT_SECRET)).await? else {
            let first = Generations::begin(&self.trust_domain, self.timing, now)?;
            return match self.create(&first).await {
                Ok(_) => Ok(first),
                Err(failure) if failure.kind == FailureKind::Conflict => {
                    let secret = call(self.api.get(ROOT_SECRET)).await?;
                    self.complete(&secret, now).await
                }
                Err(failure) => Err(failure.into()),
            };
        };
        self.complete(&secret, now).await
    }

    /// The roots in `secret`, which afterwards says how long their leaves may live.
    async fn complete(&self, secret: &Secret, now: SystemTime) -> Result<Generations, IssuerError> {
        let data = data_of(secret);
        let read = Generations::read(&data, self.timing)?;
        match read.completed(&data, self.timing, now) {
            None => Ok(read),
            Some(completed) => {
                self.replace(secret, &completed).await?;
                Ok(completed)
            }
        }
    }

    async fn create(&self, generations: &Generations) -> Result<Secret, Failure> {
        let metadata = ObjectMeta {
            name: Some(ROOT_SECRET.to_owned()),
            labels: Some([("app.kubernetes.io/part-of".to_owned(), "mecha".to_owned())].into()),
            ..ObjectMeta::default()
        };
        let secret = Secret { metadata, type_: Some("Opaque".to_owned()), ..Secret::default() };
        call(self.api.create(&PostParams::default(), &filled(secret, generations))).await
    }

    /// Fails with a conflict when `secret` is not the last word.
    async fn replace(&self, secret: &Secret, generations: &Generations) -> Result<Secret, Failure> {
        let mut secret = secret.clone();
        secret.metadata.managed_fields = None;
        call(self.api.replace(ROOT_SECRET, &PostParams::default(), &filled(secret, generations))).await
    }
}

fn filled(mut secret: Secret, generations: &Generations) -> Secret {
    secret.data = Some(generations.write().into_iter().map(|(key, value)| (key, ByteString(value))).collect());
    secret.string_data = None;
    secret
}

fn data_of(secret: &Secret) -> std::collections::BTreeMap<String, Vec<u8>> {
    secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()
}

/// Follows the Secret and the clock.
pub(crate) struct Keeper {
    pub(crate) store: Store,
    pub(crate) roots: Arc<Roots>,
    pub(crate) followed: Followed<Secret>,
    pub(crate) namespace: String,
    pub(crate) published: watch::Receiver<Published>,
    pub(crate) events: Events,
    pub(crate) metrics: Arc<Metrics>,
}

impl Keeper {
    pub(crate) async fn run(mut self) {
        self.followed.listed().await;
        let mut changes = self.followed.changes();
        let tick = (self.store.timing.publish_wait / 4).clamp(SHORTEST_TICK, LONGEST_TICK);
        let mut alarmed = None;
        let mut complained = String::new();
        loop {
            match self.look(&mut alarmed).await {
                Ok(()) => complained.clear(),
                Err(error) => {
                    let text = error.to_string();
                    if text != complained {
                        tracing::error!(error = text, "the roots in use stay; the Secret {ROOT_SECRET} needs a look");
                        complained = text;
                    }
                }
            }
            tokio::select! {
                _ = changes.changed() => {}
                _ = self.published.changed() => {}
                () = tokio::time::sleep(tick) => {}
            }
        }
    }

    /// Brings the roots in use and the Secret into line, and takes the step that is due.
    async fn look(&self, alarmed: &mut Option<u64>) -> Result<(), IssuerError> {
        let now = SystemTime::now();
        let Some(secret) = self.followed.get(&self.namespace, ROOT_SECRET) else {
            return self.restore(now).await;
        };
        let generations = match self.store.complete(&secret, now).await {
            // Another replica was faster, or the watch is behind; its news wakes us.
            Err(IssuerError::Api(failure)) if failure.kind == FailureKind::Conflict => return Ok(()),
            other => other?,
        };
        self.alarm(&secret, &generations, now, alarmed);
        let request = secret.metadata.annotations.as_ref().and_then(|a| a.get(ROTATE_ANNOTATION));
        let published = *self.published.borrow();
        let since = (published.number == generations.number).then_some(published.complete).flatten();
        let timing = self.store.timing;
        let request = request.map_or("", String::as_str);
        let step = generations.advance(&self.store.trust_domain, timing, request, since, now)?;
        let Some((then, step)) = step else {
            // A watch that is behind must not take a root out of use that this replica has published.
            if generations.number >= self.roots.bundle.borrow().number {
                self.roots.set(generations)?;
            }
            return Ok(());
        };
        match self.store.replace(&secret, &then).await {
            Ok(written) => {
                let (reason, note) = match step {
                    Step::Prepared => ("RootPrepared", "a new root is published and will sign soon"),
                    Step::Switched => ("RootSwitched", "the new root signs; the former one stays in the bundle"),
                    Step::Retired => ("RootRetired", "a former root has left the bundle"),
                };
                tracing::info!(step = reason, note);
                self.events.normal(&written, reason, "Rotate", note);
                self.roots.set(then)?;
                Ok(())
            }
            Err(failure) if failure.kind == FailureKind::Conflict => Ok(()),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Somebody has deleted the Secret. What runs must go on under the same root; beginning anew is for a root
    /// that has ended.
    async fn restore(&self, now: SystemTime) -> Result<(), IssuerError> {
        let current = self.roots.current.load_full();
        let again = if self.roots.end() > now {
            let mut again = Generations::clone(&current);
            again.number += 1;
            again
        } else {
            Generations::begin(&self.store.trust_domain, self.store.timing, now)?
        };
        match self.store.create(&again).await {
            Ok(written) => {
                let note = "the Secret with the root was deleted and is written again from memory";
                tracing::warn!(note);
                self.events.warning(&written, "RootRestored", "Restore", note);
                self.roots.set(again)?;
                Ok(())
            }
            Err(failure) if failure.kind == FailureKind::Conflict => Ok(()),
            Err(failure) => Err(failure.into()),
        }
    }

    fn alarm(&self, secret: &Secret, generations: &Generations, now: SystemTime, alarmed: &mut Option<u64>) {
        let left = generations.signing.root().not_after.duration_since(now).unwrap_or_default();
        self.metrics.root_days.set(left.as_secs_f64() / DAY.as_secs_f64());
        self.metrics.roots.set(self.roots.bundle.borrow().bundle.len().try_into().unwrap_or(i64::MAX));
        // A root made to live shorter than an alarm's span is no news at its first day.
        let life = left + now.duration_since(generations.signing.root().not_before).unwrap_or_default();
        let due = ALARMS.into_iter().find(|days| left < DAY * u32::try_from(*days).unwrap_or(1));
        let due = due.filter(|days| life > 2 * DAY * u32::try_from(*days).unwrap_or(1));
        if due.is_some() && due != *alarmed {
            let hours = left.as_secs() / 3600;
            let note = format!(
                "the root that signs ends in {} days and {} hours, and its rotation has not happened; see the log of \
                 the issuer",
                hours / 24,
                hours % 24
            );
            tracing::error!(note);
            self.events.warning(secret, "RootEnds", "Rotate", &note);
        }
        *alarmed = due;
    }
}
