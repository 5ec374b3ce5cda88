//! Every version of Kubernetes that the API server can play takes what people install, keeps the rules in it, and gives
//! pods their sidecars.
//!
//! A released kube-apiserver serves the APIs, fields and defaults of some versions before its own when it is told to
//! (`--emulated-version`). What is older still is only rendered for.

use std::path::{Path, PathBuf};
use std::process::Command;

use mecha_testkit::servers::{Kubernetes, KubernetesOptions, absent};
use mecha_tests::wait_until;
use serde_json::{Value, json};

use crate::guide::PATIENCE;
use crate::install::NAMESPACE;
use crate::roles::{ControlPart, INJECTOR};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
/// As many at once as a small machine has cores; each takes a third of a gigabyte.
const AT_ONCE: usize = 2;
/// A version that serves this API, and the first that does: by it a server shows which version it plays.
const SERVED_SINCE: (&str, u32) = ("resource.k8s.io/v1", 34);
/// The first version that gets everything: what those before get is shown by `older_clusters_get_what_they_know`.
const WHOLE_SINCE: u32 = 30;

/// Minor versions that the server can play, by its own words: `Options are: kube=1.33..1.36(default:1.36)`.
fn playable() -> Option<Vec<u32>> {
    Kubernetes::missing().is_none().then_some(())?;
    let folder = PathBuf::from(std::env::var_os("MECHA_KUBERNETES")?);
    let server = std::env::var_os("MECHA_KUBE_APISERVER").map_or(folder.join("kube-apiserver"), PathBuf::from);
    let help = Command::new(server).arg("--help").output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let options = help.split("--emulated-version ").nth(1).and_then(|rest| rest.split("Options are: kube=1.").nth(1));
    let options = options.expect("this API server plays no version but its own");
    let (oldest, rest) = options.split_once("..1.").unwrap();
    let newest: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((oldest.parse().unwrap()..=newest.parse().unwrap()).collect())
}

/// The chart as helm renders it for a version.
fn rendered(minor: u32) -> Option<String> {
    let Some(folder) = std::env::var_os("MECHA_HELM") else {
        absent("helm", "bash tests/control/helm/build.sh");
        return None;
    };
    let home = tempfile::tempdir().unwrap();
    let output = Command::new(Path::new(&folder).join("helm"))
        .args(["template", "mecha", &format!("{DEPLOY}/chart/mecha"), "--namespace", NAMESPACE])
        .args(["--kube-version", &format!("1.{minor}.0")])
        .env("HOME", home.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

/// It plays the version: it says so, and serves what that version served.
fn plays(server: &Kubernetes, minor: u32) {
    let version: Value = serde_json::from_str(&server.kubectl(&["get", "--raw", "/version"])).unwrap();
    assert_eq!(version["emulationMinor"], minor.to_string(), "{version}");
    let served = server.kubectl(&["api-versions"]);
    let (api, since) = SERVED_SINCE;
    assert_eq!(served.lines().any(|line| line == api), minor >= since, "1.{minor} serves {served}");
}

/// The server takes a bundle whole, complains about no word of it, and keeps nothing.
fn takes(server: &Kubernetes, bundle: &Path) {
    let bundle = bundle.to_string_lossy();
    let tried = ["apply", "--server-side", "--dry-run=server", "--warnings-as-errors", "-f", &bundle];
    let taken = server.kubectl(&tried);
    assert!(taken.lines().count() > 30 && taken.lines().all(|line| line.ends_with(" (server dry run)")), "{taken}");
    for part in ["deployment.apps/mecha-hub", "mecha-injector", "validatingadmissionpolicybinding"] {
        assert!(taken.contains(part), "{part} is not in {bundle}:\n{taken}");
    }
    assert_eq!(server.kubectl(&["-n", NAMESPACE, "get", "deployments", "-o", "name"]), "");
}

/// The rules that are written as expressions hold: those of the kinds, and those of the policies.
async fn keeps_the_rules(server: &Kubernetes) {
    let claim = "apiVersion: mecha.dev/v1alpha1\nkind: CapabilityClaim\nmetadata: {name: orders, namespace: default}\n\
                 spec: {kind: state, features: [etag]}\n";
    server.apply(claim).unwrap();
    for (wrong, said) in [
        (claim.replace("kind: state, features: [etag]", "kind: pubsub"), "cannot change"),
        (claim.replace("features:", "feature:"), "feature"),
        (
            "apiVersion: mecha.dev/v1alpha1\nkind: Environment\nmetadata: {name: dev, namespace: default}\nspec: {}\n"
                .to_owned(),
            "className",
        ),
    ] {
        let refused = server.apply(&wrong).unwrap_err();
        assert!(refused.contains(said), "{refused}");
    }
    let hub = format!("--as=system:serviceaccount:{NAMESPACE}:mecha-hub");
    server.create_namespaces(&["payroll"]);
    let end = ["delete", "namespace", "payroll", "--dry-run=server", &hub];
    // Policies take effect a little after they are written.
    wait_until(PATIENCE, "the policy about namespaces", async || {
        server.kubectl_refused(&end).is_err_and(|refused| refused.contains("belongs to no environment"))
    })
    .await;
}

fn pod(server: &Kubernetes, name: &str, enabled: &str) -> Result<Value, String> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "annotations": {"dapr.io/enabled": enabled}},
        "spec": {"serviceAccountName": "default", "containers": [{"name": "app", "image": "app:1"}]},
    });
    server.apply(&pod.to_string())?;
    Ok(serde_json::from_str(&server.kubectl(&["-n", "default", "get", "pod", name, "-o", "json"])).unwrap())
}

/// What the command line finds, by name of the check.
fn doctor(server: &Kubernetes) -> Value {
    let output = Command::new(mecha_tests::mecha())
        .args(["doctor", "--cluster", "-o", "json", "--kubeconfig"])
        .arg(server.kubeconfig())
        .output()
        .unwrap();
    let checks: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    checks
        .as_array()
        .unwrap()
        .iter()
        .map(|check| (check["check"].as_str().unwrap().to_owned(), check.clone()))
        .collect()
}

async fn works_on(minor: u32) {
    println!("Kubernetes 1.{minor}");
    let Some(chart) = rendered(minor) else { return };
    let options = KubernetesOptions::new().arg(format!("--emulated-version=kube=1.{minor}"));
    let Some(server) = options.start() else { return };
    plays(&server, minor);

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &chart).unwrap();
    for kinds in ["crds", "crds/dapr"] {
        server.define(&Path::new(DEPLOY).join(kinds));
    }
    // A dry run makes no namespace for what comes after it.
    server.create_namespaces(&[NAMESPACE, "mecha-cluster-local"]);
    takes(&server, file.path());
    takes(&server, &Path::new(DEPLOY).join("manifests/mecha.yaml"));
    server.apply(&chart).unwrap();
    keeps_the_rules(&server).await;

    let mut roles = ControlPart::none(None);
    roles.lead_here(&server);
    roles.launch(&server, INJECTOR);
    roles.ready().await;
    wait_until(PATIENCE, "pods to get their sidecars", async || pod(&server, "orders", "true").is_ok()).await;
    let made = pod(&server, "orders", "true").unwrap();
    let sidecar = &made["spec"]["initContainers"][0];
    assert_eq!((&sidecar["name"], &sidecar["restartPolicy"]), (&json!("daprd"), &json!("Always")), "{made:#}");
    assert_eq!(made["spec"]["containers"].as_array().unwrap().len(), 1);

    let checks = doctor(&server);
    assert!(checks["API server"]["detail"].as_str().unwrap().contains(&format!("1.{minor}")), "{checks:#}");
    for fine in [
        "API server",
        "native sidecars",
        "admission webhooks v1",
        "ValidatingAdmissionPolicy",
        "CustomResourceDefinitions with CEL",
        "projected tokens",
        "kinds of mecha.dev",
        "webhook registration",
        "way to the webhook",
    ] {
        assert_eq!(checks[fine]["state"], "ok", "{checks:#}");
    }

    // Only who asks for a sidecar depends on the webhook: the conditions are judged by the API server.
    roles.kill(INJECTOR);
    let plain = pod(&server, "plain", "false").unwrap();
    assert!(plain["spec"]["initContainers"].is_null());
    let refused = pod(&server, "late", "true").unwrap_err();
    assert!(refused.contains("failed calling webhook \"pods.injector.mecha.dev\""), "{refused}");
}

#[test]
fn every_version_that_the_server_can_play_takes_the_installation_and_gives_pods_native_sidecars() {
    let Some(versions) = playable() else {
        absent("kube-apiserver", "bash tests/control/apiserver/build.sh");
        return;
    };
    assert!(versions.len() > 1, "{versions:?}");
    // Those that nothing can play any more get the same bytes as these.
    let newest = rendered(*versions.last().unwrap());
    for minor in WHOLE_SINCE..versions[0] {
        assert_eq!(rendered(minor), newest, "1.{minor}");
    }
    for some in versions.chunks(AT_ONCE) {
        // Threads, since each waits for programs that it runs.
        std::thread::scope(|scope| {
            let running: Vec<_> = some.iter().map(|minor| (minor, scope.spawn(|| run(*minor)))).collect();
            for (minor, one) in running {
                assert!(one.join().is_ok(), "on Kubernetes 1.{minor}; what it was is above");
            }
        });
    }
}

fn run(minor: u32) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(works_on(minor));
}
