//! Environments on a laptop: plan, explain, dev.

use crate::support::{Place, wait_until};
use std::fs;

const PLATFORM: &str = r#"
apiVersion: mecha.dev/v1alpha1
kind: EnvironmentClass
metadata: {name: development, labels: {type: development}}
spec:
  type: development
  capabilities:
  - {kind: pubsub, backendSelector: {matchLabels: {engine: memory}}}
---
apiVersion: mecha.dev/v1alpha1
kind: Environment
metadata: {name: team-a-dev, namespace: team-a}
spec: {classSelector: {matchLabels: {type: development}}}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: in-memory, labels: {engine: memory}}
spec: {kind: pubsub, component: {type: pubsub.in-memory, version: v1}, source: {none: {}}}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: durable, labels: {engine: file}}
spec: {kind: pubsub, component: {type: pubsub.mecha, version: v1}, source: {none: {}}}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityClaim
metadata: {name: events, namespace: team-a-dev}
spec: {kind: pubsub, scopes: [orders]}
"#;

/// The edit of one line that swaps the broker.
fn edited() -> String {
    PLATFORM.replacen("engine: memory}}}", "engine: file}}}", 1)
}

fn place() -> Place {
    let place = Place::new();
    for (folder, text) in [("before", PLATFORM), ("platform", PLATFORM)] {
        fs::create_dir(place.work().join(folder)).unwrap();
        fs::write(place.work().join(folder).join("platform.yaml"), text).unwrap();
    }
    place
}

#[test]
fn a_plan_says_what_an_edit_would_move_by_its_status_too() {
    let place = place();
    let same = place.output(&["plan", "--dir", "platform", "--from", "before"]);
    assert_eq!(same.status.code(), Some(0), "{same:?}");
    fs::write(place.work().join("platform/platform.yaml"), edited()).unwrap();
    let moved = place.output(&["plan", "--dir", "platform", "--from", "before", "-o", "json"]);
    assert_eq!(moved.status.code(), Some(3), "{moved:?}");
    let plan: serde_json::Value = serde_json::from_slice(&moved.stdout).unwrap();
    assert_eq!(plan["moves"][0]["from"], "in-memory");
    assert_eq!(plan["moves"][0]["to"], "durable");
    assert_eq!(plan["moves"][0]["strategy"], "Drain");
    assert!(!place.home().join("environments").exists(), "a plan changes nothing");
}

#[test]
fn a_claim_is_explained_with_the_others_and_their_reasons() {
    let place = place();
    let text = place.ok(&["explain", "claim", "events", "--dir", "platform"]);
    assert!(text.contains("selected  in-memory"), "{text}");
    assert!(text.contains("rejected  durable: selector/NotSelected; the class selects engine=memory"), "{text}");
    let answer = place.ok(&["explain", "claim", "events", "--dir", "platform", "-o", "json"]);
    let mut why: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((&why["claim"], &why["choice"]["Bind"]["to"]), (&"team-a-dev/events".into(), &"in-memory".into()));
    let digest = why["explanation"]["inputDigest"].as_str().unwrap().to_owned();
    assert!(text.contains(&digest), "{text}");

    // The answer holds what the decision looked at, and is decided again without any of the documents.
    fs::write(place.work().join("why.json"), &answer).unwrap();
    let yaml = place.ok(&["explain", "claim", "events", "--dir", "platform", "-o", "yaml"]);
    fs::write(place.work().join("why.yaml"), yaml).unwrap();
    fs::rename(place.work().join("platform"), place.work().join("gone")).unwrap();
    for file in ["why.json", "why.yaml"] {
        let replayed = place.ok(&["explain", "--replay", file]);
        assert!(replayed.contains("the same inputs give the same answer (2 backends)"), "{replayed}");
        assert!(replayed.contains(&digest), "{replayed}");
    }
    let mut refused = |edit: &dyn Fn(&mut serde_json::Value), status: i32, said: &str| {
        edit(&mut why);
        fs::write(place.work().join("other.json"), why.to_string()).unwrap();
        let output = place.output(&["explain", "--replay", "other.json"]);
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(said), "{output:?}");
    };
    refused(&|why| why["record"]["decision"]["choice"]["Bind"]["to"] = "durable".into(), 1, "give another answer");
    refused(
        &|why| why["record"]["inputs"]["backend"]["backends"]["durable"]["labels"]["engine"] = "memory".into(),
        1,
        "the inputs were changed",
    );
    refused(&|why| why["record"] = 3.into(), 2, "other.json cannot be replayed");
    assert_eq!(place.output(&["explain", "--replay", "nowhere.json"]).status.code(), Some(2));
    fs::rename(place.work().join("gone"), place.work().join("platform")).unwrap();

    let page = place.ok(&["explain", "ERR_PUBSUB_NOT_FOUND"]);
    assert!(page.contains("## Next step"), "{page}");
    let unknown = place.output(&["explain", "claim", "ordres", "--dir", "platform"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("team-a-dev/events"));
}

#[test]
fn dev_follows_edits_and_a_mistake_changes_nothing() {
    let place = place();
    let file = place.work().join("platform/platform.yaml");
    let document = place.home().join("environments/team-a-dev/resources/events.yaml");
    let mut dev = place.start(&["dev", "platform"]);
    dev.wait_for("environment team-a-dev: revision 1");
    assert!(fs::read_to_string(&document).unwrap().contains("pubsub.in-memory"));

    fs::write(&file, edited().replace("spec: {kind: pubsub, scopes", "spec: {kind: pubsub, scoeps")).unwrap();
    dev.wait_for("did you mean 'scopes'?");
    dev.wait_for("everything stays as it was");
    assert!(fs::read_to_string(&document).unwrap().contains("pubsub.in-memory"));

    fs::write(&file, edited()).unwrap();
    let line = dev.wait_for("in-memory -> durable");
    assert!(line.contains("Drain") && line.contains("the class selects engine=file"), "{line}");
    dev.wait_for("environment team-a-dev: revision 2");
    wait_until("the document of the new broker", || {
        fs::read_to_string(&document).is_ok_and(|text| text.contains("pubsub.mecha"))
    });

    let second = place.output(&["dev", "platform", "--once"]);
    assert!(String::from_utf8_lossy(&second.stderr).contains("another mecha dev feeds"), "{second:?}");
    dev.signal("INT");
    let (status, _) = dev.finish();
    assert!(status.success());
    assert!(document.exists(), "sidecars keep what they have");
    let again = place.ok(&["dev", "platform", "--once"]);
    assert!(again.contains("revision 2, 1 documents, 0 changed"), "{again}");
}
