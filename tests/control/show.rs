//! A day of a platform team: twenty apps with their sidecars under load, and one edited line of the class changes
//! their broker or their stores. No call fails and nothing that was acknowledged is lost.

mod edits;
mod load;
mod platform;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use mecha_tests::wait_until;
use serde_json::{Value, json};

use self::edits::{Edits, spread};
use self::load::Load;
use self::platform::{BROKER, CLASS, Class, PATIENCE, Platform, app_id, condition, store};

const APPS: usize = 20;

/// Calls of each kind a second and app, and how many of them go by between two steps.
fn size() -> (u32, u64) {
    if std::env::var("MECHA_TEST_LONG").is_ok_and(|v| v == "1") { (10, 300) } else { (2, 5) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_apps_get_another_broker_and_other_stores_by_edits_of_one_line_and_nothing_fails() {
    let begin = Class { broker: "kafka", store: "redis", empty_ok: false };
    let Some(platform) = Platform::start(APPS, begin).await else { return };
    let edits = Edits::follow(&platform.server).await;
    let (rate, pause) = size();
    let load = platform.apps.load(&platform.ports(), rate);
    load.goes_on(pause).await;

    stores_come_back_from_where_nobody_answers(&platform, &load, begin).await;
    load.goes_on(pause).await;
    the_broker_moves_once_a_person_agrees(&platform, &edits, begin).await;
    load.goes_on(pause).await;
    stores_move_once_it_is_said_that_they_may_begin_empty(&platform, &edits, begin).await;
    load.goes_on(pause).await;

    let told = load.end().await;
    for number in 0..APPS {
        let app = app_id(number);
        let prefix = format!("{app}||");
        let numbers = |lines: String| -> BTreeSet<u64> {
            lines.lines().filter_map(|line| line.trim().strip_prefix(&prefix)?.parse().ok()).collect()
        };
        let old = numbers(platform.redis.command(&["KEYS", &format!("{prefix}*")]));
        let new = numbers(platform.postgres.sql(&format!("SELECT key FROM state WHERE key LIKE '{prefix}%'")));
        told.is_in(number, &old, &new);
    }
}

/// The new backend is not there: every move is taken back by itself, the old one keeps serving, and the claim says why.
async fn stores_come_back_from_where_nobody_answers(platform: &Platform, load: &Load, begin: Class) {
    platform.edit(Class { store: "nowhere", empty_ok: true, ..begin });
    assert_eq!(platform.plan(3)["moves"].as_array().unwrap().len(), APPS);
    platform.mecha(&["apply", "class.yaml"], 0);
    wait_until(PATIENCE, "every move to be taken back, and every sidecar to be heard of since", async || {
        load.nothing_failed();
        let back = |claim: &Value| {
            let status = &claim["status"];
            let ended = status["phase"] == "Bound" && status["history"][0]["outcome"] == "RolledBack";
            ended && condition(claim, "Ready").starts_with("True")
        };
        platform.stores().iter().all(back)
    })
    .await;
    for claim in platform.stores() {
        let pending = condition(&claim, "SwapPending");
        assert_eq!(claim["status"]["backend"], "store-redis", "{claim:#}");
        assert!(pending.starts_with("True RolledBack: store-redis -> store-nowhere"), "{pending}");
        assert!(pending.contains("Connection refused"), "what the sidecar met is told: {pending}");
    }
    for (number, port) in platform.ports().into_iter().enumerate() {
        let receipt = receipt(platform, port, &store(number), "store-nowhere").await;
        assert_eq!(receipt["outcome"], "rolledBack", "{receipt:#}");
    }
    // Nothing is tried again by itself, and the line put back leaves nothing to do.
    let held = platform.plan(3);
    assert!(held["moves"][0]["blocked"].as_str().unwrap().contains("was taken back"), "{held:#}");
    platform.edit(begin);
    platform.mecha(&["apply", "class.yaml"], 0);
    platform.mecha(&["wait", "class/production", "--timeout", "5m"], 0);
    platform.mecha(&["plan", "class.yaml"], 0);
}

async fn the_broker_moves_once_a_person_agrees(platform: &Platform, edits: &Edits, begin: Class) {
    platform.edit(Class { broker: "redis", ..begin });
    let plan = platform.plan(3);
    let moves = plan["moves"].as_array().unwrap();
    assert_eq!(moves.len(), 1, "{plan:#}");
    assert_eq!(
        (&moves[0]["from"], &moves[0]["to"], &moves[0]["strategy"]),
        (&json!("events-kafka"), &json!("events-streams"), &json!("Drain")),
        "{plan:#}"
    );
    assert!(moves[0]["claim"].as_str().unwrap().ends_with("/events"), "{plan:#}");
    assert!(moves[0]["why"].as_str().unwrap().contains("engine=redis"), "{plan:#}");
    assert!(moves[0]["blocked"].as_str().unwrap().contains("waits for approval"), "{plan:#}");
    let digest = plan["approvals"][0]["digest"].as_str().unwrap();

    platform.mecha(&["apply", "class.yaml"], 0);
    wait_until(PATIENCE, "the hub to ask for consent to the plan", async || {
        platform.json(&["get", "environmentclass", CLASS])["status"]["pendingPlan"] == digest
    })
    .await;
    let waiting = claim(platform, BROKER);
    assert_eq!(waiting["status"]["backend"], "events-kafka", "nothing moves before a person agrees");
    let pending = condition(&waiting, "SwapPending");
    assert!(pending.starts_with("True AwaitingApproval") && pending.contains(digest), "{pending}");

    platform.mecha(&["swap", "approve", CLASS, "--plan", digest], 0);
    platform.mecha(&["wait", "class/production", "--timeout", "5m"], 0);
    let moved = claim(platform, BROKER);
    let history = &moved["status"]["history"][0];
    completed(history, "events-kafka", "events-streams", APPS);
    let mut times = Vec::new();
    for port in platform.ports() {
        let receipt = receipt(platform, port, BROKER, "events-streams").await;
        times.push(applied(&receipt).duration_since(edits.latest()));
    }
    println!("broker, from consent to a sidecar that publishes to the new one: {}", spread(times));

    let explained = platform.mecha(&["explain", "claim", &format!("{}/{BROKER}", platform.home)], 0);
    println!("{explained}");
    assert!(explained.contains("selected  events-streams"), "{explained}");
    assert!(explained.contains("rejected  events-kafka: selector/NotSelected"), "{explained}");
    let streams = platform.streams.command(&["KEYS", "*"]);
    assert!((0..APPS).all(|number| streams.contains(&format!("to-{}", app_id(number)))), "{streams}");
}

async fn stores_move_once_it_is_said_that_they_may_begin_empty(platform: &Platform, edits: &Edits, begin: Class) {
    let edited = Class { broker: "redis", store: "postgres", ..begin };
    platform.edit(edited);
    let plan = platform.plan(3);
    let moves = plan["moves"].as_array().unwrap();
    assert_eq!(moves.len(), APPS, "{plan:#}");
    for (number, planned) in moves.iter().enumerate() {
        assert!(planned["claim"].as_str().unwrap().ends_with(&store(number)), "{plan:#}");
        assert_eq!((&planned["to"], &planned["scopes"]), (&json!("store-postgres"), &json!([app_id(number)])));
        assert!(planned["blocked"].as_str().unwrap().contains("no data is copied"), "{plan:#}");
    }
    platform.mecha(&["apply", "class.yaml"], 0);
    wait_until(PATIENCE, "every claim to say that its store would begin empty", async || {
        let says = |claim: &Value| condition(claim, "SwapPending").starts_with("True EmptyNotAllowed");
        platform.stores().iter().all(says)
    })
    .await;
    assert!(platform.stores().iter().all(|claim| claim["status"]["backend"] == "store-redis"));

    platform.edit(Class { empty_ok: true, ..edited });
    assert_eq!(platform.plan(3)["moves"][0]["blocked"], Value::Null);
    platform.mecha(&["apply", "class.yaml"], 0);
    platform.mecha(&["wait", "class/production", "--timeout", "5m"], 0);
    let mut times = Vec::new();
    for claim in platform.stores() {
        completed(&claim["status"]["history"][0], "store-redis", "store-postgres", 1);
        assert_eq!(claim["status"]["backend"], "store-postgres");
    }
    for (number, port) in platform.ports().into_iter().enumerate() {
        let receipt = receipt(platform, port, &store(number), "store-postgres").await;
        assert_eq!(receipt["dataMoved"], false, "{receipt:#}");
        times.push(applied(&receipt).duration_since(edits.latest()));
    }
    println!("stores, from the edit to a sidecar that writes to the new one: {}", spread(times));
    let explained = platform.mecha(&["explain", "claim", &format!("{}/{}", platform.home, store(7))], 0);
    for line in ["selected  store-postgres", "rejected  store-redis: selector", "rejected  events-kafka: kind"] {
        assert!(explained.contains(line), "{line}: {explained}");
    }
    let printed = platform.mecha(&["swap", "--dapr-http-port", &platform.ports()[7].to_string()], 0);
    println!("{printed}");
    assert!(printed.contains("rolledBack") && printed.contains("applied"), "{printed}");
}

fn claim(platform: &Platform, name: &str) -> Value {
    platform.json(&["-n", &platform.home, "get", "capabilityclaim", name])
}

/// The receipt of a move at one sidecar, once the move has ended there.
async fn receipt(platform: &Platform, port: u16, claim: &str, to: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(receipt) = platform.receipt(port, claim, to).await {
            return receipt;
        }
        assert!(Instant::now() < deadline, "waited for the end of {claim}'s move to {to} at port {port}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The hub's receipt of a whole move.
#[track_caller]
fn completed(receipt: &Value, from: &str, to: &str, sidecars: usize) {
    assert_eq!((&receipt["from"], &receipt["to"]), (&json!(from), &json!(to)), "{receipt:#}");
    assert_eq!((&receipt["outcome"], &receipt["sidecars"]), (&json!("Completed"), &json!(sidecars)), "{receipt:#}");
    assert_eq!(receipt["counts"]["failed"].as_u64().unwrap_or_default(), 0, "{receipt:#}");
}

/// When a sidecar's new work went to the new side, by its receipt, which says that nothing failed.
#[track_caller]
fn applied(receipt: &Value) -> Timestamp {
    assert_eq!((&receipt["outcome"], &receipt["failed"]), (&json!("applied"), &json!(0)), "{receipt:#}");
    let phases = receipt["move"]["phases"].as_array().unwrap();
    let switch = phases.iter().find(|phase| phase["phase"] == "Switch").unwrap();
    let took = SignedDuration::try_from_secs_f64(receipt["switchMs"].as_f64().unwrap() / 1000.0).unwrap();
    switch["time"].as_str().unwrap().parse::<Timestamp>().unwrap() + took
}
