//! Plan, apply and wait, as a pipeline runs them.

use crate::agent::Agent;
use crate::{Cluster, PLATFORM, edited, wait_until};

#[test]
fn a_pipeline_plans_applies_and_waits_and_a_second_run_changes_nothing() {
    let Some(cluster) = Cluster::start() else { return };
    let _hub = cluster.hub();
    let (planned, _) = cluster.ends(&["apply", "platform.yaml", "--dry-run", "--timeout", "1s"], 1);
    assert!(!planned.contains("EnvironmentClass development unchanged"), "{planned}");

    let first = cluster.ok(&["apply", "platform.yaml"]);
    for created in
        ["Namespace team-a created", "EnvironmentClass development created", "Environment team-a/team-a-dev created"]
    {
        assert!(first.contains(created), "{first}");
    }
    cluster.ok(&["wait", "environment/team-a-dev", "-n", "team-a"]);
    cluster.write_claims();
    let bind = cluster.json(&["plan", "claims.yaml"], 3);
    assert_eq!(bind["binds"][0]["to"], "in-memory", "{bind}");
    // Another who names no namespace in the file names it beside.
    let bare = "apiVersion: mecha.dev/v1alpha1\nkind: CapabilityClaim\nmetadata: {name: events}\nspec: {kind: pubsub, scopes: [orders]}\n";
    let bare_file = cluster.path("home").with_file_name("bare.yml.txt");
    std::fs::write(&bare_file, bare).unwrap();
    let (bare, space) = (bare_file.to_str().unwrap(), cluster.connect_to());
    assert_eq!(cluster.json(&["plan", bare, "-n", &space], 3)["binds"], bind["binds"]);
    cluster.ok(&["apply", bare, "-n", &space]);
    let same = cluster.ok(&["apply", "claims.yaml"]);
    assert_eq!(same, format!("CapabilityClaim {space}/events unchanged\n"));
    Agent::default().report(&cluster.server, || cluster.ok(&["wait", ".", "--timeout", "100s"]));

    // Killed after any write, a pipeline is run again.
    let again = cluster.ok(&["apply", "."]);
    assert_eq!(again.matches(" unchanged\n").count(), 6, "{again}");
    cluster.ends(&["apply", ".", "--dry-run"], 0);
    let (nothing, _) = cluster.ends(&["plan", "."], 0);
    assert!(nothing.contains("0 to bind, 0 to move, 0 stuck, 1 unchanged"), "{nothing}");

    let claim = format!("{}/events", cluster.connect_to());
    let explained = cluster.ok(&["explain", "claim", &claim]);
    assert!(
        explained.contains("selected  in-memory") && explained.contains("rejected  durable: selector/NotSelected"),
        "{explained}"
    );
    // An edit after which nothing would do leaves the claim where it is, and whoever waits for it hears why.
    let lost = PLATFORM.replacen("{engine: memory}}, swap", "{engine: none}}, swap", 1);
    cluster.write("platform.yaml", &lost);
    cluster.ok(&["apply", "platform.yaml"]);
    let (waited, _) = cluster.ends(&["wait", "class/development", "--timeout", "2s"], 1);
    assert!(waited.contains("stays at in-memory, which no longer does"), "{waited}");
    cluster.write("platform.yaml", PLATFORM);
    cluster.ok(&["apply", "platform.yaml"]);
    cluster.ok(&["wait", "class/development"]);
    // The hub says the same in the claim's status.
    let decided = cluster.server.kubectl(&[
        "-n",
        &cluster.connect_to(),
        "get",
        "capabilityclaim",
        "events",
        "-o",
        "jsonpath={range .status.explanation.candidates[*]}{.verdict} {.name},{end}",
    ]);
    assert_eq!(decided, "Selected in-memory,Rejected durable,");
}

#[test]
fn a_pipeline_that_is_killed_between_any_two_writes_is_run_again_and_comes_to_the_same_end() {
    const STEPS: usize = 4;
    let Some(cluster) = Cluster::start() else { return };
    // Each claim waits for a namespace of its own, so the pipeline stands between two writes when it is killed.
    let claim = |step| {
        format!(
            "apiVersion: mecha.dev/v1alpha1\nkind: CapabilityClaim\nmetadata: {{name: need, namespace: step-{step}}}\n\
             spec: {{kind: pubsub}}\n"
        )
    };
    cluster.write("claims.yaml", &(0..STEPS).map(claim).collect::<Vec<_>>().join("---\n"));
    for step in 0..STEPS {
        let mut pipeline = cluster.spawn(&["apply", ".", "--timeout", "100s"]);
        if step > 0 {
            cluster.server.create_namespaces(&[&format!("step-{}", step - 1)]);
            let written = ["-n", &format!("step-{}", step - 1), "get", "capabilityclaim", "need"];
            wait_until("the next claim", || cluster.server.kubectl_refused(&written).is_ok());
        } else {
            let written = ["-n", "team-a", "get", "environment", "team-a-dev"];
            wait_until("what comes before the claims", || cluster.server.kubectl_refused(&written).is_ok());
        }
        assert!(pipeline.try_wait().unwrap().is_none(), "it waits for step-{step}");
        pipeline.kill().unwrap();
        pipeline.wait().unwrap();
    }
    cluster.server.create_namespaces(&[&format!("step-{}", STEPS - 1)]);
    let last = cluster.ok(&["apply", "."]);
    assert_eq!(
        (last.matches(" unchanged\n").count(), last.matches(" created\n").count()),
        (5 + STEPS - 1, 1),
        "{last}"
    );
    let again = cluster.ok(&["apply", "."]);
    assert_eq!(again.matches(" unchanged\n").count(), 5 + STEPS, "{again}");

    // One that only waits leaves nothing behind.
    let mut waiting = cluster.spawn(&["wait", "platform.yaml", "--timeout", "100s"]);
    waiting.kill().unwrap();
    waiting.wait().unwrap();
    let _hub = cluster.hub();
    Agent::default().report(&cluster.server, || cluster.ok(&["wait", "platform.yaml", "--timeout", "100s"]));
}

#[test]
fn a_mistake_is_told_before_anything_is_written_and_the_server_has_the_last_word() {
    let Some(cluster) = Cluster::start() else { return };
    cluster.write("wrong.yaml", &PLATFORM.replace("classSelector", "classSelectr"));
    let (out, err) = cluster.ends(&["apply", "wrong.yaml"], 1);
    assert!(out.is_empty() && err.contains("did you mean 'classSelector'?"), "{out}{err}");
    assert!(!cluster.server.kubectl(&["get", "namespaces", "-o", "name"]).contains("team-a"));

    // A field that somebody else owns is not fought over.
    cluster.ok(&["apply", "platform.yaml"]);
    let backend =
        "apiVersion: mecha.dev/v1alpha1\nkind: CapabilityBackend\nmetadata: {name: durable}\nspec: {cost: 7}\n";
    cluster.write("other.json", "");
    std::fs::write(cluster.path("other.yaml.txt"), backend).unwrap();
    let other = cluster.path("other.yaml.txt");
    cluster.server.kubectl(&[
        "apply",
        "--server-side",
        "--field-manager=finance",
        "--force-conflicts",
        "-f",
        &other.to_string_lossy(),
    ]);
    let dear = PLATFORM.replace("pubsub.mecha, version: v1}", "pubsub.mecha, version: v1}, cost: 9");
    cluster.write("platform.yaml", &dear);
    let (_, err) = cluster.ends(&["apply", "platform.yaml"], 1);
    assert!(err.contains("finance") && err.contains("--force-conflicts"), "{err}");
    cluster.ok(&["apply", "platform.yaml", "--force-conflicts"]);
    let cost = cluster.server.kubectl(&["get", "capabilitybackend", "durable", "-o", "jsonpath={.spec.cost}"]);
    assert_eq!(cost, "9");
}

#[test]
fn a_wait_that_ends_in_vain_names_what_is_missing_and_why() {
    let Some(cluster) = Cluster::start() else { return };
    cluster.ok(&["apply", "platform.yaml"]);
    let (out, err) = cluster.ends(&["wait", "environment/team-a-dev", "-n", "team-a", "--timeout", "1s"], 1);
    assert!(
        out.contains("Environment team-a/team-a-dev not ready: the control part has not looked at it yet"),
        "{out}"
    );
    assert!(err.contains("1 of 1 are not ready") && err.contains("mecha doctor --cluster"), "{err}");
    cluster.ends(&["wait", "enviroment/team-a-dev"], 2);
    let (_, err) = cluster.ends(&["wait", "claim/nosuch", "--timeout", "1s"], 1);
    assert!(err.contains("not ready"), "{err}");
}

#[test]
fn environments_are_listed_in_the_words_of_their_columns() {
    let Some(cluster) = Cluster::start() else { return };
    let _hub = cluster.hub();
    cluster.ok(&["apply", "platform.yaml"]);
    cluster.ok(&["wait", "environment/team-a-dev", "-n", "team-a"]);
    let table = cluster.ok(&["environment", "list"]);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    let connect_to = cluster.connect_to();
    assert_eq!(lines[0], ["NAMESPACE", "NAME", "CONNECT-TO", "TYPE", "INFRA", "READY"]);
    assert_eq!(lines[1], ["team-a", "team-a-dev", connect_to.as_str(), "development", "true", "True"]);
    let none = cluster.json(&["environment", "list", "-n", "team-b"], 0);
    assert_eq!(none, serde_json::json!([]));
}

#[test]
fn a_cluster_without_the_kinds_or_a_login_says_what_to_do() {
    let Some(mut server) = mecha_testkit::servers::Kubernetes::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str], config: &std::path::Path| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_mecha"))
            .args(args)
            .arg("--kubeconfig")
            .arg(config)
            .env("MECHA_HOME", folder.path())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (status, err) = run(&["status"], &server.kubeconfig());
    assert_eq!(status, Some(1));
    assert!(err.contains("does not know the kind MemberCluster") && err.contains("deploy/crds"), "{err}");
    let unknown = folder.path().join("unknown.yaml");
    std::fs::write(
        &unknown,
        "apiVersion: mecha.dev/v1alpha1\nkind: EnvironmentClass\nmetadata: {name: a}\nspec: {type: a}\n",
    )
    .unwrap();
    let (status, err) = run(&["apply", &unknown.to_string_lossy()], &server.kubeconfig());
    assert_eq!(status, Some(1));
    assert!(err.contains("the kind EnvironmentClass") && err.contains("deploy/crds"), "{err}");
    let stranger = folder.path().join("config");
    let text = std::fs::read_to_string(server.kubeconfig()).unwrap();
    std::fs::write(&stranger, text.replace(server.admin_token(), "nobody")).unwrap();
    let (status, err) = run(&["status"], &stranger);
    assert_eq!(status, Some(1));
    assert!(err.contains("log in again") && !err.contains("nobody"), "{err}");
    let (status, err) = run(&["status", "--context", "nosuch"], &server.kubeconfig());
    assert_eq!(status, Some(1));
    assert!(err.contains("nosuch"), "{err}");
    server.kill_apiserver();
    let (status, err) = run(&["environment", "list"], &server.kubeconfig());
    assert_eq!(status, Some(1));
    assert!(err.contains("run the command again"), "{err}");
}

#[test]
fn the_server_that_restarts_in_the_middle_of_a_wait_is_waited_for() {
    let Some(mut cluster) = Cluster::start() else { return };
    let _hub = cluster.hub();
    cluster.ok(&["apply", "platform.yaml"]);
    cluster.ok(&["wait", "environment/team-a-dev", "-n", "team-a"]);
    let mut waiting = cluster.spawn(&["wait", "environment/another", "-n", "team-a", "--timeout", "110s"]);
    cluster.server.kill_apiserver();
    cluster.server.restart_apiserver();
    cluster.write("another.yaml", &edited().replace("name: team-a-dev,", "name: another,"));
    wait_until("the server to take documents", || cluster.mecha(&["apply", "another.yaml"]).status.success());
    assert!(waiting.wait().unwrap().success());
}
