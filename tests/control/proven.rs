//! What backends claim is tried by the real sidecar's drivers against real servers before anybody is given them.

use mecha_testkit::servers::{Kubernetes, RedisOptions};
use mecha_tests::wait_until;
use serde_json::json;

use crate::guide::PATIENCE;
use crate::install::install;
use crate::roles::{AGENT, ControlPart, HUB};

/// `ADDRESS` has what the first claims and lacks something that the second claims; the third has the wrong password.
const PLATFORM: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: platform}
---
apiVersion: v1
kind: Secret
metadata: {name: right, namespace: platform}
stringData: {password: canary-right}
---
apiVersion: v1
kind: Secret
metadata: {name: wrong, namespace: platform}
stringData: {password: canary-wrong}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: honest, labels: {line: honest}}
spec:
  kind: state
  component:
    type: state.redis
    version: v1
    metadata: [{name: redisHost, value: ADDRESS}, {name: redisPassword, valueFrom: {key: password}}]
  features: [crud, etag, transactional, ttl]
  source: {secretRef: {namespace: platform, name: right}}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: boasting, labels: {line: boasting}}
spec:
  kind: state
  component:
    type: state.redis
    version: v1
    metadata: [{name: redisHost, value: ADDRESS}, {name: redisPassword, valueFrom: {key: password}}]
  features: [crud, etag, ttl, query]
  source: {secretRef: {namespace: platform, name: right}}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: locked, labels: {line: locked}}
spec:
  kind: state
  component:
    type: state.redis
    version: v1
    metadata: [{name: redisHost, value: ADDRESS}, {name: redisPassword, valueFrom: {key: password}}]
  features: [crud]
  source: {secretRef: {namespace: platform, name: wrong}}
---
apiVersion: mecha.dev/v1alpha1
kind: EnvironmentClass
metadata: {name: development, labels: {type: development}}
spec:
  type: development
  capabilities:
  - {kind: state, names: [kept], backendSelector: {matchLabels: {line: honest}}}
  - {kind: state, names: [barred], backendSelector: {matchLabels: {line: locked}}}
  - {kind: state, backendSelector: {matchLabels: {line: boasting}}}
---
apiVersion: v1
kind: Namespace
metadata: {name: team-a}
---
apiVersion: mecha.dev/v1alpha1
kind: Environment
metadata: {name: dev, namespace: team-a}
spec: {classSelector: {matchLabels: {type: development}}}
";

fn claim(home: &str, name: &str, features: &str) -> String {
    format!(
        "apiVersion: mecha.dev/v1alpha1\nkind: CapabilityClaim\nmetadata: {{name: {name}, namespace: {home}}}\n\
         spec: {{kind: state, features: [{features}]}}\n---\n"
    )
}

/// Waits until a field of an object is as `fits` wants it, and returns it.
async fn field(server: &Kubernetes, object: &[&str], path: &str, fits: impl Fn(&str) -> bool) -> String {
    let format = format!("jsonpath={{{path}}}");
    let read = || server.kubectl_refused(&[&["get", "-o", &format], object].concat()).unwrap_or_default();
    let last = std::cell::RefCell::new(String::new());
    wait_until(PATIENCE, &format!("{path} of {object:?}"), async || {
        *last.borrow_mut() = read();
        fits(&last.borrow())
    })
    .await;
    last.into_inner()
}

const READY: &str = ".status.conditions[?(@.type==\"Ready\")]";

#[tokio::test(flavor = "multi_thread")]
async fn a_feature_that_is_claimed_and_not_there_is_found_on_the_real_server_and_nobody_is_given_it() {
    let Some(server) = Kubernetes::start() else { return };
    let Some(redis) = RedisOptions::new().password("canary-right").start() else { return };
    install(&server);
    let mut roles = ControlPart::none(None);
    roles.words(AGENT, vec![format!("--probe-program={}", mecha_tests::mechad().display())]);
    for role in [HUB, AGENT] {
        roles.launch(&server, role);
    }
    roles.ready().await;
    server.apply(&PLATFORM.replace("ADDRESS", &redis.address())).unwrap();

    let said = |name: &'static str, reason: &'static str| {
        let server = &server;
        async move {
            let object = ["capabilitybackend", name];
            field(server, &object, &format!("{READY}.reason"), |now| now == reason).await;
            let read =
                |path: &str| server.kubectl(&["get", "-o", &format!("jsonpath={{{path}}}"), object[0], object[1]]);
            (read(&format!("{READY}.message")), read(".status.verifiedFeatures"))
        }
    };
    let (honest, proven) = said("honest", "ProbePassed").await;
    assert_eq!(proven, json!(["crud", "etag", "transactional", "ttl"]).to_string(), "{honest}");
    let (boasting, proven) = said("boasting", "ProbePassed").await;
    assert_eq!(proven, json!(["crud", "etag", "ttl"]).to_string());
    assert!(boasting.contains("claimed and not proven: query (the component does not have it)"), "{boasting}");
    let (locked, proven) = said("locked", "ProbeFailed").await;
    assert!(proven.is_empty() && locked.contains("its probe failed") && !locked.contains("canary"), "{locked}");
    assert_eq!(redis.command(&["DBSIZE"]).trim(), "0", "a probe leaves nothing behind");

    let home =
        field(&server, &["-n", "team-a", "environment", "dev"], ".status.connectTo", |home| !home.is_empty()).await;
    wait_until(PATIENCE, "the environment's namespace", async || {
        server.kubectl_refused(&["get", "namespace", &home]).is_ok()
    })
    .await;
    let claims = [claim(&home, "kept", "ttl"), claim(&home, "asked", "query"), claim(&home, "barred", "crud")];
    server.apply(&claims.concat()).unwrap();
    for (name, phase, why) in [("kept", "Bound", ""), ("asked", "Pending", "query"), ("barred", "Pending", "NotReady")]
    {
        let object = ["-n", &home, "capabilityclaim", name];
        field(&server, &object, ".status.phase", |now| now == phase).await;
        field(&server, &object, ".status.explanation", |told| told.contains(why)).await;
    }
    let logs: String = [HUB, AGENT].map(|role| roles.log(role)).concat();
    assert!(!logs.contains("canary"), "{logs}");
}
