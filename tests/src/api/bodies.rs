//! Both wire forms of the requests.

use bytes::Bytes;
use mecha_proto::common::state_options::{StateConcurrency, StateConsistency};
use mecha_proto::common::{Etag, StateItem, StateOptions};
use mecha_proto::runtime::TransactionalStateOperation;
use serde_json::{Value, json};

use super::{Item, Op};

impl Item {
    /// As HTTP writes it; the value is put in as the JSON text it is, so that not one byte of it changes.
    pub(super) fn json_text(&self) -> String {
        let mut text = format!("{{\"key\":{}", Value::from(self.key.as_str()));
        if !self.value.is_empty() {
            text.push_str(",\"value\":");
            text.push_str(std::str::from_utf8(&self.value).unwrap());
        }
        if let Some(etag) = &self.etag {
            text.push_str(&format!(",\"etag\":{}", Value::from(etag.as_str())));
        }
        if !self.metadata.is_empty() {
            text.push_str(&format!(",\"metadata\":{}", json!(self.metadata)));
        }
        let mut options = serde_json::Map::new();
        if self.first_write {
            options.insert("concurrency".to_owned(), Value::from("first-write"));
        }
        if self.strong {
            options.insert("consistency".to_owned(), Value::from("strong"));
        }
        if !options.is_empty() {
            text.push_str(&format!(",\"options\":{}", Value::Object(options)));
        }
        text.push('}');
        text
    }

    pub(super) fn message(&self) -> StateItem {
        let concurrency =
            if self.first_write { StateConcurrency::ConcurrencyFirstWrite } else { StateConcurrency::default() };
        let consistency = if self.strong { StateConsistency::ConsistencyStrong } else { StateConsistency::default() };
        StateItem {
            key: self.key.clone(),
            value: self.value.clone(),
            etag: self.etag.clone().map(|value| Etag { value }),
            metadata: self.metadata.clone(),
            options: Some(StateOptions { concurrency: concurrency.into(), consistency: consistency.into() }),
        }
    }
}

impl Op {
    pub(super) fn json_text(&self) -> String {
        let (operation, item) = self.parts();
        format!("{{\"operation\":\"{operation}\",\"request\":{}}}", item.json_text())
    }

    pub(super) fn message(&self) -> TransactionalStateOperation {
        let (operation, item) = self.parts();
        TransactionalStateOperation { operation_type: operation.to_owned(), request: Some(item.message()) }
    }

    fn parts(&self) -> (&'static str, &Item) {
        match self {
            Self::Upsert(item) => ("upsert", item),
            Self::Delete(item) => ("delete", item),
        }
    }
}

/// A JSON list of texts that are JSON already.
pub(super) fn list(items: impl Iterator<Item = String>) -> Bytes {
    format!("[{}]", items.collect::<Vec<_>>().join(",")).into()
}
