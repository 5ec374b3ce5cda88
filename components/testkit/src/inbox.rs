use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use mecha_components_api::{Deliver, Delivery, Verdict};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::case::{Failure, Outcome, wait_until};

/// A receiver that follows a script and remembers what it got.
///
/// Verdicts come from the script while it lasts, then from the default. A held inbox lets a
/// delivery wait until [`Inbox::release`].
#[derive(Debug)]
pub struct Inbox {
    seen: Mutex<Vec<Delivery>>,
    script: Mutex<VecDeque<Verdict>>,
    otherwise: Verdict,
    attached: AtomicUsize,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
    gate: Option<Semaphore>,
}

/// Counts a delivery as in flight, also when its future is dropped.
struct Counted<'a>(&'a AtomicUsize);

impl Inbox {
    /// Acknowledges everything.
    #[must_use]
    pub fn new() -> Self {
        Self::with_script([], Verdict::Ack)
    }

    /// Gives the verdicts of `script`, then `otherwise` for ever.
    #[must_use]
    pub fn with_script(script: impl IntoIterator<Item = Verdict>, otherwise: Verdict) -> Self {
        Self {
            seen: Mutex::default(),
            script: Mutex::new(script.into_iter().collect()),
            otherwise,
            attached: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            most_in_flight: AtomicUsize::new(0),
            gate: None,
        }
    }

    /// Lets deliveries wait for [`Inbox::release`].
    #[must_use]
    pub fn held(mut self) -> Self {
        self.gate = Some(Semaphore::new(0));
        self
    }

    /// Lets `count` held deliveries go on.
    pub fn release(&self, count: usize) {
        if let Some(gate) = &self.gate {
            gate.add_permits(count);
        }
    }

    /// What was delivered so far, in the order of arrival; redeliveries count again.
    #[must_use]
    pub fn seen(&self) -> Vec<Delivery> {
        self.seen.lock().clone()
    }

    /// The payloads of [`Inbox::seen`] as text.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        self.seen.lock().iter().map(|d| String::from_utf8_lossy(&d.data).into_owned()).collect()
    }

    /// How often a subscription was put in place.
    #[must_use]
    pub fn attachments(&self) -> usize {
        self.attached.load(Ordering::SeqCst)
    }

    /// Deliveries without a verdict yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// The most deliveries that were without a verdict at once.
    #[must_use]
    pub fn most_in_flight(&self) -> usize {
        self.most_in_flight.load(Ordering::SeqCst)
    }

    /// Waits for at least `count` deliveries.
    ///
    /// # Errors
    /// Says how many there were when they do not come within `within`.
    pub async fn wait_for(&self, count: usize, within: Duration) -> Outcome {
        let waited = wait_until(within, "deliveries", || async { self.seen.lock().len() >= count }).await;
        waited.map_err(|_| {
            let texts = self.texts();
            Failure::new(format!("{} of {count} deliveries within {within:?}: {texts:?}", texts.len()))
        })
    }
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Counted<'a> {
    fn new(inbox: &'a Inbox) -> Self {
        let now = inbox.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        inbox.most_in_flight.fetch_max(now, Ordering::SeqCst);
        Self(&inbox.in_flight)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Deliver for Inbox {
    fn attached(&self) {
        self.attached.fetch_add(1, Ordering::SeqCst);
    }

    async fn deliver(&self, msg: Delivery) -> Verdict {
        let _counted = Counted::new(self);
        self.seen.lock().push(msg);
        if let Some(gate) = &self.gate {
            // The gate is never closed.
            if let Ok(permit) = gate.acquire().await {
                permit.forget();
            }
        }
        self.script.lock().pop_front().unwrap_or(self.otherwise)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mecha_components_api::Metadata;

    use super::*;

    fn message(text: &'static str) -> Delivery {
        Delivery { topic: "t".into(), data: text.into(), metadata: Metadata::new(), content_type: None }
    }

    #[tokio::test]
    async fn the_script_comes_before_the_default() {
        let inbox = Inbox::with_script([Verdict::Retry], Verdict::Release);
        assert_eq!(inbox.deliver(message("a")).await, Verdict::Retry);
        assert_eq!(inbox.deliver(message("b")).await, Verdict::Release);
        assert_eq!(inbox.texts(), ["a", "b"]);
        let failure = inbox.wait_for(3, Duration::from_millis(20)).await.unwrap_err();
        assert!(failure.to_string().starts_with("2 of 3 deliveries"), "{failure}");
    }

    #[tokio::test]
    async fn a_held_delivery_waits_and_may_be_dropped() {
        let inbox = Arc::new(Inbox::new().held());
        let dropped = tokio::time::timeout(Duration::from_millis(10), inbox.deliver(message("a"))).await;
        assert!(dropped.is_err());
        assert_eq!((inbox.in_flight(), inbox.most_in_flight()), (0, 1));
        inbox.release(1);
        assert_eq!(inbox.deliver(message("b")).await, Verdict::Ack);
    }
}
