//! What each role of the control part may do: exactly what is listed in deploy/rbac, and nothing beyond.

use std::fmt::Write as _;

use mecha_testkit::servers::Kubernetes;
use serde_json::Value;

use crate::install::{NAMESPACE, install};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/rbac");
/// Writes the lists anew instead of comparing them.
const WRITE: &str = "MECHA_WRITE_GOLDEN";

fn get(server: &Kubernetes, args: &[&str]) -> Value {
    serde_json::from_str(&server.kubectl(&[&["get", "-o", "json"], args].concat())).unwrap()
}

/// Every rule that is bound to the service account, one a line: where, what, which verbs.
fn rights(server: &Kubernetes, account: &str) -> String {
    let mut lines = Vec::new();
    for (bindings, everywhere) in [("clusterrolebindings", true), ("rolebindings", false)] {
        let all = get(server, &[bindings, "-A"]);
        for binding in all["items"].as_array().unwrap() {
            let subjects = binding["subjects"].as_array().into_iter().flatten();
            let ours = |subject: &Value| {
                subject["kind"] == "ServiceAccount" && subject["name"] == account && subject["namespace"] == NAMESPACE
            };
            if !subjects.into_iter().any(ours) {
                continue;
            }
            let namespace = binding["metadata"]["namespace"].as_str().unwrap_or_default();
            let place = if everywhere { "everywhere".to_owned() } else { format!("in {namespace}") };
            let (kind, name) = (&binding["roleRef"]["kind"], binding["roleRef"]["name"].as_str().unwrap());
            let role = if kind == "ClusterRole" {
                get(server, &["clusterrole", name])
            } else {
                get(server, &["-n", namespace, "role", name])
            };
            for rule in role["rules"].as_array().into_iter().flatten() {
                lines.extend(described(rule).into_iter().map(|line| format!("{place}: {line}")));
            }
        }
    }
    lines.sort();
    lines.dedup();
    lines.into_iter().fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "{line}");
        text
    })
}

fn words(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn described(rule: &Value) -> Vec<String> {
    let verbs = words(&rule["verbs"]).join(" ");
    let names = words(&rule["resourceNames"]);
    let named = if names.is_empty() { String::new() } else { format!(" called {}", names.join(" ")) };
    let mut lines = Vec::new();
    for group in words(&rule["apiGroups"]) {
        for resource in words(&rule["resources"]) {
            let dot = if group.is_empty() { "" } else { "." };
            lines.push(format!("{resource}{dot}{group}{named}: {verbs}"));
        }
    }
    lines.extend(words(&rule["nonResourceURLs"]).into_iter().map(|url| format!("{url}: {verbs}")));
    lines
}

fn server() -> Option<Kubernetes> {
    let server = Kubernetes::start()?;
    install(&server);
    Some(server)
}

#[test]
fn each_role_has_the_rights_that_are_listed_and_no_others() {
    let Some(server) = server() else { return };
    for role in ["hub", "agent", "injector"] {
        let path = format!("{FOLDER}/{role}.txt");
        let found = rights(&server, &format!("mecha-{role}"));
        if std::env::var_os(WRITE).is_some() {
            std::fs::write(&path, &found).unwrap();
        }
        let listed = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            found, listed,
            "the rights of {role} are not those in deploy/rbac/{role}.txt; if they are meant to change, run this \
             test with {WRITE}=1 and let somebody look at the difference"
        );
        assert!(!found.contains('*'), "{role} has a right for everything of a kind:\n{found}");
    }
}

/// Whether the account may, as the server's own authorizer says. The question is a verb, a resource as
/// `resource/subresource` or `resource@name`, and flags.
fn may(server: &Kubernetes, account: &str, question: &[&str]) -> bool {
    let user = format!("--as=system:serviceaccount:{NAMESPACE}:{account}");
    let (verb, resource, flags) = (question[0], question[1], &question[2..]);
    let (resource, name) = resource.split_once('@').unwrap_or((resource, ""));
    let (resource, part) = resource.split_once('/').unwrap_or((resource, ""));
    let resource = if name.is_empty() { resource.to_owned() } else { format!("{resource}/{name}") };
    let part = format!("--subresource={part}");
    let asked = ["auth", "can-i", verb, &resource, &part, &user, "--as-group=system:serviceaccounts"];
    let answer = server.kubectl_refused(&[&asked, flags].concat());
    answer.is_ok_and(|text| text.trim() == "yes")
}

#[test]
fn a_stolen_token_of_a_role_opens_nothing_else() {
    let Some(server) = server() else { return };
    let everybody: &[&[&str]] = &[
        &["list", "secrets", "-A"],
        &["create", "pods/exec", "-n", "default"],
        &["create", "pods/attach", "-n", "default"],
        &["create", "pods/portforward", "-n", "default"],
        &["get", "pods/log", "-n", "default"],
        &["delete", "pods", "-n", "default"],
        &["patch", "pods", "-n", "default"],
        &["create", "serviceaccounts/token", "-n", "default"],
        &["create", "deployments.apps", "-n", "default"],
        &["patch", "deployments.apps", "-n", "default"],
        &["create", "clusterrolebindings.rbac.authorization.k8s.io"],
        &["create", "rolebindings.rbac.authorization.k8s.io", "-n", "default"],
        &["escalate", "clusterroles.rbac.authorization.k8s.io"],
        &["bind", "clusterroles.rbac.authorization.k8s.io"],
        &["impersonate", "users"],
        &["impersonate", "serviceaccounts", "-n", NAMESPACE],
        &["approve", "signers.certificates.k8s.io"],
        &["update", "certificatesigningrequests.certificates.k8s.io/approval"],
        &["patch", "validatingadmissionpolicies.admissionregistration.k8s.io"],
        &["patch", "customresourcedefinitions.apiextensions.k8s.io"],
        &["get", "nodes/proxy"],
        &["update", "memberclusters.mecha.dev/accept@other"],
        &["patch", "memberclusters.mecha.dev@local"],
    ];
    let hub: &[&[&str]] = &[
        &["get", "secrets", "-n", NAMESPACE],
        &["watch", "secrets", "-A"],
        &["get", "configmaps", "-n", "default"],
        &["get", "pods", "-n", "default"],
        &["create", "pods", "-n", "default"],
        &["patch", "capabilitybindings.mecha.dev", "-n", "default"],
        &["patch", "capabilitybindings.mecha.dev/status", "-n", "mecha-cluster-local"],
        &["patch", "mutatingwebhookconfigurations.admissionregistration.k8s.io"],
    ];
    let agent: &[&[&str]] = &[
        &["create", "pods", "-n", "default"],
        &["create", "pods/eviction", "-n", "default"],
        &["update", "capabilitybindings.mecha.dev", "-n", "mecha-cluster-local"],
        &["list", "capabilitybindings.mecha.dev", "-A"],
        &["patch", "capabilityclaims.mecha.dev", "-n", "default"],
        &["patch", "configmaps", "-n", "default"],
        &["delete", "namespaces"],
        &["patch", "mutatingwebhookconfigurations.admissionregistration.k8s.io"],
    ];
    let injector: &[&[&str]] = &[
        &["get", "secrets", "-n", NAMESPACE],
        &["watch", "secrets", "-A"],
        &["create", "pods", "-n", NAMESPACE],
        &["update", "configmaps", "-n", NAMESPACE],
        &["get", "configmaps", "-n", "default"],
        &["update", "mutatingwebhookconfigurations.admissionregistration.k8s.io@other"],
        &["get", "capabilitybindings.mecha.dev", "-A"],
        &["delete", "namespaces"],
    ];
    for (account, own) in [("mecha-hub", hub), ("mecha-agent", agent), ("mecha-injector", injector)] {
        for question in everybody.iter().chain(own) {
            assert!(!may(&server, account, question), "{account} may {question:?}");
        }
    }
    // The questions themselves are right: what each role lives on is allowed.
    for (account, question) in [
        ("mecha-hub", &["create", "capabilitybindings.mecha.dev", "-n", "mecha-cluster-local"][..]),
        ("mecha-agent", &["get", "secrets", "-n", "default"]),
        ("mecha-injector", &["create", "pods/eviction", "-n", "default"]),
        ("mecha-hub", &["update", "memberclusters.mecha.dev/accept@local"]),
    ] {
        assert!(may(&server, account, question), "{account} may not {question:?}");
    }
}

#[test]
fn what_the_roles_of_one_cluster_have_opens_nothing_in_another() {
    let (Some(here), Some(there)) = (server(), Kubernetes::start()) else { return };
    for role in ["hub", "agent", "injector"] {
        let token = format!("--token={}", here.token_of(NAMESPACE, &format!("mecha-{role}")));
        let asks = |server: &Kubernetes, what: &[&str]| server.kubectl_refused(&[&[token.as_str()], what].concat());
        // At home it is known, and refused what is not its own.
        let refused = asks(&here, &["-n", "default", "get", "configmaps"]).unwrap_err();
        assert!(refused.contains("Forbidden") && refused.contains(&format!("mecha-{role}")), "{refused}");
        for what in [&["get", "--raw", "/version"][..], &["-n", "default", "get", "secrets"]] {
            let refused = asks(&there, what).unwrap_err();
            assert!(refused.contains("Unauthorized") || refused.contains("must be logged in"), "{role}: {refused}");
        }
    }
}

/// What the hub writes for the cluster CLUSTER.
const BINDING: &str = "
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBinding
metadata: {name: shop, namespace: mecha-cluster-CLUSTER}
spec:
  environment: team-a/shop
  namespace: shop
  cluster: CLUSTER
  revision: 1
  leaderEpoch: 1
  digest: sha256:77aa
";

#[test]
fn the_agent_of_one_cluster_has_no_right_to_the_bindings_of_another() {
    let Some(server) = server() else { return };
    server.kubectl(&["create", "namespace", "mecha-cluster-b"]);
    for cluster in ["local", "b"] {
        server.apply(&BINDING.replace("CLUSTER", cluster)).unwrap();
    }
    let token = format!("--token={}", server.token_of(NAMESPACE, "mecha-agent"));
    let path = |place: &str| format!("/apis/mecha.dev/v1alpha1/{place}capabilitybindings");
    let patch = |cluster: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        let head = BINDING.split("spec:").next().unwrap().replace("CLUSTER", cluster);
        std::fs::write(file.path(), format!("{head}status: {{appliedRevision: 1}}\n")).unwrap();
        // Sends the patch and nothing before it.
        let apply = ["apply", "--server-side", "--subresource=status", "--validate=false", &token, "-f"];
        server.kubectl_refused(&[&apply[..], &[&file.path().to_string_lossy()]].concat())
    };
    // Each question as it is asked at home and at a neighbour's: get, list, watch, and the answer to a binding.
    let asks = |cluster: &str| {
        let home = format!("namespaces/mecha-cluster-{cluster}/");
        let raw = |path: String| server.kubectl_refused(&[&token, "get", "--raw", &path]);
        [
            ("get", raw(format!("{}/shop", path(&home)))),
            ("list", raw(path(&home))),
            ("watch", raw(format!("{}?watch=1&timeoutSeconds=1", path(&home)))),
            ("patch", patch(cluster)),
        ]
    };
    for (verb, answer) in asks("local") {
        let answer = answer.unwrap_or_else(|why| panic!("{verb} at home: {why}"));
        assert!(verb == "watch" || answer.contains("shop"), "{verb} at home: {answer}");
    }
    for (verb, answer) in asks("b") {
        let refused = answer.expect_err(verb);
        assert!(refused.contains("Forbidden") && refused.contains("mecha-cluster-b"), "{verb}: {refused}");
    }
    // Nor may it ask for those of all clusters at once.
    for query in ["", "?watch=1&timeoutSeconds=1"] {
        let all = format!("{}{query}", path(""));
        let refused = server.kubectl_refused(&[&token, "get", "--raw", &all]).unwrap_err();
        assert!(refused.contains("Forbidden"), "{refused}");
    }
}

const CLUSTER: &str = "
apiVersion: mecha.dev/v1alpha1
kind: MemberCluster
metadata: {name: eu-1}
spec: {accepted: false, region: eu-west}
";

/// Applies as somebody else; what the server said.
fn applies_as(server: &Kubernetes, user: &str, document: &str) -> Result<String, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), document).unwrap();
    let (user, file) = (format!("--as={user}"), file.path().to_string_lossy().into_owned());
    server.kubectl_refused(&["apply", "--server-side", "--force-conflicts", &user, "-f", &file])
}

#[test]
fn accepting_a_cluster_is_a_right_of_its_own() {
    let Some(server) = server() else { return };
    // May write clusters, but not accept them.
    server
        .apply(
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: clerk}\nrules:\n\
             - {apiGroups: [mecha.dev], resources: [memberclusters], verbs: [get, create, patch, update]}\n",
        )
        .unwrap();
    for (user, role) in [("clerk", "clerk"), ("owner", "mecha-platform")] {
        let (role, user) = (format!("--clusterrole={role}"), format!("--user={user}"));
        server.kubectl(&["create", "clusterrolebinding", &user[7..], &role, &user]);
    }
    let accepted = CLUSTER.replace("accepted: false", "accepted: true");
    // Policies take effect some moments after they were stored.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let refused = loop {
        match applies_as(&server, "clerk", &accepted.replace("eu-1", "probe")) {
            Err(refused) => break refused,
            Ok(_) => assert!(std::time::Instant::now() < deadline, "the policy never took effect"),
        }
        server.kubectl(&["delete", "membercluster", "probe"]);
    };
    assert!(refused.contains("memberclusters/accept") && refused.contains("mecha-platform"), "{refused}");

    applies_as(&server, "clerk", CLUSTER).unwrap();
    assert!(applies_as(&server, "clerk", &accepted).unwrap_err().contains("eu-1"));
    applies_as(&server, "owner", &accepted).unwrap();
    // Who may not accept may still write the rest, and may not take it back either.
    applies_as(&server, "clerk", &accepted.replace("eu-west", "eu-central")).unwrap();
    assert!(applies_as(&server, "clerk", CLUSTER).is_err());
    // Neither may the hub, but for its own cluster.
    let hub = format!("system:serviceaccount:{NAMESPACE}:mecha-hub");
    let create = |name: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), accepted.replace("eu-1", name)).unwrap();
        server.kubectl_refused(&["create", &format!("--as={hub}"), "-f", &file.path().to_string_lossy()])
    };
    assert!(create("us-1").is_err());
    create("local").unwrap();
}

#[test]
fn developers_write_claims_and_environments_and_are_refused_backends_and_classes() {
    let Some(server) = server() else { return };
    server.kubectl(&["create", "namespace", "team-a"]);
    server.kubectl(&["-n", "team-a", "create", "rolebinding", "dana", "--clusterrole=mecha-developer", "--user=dana"]);
    let document = |kind: &str, spec: &str| {
        format!(
            "apiVersion: mecha.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: orders, namespace: team-a}}\nspec: {spec}\n"
        )
    };
    applies_as(&server, "dana", &document("CapabilityClaim", "{kind: state}")).unwrap();
    applies_as(&server, "dana", &document("Environment", "{className: development}")).unwrap();
    let wide = |kind: &str, spec: &str| document(kind, spec).replace(", namespace: team-a", "");
    let backend = wide("CapabilityBackend", "{kind: state, component: {type: state.redis}, source: {none: {}}}");
    for of_the_platform in [backend, wide("EnvironmentClass", "{type: development, capabilities: []}")] {
        let refused = applies_as(&server, "dana", &of_the_platform).unwrap_err();
        assert!(refused.contains("orbidden"), "{refused}");
        // It is the right that is missing, not a field.
        server.apply(&of_the_platform).unwrap();
    }
    let elsewhere = document("CapabilityClaim", "{kind: state}").replace("team-a", "default");
    assert!(applies_as(&server, "dana", &elsewhere).unwrap_err().contains("orbidden"));
}

#[test]
fn the_hub_ends_namespaces_of_environments_only() {
    let Some(server) = server() else { return };
    let hub = format!("--as=system:serviceaccount:{NAMESPACE}:mecha-hub");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        server.kubectl_refused(&["create", "namespace", "payroll"]).unwrap();
        match server.kubectl_refused(&["delete", "namespace", "payroll", "--wait=false", &hub]) {
            Err(refused) => {
                assert!(refused.contains("belongs to no environment"), "{refused}");
                break;
            }
            Ok(_) => assert!(std::time::Instant::now() < deadline, "the policy never took effect"),
        }
        // Nobody finishes namespaces here: take the finalizer off.
        let done = r#"{"metadata": {"name": "payroll"}, "spec": {"finalizers": []}}"#;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), done).unwrap();
        server.kubectl(&[
            "replace",
            "--raw",
            "/api/v1/namespaces/payroll/finalize",
            "-f",
            &file.path().to_string_lossy(),
        ]);
    }
    server.apply(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: team-a-dev\n  annotations: {mecha.dev/environment: team-a/dev}\n",
    )
    .unwrap();
    server.kubectl(&["delete", "namespace", "team-a-dev", "--wait=false", &hub]);
}
