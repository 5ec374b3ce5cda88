//! kill -9 in the middle of everything: what was acknowledged is there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mecha_tests::{Answer, Api, Call, HttpApp, Item, Op, Sidecar, free_port, wait_until};
use parking_lot::Mutex;
use serde_json::json;

use crate::support::{broker, sqlite_store};

/// How often the sidecar is killed.
fn rounds() -> usize {
    if std::env::var_os("MECHA_TEST_LONG").is_some() { 1000 } else { 20 }
}

/// What a writer was told.
#[derive(Clone, Debug, Default)]
struct Ledger {
    /// The last value that was acknowledged, and one that may or may not have been written since.
    keys: BTreeMap<String, (Option<u64>, Option<u64>)>,
}

/// Pauses of different length, so that kills hit different points; the same ones each run.
fn pause(round: usize) -> Duration {
    Duration::from_millis(u64::try_from(5 + (round * 37) % 90).unwrap())
}

/// Writes until the sidecar is gone: single values, and pairs in a transaction.
async fn write(api: Api, writer: usize, ledger: Arc<Mutex<Ledger>>, counter: Arc<Mutex<u64>>) {
    loop {
        let number = {
            let mut counter = counter.lock();
            *counter += 1;
            *counter
        };
        let keys: Vec<String> = if number.is_multiple_of(3) {
            vec![format!("pair-{writer}-a"), format!("pair-{writer}-b")]
        } else {
            vec![format!("single-{writer}-{}", number % 7)]
        };
        for key in &keys {
            ledger.lock().keys.entry(key.clone()).or_default().1 = Some(number);
        }
        let items: Vec<Item> = keys.iter().map(|key| Item::new(key, number.to_string())).collect();
        let attempt = async {
            if items.len() > 1 {
                let operations: Vec<Op> = items.into_iter().map(Op::Upsert).collect();
                api.transact("store", &operations).await
            } else {
                api.save("store", &items).await
            }
        };
        // A front that is gone ends the task by its panic or its error.
        let Ok(()) = attempt.await else { return };
        for key in &keys {
            *ledger.lock().keys.get_mut(key).unwrap() = (Some(number), None);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_state_survives_kills() {
    let builder = Sidecar::builder();
    let file = builder.folder().join("state.db");
    let mut sidecar = builder.component(sqlite_store("store", &file)).start().await;
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let counter = Arc::new(Mutex::new(0));
    for round in 0..rounds() {
        let [http, grpc] = sidecar.apis().await;
        let writers: Vec<_> = [http.clone(), grpc.clone(), http, grpc]
            .into_iter()
            .enumerate()
            .map(|(writer, api)| tokio::spawn(write(api, writer, Arc::clone(&ledger), Arc::clone(&counter))))
            .collect();
        let before = *counter.lock();
        tokio::time::sleep(pause(round)).await;
        wait_until(Duration::from_secs(60), "writes", || async { *counter.lock() > before + 8 }).await;
        sidecar.kill().await;
        for writer in writers {
            let _ = writer.await;
        }
        sidecar.again().await;
        let [_, reader] = sidecar.apis().await;
        let entries = ledger.lock().keys.clone();
        for (key, (acked, maybe)) in &entries {
            let stored = reader.get("store", key).await.unwrap();
            let stored = stored.map(|got| got.text().parse::<u64>().unwrap());
            assert!(
                stored == *acked || (maybe.is_some() && stored == *maybe),
                "round {round}: {key} holds {stored:?}; acknowledged {acked:?}, perhaps {maybe:?}"
            );
            ledger.lock().keys.insert(key.clone(), (stored, None));
        }
        // A transaction is there as a whole or not at all.
        for writer in 0..4 {
            let pair: Vec<_> = ["a", "b"].iter().map(|end| entries.get(&format!("pair-{writer}-{end}"))).collect();
            if pair.iter().all(Option::is_some) {
                let values =
                    reader.bulk_get("store", &[&format!("pair-{writer}-a"), &format!("pair-{writer}-b")]).await;
                let values = values.unwrap();
                assert_eq!(values[0].text(), values[1].text(), "round {round}: half a transaction");
            }
        }
    }
    assert!(*counter.lock() > 100, "hardly anything was written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_events_survive_kills() {
    let port = free_port();
    let seen: Arc<Mutex<BTreeMap<u64, u32>>> = Arc::default();
    let shared = Arc::clone(&seen);
    let _app = HttpApp::builder()
        .port(port)
        .subscribe(&json!([{"pubsubname": "events", "topic": "topic", "route": "/in"}]))
        .on_call("POST /in", move |call: Call| {
            let shared = Arc::clone(&shared);
            async move {
                let number = call.json()["data"].as_u64().unwrap();
                *shared.lock().entry(number).or_default() += 1;
                Answer::status(200)
            }
        })
        .start()
        .await;
    let builder = Sidecar::builder().flag("app-port", port.to_string());
    let folder = builder.folder().join("broker");
    let mut sidecar = builder.component(broker("events", &folder)).start().await;
    let acked: Arc<Mutex<Vec<u64>>> = Arc::default();
    let counter = Arc::new(Mutex::new(0_u64));
    for round in 0..rounds() {
        let [http, grpc] = sidecar.apis().await;
        let publishers: Vec<_> = [http.clone(), grpc.clone(), http, grpc]
            .into_iter()
            .map(|api| {
                let (acked, counter) = (Arc::clone(&acked), Arc::clone(&counter));
                tokio::spawn(async move {
                    loop {
                        let number = {
                            let mut counter = counter.lock();
                            *counter += 1;
                            *counter
                        };
                        let sent = api.publish("events", "topic", "application/json", number.to_string(), &[]).await;
                        if sent.is_err() {
                            return;
                        }
                        acked.lock().push(number);
                    }
                })
            })
            .collect();
        let before = acked.lock().len();
        tokio::time::sleep(pause(round)).await;
        wait_until(Duration::from_secs(60), "acknowledged events", || async { acked.lock().len() > before + 3 }).await;
        sidecar.kill().await;
        for publisher in publishers {
            let _ = publisher.await;
        }
        sidecar.again().await;
    }
    let expected = acked.lock().clone();
    assert!(expected.len() > 50, "hardly anything was published");
    let missing = || -> Vec<u64> {
        let seen = seen.lock();
        expected.iter().filter(|number| !seen.contains_key(number)).copied().collect()
    };
    wait_until(Duration::from_secs(60), "every acknowledged event", || async { missing().is_empty() }).await;
    assert!(missing().is_empty(), "lost: {:?}", missing());
    // Duplicates come from kills only: each can repeat what was in flight.
    let twice = seen.lock().values().filter(|count| **count > 1).count();
    assert!(twice <= rounds() * 64, "{twice} of {} events came more than once", expected.len());
}

#[tokio::test]
async fn a_published_event_waits_for_a_subscriber_that_comes_later() {
    let shared = tempfile::tempdir().unwrap();
    let document = broker("events", shared.path());
    let mut publisher = Sidecar::with("publisher", std::slice::from_ref(&document)).await;
    let [api, _] = publisher.apis().await;
    for n in 0..10 {
        api.publish("events", "topic", "application/json", n.to_string(), &[]).await.unwrap();
    }
    publisher.kill().await;
    let app = HttpApp::builder()
        .subscribe(&json!([{"pubsubname": "events", "topic": "topic", "route": "/in"}]))
        .on("POST /in", Answer::status(200))
        .start()
        .await;
    let _subscriber = Sidecar::builder().app_id("later").app(&app).component(&document).start().await;
    app.wait_calls("POST /in", 10).await;
}
