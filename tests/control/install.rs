//! What people install: the plain manifests and the chart, on a real API server.

use std::path::{Path, PathBuf};
use std::process::Command;

use mecha_testkit::servers::{Kubernetes, absent};
use serde_json::{Value, json};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
pub(crate) const NAMESPACE: &str = "mecha-system";
/// Of the bindings.
const BINDINGS: &str = "mecha-cluster-local";
/// Names the folder with helm.
const HELM: &str = "MECHA_HELM";

/// Installs the plain manifests as a person does.
pub(crate) fn install(server: &Kubernetes) {
    server.define(Path::new(&format!("{ROOT}/deploy/manifests/mecha.yaml")));
}

fn list(server: &Kubernetes, args: &[&str]) -> Vec<Value> {
    let text = server.kubectl(&[&["get", "-o", "json"], args].concat());
    let list: Value = serde_json::from_str(&text).unwrap();
    list["items"].as_array().unwrap().clone()
}

#[test]
fn the_manifests_are_taken_by_a_real_server_and_keep_to_pod_security_restricted() {
    let Some(server) = Kubernetes::start() else { return };
    install(&server);
    // A second time changes nothing, as GitOps tools expect.
    let versions = || {
        server.kubectl(&[
            "-n",
            NAMESPACE,
            "get",
            "deployments,services,pdb,sa",
            "-o",
            "jsonpath={.items[*].metadata.resourceVersion}",
        ])
    };
    let before = versions();
    install(&server);
    assert_eq!(versions(), before);

    let deployments = list(&server, &["-n", NAMESPACE, "deployments"]);
    assert_eq!(deployments.len(), 3);
    for deployment in &deployments {
        let name = deployment["metadata"]["name"].as_str().unwrap();
        assert_eq!(deployment["spec"]["replicas"], 2, "{name}");
        let template = &deployment["spec"]["template"];
        // The namespace enforces the profile on pods, not on what makes them.
        let mut pod =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]});
        pod["metadata"]["name"] = json!(name);
        pod["metadata"]["namespace"] = json!(NAMESPACE);
        server.apply(&pod.to_string()).unwrap_or_else(|why| panic!("{name}: {why}"));
        // The loss of a node or a zone leaves a replica where there are two; one node alone takes both.
        let spread = template["spec"]["topologySpreadConstraints"].as_array().unwrap();
        let over: Vec<&Value> = spread.iter().map(|one| &one["topologyKey"]).collect();
        assert_eq!(over, ["kubernetes.io/hostname", "topology.kubernetes.io/zone"], "{name}");
        for one in spread {
            assert_eq!((&one["maxSkew"], &one["whenUnsatisfiable"]), (&json!(1), &json!("ScheduleAnyway")), "{name}");
            assert_eq!(one["labelSelector"], deployment["spec"]["selector"], "{name} is spread over its own pods");
        }
        let container = &template["spec"]["containers"][0];
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            assert!(container[probe]["httpGet"].is_object(), "{name} has no {probe}");
        }
        let budget =
            server.kubectl(&["-n", NAMESPACE, "get", "pdb", name, "-o", "jsonpath={.spec.selector.matchLabels}"]);
        let budget: Value = serde_json::from_str(&budget).unwrap();
        assert_eq!(budget, deployment["spec"]["selector"]["matchLabels"], "{name}'s budget is for its pods");
    }
    for service in list(&server, &["-n", NAMESPACE, "services"]) {
        let port = &service["spec"]["ports"][0]["targetPort"];
        let reached = deployments.iter().any(|deployment| {
            let template = &deployment["spec"]["template"];
            let labels = service["spec"]["selector"].as_object().unwrap();
            let picked = labels.iter().all(|(key, value)| &template["metadata"]["labels"][key] == value);
            picked && template["spec"]["containers"][0]["ports"].as_array().unwrap().iter().any(|p| &p["name"] == port)
        });
        assert!(reached, "nothing is behind {}", service["metadata"]["name"]);
    }
}

#[test]
fn every_flag_of_the_manifests_is_one_that_the_program_knows() {
    let text = std::fs::read_to_string(format!("{ROOT}/deploy/manifests/mecha.yaml")).unwrap();
    let program = mecha_tests::mecha_control();
    for role in ["hub", "agent", "injector"] {
        let help = Command::new(program).args([role, "--help"]).output().unwrap();
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        let args = text.split("args:\n").find(|part| part.starts_with(&format!("        - {role}\n"))).unwrap();
        let flags = args.lines().skip(1).map_while(|line| line.trim().strip_prefix("- --"));
        for flag in flags {
            let name = flag.split('=').next().unwrap();
            assert!(help.contains(&format!("--{name}")), "{role} has no flag --{name}:\n{help}");
        }
    }
}

#[test]
fn sidecars_get_the_image_that_the_injector_has_by_itself() {
    let text = std::fs::read_to_string(format!("{ROOT}/deploy/manifests/mecha.yaml")).unwrap();
    let image = mecha_patch::Config::default().image;
    assert!(text.contains(&format!("    image: {image}\n")), "the chart's default is another one than {image}");
}

/// The real helm, for a server or for none.
struct Helm {
    kubeconfig: PathBuf,
    home: tempfile::TempDir,
}

impl Helm {
    fn new(kubeconfig: PathBuf) -> Option<Self> {
        let Some(folder) = std::env::var_os(HELM) else {
            absent("helm", "bash tests/control/helm/build.sh");
            return None;
        };
        assert!(Path::new(&folder).join("helm").is_file(), "{HELM} holds no helm");
        Some(Self { kubeconfig, home: tempfile::tempdir().unwrap() })
    }

    fn run(&self, args: &[&str]) -> Result<String, String> {
        let helm = Path::new(&std::env::var_os(HELM).unwrap()).join("helm");
        let output = Command::new(helm)
            .args(args)
            .args(["--namespace", NAMESPACE])
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", self.home.path())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }
}

#[test]
fn older_clusters_get_what_they_know() {
    let Some(helm) = Helm::new(PathBuf::new()) else { return };
    let chart = format!("{ROOT}/deploy/chart/mecha");
    let of = |version: &str| helm.run(&["template", "mecha", &chart, "--kube-version", version]).unwrap();
    let (old, new) = (of("1.29.0"), of("1.30.0"));
    assert!(
        old.contains("mecha.dev/enabled: \"true\"") && !old.contains("matchConditions"),
        "pods are picked by label"
    );
    assert!(!old.contains("kind: ValidatingAdmissionPolicy") && new.contains("kind: ValidatingAdmissionPolicy"));
    assert!(new.contains("asks-for-a-sidecar"));
    let refused = helm.run(&["template", "mecha", &chart, "--kube-version", "1.27.0"]).unwrap_err();
    assert!(refused.contains("1.28"), "{refused}");
}

#[test]
fn the_chart_installs_upgrades_and_leaves_kinds_and_objects_behind() {
    let Some(server) = Kubernetes::start() else { return };
    let Some(helm) = Helm::new(server.kubeconfig()) else { return };
    let chart = format!("{ROOT}/deploy/chart/mecha");
    let wrong = helm.run(&["install", "mecha", &chart, "--create-namespace", "--set", "hub.replica=3"]).unwrap_err();
    assert!(wrong.contains("replica"), "a misspelt value is named: {wrong}");

    let notes = helm.run(&["install", "mecha", &chart, "--create-namespace"]).unwrap();
    assert!(notes.contains("rollout status"), "{notes}");
    server.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"]);
    let class = "apiVersion: mecha.dev/v1alpha1\nkind: EnvironmentClass\nmetadata: {name: development}\n\
                 spec:\n  type: development\n  capabilities: []\n";
    server.apply(class).unwrap();
    // What the injector writes into the registration survives an upgrade.
    let roots = r#"[{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": "eA=="}]"#;
    server.kubectl(&["patch", "mutatingwebhookconfiguration", "mecha-injector", "--type=json", "-p", roots]);
    helm.run(&["upgrade", "mecha", &chart, "--set", "injector.skipNamespaces={build}", "--set", "hub.replicas=3"])
        .unwrap();
    let registration = server.kubectl(&["get", "mutatingwebhookconfiguration", "mecha-injector", "-o", "json"]);
    let registration: Value = serde_json::from_str(&registration).unwrap();
    let webhook = &registration["webhooks"][0];
    assert_eq!(webhook["clientConfig"]["caBundle"], "eA==");
    let skipped = &webhook["namespaceSelector"]["matchExpressions"][0]["values"];
    assert_eq!(skipped, &json!(["kube-system", NAMESPACE, "build"]));
    let replicas =
        server.kubectl(&["-n", NAMESPACE, "get", "deployment", "mecha-hub", "-o", "jsonpath={.spec.replicas}"]);
    assert_eq!(replicas, "3");

    // The agent's rights to bindings lie beside them, and the upgrade left both where they were.
    let rights = || list(&server, &["-n", BINDINGS, "roles,rolebindings"]).len();
    assert_eq!(rights(), 2);

    helm.run(&["uninstall", "mecha"]).unwrap();
    assert!(list(&server, &["-n", NAMESPACE, "deployments"]).is_empty());
    assert_eq!(rights(), 0);
    let namespace = || {
        let text = server.kubectl(&["get", "namespace", BINDINGS, "-o", "json"]);
        let namespace: Value = serde_json::from_str(&text).unwrap();
        assert!(namespace["metadata"]["deletionTimestamp"].is_null(), "every binding would go: {namespace}");
        namespace["metadata"]["uid"].clone()
    };
    let before = namespace();
    // Nothing is left that would refuse pods, and nothing is lost that people wrote.
    assert!(list(&server, &["mutatingwebhookconfigurations"]).is_empty());
    server.kubectl(&["get", "environmentclass", "development"]);
    // A new installation takes up what the last one left, under the same name and, but for the kinds, under another.
    for (release, kinds) in [("mecha", "true"), ("other", "false")] {
        helm.run(&["install", release, &chart, "--set", &format!("crds.install={kinds}")]).unwrap();
        assert_eq!((rights(), namespace()), (2, before.clone()), "{release}");
        helm.run(&["uninstall", release]).unwrap();
    }
}
