//! Objects that are made from a template, one for each tenancy unit: by server-side apply, and never removed here,
//! since data may hang on them.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use kube::api::{ApiResource, DynamicObject};
use kube::discovery::{Scope, pinned_kind};
use kube::{Api, Client};
use mecha_apiserver::{Failure, FailureKind, Term, apply, call};
use mecha_resources::kinds::{CapabilityBackendSpec, StampedSource, Tenancy};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::objects::Reference;
use crate::{MANAGED_BY, MANAGER};

/// An object is applied again after so long, whoever may have changed it.
const REAPPLY: Duration = Duration::from_secs(600);
/// Longest expression.
const MAX_EXPRESSION: usize = 4096;
/// What templates here may name.
const KNOWN: &str = "claim.name, environment, cluster, backend";

/// Whom an object is for. What does not tell units apart is empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Unit {
    pub(crate) backend: String,
    pub(crate) cluster: String,
    /// The environment's namespace.
    pub(crate) environment: String,
    pub(crate) claim: String,
}

impl Unit {
    /// The unit of a claim at a backend of this tenancy.
    pub(crate) fn of(tenancy: Option<Tenancy>, backend: &str, cluster: &str, environment: &str, claim: &str) -> Self {
        let tenancy = tenancy.unwrap_or(Tenancy::Shared);
        let only = |applies: bool, text: &str| if applies { text.to_owned() } else { String::new() };
        Self {
            backend: backend.to_owned(),
            cluster: cluster.to_owned(),
            environment: only(tenancy >= Tenancy::PerEnvironment, environment),
            claim: only(tenancy >= Tenancy::PerClaim, claim),
        }
    }

    /// Whether every claim of the backend shares it.
    pub(crate) fn is_shared(tenancy: Option<Tenancy>) -> bool {
        tenancy.unwrap_or(Tenancy::Shared) == Tenancy::Shared
    }
}

/// A template filled in for one unit.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stamp {
    pub(crate) reference: Reference,
    pub(crate) manifest: Value,
    /// The Secret that the object leaves, where the template says so.
    pub(crate) secret: Option<String>,
    /// When it is ready, in CEL; its condition Ready when empty.
    pub(crate) ready_when: String,
}

/// The template of `spec` for `unit`; `home` is the namespace of objects that name none.
pub(crate) fn fill_in(spec: &CapabilityBackendSpec, unit: &Unit, home: &str) -> Result<Option<Stamp>, String> {
    let Some(StampedSource { manifest, ready_when, secret_name }) = &spec.source.template else { return Ok(None) };
    let mut manifest = manifest.clone();
    fill_all(&mut manifest, unit)?;
    let text = |path: &str| manifest.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let namespace =
        Some(text("/metadata/namespace")).filter(|text| !text.is_empty()).unwrap_or_else(|| home.to_owned());
    let reference =
        Reference { api_version: text("/apiVersion"), kind: text("/kind"), namespace, name: text("/metadata/name") };
    if reference.api_version.is_empty() || reference.kind.is_empty() || reference.name.is_empty() {
        return Err("the manifest of source.template needs apiVersion, kind and metadata.name".to_owned());
    }
    if !ready_when.is_empty() {
        compile(ready_when)?;
    }
    let secret = (!secret_name.is_empty()).then(|| fill(secret_name, unit)).transpose()?;
    Ok(Some(Stamp { reference, manifest, secret, ready_when: ready_when.clone() }))
}

fn fill_all(value: &mut Value, unit: &Unit) -> Result<(), String> {
    match value {
        Value::String(text) => *text = fill(text, unit)?,
        Value::Array(items) => items.iter_mut().try_for_each(|item| fill_all(item, unit))?,
        Value::Object(fields) => fields.values_mut().try_for_each(|field| fill_all(field, unit))?,
        _ => {}
    }
    Ok(())
}

fn fill(text: &str, unit: &Unit) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        out.push_str(before);
        let (name, tail) = after.split_once("}}").ok_or("a template begins with {{ and does not end with }}")?;
        let value = match name.trim() {
            "claim.name" => &unit.claim,
            "environment" => &unit.environment,
            "cluster" => &unit.cluster,
            "backend" => &unit.backend,
            other => return Err(format!("the template {{{{ {other} }}}} is none of {KNOWN}")),
        };
        if value.is_empty() {
            let name = name.trim();
            return Err(format!(
                "the template {{{{ {name} }}}} has no value: spec.tenancy does not tell units apart by it"
            ));
        }
        out.push_str(value);
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

/// A parser that gives up on an expression must not end what looks after all the others.
fn compile(expression: &str) -> Result<cel::Program, String> {
    if expression.len() > MAX_EXPRESSION {
        return Err(format!("readyWhen has more than {MAX_EXPRESSION} bytes"));
    }
    match catch_unwind(AssertUnwindSafe(|| cel::Program::compile(expression))) {
        Ok(Ok(program)) => Ok(program),
        Ok(Err(error)) => Err(format!("readyWhen is no CEL: {error}")),
        Err(_) => Err("readyWhen is no CEL that can be read".to_owned()),
    }
}

/// Whether the object is ready by `expression`, where it is `self`. An object that lacks a field is not ready.
pub(crate) fn is_ready(expression: &str, object: &DynamicObject) -> Result<bool, String> {
    let program = compile(expression)?;
    let decided = catch_unwind(AssertUnwindSafe(|| {
        let mut context = cel::Context::default();
        let mut whole = object.data.clone();
        whole["metadata"] = json!({"name": object.metadata.name, "generation": object.metadata.generation});
        context.add_variable("self", whole).ok()?;
        program.execute(&context).ok()
    }));
    Ok(matches!(decided, Ok(Some(cel::Value::Bool(true)))))
}

/// Applies what was filled in.
#[derive(Default)]
pub(crate) struct Stamps {
    applied: BTreeMap<Reference, (Value, Instant)>,
    /// What could not be applied, and why.
    failed: BTreeMap<Reference, String>,
}

impl Stamps {
    /// Why the object could not be made.
    pub(crate) fn failure(&self, reference: &Reference) -> Option<&str> {
        self.failed.get(reference).map(String::as_str)
    }

    /// Applies what differs from what was applied before; says how many failed and whether that is news.
    pub(crate) async fn apply(&mut self, client: &Client, term: &Term, stamps: &[Stamp]) -> (usize, bool) {
        let before = self.failed.clone();
        self.failed.retain(|reference, _| stamps.iter().any(|stamp| stamp.reference == *reference));
        for stamp in stamps {
            let current = self.applied.get(&stamp.reference);
            if current.is_some_and(|(manifest, at)| *manifest == stamp.manifest && at.elapsed() < REAPPLY) {
                continue;
            }
            if !term.holds() {
                break;
            }
            match apply_one(client, stamp, current.is_some()).await {
                Ok(()) => {
                    self.failed.remove(&stamp.reference);
                    self.applied.insert(stamp.reference.clone(), (stamp.manifest.clone(), Instant::now()));
                }
                Err(why) => {
                    tracing::warn!(object = %stamp.reference, why, "an object could not be made of a template; it is tried again");
                    self.failed.insert(stamp.reference.clone(), why);
                }
            }
        }
        (self.failed.len(), self.failed != before)
    }
}

async fn apply_one(client: &Client, stamp: &Stamp, known: bool) -> Result<(), String> {
    let Stamp { reference, manifest, .. } = stamp;
    let told = |failure: Failure| match failure.kind {
        FailureKind::Forbidden => format!(
            "{failure}; grant get, list, watch, create and patch in a ClusterRole with the label \
             mecha.dev/aggregate-to-agent: \"true\""
        ),
        _ => failure.to_string(),
    };
    let (resource, capabilities) = call(pinned_kind(client, &reference.gvk())).await.map_err(told)?;
    let mut manifest = manifest.clone();
    let api = api_of(client, &resource, &capabilities.scope, reference);
    if capabilities.scope == Scope::Namespaced {
        manifest["metadata"]["namespace"] = json!(reference.namespace);
    }
    if !known {
        let found = call(api.get_metadata_opt(&reference.name)).await.map_err(told)?;
        let ours = |labels: &BTreeMap<String, String>| labels.get(MANAGED_BY).is_some_and(|by| by == MANAGER);
        if found.is_some_and(|found| !found.metadata.labels.as_ref().is_some_and(ours)) {
            return Err("it is there and was not made here; name it with source.serviceRef instead".to_owned());
        }
    }
    manifest["metadata"]["labels"][MANAGED_BY] = json!(MANAGER);
    apply(&api, &reference.name, MANAGER, &manifest).await.map(|_| ()).map_err(told)
}

fn api_of(client: &Client, resource: &ApiResource, scope: &Scope, reference: &Reference) -> Api<DynamicObject> {
    match scope {
        Scope::Namespaced => Api::namespaced_with(client.clone(), &reference.namespace, resource),
        Scope::Cluster => Api::all_with(client.clone(), resource),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

    use super::*;

    fn spec(template: &Value) -> CapabilityBackendSpec {
        serde_json::from_value(json!({
            "kind": "state", "component": {"type": "state.postgresql"}, "source": {"template": template},
        }))
        .unwrap()
    }

    fn unit(tenancy: Tenancy) -> Unit {
        Unit::of(Some(tenancy), "pg", "local", "shop", "orders")
    }

    #[test]
    fn a_template_is_filled_in_for_its_unit_and_for_no_more() {
        let manifest = json!({"apiVersion": "example.org/v1", "kind": "PostgreSQL",
            "metadata": {"name": "{{ environment }}-{{claim.name}}"}, "spec": {"size": 3, "tags": ["{{ backend }}"]}});
        let spec = spec(&json!({"manifest": manifest, "secretName": "{{ environment }}-{{ claim.name }}-conn"}));
        let stamp = fill_in(&spec, &unit(Tenancy::PerClaim), "mecha-system").unwrap().unwrap();
        assert_eq!(stamp.reference.to_string(), "PostgreSQL mecha-system/shop-orders");
        assert_eq!(stamp.manifest["spec"], json!({"size": 3, "tags": ["pg"]}));
        assert_eq!(stamp.secret.unwrap(), "shop-orders-conn");
        let refused = fill_in(&spec, &unit(Tenancy::PerEnvironment), "mecha-system").unwrap_err();
        assert!(refused.contains("claim.name") && refused.contains("tenancy"), "{refused}");
    }

    #[test]
    fn a_template_that_cannot_be_used_says_why() {
        let named = |name: &str| json!({"manifest": {"apiVersion": "v1", "kind": "X", "metadata": {"name": name}}});
        let refused = |template: &Value| fill_in(&spec(template), &unit(Tenancy::PerClaim), "n").unwrap_err();
        assert!(refused(&named("{{ claim.slug }}")).contains("none of claim.name"));
        assert!(refused(&named("{{ environment")).contains("does not end"));
        assert!(refused(&json!({"manifest": {"kind": "X"}})).contains("apiVersion"));
        let mut broken = named("a");
        broken["readyWhen"] = json!("self.status ==");
        assert!(refused(&broken).contains("readyWhen"));
    }

    #[test]
    fn readiness_is_what_the_expression_says() {
        let object = |status: Value| -> DynamicObject {
            serde_json::from_value(
                json!({"apiVersion": "v1", "kind": "X", "metadata": {"name": "a"}, "status": status}),
            )
            .unwrap()
        };
        let expression = "self.status.phase == 'Provisioned' && self.status.replicas >= 2";
        assert!(is_ready(expression, &object(json!({"phase": "Provisioned", "replicas": 2}))).unwrap());
        assert!(!is_ready(expression, &object(json!({"phase": "Provisioned", "replicas": 1}))).unwrap());
        assert!(!is_ready(expression, &object(json!({}))).unwrap());
        assert!(!is_ready("1 + 1", &object(json!({}))).unwrap());
    }
}
