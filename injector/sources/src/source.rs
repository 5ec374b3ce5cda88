//! From the source that a backend names to the Secret with its connection data.

use std::sync::Arc;

use kube::api::DynamicObject;
use mecha_resources::kinds::{BackendReason, CapabilityBackendSpec, SecretSource};
use serde_json::{Map, Value};

use crate::objects::{Look, Reference, Seen};
use crate::template::Stamp;

/// Names of keys that a message lists.
const SHOWN_KEYS: usize = 10;

/// Why the connection data is not there, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lack {
    pub(crate) reason: BackendReason,
    /// One sentence that names the object; never a value of a Secret.
    pub(crate) message: String,
    /// Nothing is known yet: say nothing rather than something wrong.
    pub(crate) unread: bool,
    /// The object is ready and has no Secret.
    nameless: bool,
}

impl Lack {
    pub(crate) fn new(reason: BackendReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), unread: false, nameless: false }
    }

    /// The template cannot be filled in.
    pub(crate) fn template(why: &str) -> Self {
        Self::new(BackendReason::TemplateInvalid, format!("source.template: {why}"))
    }

    fn unread() -> Self {
        Self { unread: true, ..Self::new(BackendReason::SourceNotReady, "") }
    }
}

/// A Secret with connection data. Never shown.
#[derive(Clone)]
pub(crate) struct Credentials {
    secret: Arc<DynamicObject>,
}

impl Credentials {
    /// Changes when any value does.
    pub(crate) fn version(&self) -> String {
        let metadata = &self.secret.metadata;
        let part = |text: &Option<String>| text.clone().unwrap_or_default();
        format!("{}@{}", part(&metadata.uid), part(&metadata.resource_version))
    }

    /// The values in base64, as Secrets have them.
    pub(crate) fn data(&self) -> Map<String, Value> {
        self.secret.data.get("data").and_then(Value::as_object).cloned().unwrap_or_default()
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("version", &self.version()).finish_non_exhaustive()
    }
}

/// The connection data of `spec`; `None` where it needs none. `home` is the namespace of sources that name none.
pub(crate) fn find(spec: &CapabilityBackendSpec, home: &str, look: &impl Look) -> Result<Option<Credentials>, Lack> {
    let secret = if let Some(SecretSource { namespace, name }) = &spec.source.secret_ref {
        Reference::secret(if namespace.is_empty() { home } else { namespace }, name)
    } else if let Some(service) = &spec.source.service_ref {
        let reference = Reference {
            api_version: service.api_version.clone(),
            kind: service.kind.clone(),
            namespace: service.namespace.clone(),
            name: service.name.clone(),
        };
        secret_of_object(&reference, look, &Asked::default())?
    } else {
        let needed = needed_keys(spec);
        return match needed.first() {
            None => Ok(None),
            Some(key) => Err(Lack::new(
                BackendReason::SourceKeyMissing,
                format!("the component refers to key {key}, and source is none; name a Secret with source.secretRef"),
            )),
        };
    };
    read(spec, &secret, look).map(Some)
}

/// The connection data that the object made for one unit leaves; `None` where the component needs none. `failure`
/// says why the object could not be made.
pub(crate) fn find_stamped(
    spec: &CapabilityBackendSpec,
    stamp: &Stamp,
    failure: Option<&str>,
    look: &impl Look,
) -> Result<Option<Credentials>, Lack> {
    let reference = &stamp.reference;
    if let Some(why) = failure {
        return Err(Lack::new(BackendReason::SourceNotReady, format!("{reference} could not be made: {why}")));
    }
    let asked = Asked { ready_when: &stamp.ready_when, secret: stamp.secret.as_deref() };
    match secret_of_object(reference, look, &asked) {
        Ok(secret) => read(spec, &secret, look).map(Some),
        Err(lack) if lack.nameless && needed_keys(spec).is_empty() => Ok(None),
        Err(lack) => Err(lack),
    }
}

/// The Secret with all keys that the component refers to.
fn read(spec: &CapabilityBackendSpec, secret: &Reference, look: &impl Look) -> Result<Credentials, Lack> {
    let found = match look.see(secret) {
        Seen::Unread => return Err(Lack::unread()),
        Seen::Unreadable(why) => return Err(Lack::new(BackendReason::SourceMissing, why)),
        Seen::Missing => {
            return Err(Lack::new(
                BackendReason::SourceMissing,
                format!("{secret} is not there; make it, or correct spec.source"),
            ));
        }
        Seen::There(found) => Credentials { secret: found },
    };
    check_keys(spec, secret, &found)?;
    Ok(found)
}

fn needed_keys(spec: &CapabilityBackendSpec) -> Vec<&str> {
    let keys = spec.component.metadata.iter().filter_map(|item| item.value_from.as_ref());
    keys.map(|from| from.key.as_str()).collect()
}

fn check_keys(spec: &CapabilityBackendSpec, secret: &Reference, found: &Credentials) -> Result<(), Lack> {
    let data = found.data();
    let lacking: Vec<_> = needed_keys(spec).into_iter().filter(|key| !data.contains_key(*key)).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let has = match data.len() {
        0 => "it is empty".to_owned(),
        all => {
            let shown: Vec<_> = data.keys().take(SHOWN_KEYS).map(String::as_str).collect();
            let more = if all > SHOWN_KEYS { format!(" and {} more", all - SHOWN_KEYS) } else { String::new() };
            format!("it has {}{more}", shown.join(", "))
        }
    };
    Err(Lack::new(
        BackendReason::SourceKeyMissing,
        format!("{secret} lacks {}, which the component refers to; {has}", lacking.join(", ")),
    ))
}

/// What a template says of its objects beyond what they say themselves.
#[derive(Default)]
struct Asked<'a> {
    ready_when: &'a str,
    secret: Option<&'a str>,
}

/// Where an object keeps its connection data: a Provisioned Service says it in its status, a Crossplane resource in
/// its spec.
fn secret_of_object(reference: &Reference, look: &impl Look, asked: &Asked<'_>) -> Result<Reference, Lack> {
    let namespace = &reference.namespace;
    let object = match look.see(reference) {
        Seen::Unread => return Err(Lack::unread()),
        Seen::Unreadable(why) => return Err(Lack::new(BackendReason::SourceMissing, why)),
        Seen::Missing => {
            return Err(Lack::new(
                BackendReason::SourceMissing,
                format!("{reference} is not there; make it, or correct spec.source"),
            ));
        }
        Seen::There(object) => object,
    };
    let not_ready = |why: &str| Lack::new(BackendReason::SourceNotReady, format!("{reference} {why}"));
    if object.metadata.deletion_timestamp.is_some() {
        return Err(not_ready("is being deleted; select another backend before it is gone"));
    }
    let text = |path: &str| object.data.pointer(path).and_then(Value::as_str).filter(|text| !text.is_empty());
    let ready = if asked.ready_when.is_empty() {
        ready_condition(&object.data)
    } else {
        let ready = crate::template::is_ready(asked.ready_when, &object);
        Some((ready.map_err(|why| not_ready(&why))?, "readyWhen is not true of it".to_owned()))
    };
    if let Some((false, why)) = &ready {
        return Err(not_ready(&format!("is not ready ({why}); see its conditions")));
    }
    if let Some(name) = asked.secret {
        return Ok(Reference::secret(namespace, name));
    }
    if let Some(name) = text("/status/binding/name") {
        return Ok(Reference::secret(namespace, name));
    }
    for written in ["/spec/writeConnectionSecretToRef", "/spec/crossplane/writeConnectionSecretToRef"] {
        let Some(name) = text(&format!("{written}/name")) else { continue };
        // Crossplane names the Secret before it fills it; its own word says when that is done.
        if ready.is_none() {
            return Err(not_ready("does not say yet that it is ready; see its conditions"));
        }
        let namespace = text(&format!("{written}/namespace")).unwrap_or(namespace);
        return Ok(Reference::secret(namespace, name));
    }
    let nameless = not_ready(
        "names no Secret: neither status.binding.name (a Provisioned Service) nor spec.writeConnectionSecretToRef \
         (a Crossplane resource) is there",
    );
    Err(Lack { nameless: true, ..nameless })
}

/// What the object says of its readiness, and its word for why.
fn ready_condition(object: &Value) -> Option<(bool, String)> {
    let conditions = object.pointer("/status/conditions")?.as_array()?;
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready")?;
    // The message is not repeated: other systems put anything into theirs.
    let reason = ready["reason"].as_str().unwrap_or("no reason given");
    Some((ready["status"] == "True", reason.chars().take(64).collect()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    struct Fixed(BTreeMap<Reference, Value>);

    impl Look for Fixed {
        fn see(&self, reference: &Reference) -> Seen {
            match self.0.get(reference) {
                None => Seen::Missing,
                Some(object) => Seen::There(Arc::new(serde_json::from_value(object.clone()).unwrap())),
            }
        }
    }

    fn spec(source: Value) -> CapabilityBackendSpec {
        serde_json::from_value(json!({
            "kind": "state",
            "component": {"type": "state.postgresql", "metadata": [
                {"name": "connectionString", "valueFrom": {"key": "uri"}}, {"name": "tablePrefix", "value": "x"}]},
            "source": source,
        }))
        .unwrap()
    }

    fn service(status: Value, spec: Value) -> Value {
        json!({"apiVersion": "example.org/v1", "kind": "PostgreSQL", "metadata": {"name": "pg", "namespace": "platform"},
               "spec": spec, "status": status})
    }

    fn found(source: Value, objects: &[Value]) -> Result<Option<Credentials>, Lack> {
        let place = |object: &Value| Reference {
            api_version: object["apiVersion"].as_str().unwrap().to_owned(),
            kind: object["kind"].as_str().unwrap().to_owned(),
            namespace: object["metadata"]["namespace"].as_str().unwrap().to_owned(),
            name: object["metadata"]["name"].as_str().unwrap().to_owned(),
        };
        let fixed = Fixed(objects.iter().map(|object| (place(object), object.clone())).collect());
        find(&spec(source), "mecha-system", &fixed)
    }

    fn secret(namespace: &str, data: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pg-conn", "namespace": namespace}, "data": data})
    }

    #[test]
    fn a_secret_is_taken_when_it_has_what_the_component_refers_to() {
        let named = json!({"secretRef": {"name": "pg-conn"}});
        assert!(found(named.clone(), &[secret("mecha-system", json!({"uri": "eA=="}))]).unwrap().is_some());
        let lack =
            found(named.clone(), &[secret("mecha-system", json!({"url": "Y2FuYXJ5", "host": "eA=="}))]).unwrap_err();
        assert_eq!(lack.reason, BackendReason::SourceKeyMissing);
        assert!(lack.message.contains("lacks uri") && lack.message.contains("host, url"), "{}", lack.message);
        assert!(!lack.message.contains("Y2FuYXJ5"), "names of keys, not values");
        assert_eq!(found(named, &[]).unwrap_err().reason, BackendReason::SourceMissing);
        assert_eq!(found(json!({"none": {}}), &[]).unwrap_err().reason, BackendReason::SourceKeyMissing);
    }

    #[test]
    fn services_name_their_secret_in_either_way() {
        let named = json!({"serviceRef": {"apiVersion": "example.org/v1", "kind": "PostgreSQL", "namespace": "platform", "name": "pg"}});
        let conn = secret("platform", json!({"uri": "eA=="}));
        let ready = json!([{"type": "Ready", "status": "True", "reason": "Available"}]);
        let not_ready =
            json!([{"type": "Ready", "status": "False", "reason": "Creating", "message": "password canary"}]);
        let to = json!({"writeConnectionSecretToRef": {"name": "pg-conn", "namespace": "platform"}});
        let v2 = json!({"crossplane": {"writeConnectionSecretToRef": {"name": "pg-conn"}}});
        for (what, object) in [
            ("a Provisioned Service", service(json!({"binding": {"name": "pg-conn"}}), json!({}))),
            ("a Crossplane resource", service(json!({"conditions": ready}), to.clone())),
            ("a namespaced Crossplane resource", service(json!({"conditions": ready}), v2)),
        ] {
            assert!(found(named.clone(), &[object, conn.clone()]).unwrap().is_some(), "{what}");
        }
        for (what, object, said) in [
            (
                "not ready",
                service(json!({"conditions": not_ready, "binding": {"name": "pg-conn"}}), json!({})),
                "Creating",
            ),
            ("not yet heard of", service(json!({}), to), "does not say yet"),
            ("no Secret", service(json!({"conditions": ready}), json!({})), "names no Secret"),
        ] {
            let lack = found(named.clone(), &[object, conn.clone()]).unwrap_err();
            assert_eq!(lack.reason, BackendReason::SourceNotReady, "{what}");
            assert!(lack.message.contains(said) && !lack.message.contains("canary"), "{what}: {}", lack.message);
        }
        assert_eq!(found(named, &[conn]).unwrap_err().reason, BackendReason::SourceMissing);
    }
}
