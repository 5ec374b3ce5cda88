use super::*;
use crate::Severity;

const EXAMPLES: &str = include_str!("testdata/kinds.yaml");

fn read(text: &str) -> Documents {
    let mut documents = Documents::default();
    documents.read_text("kinds.yaml", text);
    documents
}

#[test]
fn one_object_of_each_kind_is_read_whole() {
    let documents = read(EXAMPLES);
    assert_eq!(documents.diagnostics, []);
    let counts = [
        documents.clusters.len(),
        documents.classes.len(),
        documents.environments.len(),
        documents.backends.len(),
        documents.claims.len(),
        documents.placements.len(),
        documents.bindings.len(),
    ];
    assert_eq!(counts, [1; 7]);
    let claim = &documents.claims[0].value;
    assert_eq!(claim.key(), "team-a-dev-env-jp7j4/orders");
    let status = claim.status.as_ref().unwrap();
    assert_eq!(status.explanation.as_ref().unwrap().candidates.len(), 4);
    assert_eq!(
        documents.classes[0].value.spec.capabilities[1].swap.as_ref().unwrap().strategy,
        Some(SwapStrategy::Drain)
    );
    let parameters = &documents.environments[0].value.spec.parameters;
    assert_eq!(parameters["frontend"]["debug"], true);
}

#[test]
fn objects_survive_json() {
    fn again<S: KindSpec>(object: &Object<S>) {
        let text = serde_json::to_string(object).unwrap();
        assert_eq!(&serde_json::from_str::<Object<S>>(&text).unwrap(), object);
    }
    let documents = read(EXAMPLES);
    again(&documents.clusters[0].value);
    again(&documents.classes[0].value);
    again(&documents.environments[0].value);
    again(&documents.backends[0].value);
    again(&documents.claims[0].value);
    again(&documents.placements[0].value);
    again(&documents.bindings[0].value);
}

#[test]
fn a_mistake_is_named_with_its_place_and_the_way_out() {
    let claim =
        "apiVersion: mecha.dev/v1alpha1\nkind: CapabilityClaim\nmetadata: {name: orders}\nspec:\n  kind: state\n";
    let class = "apiVersion: mecha.dev/v1alpha1\nkind: EnvironmentClass\nmetadata: {name: dev}\nspec:\n  type: dev\n";
    let backend =
        "apiVersion: mecha.dev/v1alpha1\nkind: CapabilityBackend\nmetadata: {name: pg}\nspec:\n  kind: state\n";
    for (head, tail, wanted) in [
        (claim, "  featurse: [ttl]\n", "kinds.yaml:6:3: spec.featurse: unknown field; did you mean 'features'?"),
        (
            claim,
            "  features: [tll]\n",
            "6:13: spec.features: holds a feature that its kind does not have: 'tll' is none of",
        ),
        (claim, "  features: ttl\n", "6:13: spec.features: must be a list, found text"),
        (claim, "  hints: [{prefer: speed, weight: 3}]\n", "spec.hints[0].prefer: prefer must be one of latency"),
        (claim, "  hints: [{prefer: cost, weight: 0}]\n", "6:34: spec.hints[0].weight: must be from 1 to 100"),
        (claim, "  scopes: [1]\n", "6:12: spec.scopes[0]: must be text, found a number; put it in quotes"),
        (
            claim,
            "  constraints: [{attribute: a, operator: Gt, values: [x]}]\n",
            "spec.constraints[0]: In and NotIn need",
        ),
        (claim, "  constraints: [{attribute: a, operator: in}]\n", "did you mean 'In'?"),
        (claim, "status: {phase: Bond}\n", "status.phase: 'Bond' is none of Pending, Bound"),
        (class, "  isolation: vcluster\n", "6:14: spec.isolation: isolation vcluster and cluster are not built yet"),
        (class, "  failover: {mode: ActiveActive}\n", "spec.failover: failover is not built yet"),
        (
            class,
            "  capabilities:\n  - {kind: state, backendSelector: {}, swap: {strategy: DualWrite}}\n",
            "7:57: spec.capabilities[0].swap.strategy: strategies OnRestart and DualWrite are not built yet",
        ),
        (
            class,
            "  capabilities: [{kind: state}]\n",
            "spec.capabilities[0]: lacks 'backendSelector', which is required",
        ),
        (
            class,
            "  capabilities: [{kind: state, backendSelector: {}, swap: {deadline: 3}}]\n",
            "must be text, found a number",
        ),
        (
            class,
            "  capabilities: [{kind: state, backendSelector: {}, swap: {deadline: '3'}}]\n",
            "swap.deadline: '3' is not a duration such as 72h",
        ),
        (backend, "  component: {type: state.x}\n  source: {}\n", "7:11: spec.source: give exactly one of secretRef"),
        (
            backend,
            "  component: {type: pubsub.x}\n  source: {none: {}}\n",
            "6:21: spec.component.type: component.type does not",
        ),
    ] {
        let documents = read(&format!("{head}{tail}"));
        let found: Vec<_> = documents.diagnostics.iter().map(ToString::to_string).collect();
        assert!(found.iter().any(|f| f.contains(wanted)), "{tail}\nwanted {wanted}\nfound {found:#?}");
        assert!(documents.diagnostics.iter().all(|d| d.severity == Severity::Error));
        assert!(documents.claims.is_empty() && documents.classes.is_empty() && documents.backends.is_empty());
    }
}

#[test]
fn kinds_versions_and_names_are_checked() {
    for (text, wanted) in [
        ("apiVersion: mecha.dev/v1\nkind: Environment\n", "apiVersion: 'mecha.dev/v1' is not served"),
        ("apiVersion: mecha.dev/v1alpha1\nkind: Enviroment\n", "did you mean 'Environment'?"),
        (
            "apiVersion: mecha.dev/v1alpha1\nkind: Environment\nmetadata: {name: A_b}\nspec: {className: x}\n",
            "metadata.name: 'A_b' is no valid name",
        ),
        (
            "apiVersion: mecha.dev/v1alpha1\nkind: EnvironmentClass\nmetadata: {name: a, namespace: b}\nspec: {type: x}\n",
            "EnvironmentClass is cluster-wide",
        ),
        (
            "apiVersion: mecha.dev/v1alpha1\nkind: Environment\nmetadata: {name: a}\nspec: {className: x, classSelector: {}}\n",
            "spec: give exactly one of className",
        ),
    ] {
        let found: Vec<_> = read(text).diagnostics.iter().map(ToString::to_string).collect();
        assert!(found.len() == 1 && found[0].contains(wanted), "wanted {wanted}, found {found:#?}");
    }
    let twice = format!("{EXAMPLES}\n---\n{EXAMPLES}");
    assert_eq!(read(&twice).diagnostics.len(), 7, "each object is defined twice");
}

#[test]
fn documents_of_others_are_left_alone() {
    let documents =
        read("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {uri: hunter2}\n---\nfoo: 1\n");
    assert_eq!(documents.diagnostics, []);
    assert_eq!(documents.others[0].value.kind, "Secret");
    assert!(!format!("{:?}", documents.others).contains("hunter2"));
}

#[test]
fn what_is_fixed_cannot_change() {
    let documents = read(EXAMPLES);
    let before = &documents.bindings[0].value.spec;
    let older = CapabilityBindingSpec { revision: 6, leader_epoch: 11, ..before.clone() };
    let found: Vec<_> = older.check_change(before).into_iter().map(|p| p.path).collect();
    assert_eq!(found, ["spec.revision", "spec.leaderEpoch"]);
    assert_eq!(before.check_change(&older), []);
    let backend = &documents.backends[0].value.spec;
    let mut other = backend.clone();
    other.component.kind = "state.redis".to_owned();
    assert_eq!(other.check_change(backend)[0].path, "spec.component.type");
}

#[test]
fn selectors_select_as_kubernetes_does() {
    let labels = [("a".to_owned(), "1".to_owned())].into();
    let read = |text: &str| serde_json::from_str::<LabelSelector>(text).unwrap();
    for (selector, matches) in [
        ("{}", true),
        (r#"{"matchLabels":{"a":"1"}}"#, true),
        (r#"{"matchLabels":{"b":"1"}}"#, false),
        (r#"{"matchExpressions":[{"key":"b","operator":"NotIn","values":["1"]}]}"#, true),
        (r#"{"matchExpressions":[{"key":"a","operator":"In","values":["2"]}]}"#, false),
        (r#"{"matchExpressions":[{"key":"a","operator":"Exists"}]}"#, true),
        (r#"{"matchExpressions":[{"key":"a","operator":"DoesNotExist"}]}"#, false),
    ] {
        assert_eq!(read(selector).matches(&labels), matches, "{selector}");
    }
}

#[cfg(feature = "crd")]
mod crds {
    use super::*;
    use serde_json::{Value, json};

    /// Every place in a schema.
    fn walk(path: &str, schema: &Value, visit: &mut dyn FnMut(&str, &Value)) {
        visit(path, schema);
        if let Some(properties) = schema["properties"].as_object() {
            for (name, inner) in properties {
                walk(&format!("{path}.{name}"), inner, visit);
            }
        }
        for key in ["items", "additionalProperties"] {
            if schema[key].is_object() {
                walk(&format!("{path}[]"), &schema[key], visit);
            }
        }
    }

    #[test]
    fn schemas_are_structural() {
        let definitions = crd::definitions();
        assert_eq!(definitions.len(), 7);
        for (name, definition) in definitions {
            let version = &definition["spec"]["versions"][0];
            assert_eq!(version["subresources"], json!({"status": {}}), "{name}");
            assert_eq!(definition["spec"]["names"]["categories"], json!(["mecha"]));
            walk("", &version["schema"]["openAPIV3Schema"], &mut |path, schema| {
                let preserved = schema["x-kubernetes-preserve-unknown-fields"] == true;
                assert!(schema["type"].is_string() || preserved, "{name}{path}: {schema}");
                for key in ["$ref", "oneOf", "anyOf", "allOf", "default", "title", "$defs", "const"] {
                    assert!(schema.get(key).is_none(), "{name}{path} has {key}");
                }
                for key in schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten() {
                    let required = schema["items"]["required"].as_array();
                    assert!(required.is_some_and(|r| r.contains(key)), "{name}{path}: the key {key} must be required");
                }
                if path.starts_with(".spec") && schema["type"] == "array" {
                    assert!(schema["maxItems"].is_number(), "{name}{path}");
                }
            });
        }
    }

    #[test]
    fn environments_print_what_the_book_prints() {
        let definitions = crd::definitions();
        let (_, environment) = definitions.iter().find(|(name, _)| name == "environments.mecha.dev").unwrap();
        let columns = environment["spec"]["versions"][0]["additionalPrinterColumns"].as_array().unwrap();
        let shown = |wide: bool| -> Vec<_> {
            let filter = columns.iter().filter(|c| wide || c.get("priority").is_none());
            filter.map(|c| c["name"].as_str().unwrap()).collect()
        };
        assert_eq!(shown(false), ["CONNECT-TO", "TYPE", "INFRA", "READY"]);
        assert_eq!(shown(true), ["CONNECT-TO", "TYPE", "INFRA", "READY", "ISOLATION", "CLUSTERS", "AGE"]);
    }

    #[test]
    fn a_claim_is_a_provisioned_service() {
        let definitions = crd::definitions();
        let (_, claim) = definitions.iter().find(|(name, _)| name == "capabilityclaims.mecha.dev").unwrap();
        assert_eq!(claim["metadata"]["labels"]["servicebinding.io/provisioned-service"], "true");
    }

    /// Values of a rule's place in an object: `spec.capabilities[]` names several.
    fn places<'v>(root: &'v Value, path: &str) -> Vec<&'v Value> {
        let mut found = vec![root];
        for step in path.split('.') {
            let name = step.trim_end_matches("[]");
            found = found.into_iter().filter_map(|v| v.get(name)).collect();
            if step.ends_with("[]") {
                found = found.into_iter().filter_map(Value::as_array).flatten().collect();
            }
        }
        found
    }

    /// Messages of the CEL rules that `object` breaks, as the API server would evaluate them.
    fn broken(kind: &str, object: &Value, before: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        for rule in crd::rules(kind) {
            let program = cel::Program::compile(&rule.rule).unwrap_or_else(|e| panic!("{}: {e}", rule.rule));
            let transition = rule.rule.contains("oldSelf");
            let old: Vec<_> = before.map(|b| places(b, rule.path)).unwrap_or_default();
            for (i, value) in places(object, rule.path).into_iter().enumerate() {
                let mut context = cel::Context::default();
                context.add_variable("self", value).unwrap();
                if transition {
                    let Some(old) = old.get(i) else { continue };
                    context.add_variable("oldSelf", *old).unwrap();
                }
                match program.execute(&context) {
                    Ok(cel::Value::Bool(true)) => {}
                    Ok(cel::Value::Bool(false)) => out.push(rule.message.to_owned()),
                    other => panic!("{} on {value}: {other:?}", rule.rule),
                }
            }
        }
        out
    }

    /// What the Rust rules say, cut to what CEL says: CEL cannot name the value.
    fn same_as_rust<S: KindSpec>(spec: Value, before: Option<Value>) {
        let read = |value: &Value| serde_json::from_value::<S>(value.clone()).unwrap();
        let rust = match &before {
            None => read(&spec).check(),
            Some(before) => [read(&spec).check(), read(&spec).check_change(&read(before))].concat(),
        };
        let object = json!({"spec": spec});
        let cel = broken(S::KIND, &object, before.map(|b| json!({"spec": b})).as_ref());
        for message in &cel {
            assert!(
                rust.iter().any(|p| p.message.starts_with(message.as_str())),
                "CEL says {message}, Rust {rust:?}: {object}"
            );
        }
        for problem in &rust {
            let known = cel.iter().any(|m| problem.message.starts_with(m.as_str()));
            let by_schema = problem.message.starts_with("must ") || problem.message.starts_with("is given twice");
            assert!(known || by_schema, "Rust says {problem}, CEL {cel:?}: {object}");
        }
    }

    #[test]
    fn cel_and_files_are_judged_alike() {
        let documents = read(EXAMPLES);
        let spec = |value: Value| value["spec"].clone();
        let backend = spec(serde_json::to_value(&documents.backends[0].value).unwrap());
        let class = spec(serde_json::to_value(&documents.classes[0].value).unwrap());
        let claim = spec(serde_json::to_value(&documents.claims[0].value).unwrap());
        let placement = spec(serde_json::to_value(&documents.placements[0].value).unwrap());
        let binding = spec(serde_json::to_value(&documents.bindings[0].value).unwrap());
        let with = |base: &Value, pointer: &str, value: Value| {
            let mut out = base.clone();
            match out.pointer_mut(pointer) {
                Some(place) => *place = value,
                None => out[pointer.trim_start_matches('/')] = value,
            }
            out
        };
        for source in [json!({}), json!({"none": {}}), json!({"none": {}, "secretRef": {"name": "x"}})] {
            same_as_rust::<CapabilityBackendSpec>(with(&backend, "/source", source), None);
        }
        for (pointer, value) in [
            ("/component/type", json!("pubsub.kafka")),
            ("/kind", json!("lock")),
            ("/credentialDelivery", json!("Sealed")),
            ("/features", json!(["nothing"])),
            ("/component/metadata", json!([{"name": "a"}])),
            ("/component/metadata", json!([{"name": "a", "value": "b", "valueFrom": {"key": "c"}}])),
        ] {
            let changed = with(&backend, pointer, value);
            same_as_rust::<CapabilityBackendSpec>(changed.clone(), None);
            same_as_rust::<CapabilityBackendSpec>(changed, Some(backend.clone()));
        }
        for (pointer, value) in [
            ("/isolation", json!("vcluster")),
            ("/isolationTemplate", json!({"manifest": {}})),
            ("/capabilities/0/swap", json!({"retainOld": "72h"})),
            ("/capabilities/0/swap", json!({"maxParallelClusters": 1})),
            ("/failover", json!({"mode": "ActiveActive"})),
            ("/capabilities/0/swap/strategy", json!("DualWrite")),
            ("/capabilities/0/swap/strategy", json!("OnRestart")),
            ("/capabilities/0/swap/strategy", json!("Drain")),
            ("/capabilities/0/require", json!(["ordered"])),
            ("/capabilities/1/require", json!(["ordered"])),
        ] {
            same_as_rust::<EnvironmentClassSpec>(with(&class, pointer, value), None);
        }
        for operator in ["In", "NotIn", "Gt", "Lt", "Exists", "DoesNotExist"] {
            for values in [
                json!([]),
                json!(["1"]),
                json!(["x"]),
                json!(["1", "2"]),
                json!(["-12"]),
                json!(["1234567890123456789"]),
            ] {
                let constraints = json!([{"attribute": "a", "operator": operator, "values": values}]);
                same_as_rust::<CapabilityClaimSpec>(with(&claim, "/constraints", constraints.clone()), None);
                same_as_rust::<AppPlacementSpec>(with(&placement, "/constraints", constraints), None);
            }
        }
        for prefer in ["latency", "balance", "outside/", "outside/x", "nothing"] {
            let hints = json!([{"prefer": prefer, "weight": 1}]);
            same_as_rust::<CapabilityClaimSpec>(with(&claim, "/hints", hints.clone()), None);
            same_as_rust::<AppPlacementSpec>(with(&placement, "/hints", hints), None);
        }
        same_as_rust::<CapabilityClaimSpec>(with(&claim, "/kind", json!("lock")), Some(claim.clone()));
        same_as_rust::<CapabilityClaimSpec>(with(&claim, "/reclaimPolicy", json!("Delete")), None);
        let origin = json!({"apiVersion": "v1", "kind": "ClusterProfile", "name": "eu-1"});
        for spec in [json!({}), json!({"zones": []}), json!({"zones": ["a"]}), json!({"origin": origin})] {
            same_as_rust::<MemberClusterSpec>(spec, None);
        }
        let hard = json!({"key": "region", "minGroups": 2, "whenUnsatisfiable": "DoNotSchedule"});
        for (pointer, value) in [
            ("/clusters", json!({"min": 3, "max": 2})),
            ("/spread", json!([hard, hard])),
            ("/spread", json!([{"key": "region", "minGroups": 9, "whenUnsatisfiable": "ScheduleAnyway"}])),
            ("/failover", json!({"mode": "Burst"})),
        ] {
            same_as_rust::<AppPlacementSpec>(with(&placement, pointer, value), None);
        }
        same_as_rust::<AppPlacementSpec>(with(&placement, "/appId", json!("x")), Some(placement.clone()));
        for (pointer, value) in
            [("/revision", json!(6)), ("/revision", json!(8)), ("/leaderEpoch", json!(11)), ("/cluster", json!("us-1"))]
        {
            same_as_rust::<CapabilityBindingSpec>(with(&binding, pointer, value), Some(binding.clone()));
        }
        for (field, value) in [
            ("swap/strategy", json!("DualWrite")),
            ("role", json!("Standby")),
            ("access", json!("ReadOnly")),
            ("fencingEpoch", json!(1)),
        ] {
            same_as_rust::<CapabilityBindingSpec>(with(&binding, &format!("/entries/0/{field}"), value), None);
        }
        for given in 0..8u8 {
            let mut spec = json!({});
            for (bit, (name, value)) in
                [("className", json!("a")), ("classSelector", json!({})), ("compositionSelector", json!({}))]
                    .into_iter()
                    .enumerate()
            {
                if given & (1 << bit) != 0 {
                    spec[name] = value;
                }
            }
            same_as_rust::<EnvironmentSpec>(spec, None);
        }
    }
}
