//! Cases of [`OutputBinding`].

use std::sync::Arc;

use bytes::Bytes;
use mecha_components_api::{ErrorKind, Invoke, Metadata, OutputBinding, Reply, Result};

use crate::case::{Case, Failure, Outcome, check, check_eq, fresh_name, table};

/// A binding, and how its objects are named.
#[derive(Debug)]
pub struct BindingBench {
    /// The binding.
    pub binding: Arc<dyn OutputBinding>,
    /// Request metadata key that names an object (`fileName`, `key`); `None` when the binding
    /// holds no objects.
    pub object_key: Option<String>,
}

type Operations = [String];

/// All cases; they apply by the operations that are declared.
pub const CASES: &[Case<BindingBench, Vec<String>>] = table![|bench| bench;
    operations_are_named_once: |_| true,
    an_unknown_operation_is_refused: |_| true,
    what_is_created_can_be_got: |ops| stores(ops),
    every_byte_is_kept: |ops| stores(ops),
    an_empty_object_is_kept: |ops| stores(ops),
    text_that_looks_like_base64_is_kept: |ops| stores(ops),
    creating_again_replaces: |ops| stores(ops),
    an_absent_object_is_not_got: |ops| stores(ops),
    what_is_deleted_is_gone: |ops| stores(ops) && has(ops, "delete"),
    a_missing_name_is_told: |ops| stores(ops),
    the_list_has_what_was_created: |ops| stores(ops) && has(ops, "list"),
];

fn has(operations: &Operations, name: &str) -> bool {
    operations.iter().any(|o| o == name)
}

fn stores(operations: &Operations) -> bool {
    has(operations, "create") && has(operations, "get")
}

impl BindingBench {
    async fn call(&self, operation: &str, name: Option<&str>, data: &[u8]) -> Result<Reply> {
        let mut metadata = Metadata::new();
        if let (Some(key), Some(name)) = (&self.object_key, name) {
            metadata.insert(key.clone(), name);
        }
        self.binding.invoke(Invoke { operation, data: Bytes::copy_from_slice(data), metadata: &metadata }).await
    }

    async fn kept(&self, data: &[u8]) -> Outcome {
        let name = fresh_name();
        self.call("create", Some(&name), data).await?;
        let got = self.call("get", Some(&name), b"").await?.data.unwrap_or_default();
        check_eq!(got.len(), data.len(), "length");
        check!(got == data, "the bytes came back changed");
        Ok(())
    }

    async fn absent(&self, name: &str) -> Outcome {
        match self.call("get", Some(name), b"").await {
            Err(e) => {
                check!(matches!(e.kind(), ErrorKind::NotFound | ErrorKind::InvalidArgument), "{:?}: {e}", e.kind());
                Ok(())
            }
            // Key-value backends answer an absent key with nothing.
            Ok(reply) => {
                check!(reply.data.as_ref().is_none_or(Bytes::is_empty), "data of an absent object: {reply:?}");
                Ok(())
            }
        }
    }
}

async fn operations_are_named_once(b: Arc<BindingBench>) -> Outcome {
    let operations = b.binding.operations();
    check!(!operations.is_empty(), "no operation");
    for (i, operation) in operations.iter().enumerate() {
        check!(!operation.is_empty() && operation.trim() == *operation, "operation {operation:?}");
        check!(!operations[..i].contains(operation), "operation {operation} is named twice");
    }
    Ok(())
}

async fn an_unknown_operation_is_refused(b: Arc<BindingBench>) -> Outcome {
    let outcome = b.call("no-such-operation", Some("x"), b"1").await;
    match outcome {
        Err(e) => check!(
            matches!(e.kind(), ErrorKind::InvalidArgument | ErrorKind::Unsupported | ErrorKind::NotFound),
            "{:?}: {e}",
            e.kind()
        ),
        Ok(reply) => return Err(Failure::new(format!("it answered {reply:?}"))),
    }
    Ok(())
}

async fn what_is_created_can_be_got(b: Arc<BindingBench>) -> Outcome {
    b.kept(br#"{"a": 9007199254740993}"#).await
}

async fn every_byte_is_kept(b: Arc<BindingBench>) -> Outcome {
    let all: Vec<u8> = (0..=255).collect();
    b.kept(&all).await
}

async fn an_empty_object_is_kept(b: Arc<BindingBench>) -> Outcome {
    b.kept(b"").await
}

async fn text_that_looks_like_base64_is_kept(b: Arc<BindingBench>) -> Outcome {
    b.kept(b"test").await?;
    b.kept(b"dGVzdA==").await
}

async fn creating_again_replaces(b: Arc<BindingBench>) -> Outcome {
    let name = fresh_name();
    b.call("create", Some(&name), b"a longer first text").await?;
    b.call("create", Some(&name), b"second").await?;
    let got = b.call("get", Some(&name), b"").await?.data.unwrap_or_default();
    check_eq!(got, Bytes::from_static(b"second"), "object");
    Ok(())
}

async fn an_absent_object_is_not_got(b: Arc<BindingBench>) -> Outcome {
    b.absent(&fresh_name()).await
}

async fn what_is_deleted_is_gone(b: Arc<BindingBench>) -> Outcome {
    let name = fresh_name();
    b.call("create", Some(&name), b"1").await?;
    b.call("delete", Some(&name), b"").await?;
    b.absent(&name).await
}

async fn a_missing_name_is_told(b: Arc<BindingBench>) -> Outcome {
    match b.call("get", None, b"").await {
        Err(e) => check!(matches!(e.kind(), ErrorKind::InvalidArgument | ErrorKind::NotFound), "{:?}: {e}", e.kind()),
        Ok(reply) => return Err(Failure::new(format!("it answered {reply:?}"))),
    }
    Ok(())
}

async fn the_list_has_what_was_created(b: Arc<BindingBench>) -> Outcome {
    let name = fresh_name();
    b.call("create", Some(&name), b"1").await?;
    let list = b.call("list", None, b"").await?.data.unwrap_or_default();
    let text = String::from_utf8_lossy(&list).into_owned();
    check!(text.contains(&name), "{name} is not in {text}");
    Ok(())
}
