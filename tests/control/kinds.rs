//! The kinds of mecha.dev on a real API server: what it takes, what it refuses and in which
//! words, and what kubectl prints.

use std::path::Path;

use mecha_testkit::servers::Kubernetes;

/// A server that knows the kinds, as they are generated into deploy/.
fn server() -> Option<Kubernetes> {
    let server = Kubernetes::start()?;
    server.define(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/crds")));
    server.create_namespaces(&["team-a", "team-a-dev-env-jp7j4", "mecha-cluster-local"]);
    Some(server)
}

const ENVIRONMENT: &str = "
apiVersion: mecha.dev/v1alpha1
kind: Environment
metadata: {name: team-a-dev-env, namespace: team-a}
spec:
  compositionSelector: {matchLabels: {type: development}}
  parameters: {installInfra: true, frontend: {debug: true}}
";

const BACKEND: &str = "
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: pg-eu, labels: {engine: postgres}}
spec:
  kind: state
  component:
    type: state.postgresql
    version: v2
    metadata: [{name: connectionString, valueFrom: {key: uri}}, {name: tablePrefix, value: '{{ claim.slug }}_'}]
  features: [crud, etag, transactional, ttl, keysLike]
  source: {secretRef: {name: pg-eu, namespace: platform}}
";

const CLAIM: &str = "
apiVersion: mecha.dev/v1alpha1
kind: CapabilityClaim
metadata: {name: orders, namespace: team-a-dev-env-jp7j4}
spec:
  kind: state
  features: [ttl, transactional]
  constraints: [{attribute: residency, operator: In, values: [eu]}]
  hints: [{prefer: latency, weight: 60}, {prefer: sticky, weight: 40}]
  scopes: [orders-api]
";

const BINDING: &str = "
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBinding
metadata: {name: team-a-dev-env-jp7j4, namespace: mecha-cluster-local}
spec:
  environment: team-a/team-a-dev-env
  namespace: team-a-dev-env-jp7j4
  cluster: local
  revision: 7
  leaderEpoch: 12
  digest: sha256:77aa
  entries: [{claim: orders, backend: pg-eu, role: Active, access: ReadWrite, document: '{}'}]
";

const CLASS: &str = "
apiVersion: mecha.dev/v1alpha1
kind: EnvironmentClass
metadata: {name: development, labels: {type: development}}
spec:
  type: development
  capabilities:
  - {kind: state, backendSelector: {matchLabels: {engine: postgres}}, require: [crud]}
  - {kind: pubsub, backendSelector: {matchLabels: {engine: kafka}}, swap: {strategy: Drain, approval: Manual, deadline: 1h}}
";

const MEMBER: &str = "
apiVersion: mecha.dev/v1alpha1
kind: MemberCluster
metadata: {name: eu-1}
spec: {accepted: false, region: eu-west}
";

const PLACEMENT: &str = "
apiVersion: mecha.dev/v1alpha1
kind: AppPlacement
metadata: {name: orders-api, namespace: team-a-dev-env-jp7j4}
spec:
  appId: orders-api
  clusters: {min: 1, max: 1}
";

/// `document` with one text in place of another.
fn with(document: &str, old: &str, new: &str) -> String {
    assert!(document.contains(old), "{old}");
    document.replace(old, new)
}

#[test]
fn the_server_keeps_the_rules_of_the_kinds() {
    let Some(server) = server() else { return };
    for document in [CLASS, ENVIRONMENT, BACKEND, CLAIM, BINDING, MEMBER, PLACEMENT] {
        server.apply(document).unwrap();
        // A second time changes nothing, as GitOps tools expect.
        let before = server.kubectl(&["get", "mecha", "-A", "-o", "jsonpath={.items[*].metadata.resourceVersion}"]);
        server.apply(document).unwrap();
        let after = server.kubectl(&["get", "mecha", "-A", "-o", "jsonpath={.items[*].metadata.resourceVersion}"]);
        assert_eq!(before, after);
    }
    for (what, document, said) in [
        ("two ways to name a class", with(ENVIRONMENT, "spec:", "spec:\n  className: development"), "className"),
        (
            "no way to name a class",
            with(ENVIRONMENT, "compositionSelector: {matchLabels: {type: development}}", ""),
            "className",
        ),
        ("two sources", with(BACKEND, "source: {", "source: {none: {}, "), "exactly one"),
        (
            "another kind of backend",
            with(&with(BACKEND, "kind: state", "kind: pubsub"), "state.postgresql", "pubsub.kafka"),
            "cannot change",
        ),
        ("an unknown feature", with(BACKEND, "keysLike", "keyslike"), "feature"),
        (
            "a claim that becomes another kind",
            with(&with(CLAIM, "kind: state", "kind: pubsub"), "features: [ttl, transactional]", ""),
            "cannot change",
        ),
        ("a deposed leader", with(BINDING, "leaderEpoch: 12", "leaderEpoch: 11"), "leaderEpoch"),
        ("an older revision", with(BINDING, "revision: 7", "revision: 6"), "revision"),
        ("a strategy that is not built", with(CLASS, "strategy: Drain", "strategy: DualWrite"), "DualWrite"),
        (
            "isolation that is not built",
            with(CLASS, "type: development\n  cap", "type: development\n  isolation: vcluster\n  cap"),
            "isolation",
        ),
        (
            "a template for isolation that is not built",
            with(CLASS, "type: development\n  cap", "type: development\n  isolationTemplate: {manifest: {}}\n  cap"),
            "isolationTemplate is not available yet",
        ),
        (
            "failover that is not built",
            with(CLASS, "type: development\n  cap", "type: development\n  failover: {mode: ActiveActive}\n  cap"),
            "failover is not built yet",
        ),
        (
            "an old backend kept for a time",
            with(CLASS, "deadline: 1h", "deadline: 1h, retainOld: 72h"),
            "retainOld is not available yet",
        ),
        (
            "clusters that move one after the other",
            with(CLASS, "deadline: 1h", "deadline: 1h, maxParallelClusters: 1"),
            "maxParallelClusters is not available yet",
        ),
        (
            "credentials sealed for a cluster",
            with(BACKEND, "spec:\n", "spec:\n  credentialDelivery: Sealed\n"),
            "credentialDelivery Sealed is not built yet",
        ),
        (
            "data that goes with its claim",
            with(CLAIM, "spec:\n", "spec:\n  reclaimPolicy: Delete\n"),
            "reclaimPolicy Delete is not available yet",
        ),
        (
            "a placement with failover",
            with(PLACEMENT, "spec:\n", "spec:\n  failover: {mode: Burst}\n"),
            "failover is not built yet",
        ),
        ("zones of a cluster", with(MEMBER, "region: eu-west", "zones: [a, b]"), "zones is not available yet"),
        (
            "where a cluster was imported from",
            with(MEMBER, "region: eu-west", "origin: {apiVersion: v1, kind: ClusterProfile, name: eu-1}"),
            "origin is not available yet",
        ),
        ("a standby", with(BINDING, "role: Active", "role: Standby"), "Standby and Overflow are not available yet"),
        (
            "a component to be read only",
            with(BINDING, "access: ReadWrite", "access: ReadOnly"),
            "access ReadOnly is not available yet",
        ),
        (
            "a fenced writer",
            with(BINDING, "role: Active", "role: Active, fencingEpoch: 1"),
            "fencingEpoch is not available yet",
        ),
        ("a misspelt field", with(CLAIM, "scopes:", "scope:"), "scope"),
    ] {
        let refused = server.apply(&document).expect_err(what);
        assert!(refused.contains(said), "{what}: {refused}");
    }
}

#[test]
fn kubectl_prints_environments_as_the_book_does() {
    let Some(server) = server() else { return };
    server.apply(ENVIRONMENT).unwrap();
    let status = r#"{"status": {"connectTo": "team-a-dev-env-jp7j4", "type": "development", "conditions": [
        {"type": "Ready", "status": "True", "reason": "AllReady", "message": "",
         "lastTransitionTime": "2026-11-21T03:00:00Z", "observedGeneration": 1}]}}"#;
    server.kubectl(&[
        "-n",
        "team-a",
        "patch",
        "environment",
        "team-a-dev-env",
        "--subresource=status",
        "--type=merge",
        "-p",
        status,
    ]);
    let printed = server.kubectl(&["-n", "team-a", "get", "environments"]);
    let lines: Vec<Vec<&str>> = printed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines,
        [
            vec!["NAME", "CONNECT-TO", "TYPE", "INFRA", "READY"],
            vec!["team-a-dev-env", "team-a-dev-env-jp7j4", "development", "true", "True"],
        ]
    );
    // The spec is the author's: a status write leaves it, and spec writes leave the status.
    server.apply(ENVIRONMENT).unwrap();
    assert_eq!(server.kubectl(&["-n", "team-a", "get", "environments"]), printed);
}
