//! Definitions for other systems: what their users write becomes what one writes by hand. Their controllers are not run;
//! the real evaluator of CUE does what KubeVela does with a TraitDefinition, and the pipeline of the Promise is run as
//! Kratix runs it.

use std::path::Path;
use std::process::Command;

use mecha_testkit::servers::{Kubernetes, absent};
use serde_json::{Value, json};

use crate::install::install;

const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/control/exports");
/// Names the folder with the evaluator of CUE.
const CUE: &str = "MECHA_CUE";

/// What of KubeVela's definition the exported objects use, and the kind that its users write; the server refuses other
/// fields of the first.
const TRAIT_DEFINITIONS: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: applications.core.oam.dev}
spec:
  group: core.oam.dev
  scope: Namespaced
  names: {kind: Application, plural: applications}
  versions:
  - name: v1beta1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: traitdefinitions.core.oam.dev}
spec:
  group: core.oam.dev
  scope: Namespaced
  names: {kind: TraitDefinition, plural: traitdefinitions}
  versions:
  - name: v1beta1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              appliesToWorkloads: {type: array, items: {type: string}}
              controlPlaneOnly: {type: boolean}
              podDisruptive: {type: boolean}
              schematic:
                type: object
                properties:
                  cue: {type: object, required: [template], properties: {template: {type: string}}}
              status:
                type: object
                properties: {customStatus: {type: string}, healthPolicy: {type: string}}
"#;

/// What of Kratix's definition the exported object uses.
const PROMISES: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: promises.platform.kratix.io}
spec:
  group: platform.kratix.io
  scope: Cluster
  names: {kind: Promise, plural: promises}
  versions:
  - name: v1alpha1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              api: {type: object, x-kubernetes-embedded-resource: true, x-kubernetes-preserve-unknown-fields: true}
              dependencies: {type: array, items: {type: object, x-kubernetes-preserve-unknown-fields: true}}
              destinationSelectors:
                type: array
                items:
                  type: object
                  properties: {matchLabels: {type: object, additionalProperties: {type: string}}}
              workflows:
                type: object
                properties:
                  promise: &workflow
                    type: object
                    properties:
                      configure: {type: array, items: {type: object}, x-kubernetes-preserve-unknown-fields: true}
                      delete: {type: array, items: {type: object}, x-kubernetes-preserve-unknown-fields: true}
                  resource: *workflow
"#;

/// A server with our kinds and with definitions of others.
fn server(definitions: &str) -> Option<Kubernetes> {
    let server = Kubernetes::start()?;
    install(&server);
    server.apply(definitions).unwrap();
    server.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"]);
    server.kubectl(&["create", "namespace", "team-a"]);
    Some(server)
}

fn mecha(args: &[&str]) -> String {
    let output = Command::new(mecha_tests::mecha()).args(args).output().unwrap();
    assert!(output.status.success(), "mecha {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn file(name: &str) -> String {
    std::fs::read_to_string(format!("{FILES}/{name}")).unwrap()
}

/// The documents of a text, as the server's own reader understands them, which changes nothing.
fn documents(server: &Kubernetes, text: &str) -> Vec<Value> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let path = file.path().to_string_lossy();
    let json = server.kubectl(&["create", "--dry-run=client", "--validate=false", "-o", "json", "-f", &path]);
    serde_json::Deserializer::from_str(&json)
        .into_iter::<Value>()
        .flat_map(|document| match document.unwrap() {
            Value::Object(list) if list.contains_key("items") => list["items"].as_array().unwrap().clone(),
            one => vec![one],
        })
        .collect()
}

/// The value at `path` of a definition's CUE, as KubeVela evaluates it for a component; what the evaluator said against
/// it.
fn evaluated(cue: &str, path: &str, context: &Value, properties: &Value) -> Option<Result<Value, String>> {
    let Some(folder) = std::env::var_os(CUE) else {
        absent("cue", "bash tests/control/cue/build.sh");
        return None;
    };
    let template = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(template.path(), cue).unwrap();
    let output = Command::new(Path::new(&folder).join("cue"))
        .arg(template.path())
        .args([path, &context.to_string(), &properties.to_string()])
        .output()
        .unwrap();
    Some(match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    })
}

fn definition(server: &Kubernetes, name: &str) -> Value {
    let text = server.kubectl(&["-n", "team-a", "get", "traitdefinition", name, "-o", "json"]);
    serde_json::from_str(&text).unwrap()
}

#[test]
fn traits_of_an_application_are_byte_for_byte_the_claim_and_the_placement_that_one_writes_by_hand() {
    let Some(server) = server(TRAIT_DEFINITIONS) else { return };
    // A developer who may write these two kinds and nothing else.
    server
        .apply(
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: needs, namespace: team-a}\nrules:\n\
             - {apiGroups: [mecha.dev], resources: [capabilityclaims, appplacements], verbs: [get, create, patch]}\n",
        )
        .unwrap();
    server.kubectl(&["-n", "team-a", "create", "rolebinding", "dana", "--role=needs", "--user=dana"]);

    let made = mecha(&["import", "oam", &format!("{FILES}/application.yaml")]);
    assert_eq!(made, file("by-hand.yaml"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made.yaml").to_string_lossy().into_owned();
    std::fs::write(&path, &made).unwrap();
    server.kubectl(&["apply", "--as=dana", "--server-side", "-f", &path]);
    let backend = "apiVersion: mecha.dev/v1alpha1\nkind: CapabilityBackend\nmetadata: {name: own}\n\
                   spec: {kind: state, component: {type: state.redis}, source: {none: {}}}\n";
    std::fs::write(&path, backend).unwrap();
    let refused = server.kubectl_refused(&["create", "--as=dana", "-f", &path]).unwrap_err();
    assert!(refused.contains("(Forbidden)") && refused.contains("capabilitybackends"), "{refused}");
    server.kubectl(&["create", "-f", &path]);

    // KubeVela makes the same of the exported definitions.
    std::fs::write(&path, mecha(&["export", "oam"])).unwrap();
    server.kubectl(&["-n", "team-a", "apply", "--server-side", "--validate=strict", "-f", &path]);
    let by_hand = documents(&server, &file("by-hand.yaml"));
    let application = &documents(&server, &file("application.yaml"))[0];
    let component = &application["spec"]["components"][0];
    let context = json!({"name": component["name"], "namespace": application["metadata"]["namespace"]});
    let ours = component["traits"].as_array().unwrap()[1..].iter();
    let mut compared = 0;
    for (asked, wanted) in ours.zip(&by_hand) {
        let definition = definition(&server, asked["type"].as_str().unwrap());
        let template = definition["spec"]["schematic"]["cue"]["template"].as_str().unwrap();
        let Some(outputs) = evaluated(template, "outputs", &context, &asked["properties"]) else { return };
        let outputs = outputs.unwrap();
        let (label, made) = outputs.as_object().unwrap().iter().next().unwrap();
        assert_eq!(made.to_string(), wanted.to_string(), "{} by KubeVela's way", asked["type"]);
        compared += 1;

        let mut misspelt = asked["properties"].clone();
        misspelt["constriants"] = json!([]);
        let refused = evaluated(template, "outputs", &context, &misspelt).unwrap().unwrap_err();
        assert!(refused.contains("constriants"), "{refused}");

        // Its health is that of the object.
        let policy = definition["spec"]["status"]["healthPolicy"].as_str().unwrap();
        let healthy = |status: Value| {
            let context = json!({"outputs": {label: {"status": status}}});
            evaluated(policy, "isHealth", &context, &json!({})).unwrap().unwrap()
        };
        let aspect = if wanted["kind"] == "AppPlacement" { "Satisfied" } else { "Ready" };
        let conditions = |status: &str| json!({"conditions": [{"type": "Other", "status": "True"}, {"type": aspect, "status": status}]});
        assert_eq!(
            (healthy(json!({})), healthy(conditions("False")), healthy(conditions("True"))),
            (json!(false), json!(false), json!(true))
        );
    }
    assert_eq!(compared, 3);
}

#[test]
fn a_request_of_the_exported_promise_becomes_the_claim_that_one_writes_by_hand() {
    let Some(server) = server(PROMISES) else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    std::fs::write(path("promise.yaml"), mecha(&["export", "kratix", "--image", "registry.example.org/mecha:1"]))
        .unwrap();
    server.kubectl(&["apply", "--server-side", "--validate=strict", "-f", &path("promise.yaml")]);
    let promise = server.kubectl(&["get", "promise", "mecha-capability", "-o", "json"]);
    let promise: Value = serde_json::from_str(&promise).unwrap();

    // Kratix serves the Promise's API, and gives each request to the pipeline.
    server.apply(&promise["spec"]["api"].to_string()).unwrap();
    server.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "capabilities.kratix.mecha.dev"]);
    let request = file("request.yaml");
    let refused = server.apply(&request.replace("kind: state", "kind: tables")).unwrap_err();
    assert!(refused.contains("spec.kind"), "{refused}");
    server.apply(&request).unwrap();
    std::fs::create_dir_all(path("kratix/input")).unwrap();
    std::fs::create_dir_all(path("kratix/output")).unwrap();
    let object = server.kubectl(&["get", "capabilities.kratix.mecha.dev", "orders", "-o", "yaml"]);
    std::fs::write(path("kratix/input/object.yaml"), object).unwrap();

    let pipeline = &promise["spec"]["workflows"]["resource"]["configure"][0];
    assert_eq!(
        (&pipeline["apiVersion"], &pipeline["kind"]),
        (&json!("platform.kratix.io/v1alpha1"), &json!("Pipeline"))
    );
    let container = &pipeline["spec"]["containers"][0];
    assert_eq!(
        (&container["image"], &container["command"]),
        (&json!("registry.example.org/mecha:1"), &json!(["/mecha"]))
    );
    let here = |arg: &Value| arg.as_str().unwrap().replace("/kratix/", &path("kratix/"));
    let args: Vec<String> = container["args"].as_array().unwrap().iter().map(here).collect();
    assert_eq!(mecha(&args.iter().map(String::as_str).collect::<Vec<_>>()), "");

    let made = std::fs::read_to_string(path("kratix/output/claim.yaml")).unwrap();
    assert_eq!(made, file("requested-by-hand.yaml"));
    server.apply(&made).unwrap();
}
