//! A swap from the platform's side: plan, agree, watch, go back.

use crate::agent::Agent;
use crate::{Cluster, Hub, edited, wait_until};
use std::sync::atomic::Ordering;

/// A cluster in which a claim is bound to the in-memory broker.
fn bound(agent: &Agent) -> Option<(Cluster, Hub)> {
    let cluster = Cluster::start()?;
    let hub = cluster.hub();
    cluster.ok(&["apply", "platform.yaml"]);
    cluster.ok(&["wait", "environment/team-a-dev", "-n", "team-a"]);
    cluster.write_claims();
    cluster.ok(&["apply", "claims.yaml"]);
    agent.report(&cluster.server, || cluster.ok(&["wait", ".", "--timeout", "100s"]));
    cluster.write("platform.yaml", &edited());
    Some((cluster, hub))
}

fn backend(cluster: &Cluster) -> String {
    let path = "jsonpath={.status.backend}";
    cluster.server.kubectl(&["-n", &cluster.connect_to(), "get", "capabilityclaim", "events", "-o", path])
}

/// The digest of the plan that is shown for the edit.
fn planned(cluster: &Cluster) -> String {
    let plan = cluster.json(&["plan", "platform.yaml"], 3);
    assert_eq!(plan["moves"][0]["from"], "in-memory", "{plan}");
    assert_eq!(plan["moves"][0]["to"], "durable", "{plan}");
    assert!(plan["moves"][0]["why"].as_str().unwrap().contains("engine=file"), "{plan}");
    assert!(plan["moves"][0]["blocked"].as_str().unwrap().contains("approval"), "{plan}");
    assert_eq!(plan["approvals"][0]["class"], "development", "{plan}");
    plan["approvals"][0]["digest"].as_str().unwrap().to_owned()
}

#[test]
fn the_digest_that_plan_shows_is_the_one_that_approve_takes() {
    let agent = Agent::default();
    let Some((cluster, _hub)) = bound(&agent) else { return };
    let digest = planned(&cluster);
    let (_, err) = cluster.ends(&["swap", "approve", "development", "--plan", &digest], 1);
    assert!(err.contains("no move waits for a person"), "nothing was put yet: {err}");

    cluster.ok(&["apply", "platform.yaml"]);
    let (out, _) = cluster.ends(&["wait", "class/development", "--timeout", "2s"], 1);
    assert!(out.contains("not ready"), "{out}");
    wait_until("the hub to plan", || cluster.ok(&["status"]).contains(&digest));
    let (_, err) = cluster.ends(&["swap", "approve", "development", "--plan", "sha256:00"], 1);
    assert!(err.contains("not this one") && err.contains(&digest), "{err}");
    assert_eq!(backend(&cluster), "in-memory", "nothing moves before a person agrees");

    agent.report(&cluster.server, || {
        cluster.ok(&["swap", "approve", "development", "--plan", &digest]);
        cluster.ok(&["wait", ".", "--timeout", "100s"]);
    });
    assert_eq!(backend(&cluster), "durable");
    let again = cluster.ok(&["swap", "approve", "development", "--plan", &digest]);
    assert!(again.contains("already"), "{again}");
    // Files put again neither hold nor remove the agreement.
    let unchanged = cluster.ok(&["apply", "platform.yaml"]);
    assert!(unchanged.contains("EnvironmentClass development unchanged"), "{unchanged}");
    cluster.ends(&["plan"], 0);
}

#[test]
fn a_move_under_way_is_shown_and_taken_back_or_let_go_on_by_name() {
    let agent = Agent::default();
    let Some((cluster, _hub)) = bound(&agent) else { return };
    let digest = planned(&cluster);
    let (_, err) = cluster.ends(&["swap", "abort", "events"], 1);
    assert!(err.contains("no claim called events is on the move"), "{err}");
    agent.pending.store(5, Ordering::SeqCst);
    agent.report(&cluster.server, || {
        cluster.ok(&["apply", "platform.yaml"]);
        wait_until("the hub to plan", || cluster.ok(&["status"]).contains(&digest));
        cluster.ok(&["swap", "approve", "development", "--plan", &digest]);
        wait_until("the old broker to be read", || {
            let status = cluster.json(&["status"], 0);
            status["swaps"][0]["phase"] == "Drain"
        });
        let status = cluster.json(&["status"], 0);
        assert_eq!(status["swaps"][0]["from"], "in-memory", "{status}");
        assert_eq!(status["swaps"][0]["to"], "durable", "{status}");
        let (out, _) = cluster.ends(&["wait", "class/development", "--timeout", "1s"], 1);
        assert!(out.contains("events is on the move: in-memory -> durable, Drain"), "{out}");
        cluster.ok(&["swap", "abort", "events"]);
        agent.pending.store(0, Ordering::SeqCst);
        wait_until("the way back to end", || cluster.json(&["status"], 0)["swaps"] == serde_json::json!([]));
    });
    assert_eq!(backend(&cluster), "in-memory");
    let history = cluster.server.kubectl(&[
        "-n",
        &cluster.connect_to(),
        "get",
        "capabilityclaim",
        "events",
        "-o",
        "jsonpath={.status.history[0].outcome}",
    ]);
    assert_eq!(history, "RolledBack");
}
