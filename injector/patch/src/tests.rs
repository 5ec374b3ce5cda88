use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A pod of a Deployment, as the API server sends it for admission.
fn pod(annotations: Value) -> Value {
    json!({
        "metadata": {
            "generateName": "orders-7d4b9c-",
            "labels": {"app": "orders", "pod-template-hash": "7d4b9c"},
            "annotations": annotations,
            "ownerReferences": [{"kind": "ReplicaSet", "name": "orders-7d4b9c", "controller": true}],
        },
        "spec": {"containers": [{"name": "app", "image": "orders:1", "ports": [{"containerPort": 8080}]}]},
    })
}

fn enabled(more: &[(&str, &str)]) -> Value {
    let mut annotations = json!({"dapr.io/enabled": "true"});
    for (key, value) in more {
        annotations[*key] = json!(value);
    }
    pod(annotations)
}

/// RFC 6902, as far as patches of this crate go.
fn apply(pod: &Value, patch: &[Op]) -> Value {
    let mut doc = pod.clone();
    for op in patch {
        let (parent, last) = op.path.rsplit_once('/').unwrap();
        let last = last.replace("~1", "/").replace("~0", "~");
        match (doc.pointer_mut(parent).unwrap_or_else(|| panic!("no {parent}")), op.op) {
            (Value::Object(map), Operation::Add) => {
                map.insert(last, op.value.clone().unwrap());
            }
            (Value::Array(list), Operation::Add) => list.insert(last.parse().unwrap(), op.value.clone().unwrap()),
            (Value::Array(list), Operation::Remove) => {
                list.remove(last.parse().unwrap());
            }
            (other, _) => panic!("{parent} is {other}"),
        }
    }
    doc
}

fn injected(pod: &Value, config: &Config) -> Value {
    let injection = inject(pod, "shop", config).unwrap();
    let done = apply(pod, &injection.patch);
    assert_eq!(done, injection.pod);
    assert_eq!(inject(&done, "shop", config).unwrap().patch, [], "a second time changes nothing");
    done
}

fn sidecar(pod: &Value) -> &Value {
    let lists = [&pod["spec"]["initContainers"], &pod["spec"]["containers"]];
    lists.into_iter().filter_map(Value::as_array).flatten().find(|c| c["name"] == CONTAINER).unwrap()
}

/// The value behind a flag.
fn flag<'a>(sidecar: &'a Value, name: &str) -> Option<&'a str> {
    let args = sidecar["args"].as_array().unwrap();
    let at = args.iter().position(|arg| arg == &json!(format!("--{name}")))?;
    args.get(at + 1)?.as_str()
}

fn has_switch(sidecar: &Value, name: &str) -> bool {
    sidecar["args"].as_array().unwrap().contains(&json!(format!("--{name}")))
}

fn variable<'a>(container: &'a Value, name: &str) -> &'a Value {
    container["env"].as_array().unwrap().iter().find(|v| v["name"] == name).unwrap_or(&Value::Null)
}

fn denied(pod: &Value) -> String {
    inject(pod, "shop", &Config::default()).unwrap_err().to_string()
}

#[test]
fn a_pod_that_does_not_ask_is_left_alone() {
    for pod in [json!({}), pod(json!({})), pod(json!({"dapr.io/enabled": "false", "dapr.io/app-port": "x"}))] {
        let injection = inject(&pod, "shop", &Config::default()).unwrap();
        assert_eq!((injection.patch, injection.pod, injection.opted_in), (vec![], pod, false));
    }
}

#[test]
fn the_pod_of_a_deployment_gets_a_native_sidecar() {
    let done = injected(&enabled(&[("dapr.io/app-port", "8080")]), &Config::default());
    let sidecar = &done["spec"]["initContainers"][0];
    assert_eq!(sidecar["name"], "daprd");
    assert_eq!(sidecar["restartPolicy"], "Always");
    assert_eq!(sidecar["startupProbe"]["tcpSocket"]["port"], 3501);
    assert_eq!(sidecar["readinessProbe"]["httpGet"], json!({"path": "/v1.0/healthz", "port": 3501}));
    assert_eq!(sidecar["livenessProbe"]["initialDelaySeconds"], 180);
    assert_eq!(flag(sidecar, "app-id"), Some("orders"));
    assert_eq!(flag(sidecar, "app-port"), Some("8080"));
    assert_eq!(flag(sidecar, "mode"), Some("kubernetes"));
    assert!(has_switch(sidecar, "mecha-strict"));
    assert_eq!(variable(sidecar, "NAMESPACE")["value"], "shop");
    assert_eq!(done["metadata"]["labels"]["dapr.io/app-id"], "orders");
    assert_eq!(done["metadata"]["labels"]["dapr.io/sidecar-injected"], "true");
    let app = &done["spec"]["containers"][0];
    assert_eq!(variable(app, "DAPR_HTTP_PORT")["value"], "3500");
    assert_eq!(variable(app, "DAPR_GRPC_PORT")["value"], "50001");
    assert_eq!(variable(app, "APP_PROTOCOL")["value"], "http");
}

#[test]
fn older_clusters_and_who_asks_for_it_get_an_ordinary_container() {
    let old = Config { kubernetes_minor: 28, ..Config::default() };
    let asked = enabled(&[("dapr.io/enable-native-sidecar", "false")]);
    for (pod, config) in [(&enabled(&[]), &old), (&asked, &Config::default())] {
        let done = injected(pod, config);
        assert_eq!(done["spec"]["containers"][1]["name"], "daprd");
        assert_eq!(done["spec"]["containers"][1]["restartPolicy"], Value::Null);
        assert_eq!(done["spec"]["initContainers"], Value::Null);
    }
    let wanted = enabled(&[("dapr.io/enable-native-sidecar", "true")]);
    assert!(inject(&wanted, "shop", &old).unwrap_err().to_string().contains("1.28"));
}

#[test]
fn pod_security_restricted_is_met() {
    let done = injected(&enabled(&[]), &Config::default());
    let security = &sidecar(&done)["securityContext"];
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(security["runAsNonRoot"], true);
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
    // And no kind of volume that it refuses.
    for volume in done["spec"]["volumes"].as_array().unwrap() {
        let mut kinds = volume.as_object().unwrap().keys().filter(|key| *key != "name");
        assert!(kinds.all(|kind| ["projected", "emptyDir", "configMap"].contains(&kind.as_str())), "{volume}");
    }
}

#[test]
fn the_sidecar_comes_behind_the_mesh_and_before_everything_else() {
    let mut pod = enabled(&[]);
    pod["spec"]["initContainers"] = json!([
        {"name": "istio-init"}, {"name": "istio-proxy", "restartPolicy": "Always"}, {"name": "migrate"},
    ]);
    let done = injected(&pod, &Config::default());
    let names = |pod: &Value| -> Vec<String> {
        let list = pod["spec"]["initContainers"].as_array().unwrap();
        list.iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&done), ["istio-init", "istio-proxy", "daprd", "migrate"]);
    assert_eq!(variable(&done["spec"]["initContainers"][3], "DAPR_HTTP_PORT")["value"], "3500");
    assert_eq!(done["spec"]["initContainers"][1]["env"], Value::Null, "the mesh's own is left alone");

    // The mesh's webhook came second and appended.
    let mut late = injected(&enabled(&[]), &Config::default());
    late["spec"]["initContainers"].as_array_mut().unwrap().push(json!({"name": "linkerd-proxy"}));
    assert_eq!(names(&injected(&late, &Config::default())), ["linkerd-proxy", "daprd"]);
}

#[test]
fn a_container_that_another_webhook_added_later_gets_its_variables() {
    let mut pod = injected(&enabled(&[("dapr.io/http-port", "3600")]), &Config::default());
    pod["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "late"}));
    let done = injected(&pod, &Config::default());
    assert_eq!(variable(&done["spec"]["containers"][1], "DAPR_HTTP_PORT")["value"], "3600");
    assert_eq!(done["spec"]["initContainers"].as_array().unwrap().len(), 1);
}

#[test]
fn what_the_author_of_the_pod_set_stays() {
    let mut pod = enabled(&[]);
    pod["spec"]["containers"][0]["env"] = json!([{"name": "DAPR_HTTP_PORT", "value": "1"}]);
    let done = injected(&pod, &Config::default());
    assert_eq!(variable(&done["spec"]["containers"][0], "DAPR_HTTP_PORT")["value"], "1");
}

#[test]
fn our_annotations_win_over_daprs() {
    let done = injected(
        &enabled(&[("dapr.io/app-id", "a"), ("mecha.dev/app-id", "b"), ("dapr.io/log-level", "debug")]),
        &Config::default(),
    );
    assert_eq!(flag(sidecar(&done), "app-id"), Some("b"));
    assert_eq!(flag(sidecar(&done), "log-level"), Some("debug"));
}

#[test]
fn every_wrong_annotation_is_named_at_once() {
    let text = denied(&enabled(&[
        ("dapr.io/app-port", "http"),
        ("dapr.io/app-protocol", "soap"),
        ("dapr.io/enable-metrics", "perhaps"),
        ("dapr.io/sidecar-memory-limit", "64MB"),
        ("dapr.io/app-id", "Orders"),
        ("dapr.io/graceful-shutdown-seconds", "soon"),
        ("dapr.io/env", "1A=b"),
        ("dapr.io/volume-mounts", "data"),
        ("mecha.dev/ring", "canary"),
    ]));
    for key in [
        "dapr.io/app-port",
        "dapr.io/app-protocol",
        "dapr.io/enable-metrics",
        "dapr.io/sidecar-memory-limit",
        "dapr.io/app-id",
        "dapr.io/graceful-shutdown-seconds",
        "dapr.io/env",
        "dapr.io/volume-mounts",
        "mecha.dev/ring",
    ] {
        assert!(text.contains(key), "{key} is missing in: {text}");
    }
    assert!(denied(&pod(json!({"dapr.io/enabled": "ja"}))).contains("dapr.io/enabled"));
}

#[test]
fn what_cannot_work_is_refused_with_the_field() {
    let mut host = enabled(&[]);
    host["spec"]["hostNetwork"] = json!(true);
    assert!(denied(&host).contains("spec.hostNetwork"));
    host["metadata"]["annotations"]["mecha.dev/allow-host-network"] = json!("true");
    injected(&host, &Config::default());

    let mut port = enabled(&[]);
    port["spec"]["containers"][0]["ports"] = json!([{"containerPort": 3500}]);
    assert!(denied(&port).contains("containers[app].ports"));
    port["metadata"]["annotations"]["dapr.io/http-port"] = json!("3600");
    injected(&port, &Config::default());

    assert!(denied(&enabled(&[("dapr.io/app-port", "50001")])).contains("dapr.io/app-port"));
    assert!(denied(&enabled(&[("dapr.io/metrics-port", "3500")])).contains("port 3500"));

    let mut taken = enabled(&[]);
    taken["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "daprd"}));
    assert!(denied(&taken).contains("daprd"));
}

#[test]
fn names_and_paths_that_two_want_are_refused() {
    for (name, theirs) in [
        ("dapr-identity-token", json!({"emptyDir": {}})),
        ("mecha-trust-bundle", json!({"configMap": {"name": "another"}})),
        ("mecha-snapshot", json!({"hostPath": {"path": "/"}})),
    ] {
        let mut pod = enabled(&[]);
        let mut volume = theirs;
        volume["name"] = json!(name);
        pod["spec"]["volumes"] = json!([volume]);
        assert!(denied(&pod).contains(&format!("volumes[{name}]")), "{}", denied(&pod));
    }
    // As `mecha inject` leaves them for the webhook, with what the API server fills in.
    let mut pod = injected(&enabled(&[]), &Config::default());
    pod["spec"]["volumes"][2]["configMap"]["defaultMode"] = json!(420);
    let other = Config { token_audience: "other".to_owned(), ..Config::default() };
    assert_eq!(inject(&pod, "shop", &other).unwrap().patch, []);

    let mut mounts = enabled(&[("dapr.io/volume-mounts", "data:/var/run/mecha/snapshot")]);
    mounts["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    assert!(denied(&mounts).contains("annotation dapr.io/volume-mounts"), "{}", denied(&mounts));
    mounts["metadata"]["annotations"]["dapr.io/volume-mounts"] = json!("data:/a");
    mounts["metadata"]["annotations"]["dapr.io/volume-mounts-rw"] = json!("data:/a");
    assert!(denied(&mounts).contains("annotation dapr.io/volume-mounts-rw"), "{}", denied(&mounts));
    assert!(denied(&enabled(&[("dapr.io/volume-mounts", "data:/a:ro")])).contains("'data:/a:ro'"));

    let mut sockets = enabled(&[("dapr.io/unix-domain-socket-path", "/tmp")]);
    sockets["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "scratch", "mountPath": "/tmp"}]);
    assert!(denied(&sockets).contains("containers[app].volumeMounts"), "{}", denied(&sockets));
}

#[test]
fn a_pod_for_another_system_is_refused() {
    for (path, value, field) in [
        ("nodeSelector", json!({"kubernetes.io/os": "windows"}), "spec.nodeSelector"),
        ("os", json!({"name": "windows"}), "spec.os"),
    ] {
        let mut pod = enabled(&[]);
        pod["spec"][path] = value;
        assert!(denied(&pod).contains(field));
    }
    let mut pod = enabled(&[]);
    pod["spec"]["nodeSelector"] = json!({"kubernetes.io/os": "linux"});
    injected(&pod, &Config::default());
}

#[test]
fn what_the_api_server_or_the_daemon_would_refuse_is_refused_where_the_author_sees_it() {
    for (key, value) in [
        ("app-id", "orders-"),
        ("sidecar-cpu-request", "2"),
        ("sidecar-memory-request", "1Gi"),
        ("block-shutdown-duration", "soon"),
        ("actors-disseminate-timeout", "0s"),
        ("app-binding-options-timeout", "3"),
        ("disable-init-endpoints", "config,all"),
        ("max-body-size", "0"),
        ("read-buffer-size", "100m"),
        ("http-max-request-size", "0"),
        ("app-health-probe-timeout", "5001"),
        ("env-from-secret", "A=Sec_ret"),
        ("env-from-secret", "A=secret:k!"),
        ("api-token-secret", "-a"),
        ("sidecar-svc-annotations", "team"),
        ("sidecar-svc-annotations", "-team=a"),
    ] {
        let key = format!("dapr.io/{key}");
        let more = [
            (key.as_str(), value),
            ("dapr.io/sidecar-cpu-limit", "1500m"),
            ("dapr.io/sidecar-memory-limit", "1000Mi"),
            ("dapr.io/enable-app-health-check", "true"),
        ];
        let said = denied(&enabled(&more));
        assert!(said.contains(&key) && !said.contains("; "), "{key}: {said}");
    }
}

#[test]
fn what_dapr_takes_for_nothing_is_nothing() {
    let mut config = Config::default();
    config.addresses.placement = "placement:50005".to_owned();
    config.addresses.scheduler = "scheduler:50006".to_owned();
    let done = injected(&enabled(&[]), &config);
    assert_eq!(flag(sidecar(&done), "placement-host-address"), Some("placement:50005"));
    let none = [
        ("dapr.io/placement-host-address", " "),
        ("dapr.io/scheduler-host-address", "empty"),
        ("dapr.io/app-port", "0"),
        ("dapr.io/max-body-size", "-1"),
        ("dapr.io/enable-app-health-check", "true"),
        ("dapr.io/app-health-threshold", "0"),
        ("dapr.io/log-level", "warning"),
    ];
    let done = injected(&enabled(&none), &config);
    let sidecar = sidecar(&done);
    for name in ["placement-host-address", "scheduler-host-address", "app-port", "max-body-size"] {
        assert_eq!(flag(sidecar, name), None, "{name}");
    }
    assert_eq!((flag(sidecar, "app-health-threshold"), flag(sidecar, "log-level")), (Some("3"), Some("warning")));
}

#[test]
fn a_key_that_nobody_knows_is_told() {
    let pod = enabled(&[("dapr.io/app-prot", "80"), ("mecha.dev/enable", "true"), ("example.com/app-prot", "1")]);
    let warnings = inject(&pod, "shop", &Config::default()).unwrap().warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("dapr.io/app-prot ") && warnings[1].contains("mecha.dev/enable "), "{warnings:?}");
}

#[test]
fn a_variable_comes_once_and_the_authors_wins() {
    let done = injected(&enabled(&[("dapr.io/env", "NAMESPACE=other,A=1")]), &Config::default());
    let env = sidecar(&done)["env"].as_array().unwrap();
    let named: Vec<&Value> = env.iter().filter(|variable| variable["name"] == "NAMESPACE").collect();
    assert_eq!(named, [&json!({"name": "NAMESPACE", "value": "other"})]);
}

#[test]
fn a_pod_that_ends_by_itself_and_has_an_ordinary_sidecar_is_told_how() {
    let warnings = |pod: &Value, minor| {
        let config = Config { kubernetes_minor: minor, ..Config::default() };
        inject(pod, "shop", &config).unwrap().warnings
    };
    let mut pod = enabled(&[]);
    assert!(warnings(&pod, 28).is_empty());
    for policy in ["Never", "OnFailure"] {
        pod["spec"]["restartPolicy"] = json!(policy);
        assert!(warnings(&pod, 28)[0].contains("/v1.0/shutdown") && warnings(&pod, 29).is_empty());
    }
    pod["spec"]["restartPolicy"] = json!("Always");
    assert!(warnings(&pod, 28).is_empty());
}

#[test]
fn what_is_no_pod_gets_no_patch_that_does_not_fit() {
    let asks = json!({"annotations": {"dapr.io/enabled": "true"}});
    for (spec, field) in [
        (Value::Null, "spec"),
        (json!("true"), "spec"),
        (json!({"containers": [null]}), "containers[0]"),
        (json!({"containers": [{"name": "app"}], "initContainers": [{"name": "a"}, "b"]}), "initContainers[1]"),
    ] {
        let denied = inject(&json!({"metadata": asks, "spec": spec}), "shop", &Config::default()).unwrap_err();
        assert_eq!(denied.problems.iter().map(|p| p.field.as_str()).collect::<Vec<_>>(), [field]);
        let silent = json!({"metadata": {}, "spec": spec});
        assert!(!inject(&silent, "shop", &Config::default()).unwrap().opted_in);
    }
}

#[test]
fn the_app_id_falls_back_to_the_workload() {
    let id = |pod: &Value| flag(sidecar(&injected(pod, &Config::default())), "app-id").unwrap().to_owned();
    let mut pod = enabled(&[]);
    assert_eq!(id(&pod), "orders");
    pod["metadata"]["ownerReferences"] = json!([{"kind": "StatefulSet", "name": "carts", "controller": true}]);
    assert_eq!(id(&pod), "carts");
    pod["metadata"]["ownerReferences"] = Value::Null;
    assert_eq!(id(&pod), "orders-7d4b9c");
    pod["metadata"]["name"] = json!("single");
    assert_eq!(id(&pod), "single");
}

#[test]
fn variables_may_hold_commas_and_come_from_secrets() {
    let done = injected(
        &enabled(&[
            ("dapr.io/env", "HOSTS=a,b,c, MODE=x=y"),
            ("dapr.io/env-from-secret", "TOKEN=auth,KEY=cloud:key"),
            ("dapr.io/api-token-secret", "api"),
        ]),
        &Config::default(),
    );
    let sidecar = sidecar(&done);
    assert_eq!(variable(sidecar, "HOSTS")["value"], "a,b,c");
    assert_eq!(variable(sidecar, "MODE")["value"], "x=y");
    let from = |name: &str| variable(sidecar, name)["valueFrom"]["secretKeyRef"].clone();
    assert_eq!(from("TOKEN"), json!({"name": "auth", "key": "auth"}));
    assert_eq!(from("KEY"), json!({"name": "cloud", "key": "key"}));
    assert_eq!(from("DAPR_API_TOKEN"), json!({"name": "api", "key": "token"}));
    assert_eq!(variable(sidecar, "DAPR_ENV_KEYS")["value"], "HOSTS MODE TOKEN KEY");
}

#[test]
fn volumes_are_mounted_and_missing_ones_reported() {
    let mut pod = enabled(&[("dapr.io/volume-mounts", "data:/mnt/data,gone:/mnt/gone")]);
    pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    let injection = inject(&pod, "shop", &Config::default()).unwrap();
    assert!(injection.warnings[0].contains("'gone'"));
    let done = apply(&pod, &injection.patch);
    let mounts = sidecar(&done)["volumeMounts"].as_array().unwrap();
    assert!(mounts.contains(&json!({"name": "data", "mountPath": "/mnt/data", "readOnly": true})));
    assert!(!mounts.iter().any(|mount| mount["name"] == "gone"));
}

#[test]
fn a_socket_is_shared_with_the_app_where_it_wants_it() {
    let done = injected(&enabled(&[("dapr.io/unix-domain-socket-path", "/tmp/dapr")]), &Config::default());
    assert_eq!(flag(sidecar(&done), "unix-domain-socket"), Some("/var/run/dapr-sockets"));
    let app = done["spec"]["containers"][0]["volumeMounts"].as_array().unwrap();
    assert_eq!(app[0], json!({"name": "dapr-unix-domain-socket", "mountPath": "/tmp/dapr"}));
}

#[test]
fn pluggable_components_share_a_folder_with_the_sidecar_alone() {
    let mut pod = enabled(&[("dapr.io/pluggable-components", "store")]);
    pod["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "store"}));
    let done = injected(&pod, &Config::default());
    let store = &done["spec"]["containers"][1];
    assert_eq!(variable(store, "DAPR_COMPONENT_SOCKETS_FOLDER")["value"], "/tmp/dapr-components-sockets");
    assert_eq!(variable(store, "DAPR_HTTP_PORT"), &Value::Null);
    assert_eq!(done["spec"]["containers"][0]["volumeMounts"], Value::Null);
    let absent = inject(&enabled(&[("dapr.io/pluggable-components", "store")]), "shop", &Config::default()).unwrap();
    assert!(absent.warnings[0].contains("'store'"), "{:?}", absent.warnings);
}

#[test]
fn a_patch_reads_as_rfc_6902() {
    let op = Op { op: Operation::Add, path: "/metadata/labels/dapr.io~1app-id".to_owned(), value: Some(json!("a")) };
    assert_eq!(
        serde_json::to_value([op]).unwrap(),
        json!([{"op": "add", "path": "/metadata/labels/dapr.io~1app-id", "value": "a"}])
    );
}

fn annotation() -> impl Strategy<Value = (String, String)> {
    let key = prop::sample::select(vec![
        "enabled",
        "app-id",
        "app-port",
        "http-port",
        "grpc-port",
        "metrics-port",
        "enable-metrics",
        "env",
        "env-from-secret",
        "volume-mounts",
        "volume-mounts-rw",
        "unix-domain-socket-path",
        "pluggable-components",
        "enable-native-sidecar",
        "log-level",
        "max-body-size",
        "sidecar-cpu-limit",
        "app-max-concurrency",
    ]);
    let value = prop::sample::select(vec![
        "true",
        "false",
        "orders",
        "8080",
        "3500",
        "50001",
        "A=b,C=d",
        "A=s:k",
        "data:/mnt",
        "/tmp/x",
        "app",
        "info",
        "4Mi",
        "",
        "-1",
        ",,=",
        "ü",
    ]);
    (prop::sample::select(vec!["dapr.io/", "mecha.dev/"]), key, value)
        .prop_map(|(prefix, key, value)| (format!("{prefix}{key}"), value.to_owned()))
}

fn any_pod() -> impl Strategy<Value = Value> {
    let container = prop::sample::select(vec!["app", "daprd", "istio-proxy", "linkerd-proxy", "late", "migrate"])
        .prop_map(|name| json!({"name": name}));
    let list = || prop::option::of(prop::collection::vec(container.clone(), 0..4));
    (prop::collection::vec(annotation(), 0..8), list(), list(), any::<[bool; 4]>()).prop_map(
        |(annotations, containers, inits, [metadata, labels, volumes, network])| {
            let mut pod = json!({"spec": {"hostNetwork": network}});
            if metadata {
                pod["metadata"] = json!({"name": "p", "annotations": {"dapr.io/enabled": "true"}});
                for (key, value) in annotations {
                    pod["metadata"]["annotations"][key] = json!(value);
                }
                if labels {
                    pod["metadata"]["labels"] = json!({"app": "x", LABEL_INJECTED: "true"});
                }
            }
            for (key, list) in [("containers", containers), ("initContainers", inits)] {
                if let Some(list) = list {
                    pod["spec"][key] = json!(list);
                }
            }
            if volumes {
                pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
            }
            pod
        },
    )
}

proptest! {
    #[test]
    fn any_pod_gets_one_sidecar_or_a_reason_and_twice_is_once(pod in any_pod(), minor in 27_u32..31) {
        let config = Config { kubernetes_minor: minor, ..Config::default() };
        match inject(&pod, "shop", &config) {
            Err(denied) => prop_assert!(!denied.problems.is_empty()),
            Ok(injection) => {
                let done = apply(&pod, &injection.patch);
                prop_assert_eq!(&done, &injection.pod);
                let again = inject(&done, "shop", &config).unwrap();
                prop_assert_eq!(again.patch, vec![]);
                if injection.opted_in {
                    sidecar(&done);
                } else {
                    prop_assert_eq!(done, pod);
                }
            }
        }
    }
}

#[test]
fn variables_of_opentelemetry_reach_the_sidecars_of_all_and_of_one_environment() {
    let mut config = Config::default();
    let set = |map: &mut std::collections::BTreeMap<String, String>, name: &str, value: &str| {
        map.insert(name.to_owned(), value.to_owned());
    };
    set(&mut config.telemetry.variables, "OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4317");
    set(&mut config.telemetry.variables, "OTEL_TRACES_SAMPLER_ARG", "1");
    set(config.telemetry.environments.entry("shop".to_owned()).or_default(), "OTEL_TRACES_SAMPLER_ARG", "0.1");
    set(config.telemetry.environments.entry("other".to_owned()).or_default(), "OTEL_SERVICE_NAME", "other");
    assert_eq!(config.problem(), None);
    let variables = |pod: &Value| {
        let done = injected(pod, &config);
        let env = sidecar(&done)["env"].as_array().unwrap().clone();
        let ours = env.into_iter().filter(|v| v["name"].as_str().unwrap().starts_with("OTEL_"));
        ours.map(|v| (v["name"].as_str().unwrap().to_owned(), v["value"].as_str().unwrap().to_owned()))
            .collect::<Vec<_>>()
    };
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let endpoint = pair("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4317");
    assert_eq!(variables(&enabled(&[])), [endpoint.clone(), pair("OTEL_TRACES_SAMPLER_ARG", "0.1")]);
    let own = enabled(&[("dapr.io/env", "OTEL_TRACES_SAMPLER_ARG=0.5")]);
    assert_eq!(variables(&own), [endpoint, pair("OTEL_TRACES_SAMPLER_ARG", "0.5")], "the pod's own word wins");
    set(&mut config.telemetry.variables, "PATH", "/");
    assert!(config.problem().unwrap().contains("'PATH'"));
}
