//! What is left when the control part is gone can be deleted, in the way that the platform guide gives.

use std::path::PathBuf;
use std::process::Command;

use mecha_testkit::servers::Kubernetes;

use crate::install::install;

const GUIDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/platform-guide.md");
const OBJECTS: &str = "
apiVersion: mecha.dev/v1alpha1
kind: EnvironmentClass
metadata: {name: development, finalizers: [mecha.dev/in-use]}
spec: {type: development, capabilities: []}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: redis, finalizers: [mecha.dev/in-use]}
spec: {kind: state, component: {type: state.redis}, source: {none: {}}}
---
apiVersion: mecha.dev/v1alpha1
kind: Environment
metadata: {name: dev, namespace: team-a, finalizers: [mecha.dev/environment]}
spec: {className: development}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityClaim
metadata: {name: orders, namespace: team-a, finalizers: [mecha.dev/binding]}
spec: {kind: state}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityClaim
metadata: {name: basket, namespace: team-a, finalizers: [mecha.dev/binding]}
spec: {kind: state}
";

#[test]
fn finalizers_that_outlive_the_hub_are_taken_off_as_the_guide_says() {
    let Some(server) = Kubernetes::start() else { return };
    install(&server);
    server.kubectl(&["create", "namespace", "team-a"]);
    server.apply(OBJECTS).unwrap();
    let guide = std::fs::read_to_string(GUIDE).unwrap();
    let script = guide.split("```sh\n# finalizers.sh\n").nth(1).unwrap().split("```").next().unwrap();

    let programs = PathBuf::from(std::env::var_os("MECHA_KUBERNETES").unwrap());
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .env("PATH", path)
        .env("KUBECONFIG", server.kubeconfig())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    for (kind, flags) in [
        ("capabilityclaims", &["-n", "team-a"][..]),
        ("environments", &["-n", "team-a"]),
        ("environmentclasses", &[]),
        ("capabilitybackends", &[]),
    ] {
        let found = server.kubectl(&[&["get", kind, "-o", "name"], flags].concat());
        assert!(!found.is_empty(), "{kind}");
        server.kubectl(&[&["delete", kind, "--all", "--timeout=60s"], flags].concat());
    }
}
