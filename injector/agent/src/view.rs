//! All documents of one namespace, from bindings and from what people wrote there.

use std::collections::BTreeMap;
use std::sync::Arc;

use mecha_apiserver::trace::TraceContext;
use mecha_apiserver::{CapabilityBinding, cause_of};
use mecha_resources::kinds::BindingEntry;
use serde_json::Value;

use crate::document::{Body, Document, Kind, Origin, name_of, scopes_of};

/// Documents of one namespace, in order of kind and name.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct View {
    documents: BTreeMap<(Kind, String), Arc<Document>>,
    /// Entries that are not delivered as they stand, by binding and claim, and why.
    pub(crate) troubles: BTreeMap<(String, String), String>,
    /// What the documents of bindings were last changed for.
    pub(crate) cause: Option<Cause>,
}

/// The decision behind a revision of a binding, if it is traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cause {
    pub(crate) revision: i64,
    pub(crate) context: TraceContext,
}

impl View {
    /// Puts together what there is for `namespace`. `written` are documents by hand: they win over those of
    /// bindings.
    pub(crate) fn compose(
        namespace: &str,
        bindings: &[Arc<CapabilityBinding>],
        written: impl IntoIterator<Item = (Kind, Value)>,
    ) -> Self {
        let mut view = Self::default();
        for (kind, value) in written {
            let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            match Document::written(kind, value) {
                Ok(document) => drop(view.documents.insert((kind, name), Arc::new(document))),
                Err(why) => {
                    tracing::warn!(kind = kind.name(), namespace, name, why, "a document is left out");
                }
            }
        }
        for binding in bindings.iter().filter(|b| b.spec.namespace == namespace) {
            let name = binding.metadata.name.as_deref().unwrap_or_default();
            if let Some(context) = cause_of(&binding.metadata) {
                view.cause = Some(Cause { revision: binding.spec.revision, context });
            }
            for entry in &binding.spec.entries {
                if let Err(why) = view.add(namespace, name, entry) {
                    view.troubles.insert((name.to_owned(), entry.claim.clone()), why);
                }
            }
        }
        view
    }

    fn add(&mut self, namespace: &str, binding: &str, entry: &BindingEntry) -> Result<(), String> {
        let read = |what: &str, text: &str| -> Result<(Value, Vec<String>), String> {
            let value: Value =
                serde_json::from_str(text).map_err(|e| format!("the {what} of {} is no JSON: {e}", entry.claim))?;
            let wrong = |why| format!("the {what} of {} cannot be delivered: {why}", entry.claim);
            let own = value["metadata"]["namespace"].as_str().unwrap_or_default();
            if value["kind"] != Kind::Component.name() || name_of(&value).map_err(wrong)? != entry.claim {
                return Err(wrong("it is no Component of the claim's name".to_owned()));
            }
            if !own.is_empty() && own != namespace {
                return Err(wrong(format!("it names the namespace {own}, its binding {namespace}")));
            }
            let scopes = scopes_of(&value).map_err(wrong)?;
            Ok((value, scopes))
        };
        let (value, scopes) = read("document", &entry.document)?;
        let moving = match (&entry.swap, &entry.previous_document) {
            (Some(record), Some(text)) => {
                let (old, _) = read("previous document", text)?;
                Some((record.clone(), Body::new(Kind::Component, old)?))
            }
            _ => None,
        };
        let key = (Kind::Component, entry.claim.clone());
        if let Some(other) = self.documents.get(&key) {
            return Err(match &other.origin {
                None => format!(
                    "the Component {} in namespace {namespace} was written by hand and wins; delete or rename it",
                    entry.claim
                ),
                Some(origin) => format!("the binding {} has a claim {} as well", origin.binding, entry.claim),
            });
        }
        let origin = Origin { binding: binding.to_owned(), claim: entry.claim.clone(), revision: entry.revision };
        let document = Document {
            kind: Kind::Component,
            name: entry.claim.clone(),
            scopes,
            body: Body::new(Kind::Component, value)?,
            origin: Some(origin),
            moving,
        };
        self.documents.insert(key, Arc::new(document));
        Ok(())
    }

    /// Documents for the sidecars of `app_id`, of all kinds but Configuration.
    pub(crate) fn concerning<'v>(&'v self, app_id: &'v str) -> impl Iterator<Item = &'v Arc<Document>> {
        self.documents.values().filter(move |d| d.kind != Kind::Configuration && d.concerns(app_id))
    }

    pub(crate) fn get(&self, kind: Kind, name: &str) -> Option<&Arc<Document>> {
        self.documents.get(&(kind, name.to_owned()))
    }

    /// All documents of a kind.
    pub(crate) fn of(&self, kind: Kind) -> impl Iterator<Item = &Arc<Document>> {
        self.documents.values().filter(move |d| d.kind == kind)
    }
}

#[cfg(test)]
mod tests {
    use mecha_resources::kinds::{CapabilityBindingSpec, KindSpec as _};
    use serde_json::json;

    use super::*;

    fn document(name: &str, namespace: &str, scopes: &[&str]) -> String {
        json!({"apiVersion": "dapr.io/v1alpha1", "kind": "Component",
               "metadata": {"name": name, "namespace": namespace}, "scopes": scopes,
               "spec": {"type": "state.in-memory", "version": "v1"}})
        .to_string()
    }

    fn binding(name: &str, entries: Value) -> Arc<CapabilityBinding> {
        let spec: CapabilityBindingSpec = serde_json::from_value(json!({
            "environment": "team/shop", "namespace": "shop", "cluster": "local", "revision": 7, "leaderEpoch": 1,
            "digest": "", "entries": entries,
        }))
        .unwrap();
        assert!(spec.check().is_empty());
        Arc::new(CapabilityBinding::new(name, Some("mecha-cluster-local"), spec))
    }

    fn entry(claim: &str, document: &str) -> Value {
        json!({"claim": claim, "backend": "b", "role": "Active", "access": "ReadWrite", "revision": 3,
               "document": document})
    }

    #[test]
    fn a_claim_reaches_only_its_namespace_and_scopes() {
        let bindings = [binding("shop", json!([entry("orders", &document("orders", "shop", &["cart"]))]))];
        let view = View::compose("shop", &bindings, []);
        let names = |app: &str| view.concerning(app).map(|d| d.name.clone()).collect::<Vec<_>>();
        assert_eq!(names("cart"), ["orders"]);
        assert_eq!(names("billing"), [""; 0]);
        assert!(view.troubles.is_empty());
        assert_eq!(View::compose("other", &bindings, []), View::default());
    }

    #[test]
    fn a_component_by_hand_wins_over_a_claim_of_its_name() {
        let bindings = [binding("shop", json!([entry("orders", &document("orders", "shop", &[]))]))];
        let by_hand: Value = serde_json::from_str(&document("orders", "shop", &[])).unwrap();
        let view = View::compose("shop", &bindings, [(Kind::Component, by_hand)]);
        assert!(view.get(Kind::Component, "orders").unwrap().origin.is_none());
        let trouble = &view.troubles[&("shop".to_owned(), "orders".to_owned())];
        assert!(trouble.contains("written by hand"), "{trouble}");
    }

    #[test]
    fn one_bad_entry_does_not_stop_the_others() {
        let entries = json!([
            entry("a", "{"),
            entry("b", &document("other-name", "shop", &[])),
            entry("c", &document("c", "elsewhere", &[])),
            entry("d", &document("d", "shop", &[])),
        ]);
        let view = View::compose("shop", &[binding("shop", entries)], []);
        let names: Vec<_> = view.of(Kind::Component).map(|d| d.name.as_str()).collect();
        assert_eq!(names, ["d"]);
        assert_eq!(view.troubles.len(), 3);
    }
}
