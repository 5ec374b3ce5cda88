//! The CustomResourceDefinitions of the kinds, made from the types themselves.
//!
//! `xtask crds` writes them into `deploy/crds`; nothing at run time needs them.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::closed::closed;
use super::{
    AppPlacementSpec, CapabilityBackendSpec, CapabilityBindingSpec, CapabilityClaimSpec, CapabilityKind,
    EnvironmentClassSpec, EnvironmentSpec, GROUP, KindSpec, MAX_ENTRIES, MemberClusterSpec, VERSION, backend, binding,
    claim, class, cluster, environment, placement,
};

closed! {
    /// Types of printer columns.
    pub enum ColumnType {
        /// Text, and anything that has one.
        Text = "string",
        /// A whole number.
        Integer = "integer",
        /// True or false.
        Boolean = "boolean",
        /// Shown as an age.
        Date = "date",
    }
}

/// A column of `kubectl get`.
struct Column(&'static str, ColumnType, &'static str, Wide);

/// Whether a column is shown with `-o wide` only.
#[derive(PartialEq)]
enum Wide {
    No,
    Yes,
}

/// A rule in CEL: below which field, the rule, and what to say when it is broken.
pub struct Rule {
    /// Path in the schema, such as `spec.capabilities[]`.
    pub path: &'static str,
    /// The rule.
    pub rule: String,
    /// What is said when it is broken.
    pub message: &'static str,
}

fn rule(path: &'static str, rule: impl Into<String>, message: &'static str) -> Rule {
    Rule { path, rule: rule.into(), message }
}

/// All definitions, by the name of their object.
#[must_use]
pub fn definitions() -> Vec<(String, Value)> {
    vec![
        definition::<MemberClusterSpec>("membercluster"),
        definition::<EnvironmentClassSpec>("environmentclass"),
        definition::<EnvironmentSpec>("environment"),
        definition::<CapabilityBackendSpec>("capabilitybackend"),
        definition::<CapabilityClaimSpec>("capabilityclaim"),
        definition::<AppPlacementSpec>("appplacement"),
        definition::<CapabilityBindingSpec>("capabilitybinding"),
    ]
}

fn definition<S>(singular: &str) -> (String, Value)
where
    S: KindSpec + JsonSchema,
    S::Status: JsonSchema,
{
    let name = format!("{}.{GROUP}", S::PLURAL);
    let mut spec = schema::<S>();
    bound(&mut spec, "spec");
    let mut status = schema::<S::Status>();
    // The API server takes a status for optional as a whole.
    if let Some(status) = status.as_object_mut() {
        status.remove("required");
    }
    let mut root = json!({
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        }
    });
    for rule in rules(S::KIND) {
        let place = at(&mut root, rule.path);
        let list = place.entry("x-kubernetes-validations").or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.push(json!({"rule": rule.rule, "message": rule.message}));
        }
    }
    for (kind, path, key) in LIST_MAPS {
        if *kind == S::KIND {
            let place = at(&mut root, path);
            place.insert("x-kubernetes-list-type".to_owned(), json!("map"));
            place.insert("x-kubernetes-list-map-keys".to_owned(), json!([key]));
        }
    }
    let place = at(&mut root, "status.conditions");
    place.insert("x-kubernetes-list-type".to_owned(), json!("map"));
    place.insert("x-kubernetes-list-map-keys".to_owned(), json!(["type"]));
    let mut labels = json!({"app.kubernetes.io/part-of": "mecha"});
    if S::KIND == CapabilityClaimSpec::KIND {
        // Service Binding specification: its status names a Secret that any workload may bind to.
        labels["servicebinding.io/provisioned-service"] = json!("true");
    }
    let columns: Vec<_> = columns(S::KIND)
        .into_iter()
        .map(|Column(name, kind, path, wide)| {
            let mut column = json!({"name": name, "type": kind, "jsonPath": path});
            if wide == Wide::Yes {
                column["priority"] = json!(1);
            }
            column
        })
        .collect();
    let scope = if S::NAMESPACED { "Namespaced" } else { "Cluster" };
    let document = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "group": GROUP,
            "scope": scope,
            "names": {
                "kind": S::KIND,
                "listKind": format!("{}List", S::KIND),
                "plural": S::PLURAL,
                "singular": singular,
                "categories": ["mecha"],
            },
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": columns,
                "schema": {"openAPIV3Schema": root},
            }],
        },
    });
    (name, document)
}

fn columns(kind: &str) -> Vec<Column> {
    use ColumnType::{Boolean, Date, Integer, Text};
    const READY: &str = r#".status.conditions[?(@.type=="Ready")].status"#;
    let text = |name, path| Column(name, Text, path, Wide::No);
    let age = || Column("AGE", Date, ".metadata.creationTimestamp", Wide::Yes);
    match kind {
        MemberClusterSpec::KIND => vec![
            Column("ACCEPTED", Boolean, ".spec.accepted", Wide::No),
            text("AVAILABLE", r#".status.conditions[?(@.type=="Available")].status"#),
            text("REGION", ".spec.region"),
            text("VERSION", ".status.kubernetesVersion"),
            Column("APPLIED", Integer, ".status.agent.appliedRevision", Wide::No),
            age(),
        ],
        EnvironmentClassSpec::KIND => vec![text("TYPE", ".spec.type"), text("ISOLATION", ".spec.isolation"), age()],
        EnvironmentSpec::KIND => vec![
            text("CONNECT-TO", ".status.connectTo"),
            text("TYPE", ".status.type"),
            text("INFRA", ".spec.parameters.installInfra"),
            text("READY", READY),
            Column("ISOLATION", Text, ".status.isolation", Wide::Yes),
            Column("CLUSTERS", Text, ".status.clusterNames", Wide::Yes),
            age(),
        ],
        CapabilityBackendSpec::KIND => vec![
            text("KIND", ".spec.kind"),
            text("TYPE", ".spec.component.type"),
            text("STATE", ".spec.state"),
            Column("CLAIMS", Integer, ".status.boundClaims", Wide::No),
            text("READY", READY),
            age(),
        ],
        CapabilityClaimSpec::KIND => vec![
            text("KIND", ".spec.kind"),
            text("PHASE", ".status.phase"),
            text("BACKEND", ".status.backend"),
            text("BINDINGS", ".status.summary"),
            text("READY", READY),
            age(),
        ],
        AppPlacementSpec::KIND => vec![
            text("APP", ".spec.appId"),
            text("SELECTED", ".status.selected"),
            text("SATISFIED", r#".status.conditions[?(@.type=="Satisfied")].status"#),
            age(),
        ],
        CapabilityBindingSpec::KIND => vec![
            text("ENVIRONMENT", ".spec.environment"),
            Column("REVISION", Integer, ".spec.revision", Wide::No),
            Column("APPLIED", Integer, ".status.appliedRevision", Wide::No),
            text("SUMMARY", ".status.summary"),
            text("READY", READY),
            age(),
        ],
        _ => Vec::new(),
    }
}

/// Lists whose items are told apart by a key.
const LIST_MAPS: &[(&str, &str, &str)] = &[
    (EnvironmentSpec::KIND, "status.clusters", "name"),
    (AppPlacementSpec::KIND, "status.decisions", "cluster"),
    (CapabilityBindingSpec::KIND, "spec.entries", "claim"),
    (CapabilityBindingSpec::KIND, "status.entries", "claim"),
];

/// The rules of `kind`. What each says is what [`KindSpec::check`] says of a file.
#[must_use]
pub fn rules(kind: &str) -> Vec<Rule> {
    match kind {
        MemberClusterSpec::KIND => vec![
            rule("spec", "!has(self.zones) || size(self.zones) == 0", cluster::ZONES_UNBUILT),
            rule("spec", "!has(self.origin)", cluster::ORIGIN_UNBUILT),
        ],
        EnvironmentClassSpec::KIND => vec![
            rule("spec", "!has(self.isolation) || self.isolation == 'namespace'", class::ISOLATION_UNBUILT),
            rule("spec", "!has(self.isolationTemplate)", class::ISOLATION_TEMPLATE_UNBUILT),
            rule("spec", "!has(self.failover)", class::FAILOVER_UNBUILT),
            rule("spec.capabilities[].swap", "!has(self.retainOld)", class::RETAIN_OLD_UNBUILT),
            rule("spec.capabilities[].swap", "!has(self.maxParallelClusters)", class::PARALLEL_UNBUILT),
            rule(
                "spec.capabilities[].swap",
                "!has(self.strategy) || self.strategy in ['Immediate', 'Drain']",
                class::STRATEGY_UNBUILT,
            ),
            rule(
                "spec.capabilities[]",
                "!has(self.swap) || !has(self.swap.strategy) || self.swap.strategy != 'Drain' || \
                 self.kind in ['pubsub', 'binding']",
                class::DRAIN_ONLY_QUEUES,
            ),
            rule("spec.capabilities[]", features("require"), class::FEATURE_UNKNOWN),
        ],
        EnvironmentSpec::KIND => vec![rule(
            "spec",
            "[has(self.className), has(self.classSelector), has(self.compositionSelector)].exists_one(x, x)",
            environment::ONE_CLASS,
        )],
        CapabilityBackendSpec::KIND => vec![
            rule(
                "spec.source",
                "[has(self.secretRef), has(self.serviceRef), has(self.template), has(self.none)].exists_one(x, x)",
                backend::ONE_SOURCE,
            ),
            rule("spec.kind", "self == oldSelf", backend::KIND_FIXED),
            rule("spec.component.type", "self == oldSelf", backend::TYPE_FIXED),
            rule("spec.component.metadata[]", "has(self.value) != has(self.valueFrom)", backend::ONE_VALUE),
            rule("spec", type_of_kind(), backend::TYPE_OF_KIND),
            rule(
                "spec",
                "!has(self.credentialDelivery) || self.credentialDelivery == 'Reference'",
                backend::SEALED_UNBUILT,
            ),
            rule("spec", features("features"), class::FEATURE_UNKNOWN),
        ],
        CapabilityClaimSpec::KIND => vec![
            rule("spec.kind", "self == oldSelf", claim::CLAIM_KIND_FIXED),
            rule("spec", features("features"), class::FEATURE_UNKNOWN),
            rule("spec.constraints[]", VALUES_FIT, claim::VALUES_FIT),
            rule("spec.hints[]", format!("self.prefer in {}", list(claim::CLAIM_PREFERENCES)), claim::CLAIM_HINT),
            rule("spec", "!has(self.reclaimPolicy) || self.reclaimPolicy == 'Retain'", claim::RECLAIM_UNBUILT),
        ],
        AppPlacementSpec::KIND => vec![
            rule("spec.appId", "self == oldSelf", placement::APP_FIXED),
            rule("spec.clusters", "self.min <= self.max", placement::MIN_MAX),
            rule("spec.constraints[]", VALUES_FIT, claim::VALUES_FIT),
            rule(
                "spec.hints[]",
                format!(
                    "self.prefer in {} || (self.prefer.startsWith('{outside}') && size(self.prefer) > {})",
                    list(placement::PLACEMENT_PREFERENCES),
                    placement::OUTSIDE.len(),
                    outside = placement::OUTSIDE,
                ),
                placement::PLACEMENT_HINT,
            ),
            rule(
                "spec",
                "!has(self.spread) || size(self.spread.filter(s, s.whenUnsatisfiable == 'DoNotSchedule')) <= 1",
                placement::ONE_HARD_SPREAD,
            ),
            rule(
                "spec",
                "!has(self.spread) || self.spread.all(s, s.minGroups <= self.clusters.max)",
                placement::GROUPS_MAX,
            ),
            rule("spec", "!has(self.failover)", placement::PLACEMENT_FAILOVER_UNBUILT),
        ],
        CapabilityBindingSpec::KIND => vec![
            rule("spec.revision", "self >= oldSelf", binding::REVISION_FALLS),
            rule("spec.leaderEpoch", "self >= oldSelf", binding::EPOCH_FALLS),
            rule(
                "spec",
                "self.environment == oldSelf.environment && self.cluster == oldSelf.cluster",
                binding::BINDING_HOME_FIXED,
            ),
            rule(
                "spec.entries[]",
                "!has(self.swap) || self.swap.strategy in ['Immediate', 'Drain']",
                class::STRATEGY_UNBUILT,
            ),
            rule("spec.entries[]", "self.role == 'Active'", binding::ROLE_UNBUILT),
            rule("spec.entries[]", "self.access == 'ReadWrite'", binding::ACCESS_UNBUILT),
            rule("spec.entries[]", "!has(self.fencingEpoch) || self.fencingEpoch == 0", binding::FENCING_UNBUILT),
        ],
        _ => Vec::new(),
    }
}

const VALUES_FIT: &str = "self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0 : \
    (self.operator in ['Gt', 'Lt'] ? has(self.values) && size(self.values) == 1 && \
    self.values[0].matches('^-?[0-9]{1,18}$') : !has(self.values) || size(self.values) == 0)";

fn list(words: &[&str]) -> String {
    let quoted: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
    format!("[{}]", quoted.join(", "))
}

/// Every item of `field` is a feature of the object's kind.
fn features(field: &str) -> String {
    let mut choice = format!("size(self.{field}) == 0");
    for kind in CapabilityKind::ALL.iter().rev().filter(|kind| !kind.features().is_empty()) {
        choice = format!("self.kind == '{kind}' ? self.{field}.all(f, f in {}) : ({choice})", list(kind.features()));
    }
    format!("!has(self.{field}) || ({choice})")
}

fn type_of_kind() -> String {
    let mut choice = "false".to_owned();
    for kind in CapabilityKind::ALL.iter().rev() {
        choice =
            format!("self.kind == '{kind}' ? self.component.type.startsWith('{}') : ({choice})", kind.type_prefix());
    }
    choice
}

/// The place of `path` in a schema. A path of the tables above that does not exist is our own mistake.
fn at<'s>(root: &'s mut Value, path: &str) -> &'s mut Map<String, Value> {
    let mut node = root;
    for step in path.split('.') {
        let (name, items) = match step.strip_suffix("[]") {
            Some(name) => (name, true),
            None => (step, false),
        };
        node = &mut node["properties"][name];
        assert!(node.is_object(), "the schema has no {path}");
        if items {
            node = &mut node["items"];
        }
    }
    match node {
        Value::Object(map) => map,
        other => unreachable!("{path} is {other}, not a schema"),
    }
}

fn schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| {
        s.inline_subschemas = true;
        s.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    structural(&mut schema);
    schema
}

/// Turns JSON Schema into the structural subset that the API server takes.
fn structural(schema: &mut Value) {
    if *schema == Value::Bool(true) {
        *schema = json!({"x-kubernetes-preserve-unknown-fields": true});
    }
    let Some(map) = schema.as_object_mut() else { return };
    // `Option<T>` as a choice between T and null: a field that is null is dropped by the API server.
    if let Some(Value::Array(choices)) = map.remove("anyOf") {
        for choice in choices {
            if choice["type"] != "null"
                && let Value::Object(choice) = choice
            {
                for (key, value) in choice {
                    map.entry(key).or_insert(value);
                }
            }
        }
    }
    if let Some(Value::Array(types)) = map.get("type") {
        let one = types.iter().find(|t| *t != "null").cloned();
        map.insert("type".to_owned(), one.unwrap_or_else(|| json!("object")));
    }
    if let Some(Value::Array(words)) = map.get_mut("enum") {
        words.retain(|word| !word.is_null());
    }
    for key in ["title", "default", "$schema"] {
        map.remove(key);
    }
    if let Some(Value::String(text)) = map.get_mut("description") {
        *text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    match map.get("format").and_then(Value::as_str) {
        Some("uint32" | "uint16" | "uint8" | "int32") => map.insert("format".to_owned(), json!("int32")),
        Some("uint64" | "int64") => map.insert("format".to_owned(), json!("int64")),
        _ => None,
    };
    if map.get("additionalProperties") == Some(&Value::Bool(true)) {
        map.remove("additionalProperties");
        map.insert("x-kubernetes-preserve-unknown-fields".to_owned(), json!(true));
    }
    // Any value: an object of somebody else.
    if map.get("type").is_none() && !map.contains_key("enum") {
        map.insert("type".to_owned(), json!("object"));
        map.insert("x-kubernetes-preserve-unknown-fields".to_owned(), json!(true));
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(key) {
            structural(inner);
        }
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        for inner in properties.values_mut() {
            structural(inner);
        }
    }
}

/// Longest text where nothing else is said; rules in CEL need a bound to be affordable.
const MAX_TEXT: u32 = 1024;
/// Most items of a list or a map where nothing else is said.
const MAX_ITEMS: usize = 64;
/// Longest document of a binding.
const MAX_DOCUMENT: u32 = 32 << 10;

fn bound(schema: &mut Value, name: &str) {
    let Some(map) = schema.as_object_mut() else { return };
    match map.get("type").and_then(Value::as_str) {
        Some("string") if !map.contains_key("enum") && !map.contains_key("maxLength") => {
            let length = match name {
                "document" | "previousDocument" => MAX_DOCUMENT,
                "value" => 8 * MAX_TEXT,
                _ => MAX_TEXT,
            };
            map.insert("maxLength".to_owned(), json!(length));
        }
        Some("array") => {
            let most = if name == "entries" { MAX_ENTRIES } else { MAX_ITEMS };
            map.entry("maxItems").or_insert(json!(most));
        }
        Some("object") if map.contains_key("additionalProperties") => {
            map.entry("maxProperties").or_insert(json!(MAX_ITEMS));
        }
        _ => {}
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(key) {
            bound(inner, name);
        }
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        for (name, inner) in properties.iter_mut() {
            bound(inner, name);
        }
    }
}
