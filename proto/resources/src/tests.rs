use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::*;

const REDIS: &str = r#"
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: statestore
  namespace: prod
spec:
  type: state.redis
  version: v1
  initTimeout: 1m
  metadata:
  - name: redisHost
    value: localhost:6379
  - name: redisPassword
    secretKeyRef:
      name: redis
      key: password
  - name: enableTLS
    value: on
  - name: maxRetries
    value: 0777
  - name: level
    value: 1.10
  - name: nothing
    value:
  - name: list
    value: [1, yes, {a: b}]
  - name: user
    envRef: REDIS_USER
auth:
  secretStore: vault
scopes: [shop]
"#;

fn load(text: &str) -> Loaded {
    let mut loaded = Loaded::default();
    loaded.read_text("components/redis.yaml", text);
    loaded
}

fn findings(loaded: &Loaded) -> Vec<String> {
    loaded.diagnostics.iter().map(ToString::to_string).collect()
}

fn first(text: &str) -> Component {
    let loaded = load(text);
    assert_eq!(findings(&loaded), [] as [&str; 0]);
    loaded.components[0].value.clone()
}

#[test]
fn a_component_is_read_and_resolved() {
    let component = first(REDIS);
    assert_eq!(component.log_name(), "statestore (state.redis/v1)");
    assert_eq!(component.init_timeout, Duration::from_secs(60));
    assert_eq!(component.waits_for(""), Some("vault"));
    assert!(component.applies_to("shop", Some("prod")));
    assert!(component.applies_to("shop", None));
    assert!(!component.applies_to("shop", Some("test")));
    assert!(!component.applies_to("other", Some("prod")));

    let cx = ResolveCx {
        app_id: "shop",
        namespace: "prod",
        pod_name: None,
        env_keys: None,
        default_store: "",
        env: &|name| (name == "REDIS_USER").then(|| "u".to_owned()),
        secrets: &|q| (q.store == "vault" && q.name == "redis" && q.key == "password").then(|| "s3cret".to_owned()),
    };
    let resolved = resolve(&component, &cx).unwrap();
    let pairs: Vec<_> = resolved.values.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(
        pairs,
        [
            ("redisHost", "localhost:6379"),
            ("redisPassword", "s3cret"),
            ("enableTLS", "true"),
            ("maxRetries", "511"),
            ("level", "1.1"),
            ("nothing", ""),
            ("list", r#"[1,true,{"a":"b"}]"#),
            ("user", "u"),
        ]
    );
    assert!(!format!("{resolved:?}").contains("s3cret"));
}

#[test]
fn secrets_are_in_neither_debug_nor_json() {
    let component = first(&REDIS.replace("localhost:6379", "hunter2"));
    assert!(!format!("{component:?}").contains("hunter2"));
    let json = serde_json::to_string(&component).unwrap();
    assert!(!json.contains("hunter2"), "{json}");
    assert!(json.contains(r#""secretKeyRef":{"name":"redis","key":"password"}"#), "{json}");
}

#[test]
fn the_hash_follows_the_content() {
    let component = first(REDIS);
    let moved = first(&format!("# comment\n{REDIS}"));
    let changed = first(&REDIS.replace("6379", "6380"));
    assert_eq!(component.spec_hash(), moved.spec_hash());
    assert_ne!(component.spec_hash(), changed.spec_hash());
}

#[test]
fn templates_and_references() {
    let text = r#"
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: p}
spec:
  type: pubsub.redis
  metadata:
  - {name: consumerID, value: "{namespace}/{appID}"}
  - {name: ids, value: "{uuid}{uuid}"}
  - {name: token, envRef: APP_API_TOKEN}
  - {name: dapr, envRef: dapr_x}
  - {name: secret, secretKeyRef: {name: only}}
"#;
    let component = first(text);
    let none = |_: &str| Some("leaked".to_owned());
    let cx = ResolveCx {
        app_id: "a",
        namespace: "n",
        pod_name: None,
        env_keys: None,
        default_store: "kubernetes",
        env: &none,
        secrets: &|_| None,
    };
    let resolved = resolve(&component, &cx).unwrap();
    let values: BTreeMap<_, _> = resolved.values.iter().cloned().collect();
    assert_eq!(values["consumerID"], "n.a/a");
    assert_eq!((values["ids"][..36] == values["ids"][36..], values["ids"].len()), (false, 72));
    assert_eq!((&*values["token"], &*values["dapr"], &*values["secret"]), ("", "", ""));
    assert_eq!(resolved.notes.len(), 3);
    assert_eq!(
        component.secret_refs("kubernetes").collect::<Vec<_>>(),
        [SecretQuery { store: "kubernetes", name: "only", key: "only" }]
    );

    let pod = first(&text.replace("{namespace}", "{podName}"));
    assert_eq!(resolve(&pod, &cx).unwrap_err().item, "consumerID");
    let resolved = resolve(&pod, &ResolveCx { pod_name: Some("pod-0"), ..cx }).unwrap();
    assert_eq!(resolved.values[0].1, "pod-0/a");
}

#[test]
fn env_refs_keep_to_the_list() {
    assert!(env_ref_allowed("HOME", None));
    assert!(env_ref_allowed("HOME", Some("PATH HOME")));
    assert!(!env_ref_allowed("HOM", Some("PATH HOME")));
    for forbidden in ["", "A B", "APP_API_TOKEN", "app_api_token", "DAPR_API_TOKEN"] {
        assert!(!env_ref_allowed(forbidden, None), "{forbidden}");
    }
}

#[test]
fn every_mistake_is_reported_with_place_and_correction() {
    let loaded = load(
        r#"apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: a/b
spec:
  tpye: state.redis
  version: [v1]
  metadata:
  - name: redisHost
    vaule: localhost
  - name: redisPassword
    secretKeyRef:
      nam: redis
  ignoreErrors: "true"
"#,
    );
    assert!(loaded.components.is_empty());
    assert!(loaded.has_errors());
    let found = findings(&loaded);
    for expected in [
        "components/redis.yaml:4:9: metadata.name: 'a/b' is no valid name",
        "components/redis.yaml:6:3: spec.tpye: unknown field; did you mean 'type'?",
        "spec.type: is required",
        "components/redis.yaml:7:12: spec.version: must be text, found a list",
        "components/redis.yaml:10:5: spec.metadata[0].vaule: unknown field; did you mean 'value'?",
        "components/redis.yaml:13:7: spec.metadata[1].secretKeyRef.nam: unknown field; did you mean 'name'?",
        "spec.metadata[1].secretKeyRef.name: is required",
        "components/redis.yaml:14:17: spec.ignoreErrors: must be true or false without quotes",
    ] {
        assert!(found.iter().any(|f| f.contains(expected)), "{expected}\nin {found:#?}");
    }
}

#[test]
fn a_wrong_document_leaves_the_others_alone() {
    let bad = "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: x}\nspec: 3\n";
    let foreign = "apiVersion: apps/v1\nkind: Deployment\nspec: {replicas: 1}\n";
    let text = format!("{bad}---\n{foreign}---\njust text\n---\nspec: {{}}\n---\na: [1\n---\n{REDIS}---\n");
    let loaded = load(&text);
    assert_eq!(loaded.components.len(), 1);
    assert_eq!(loaded.components[0].origin.document, 6);
    let documents: Vec<_> = loaded.diagnostics.iter().map(|d| d.document).collect();
    assert_eq!(documents, [1, 5], "{:#?}", findings(&loaded));
}

#[test]
fn kinds_and_versions_that_do_not_exist_are_named() {
    let loaded =
        load("apiVersion: dapr.io/v1alpha1\nkind: Componet\n---\napiVersion: dapr.io/v1alpah1\nkind: Component\n");
    assert_eq!(
        findings(&loaded),
        [
            "components/redis.yaml:2:7: kind: 'Componet' is no kind of dapr.io/v1alpha1; the document is ignored; \
             did you mean 'Component'?",
            "components/redis.yaml:4:13: apiVersion: Component has no 'dapr.io/v1alpah1'; the document is ignored; \
             did you mean 'dapr.io/v1alpha1'?",
        ]
    );
    assert!(!loaded.has_errors());
}

#[test]
fn fields_in_another_case_or_place_are_noted() {
    let loaded = load(&REDIS.replace("initTimeout", "inittimeout").replace("scopes: [shop]", "  scopes: [shop]"));
    let found = findings(&loaded);
    assert!(found.iter().any(|f| f.contains("read as 'initTimeout'")), "{found:?}");
    assert_eq!(loaded.components[0].init_timeout, Duration::from_secs(60));

    let inside = load(
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: x}\nspec: {type: state.x, scopes: [a]}\n",
    );
    assert!(findings(&inside)[0].contains("spec.scopes: unknown field; it belongs beside spec"), "{inside:?}");
}

#[test]
fn duplicate_names_are_all_listed() {
    let component = |name: &str, kind: &str| {
        let text = REDIS.replace("name: statestore", &format!("name: {name}")).replace("state.redis", kind);
        first(&text)
    };
    let all = [component("a", "t1"), component("b", "t2"), component("a", "t3"), component("b", "t4")];
    assert_eq!(
        unique_names(&all).unwrap_err().to_string(),
        "failed to load components: duplicate definition of Component name a (t3/v1) with existing a (t1/v1)\n\
         duplicate definition of Component name b (t4/v1) with existing b (t2/v1)"
    );
    assert_eq!(unique_names(&all[..2]), Ok(()));
}

#[test]
fn both_versions_of_a_subscription() {
    let loaded = load(
        r#"
apiVersion: dapr.io/v1alpha1
kind: Subscription
metadata: {name: old}
spec: {pubsubname: p, topic: t, route: /orders}
---
apiVersion: dapr.io/v2alpha1
kind: Subscription
metadata: {name: new}
spec:
  pubsubname: p
  topic: t
  routes:
    rules: [{match: 'event.type == "x"', path: /x}]
    default: /d
  deadLetterTopic: dead
  metadata: {rawPayload: true}
  bulkSubscribe: {enabled: true, maxMessagesCount: 10}
scopes: [app]
---
apiVersion: dapr.io/v1alpha1
kind: Subscription
metadata: {name: mixed}
spec: {pubsubname: p, topic: t, routes: {default: /d}}
"#,
    );
    assert_eq!(loaded.subscriptions[0].routes, Routes { rules: vec![], default: "/orders".into() });
    let new = &loaded.subscriptions[1];
    assert_eq!(new.routes.rules[0].path, "/x");
    assert_eq!(new.metadata["rawPayload"], "true");
    assert_eq!(new.bulk_subscribe.map(|b| b.max_messages_count), Some(10));
    assert!(findings(&loaded)[0].contains("'routes' needs apiVersion dapr.io/v2alpha1"), "{loaded:?}");
}

#[test]
fn http_endpoints() {
    let loaded = load(
        r#"
apiVersion: dapr.io/v1alpha1
kind: HTTPEndpoint
metadata: {name: api}
spec:
  baseUrl: https://api.example.com/v1
  headers:
  - {name: Authorization, secretKeyRef: {name: token, key: t}}
  clientTLS:
    rootCA: {secretKeyRef: {name: ca, key: pem}}
    renegotiation: RenegotiateOnceAsClient
auth: {secretStore: s}
---
apiVersion: dapr.io/v1alpha1
kind: HTTPEndpoint
metadata: {name: bad}
spec: {baseUrl: api.example.com}
"#,
    );
    assert_eq!(loaded.http_endpoints.len(), 1);
    let endpoint = &loaded.http_endpoints[0];
    assert_eq!(endpoint.secret_refs("").map(|q| q.name).collect::<Vec<_>>(), ["token", "ca"]);
    assert_eq!(endpoint.client_tls.as_ref().map(|t| t.renegotiation), Some(Renegotiation::OnceAsClient));
    assert!(findings(&loaded)[0].contains("spec.baseUrl: must be an absolute URL"));
}

#[test]
fn resiliency_is_typed() {
    let loaded = load(
        r#"
apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: {name: r}
spec:
  policies:
    timeouts: {fast: 500, slow: 1m30s}
    retries:
      twice: {policy: exponential, maxInterval: 15s, maxRetries: 2}
      some: {duration: 250, matching: {httpStatusCodes: "429,500-599", gRPCStatusCodes: 4}}
    circuitBreakers:
      cb: {maxRequests: 3, interval: 8s, timeout: 45s, trip: consecutiveFailures >= 5}
  targets:
    apps: {shop: {timeout: fast, retry: twcie, circuitBreaker: cb, circuitBreakerCacheSize: 7}}
    actors: {cart: {retry: some, circuitBreakerScope: both}}
    components: {store: {outbound: {timeout: slow}, inbound: {retry: DaprBuiltInServiceRetries}}}
"#,
    );
    assert_eq!(findings(&loaded), [] as [&str; 0]);
    let doc = &loaded.resiliencies[0];
    assert_eq!(doc.timeouts["fast"], Duration::from_millis(500));
    assert_eq!(doc.retries["some"].duration, Some(Duration::from_millis(250)));
    let http = doc.retries["some"].http_status_codes.as_ref().unwrap();
    assert_eq!(http.ranges(), [(429, 429), (500, 599)]);
    assert_eq!(doc.circuit_breakers["cb"].trip.as_deref(), Some("consecutiveFailures >= 5"));
    assert_eq!(doc.targets.actors["cart"].circuit_breaker_scope, BreakerScope::Both);
    let unknown = unknown_policies([&doc.value]);
    assert_eq!(unknown.len(), 1);
    assert_eq!(unknown[0].path, "spec.targets.apps.shop.retry");
    assert_eq!(unknown[0].suggestion.as_deref(), Some("twice"));
}

#[test]
fn a_bad_resiliency_document_is_skipped_with_reasons() {
    let loaded = load(
        "apiVersion: dapr.io/v1alpha1\nkind: Resiliency\nmetadata: {name: r}\nspec:\n  policies:\n    \
         timeouts: {a: soon}\n    retries:\n      b: {policy: expontential}\n      c: {matching: {httpStatusCodes: '600'}}\n",
    );
    assert!(loaded.resiliencies.is_empty());
    let found = findings(&loaded);
    for expected in [
        "spec.policies.timeouts.a: 'soon' is not a duration",
        "spec.policies.retries.b.policy: 'expontential' is none of constant, exponential; did you mean 'exponential'?",
        "spec.policies.retries.c.matching.httpStatusCodes: '600' is neither a code nor a range of codes from 100 to 599",
    ] {
        assert!(found.iter().any(|f| f.contains(expected)), "{expected}\nin {found:#?}");
    }
}

#[test]
fn configurations_merge_by_section_and_expand_variables() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one.yaml"), dir.path().join("two.yaml"));
    std::fs::write(
        &one,
        r#"
apiVersion: dapr.io/v1alpha1
kind: Configuration
metadata: {name: one}
spec:
  tracing: {samplingRate: "1", otel: {endpointAddress: "${COLLECTOR}:4317", protocol: grpc, isSecure: false}}
  metric: {enabled: false, http: {increasedCardinality: false}}
  features: [{name: HotReload, enabled: false}]
  secrets:
    scopes: [{storeName: vault, defaultAccess: deny, allowedSecrets: [a]}]
  components: {deny: [bindings.http, state.redis/v1]}
"#,
    )
    .unwrap();
    std::fs::write(
        &two,
        r#"
apiVersion: dapr.io/v1alpha1
kind: Configuration
metadata: {name: two}
spec:
  metrics: {enabled: true}
  api: {allowed: [{name: sate, version: v1, protocol: http}]}
  accessControl:
    policies: [{appId: a, namespace: n, trustDomain: t, operations: [{name: /x, httpVerb: [GET], action: allow}]}]
"#,
    )
    .unwrap();
    let env = |name: &str| (name == "COLLECTOR").then(|| "otel.example".to_owned());
    let loaded = load_configuration_files(&[&one, &two], &env).unwrap();
    let config = &loaded.configuration;
    assert_eq!(config.meta.name, "two");
    let tracing = config.tracing.as_ref().unwrap();
    assert_eq!(tracing.otel.as_ref().unwrap().endpoint_address, "otel.example:4317");
    assert_eq!(tracing.ratio(), Some(1.0));
    let metrics = config.effective_metrics();
    assert_eq!(metrics.enabled, Some(true));
    assert_eq!(metrics.http.unwrap().increased_cardinality, Some(false));
    assert!(!config.feature("HotReload"));
    assert!(config.feature("WorkflowsRemoteActivityReminder"));
    assert!(!config.feature("ActorStateTTL"));
    let scope = config.secrets_scope("vault").unwrap();
    assert!(scope.allows("a") && !scope.allows("b"));
    assert!(config.denies_component("bindings.http", "v2"));
    assert!(config.denies_component("state.redis", "") && !config.denies_component("state.redis", "v2"));
    assert_eq!(config.access_control.as_ref().unwrap().effective_default(), DefaultAccess::Deny);
    assert_eq!(loaded.diagnostics.len(), 1);
    assert_eq!(loaded.diagnostics[0].suggestion.as_deref(), Some("state"));
}

#[test]
fn a_wrong_configuration_is_an_error_with_every_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yaml");
    std::fs::write(
        &path,
        "kind: Configuration\nspec:\n  accessControl: {policies: [{appId: a, namespace: n}]}\n  \
         secrets: {scopes: [{storeName: s}, {storeName: s}]}\n",
    )
    .unwrap();
    let error = load_configuration_files(&[&path], &|_| None).unwrap_err().to_string();
    assert!(error.contains("spec.accessControl.policies[0].trustDomain: is required"), "{error}");
    assert!(error.contains("\"s\" storeName is repeated in secrets configuration"), "{error}");
    let missing = load_configuration_files(&[dir.path().join("none.yaml")], &|_| None);
    assert!(matches!(missing, Err(LoadError::Unreadable { .. })));
}

#[test]
fn folders_are_read_by_name_and_must_exist() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("b.yml", &REDIS.replace("statestore", "second"));
    write("a.yaml", &REDIS.replace("statestore", "first"));
    write("c.txt", REDIS);
    write("latin.yaml", "");
    std::fs::write(dir.path().join("latin.yaml"), b"a: \xff\n").unwrap();
    std::fs::create_dir(dir.path().join("sub.yaml")).unwrap();
    let loaded = load_dir(dir.path()).unwrap();
    let names: Vec<_> = loaded.components.iter().map(|c| c.name()).collect();
    assert_eq!(names, ["first", "second"]);
    assert_eq!(loaded.diagnostics.len(), 1, "{:?}", findings(&loaded));
    assert!(findings(&loaded)[0].contains("latin.yaml: cannot be read"));
    assert!(matches!(load_dir(&dir.path().join("none")), Err(LoadError::Unreadable { .. })));
}

#[test]
fn a_file_that_is_too_large_is_refused_quickly() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("big.yaml"), vec![b' '; MAX_FILE_BYTES as usize + 1]).unwrap();
    let began = Instant::now();
    let loaded = load_dir(dir.path()).unwrap();
    assert!(findings(&loaded)[0].contains("larger than"), "{:?}", findings(&loaded));
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn json_of_the_control_plane_is_read_alike() {
    let json = serde_json::json!({
        "apiVersion": "dapr.io/v1alpha1", "kind": "Component",
        "metadata": {"name": "s", "uid": "1", "creationTimestamp": null},
        "spec": {"type": "state.redis", "version": "v1", "metadata": [{"name": "on", "value": "on"}, {"name": "n", "value": 3}]},
        "auth": {"secretStore": ""}
    });
    let mut loaded = Loaded::default();
    loaded.read_json("operator", &json);
    assert_eq!(findings(&loaded), [] as [&str; 0]);
    let values: Vec<_> = loaded.components[0].metadata.iter().map(|m| m.value.clone()).collect();
    assert_eq!(values, [ValueSource::Plain(Sensitive::new("on")), ValueSource::Plain(Sensitive::new("3"))]);
}

proptest! {
    #[test]
    fn the_loader_never_panics(
        lines in proptest::collection::vec(
            prop_oneof![
                Just("apiVersion: dapr.io/v1alpha1".to_owned()),
                Just("apiVersion: dapr.io/v2alpha1".to_owned()),
                "kind: (Component|Configuration|Subscription|HTTPEndpoint|Resiliency|MCPServer)",
                "metadata: [{]?name: [a-z/%.]{0,5}[}]?",
                "spec:( [{\\[])?",
                "  (type|version|metadata|routes|policies|targets|tracing|mtls|api|headers):( [0-9a-z{}\\[\\]\"-]{0,8})?",
                "  - (name|value|secretKeyRef|envRef): [0-9a-z{}\\[\\]&*-]{0,8}",
                Just("---".to_owned()),
                "\\PC{0,30}",
            ],
            0..20,
        )
    ) {
        let text = lines.join("\n");
        let loaded = load(&text);
        for d in &loaded.diagnostics {
            prop_assert!(!d.to_string().is_empty());
        }
    }

    #[test]
    fn code_lists_contain_what_they_list(ranges in proptest::collection::vec((100u16..600, 0u16..50), 1..6)) {
        let ranges: Vec<_> = ranges.into_iter().map(|(low, width)| (low, (low + width).min(599))).collect();
        let text: Vec<_> = ranges.iter().map(|(l, h)| if l == h { l.to_string() } else { format!("{l}-{h}") }).collect();
        let list = CodeList::parse(&text.join(" , "), 100, 599).unwrap();
        for code in 100..600 {
            prop_assert_eq!(list.contains(code), ranges.iter().any(|(l, h)| (*l..=*h).contains(&code)));
        }
        prop_assert_eq!(CodeList::parse(&list.to_string(), 100, 599), Ok(list));
    }

    #[test]
    fn code_lists_never_panic(text in "[0-9, a-]{0,20}") {
        let _ = CodeList::parse(&text, 0, 16);
    }
}
