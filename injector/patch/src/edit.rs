//! Edits that are made and written down at the same time, as RFC 6902 operations.

use serde::Serialize;
use serde_json::{Value, json};

/// One operation of a JSON patch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Op {
    /// What is done.
    pub op: Operation,
    /// Where, as a JSON pointer (RFC 6901).
    pub path: String,
    /// What is put there; absent for a removal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
}

/// The operations used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Puts a value at a key, or into a list before an index.
    Add,
    /// Takes a value away.
    Remove,
}

/// A document that notes its changes.
pub(crate) struct Editor {
    doc: Value,
    ops: Vec<Op>,
}

impl Editor {
    pub(crate) fn new(doc: &Value) -> Self {
        Self { doc: doc.clone(), ops: Vec::new() }
    }

    /// The operations, and the document after them.
    pub(crate) fn finish(self) -> (Vec<Op>, Value) {
        (self.ops, self.doc)
    }

    pub(crate) fn at(&self, path: &str) -> Option<&Value> {
        self.doc.pointer(path)
    }

    /// Entries of the list at `path`; 0 when there is none.
    pub(crate) fn len(&self, path: &str) -> usize {
        self.at(path).and_then(Value::as_array).map_or(0, Vec::len)
    }

    /// The text at `path`, or none of it.
    pub(crate) fn text(&self, path: &str) -> String {
        self.at(path).and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// Where the entry called `name` is in the list at `path`.
    pub(crate) fn named(&self, path: &str, name: &str) -> Option<usize> {
        self.at(path)?.as_array()?.iter().position(|entry| entry["name"] == name)
    }

    /// Puts `value` into the list at `path`, before `index`; makes the list when there is none.
    pub(crate) fn insert(&mut self, path: &str, index: usize, value: Value) {
        let Some(Value::Array(list)) = self.doc.pointer_mut(path) else {
            self.set(path, Value::Array(vec![value]));
            return;
        };
        let index = index.min(list.len());
        list.insert(index, value.clone());
        self.ops.push(Op { op: Operation::Add, path: format!("{path}/{index}"), value: Some(value) });
    }

    /// Takes the entry at `index` out of the list at `path`.
    pub(crate) fn remove(&mut self, path: &str, index: usize) -> Option<Value> {
        let list = self.doc.pointer_mut(path)?.as_array_mut()?;
        let value = (index < list.len()).then(|| list.remove(index))?;
        self.ops.push(Op { op: Operation::Remove, path: format!("{path}/{index}"), value: None });
        Some(value)
    }

    /// A variable of the container at `container`, unless it has one of that name: what the
    /// author of the pod says wins.
    pub(crate) fn env(&mut self, container: &str, variable: Value) {
        self.append_named(&format!("{container}/env"), variable);
    }

    /// A mount of the container at `container`, unless it has one at that place.
    pub(crate) fn mount(&mut self, container: &str, mount: Value) {
        let path = format!("{container}/volumeMounts");
        let taken = |list: &Vec<Value>| list.iter().any(|entry| entry["mountPath"] == mount["mountPath"]);
        if !self.at(&path).and_then(Value::as_array).is_some_and(taken) {
            self.insert(&path, usize::MAX, mount);
        }
    }

    /// A volume of the pod, unless it has one of that name.
    pub(crate) fn volume(&mut self, volume: Value) {
        self.append_named("/spec/volumes", volume);
    }

    pub(crate) fn label(&mut self, key: &str, value: &str) {
        let labels = "/metadata/labels";
        if self.at(labels).and_then(|all| all.get(key)).is_some_and(|present| present == value) {
            return;
        }
        if !self.at("/metadata").is_some_and(Value::is_object) {
            self.set("/metadata", json!({}));
        }
        if !self.at(labels).is_some_and(Value::is_object) {
            self.set(labels, json!({}));
        }
        self.set(&format!("{labels}/{}", escape(key)), Value::String(value.to_owned()));
    }

    fn append_named(&mut self, path: &str, value: Value) {
        let name = value["name"].as_str().unwrap_or_default();
        if self.named(path, name).is_none() {
            self.insert(path, usize::MAX, value);
        }
    }

    /// Puts `value` at the key that `path` ends with. What holds the key must be there; where it is null, it becomes an
    /// object first, in the operations as well.
    fn set(&mut self, path: &str, value: Value) {
        let Some((parent, key)) = path.rsplit_once('/') else { return };
        if self.at(parent).is_some_and(Value::is_null) {
            self.set(parent, json!({}));
        }
        let Some(Value::Object(map)) = self.doc.pointer_mut(parent) else { return };
        map.insert(unescape(key), value.clone());
        self.ops.push(Op { op: Operation::Add, path: path.to_owned(), value: Some(value) });
    }
}

/// A key as a step of a JSON pointer.
fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

fn unescape(step: &str) -> String {
    step.replace("~1", "/").replace("~0", "~")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_null_becomes_an_object_in_the_operations_as_well() {
        let mut edit = Editor::new(&json!({"metadata": {"name": "orders"}, "spec": {"securityContext": null}}));
        edit.set("/spec/securityContext/runAsNonRoot", json!(true));
        let (ops, doc) = edit.finish();
        assert_eq!(doc["spec"]["securityContext"], json!({"runAsNonRoot": true}));
        let paths: Vec<&str> = ops.iter().map(|op| op.path.as_str()).collect();
        assert_eq!(paths, ["/spec/securityContext", "/spec/securityContext/runAsNonRoot"]);
        assert_eq!(ops[0].value, Some(json!({})));
    }

    #[test]
    fn what_has_no_place_is_left_alone() {
        for document in [json!(null), json!([null]), json!({"spec": [null]}), json!({"spec": "text"})] {
            let mut edit = Editor::new(&document);
            edit.set("/spec/0/name", json!("app"));
            edit.set("/0/name", json!("app"));
            assert_eq!(edit.finish(), (Vec::new(), document));
        }
    }
}
