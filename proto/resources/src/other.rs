use serde::Serialize;

use crate::decode::Obj;
use crate::value::{Meta, OpaqueJson, Resource};

/// A document that is loaded and listed but has no type of its own yet: MCPServer, WorkflowAccessPolicy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Other {
    /// Name, namespace, scopes.
    #[serde(flatten)]
    pub meta: Meta,
    /// Kind, as documents spell it.
    pub kind: String,
    /// Its spec.
    pub spec: OpaqueJson,
}

impl Resource for Other {
    const KIND: &'static str = "";

    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl Other {
    pub(crate) fn decode(root: &Obj<'_>, meta: Meta, kind: &str) -> Self {
        let spec = root.json("spec");
        if spec.is_none() {
            root.error("spec", "is required");
        }
        Self { meta, kind: kind.to_owned(), spec: spec.unwrap_or_default() }
    }
}
