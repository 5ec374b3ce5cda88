use mecha_resources::kinds::CapabilityBindingSpec;
use serde_json::{Value, json};

use super::*;
use crate::sidecars::Reported;

const NOW: &str = "2026-11-21T03:00:00Z";

fn binding(swap: Option<&str>) -> CapabilityBinding {
    let document = json!({"kind": "Component", "metadata": {"name": "orders"}, "scopes": ["cart"]}).to_string();
    let mut entry = json!({"claim": "orders", "backend": "b", "role": "Active", "access": "ReadWrite", "revision": 3,
                           "document": document});
    if let Some(phase) = swap {
        entry["swap"] = json!({"from": "a", "to": "b", "strategy": "Drain", "phase": phase, "startedAt": NOW});
    }
    let spec: CapabilityBindingSpec = serde_json::from_value(json!({
        "environment": "team/shop", "namespace": "shop", "cluster": "local", "revision": 7, "leaderEpoch": 1,
        "digest": "sha256:7", "entries": [entry],
    }))
    .unwrap();
    CapabilityBinding::new("shop", Some("mecha-cluster-local"), spec)
}

fn sidecar(app: &str, instance: &str, reported: Option<Reported>) -> Sidecar {
    Sidecar {
        app_id: app.into(),
        instance: instance.into(),
        connected: true,
        behind: false,
        reported: reported.map(|r| ("orders".to_owned(), r)).into_iter().collect(),
        missing: BTreeMap::new(),
    }
}

fn reached(revision: i64, phase: Option<SwapPhase>) -> Option<Reported> {
    Some(Reported { revision, phase, reached: true, ..Reported::default() })
}

fn fleet(sidecars: Vec<Sidecar>) -> Fleet {
    Fleet { sidecars, ..Fleet::default() }
}

fn status(binding: &CapabilityBinding, fleet: &Fleet) -> CapabilityBindingStatus {
    assess(binding, fleet, &BTreeMap::new(), None, NOW).0
}

fn ready(status: &CapabilityBindingStatus) -> Value {
    let condition = status.conditions.iter().find(|c| c.kind == BindingConditionType::Ready).unwrap();
    json!([condition.status, condition.reason])
}

#[test]
fn a_binding_is_ready_when_every_sidecar_in_scope_runs_its_revision() {
    let sidecars = |revision| {
        fleet(vec![
            sidecar("cart", "cart-1", reached(3, None)),
            sidecar("cart", "cart-2", reached(revision, None)),
            sidecar("billing", "billing-1", None),
        ])
    };
    let late = status(&binding(None), &sidecars(2));
    assert_eq!(late.entries[0].sidecars, "1/2");
    assert_eq!((late.applied_revision, late.summary.as_str()), (0, "0/1"));
    assert_eq!(ready(&late), json!(["False", "SidecarsPending"]));
    let all = status(&binding(None), &sidecars(3));
    assert_eq!(all.entries[0].sidecars, "2/2");
    assert_eq!((all.applied_revision, all.applied_digest.as_str()), (7, "sha256:7"));
    assert_eq!(ready(&all), json!(["True", "Applied"]));
}

#[test]
fn a_phase_is_reached_by_reports_about_that_phase_only() {
    let moving = binding(Some("Drain"));
    let mut draining = reached(3, Some(SwapPhase::Drain));
    draining.as_mut().unwrap().pending = 40;
    let sidecars =
        vec![sidecar("cart", "cart-1", draining), sidecar("cart", "cart-2", reached(3, Some(SwapPhase::Switch)))];
    let status = status(&moving, &fleet(sidecars));
    assert_eq!(status.entries[0].swap, "Drain 1/2, 40 pending");
    let progress = status.entries[0].progress.as_ref().unwrap();
    assert_eq!((progress.reached, progress.total, progress.pending), (1, 2, 40));
    assert_eq!(progress.phase, Some(SwapPhase::Drain));
}

#[test]
fn a_pod_of_which_nothing_is_heard_holds_a_move_up_and_stock_ones_do_not() {
    let mut fleet = fleet(vec![sidecar("cart", "cart-1", reached(3, Some(SwapPhase::Prepare)))]);
    fleet.pods = ["cart-1", "cart-2", "cart-3"].map(|pod| ("cart".to_owned(), pod.to_owned())).into();
    fleet.pods.insert(("billing".to_owned(), "billing-1".to_owned()));
    let silent = status(&binding(Some("Prepare")), &fleet);
    assert_eq!(silent.entries[0].sidecars, "1/3");
    assert!(silent.entries[0].message.contains("cart-2"), "{}", silent.entries[0].message);
    fleet.stock.insert("cart".to_owned(), 2);
    let stock = status(&binding(Some("Prepare")), &fleet);
    assert_eq!(stock.entries[0].sidecars, "1/1 +2 stock");
    assert!(stock.entries[0].ready);
}

#[test]
fn what_is_missing_or_broken_is_named() {
    let mut lacking = sidecar("cart", "cart-1", reached(3, None));
    lacking.missing.insert("orders".to_owned(), "Secret pg is missing in namespace shop; create it".to_owned());
    let failing = Reported { revision: 3, failed: true, message: "connection refused".into(), ..Reported::default() };
    for (sidecars, trouble, concern, said) in [
        (vec![lacking], None, Concern::SecretMissing, "Secret pg is missing"),
        (vec![sidecar("cart", "cart-9", Some(failing))], None, Concern::SidecarFailed, "cart-9: connection refused"),
        (vec![], Some("was written by hand".to_owned()), Concern::Undelivered, "was written by hand"),
    ] {
        let troubles: BTreeMap<_, _> = trouble.iter().map(|why| ("orders", why)).collect();
        let (status, concerns) = assess(&binding(None), &fleet(sidecars), &troubles, None, NOW);
        assert_eq!(concerns, [concern]);
        assert!(status.entries[0].message.contains(said), "{}", status.entries[0].message);
        assert_eq!(ready(&status), json!(["False", "EntryNotReady"]));
        assert!(!status.entries[0].ready);
    }
}

#[test]
fn a_move_whose_secret_is_late_waits_and_is_not_taken_back() {
    let failed = || {
        let report = Reported { revision: 3, failed: true, message: "no password".into(), ..Reported::default() };
        sidecar("cart", "cart-1", Some(report))
    };
    let progress = |sidecar: Sidecar| {
        let status = status(&binding(Some("Prepare")), &fleet(vec![sidecar]));
        let progress = status.entries[0].progress.clone().unwrap();
        (progress.reached, progress.failed, progress.total)
    };
    let mut lacking = failed();
    lacking.missing.insert("orders".to_owned(), "Secret pg is missing".to_owned());
    assert_eq!(progress(lacking), (0, 0, 1));
    // The secret has come, and the sidecar has not said anything since.
    assert_eq!(progress(Sidecar { behind: true, ..failed() }), (0, 0, 1));
    assert_eq!(progress(failed()), (0, 1, 1));
}

#[test]
fn times_stay_as_long_as_nothing_turns() {
    let none = fleet(vec![]);
    let first = status(&binding(None), &none);
    let (second, _) = assess(&binding(None), &none, &BTreeMap::new(), Some(&first), "2027-01-01T00:00:00Z");
    assert_eq!(first, second);
    let waiting = fleet(vec![sidecar("cart", "cart-1", None)]);
    let (third, _) = assess(&binding(None), &waiting, &BTreeMap::new(), Some(&second), "2027-01-01T00:00:00Z");
    let at = |s: &CapabilityBindingStatus| s.conditions[1].last_transition_time.clone();
    assert_eq!((at(&second).as_str(), at(&third).as_str()), (NOW, "2027-01-01T00:00:00Z"));
    assert_eq!(third.applied_revision, 7, "what was put into effect stays so until the next is");
}
