//! Callers that write all the time into the ledgers what they were told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mecha_tests::{
    Answer, Api, Call, EventLedger, Fault, HttpApp, HttpAppBuilder, Item, Op, ReadTicket, Sidecar, StateLedger,
    wait_until,
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::task::JoinSet;
use tonic::Code;

/// Name of the component under test.
pub(crate) const NAME: &str = "tested";
/// The topic that is published to.
pub(crate) const TOPIC: &str = "topic";
/// Where the app gets it.
pub(crate) const ROUTE: &str = "/in";
/// Callers at once, half of them on each front.
const CALLERS: usize = 4;
/// A key that all callers replace by its ETag.
const GUARDED: &str = "guarded";
/// Keys that each caller overwrites again and again.
const HOT_KEYS: usize = 3;
/// Keys read at once.
const READ: usize = 50;
/// Longest wait for one answer of a reader once all is well again.
const WELL_AGAIN: Duration = Duration::from_secs(180);

/// How one call ended.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    caller: usize,
    pub(crate) began: Instant,
    pub(crate) took: Duration,
    pub(crate) error: Option<Fault>,
}

/// Callers at work.
pub(crate) struct Load {
    shared: Arc<Shared>,
    callers: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    acked: AtomicUsize,
    outcomes: Mutex<Vec<Outcome>>,
}

/// Makes names that are never used twice.
#[derive(Debug, Default)]
pub(crate) struct Names(AtomicUsize);

impl Names {
    /// A new one.
    pub(crate) fn next(&self) -> usize {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    /// Names so far: all numbers below.
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Load {
    /// Writes state: new keys, overwritten keys, pairs of keys in a transaction, and one key by its ETag.
    pub(crate) async fn state(
        sidecar: &Sidecar,
        ledger: &Arc<StateLedger>,
        names: &Arc<Names>,
        pause: Duration,
    ) -> Self {
        let (ledger, names) = (Arc::clone(ledger), Arc::clone(names));
        Self::start(sidecar, pause, move |api, caller| {
            let (ledger, names) = (Arc::clone(&ledger), Arc::clone(&names));
            async move { write(&api, caller, names.next(), &ledger).await }
        })
        .await
    }

    /// Publishes events.
    pub(crate) async fn events(
        sidecar: &Sidecar,
        ledger: &Arc<EventLedger>,
        names: &Arc<Names>,
        pause: Duration,
    ) -> Self {
        let (ledger, names) = (Arc::clone(ledger), Arc::clone(names));
        Self::start(sidecar, pause, move |api, _| {
            let (ledger, names) = (Arc::clone(&ledger), Arc::clone(&names));
            async move { publish(&api, names.next(), &ledger).await }
        })
        .await
    }

    /// Reads a key of this store again and again.
    pub(crate) async fn reads(sidecar: &Sidecar, store: &'static str, pause: Duration) -> Self {
        Self::start(sidecar, pause, move |api, _| async move { api.get(store, "k").await.map(drop) }).await
    }

    async fn start<F, Fut>(sidecar: &Sidecar, pause: Duration, call: F) -> Self
    where
        F: Fn(Api, usize) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Result<(), Fault>> + Send,
    {
        let apis = sidecar.apis().await;
        let shared = Arc::new(Shared::default());
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let (api, call, shared) = (apis[caller % apis.len()].clone(), call.clone(), Arc::clone(&shared));
            callers.spawn(async move {
                while !shared.stop.load(Ordering::SeqCst) {
                    let began = Instant::now();
                    let error = call(api.clone(), caller).await.err();
                    let gone = error.as_ref().is_some_and(is_gone);
                    shared.acked.fetch_add(usize::from(error.is_none()), Ordering::SeqCst);
                    shared.outcomes.lock().push(Outcome { caller, began, took: began.elapsed(), error });
                    if gone {
                        return;
                    }
                    tokio::time::sleep(pause).await;
                }
            });
        }
        Self { shared, callers }
    }

    /// Calls that succeeded so far.
    pub(crate) fn acked(&self) -> usize {
        self.shared.acked.load(Ordering::SeqCst)
    }

    /// The calls that ended so far.
    pub(crate) fn outcomes(&self) -> Vec<Outcome> {
        self.shared.outcomes.lock().clone()
    }

    /// Waits until a call that began after `since` ended so.
    pub(crate) async fn wait(&self, what: &str, since: Instant, fits: impl Fn(&Outcome) -> bool) {
        wait_until(WELL_AGAIN, what, || async {
            self.shared.outcomes.lock().iter().rev().any(|outcome| outcome.began >= since && fits(outcome))
        })
        .await;
    }

    /// Waits until every caller succeeded some times in a row.
    pub(crate) async fn all_work(&self, what: &str) {
        const IN_A_ROW: usize = 5;
        wait_until(WELL_AGAIN, what, || async {
            let outcomes = self.shared.outcomes.lock();
            (0..CALLERS).all(|caller| {
                let last: Vec<_> = outcomes.iter().rev().filter(|o| o.caller == caller).take(IN_A_ROW).collect();
                last.len() == IN_A_ROW && last.iter().all(|outcome| outcome.error.is_none())
            })
        })
        .await;
    }

    /// Lets every call come to its end.
    pub(crate) async fn finish(mut self) -> Vec<Outcome> {
        self.shared.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.callers.join_next().await {
            ended.unwrap();
        }
        std::mem::take(&mut *self.shared.outcomes.lock())
    }
}

/// Whether the daemon itself did not answer.
fn is_gone(fault: &Fault) -> bool {
    fault.http == Some(0) || (fault.grpc == Some(Code::Unavailable) && fault.code.is_empty())
}

async fn write(api: &Api, caller: usize, number: usize, ledger: &StateLedger) -> Result<(), Fault> {
    let value = number.to_string();
    if number % 10 == 5 {
        return write_guarded(api, &value, ledger).await;
    }
    let keys = match number % 10 {
        0..6 => vec![format!("new-{number}")],
        6..9 => vec![format!("hot-{caller}-{}", number % HOT_KEYS)],
        _ => vec![format!("pair-{number}-a"), format!("pair-{number}-b")],
    };
    let tickets: Vec<_> = keys.iter().map(|key| ledger.write(key, Some(&value))).collect();
    let items: Vec<Item> = keys.iter().map(|key| Item::new(key, value.clone())).collect();
    if items.len() > 1 {
        let operations: Vec<Op> = items.into_iter().map(Op::Upsert).collect();
        api.transact(NAME, &operations).await?;
    } else {
        api.save(NAME, &items).await?;
    }
    tickets.into_iter().for_each(|ticket| ledger.acked(ticket));
    Ok(())
}

/// Replaces what it read of a key that all callers write, by its ETag: one of them wins.
async fn write_guarded(api: &Api, value: &str, ledger: &StateLedger) -> Result<(), Fault> {
    let read = ledger.read(GUARDED);
    let got = api.get(NAME, GUARDED).await?;
    ledger.seen(read, got.as_ref().map(|got| got.text()).as_deref());
    let item = Item::new(GUARDED, value.to_owned());
    let (ticket, item) = match got {
        Some(got) => (ledger.guarded_write(GUARDED, Some(value), &got.etag), item.etag(&got.etag)),
        None => (ledger.guarded_write(GUARDED, Some(value), ""), item.first_write()),
    };
    match api.save(NAME, &[item]).await {
        Ok(()) => ledger.acked(ticket),
        Err(fault) if fault.http == Some(409) || fault.grpc == Some(Code::Aborted) => ledger.refused(ticket),
        Err(fault) => return Err(fault),
    }
    Ok(())
}

async fn publish(api: &Api, number: usize, ledger: &EventLedger) -> Result<(), Fault> {
    let ticket = ledger.publish(&number.to_string());
    api.publish(NAME, TOPIC, "application/json", number.to_string(), &[]).await?;
    ledger.acked(ticket);
    Ok(())
}

/// Reads keys into the ledger; both keys of a pair must hold the same.
pub(crate) async fn read(api: &Api, ledger: &StateLedger, keys: &[String]) {
    let mut pairs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for keys in keys.chunks(READ) {
        let names: Vec<&str> = keys.iter().map(String::as_str).collect();
        let tickets: Vec<ReadTicket> = names.iter().map(|key| ledger.read(key)).collect();
        let got = api.bulk_get(NAME, &names).await.unwrap();
        for ticket in tickets {
            let item =
                got.iter().find(|item| item.key == ticket.key()).unwrap_or_else(|| panic!("{ticket:?}: {got:?}"));
            assert!(item.error.is_empty(), "{item:?}");
            let value = item.text();
            if let Some(pair) = item.key.strip_prefix("pair-") {
                pairs.entry(pair[..pair.len() - 2].to_owned()).or_default().push(value.clone());
            }
            ledger.seen(ticket, Some(value.as_str()).filter(|value| !value.is_empty()));
        }
    }
    for (pair, values) in pairs {
        assert!(values.windows(2).all(|two| two[0] == two[1]), "half a transaction: pair {pair} holds {values:?}");
    }
}

/// An app that writes every event it gets into the ledger.
pub(crate) fn app(ledger: &Arc<EventLedger>) -> HttpAppBuilder {
    let ledger = Arc::clone(ledger);
    HttpApp::builder().subscribe(&json!([{"pubsubname": NAME, "topic": TOPIC, "route": ROUTE}])).on_call(
        &format!("POST {ROUTE}"),
        move |call: Call| {
            ledger.delivered(&call.json()["data"].to_string(), true);
            async { Answer::status(200) }
        },
    )
}

/// Waits until everything that was acknowledged was handled, for as long as more of it is: a thousand short lives of a
/// daemon leave much to be delivered.
pub(crate) async fn all_delivered(ledger: &EventLedger) {
    loop {
        let missing = ledger.missing();
        if missing == 0 {
            return;
        }
        let what = format!("the next of {missing} acknowledged events");
        wait_until(WELL_AGAIN, &what, || async { ledger.missing() < missing }).await;
    }
}
