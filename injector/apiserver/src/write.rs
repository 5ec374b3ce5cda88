//! Writing objects by server-side apply: each writer owns the fields it names and no others.

use std::fmt::Debug;

use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::access::call;
use crate::error::{Failure, FailureKind};

/// Applies `value`, which names apiVersion, kind and metadata.name itself. Fields that `manager` named before and
/// does not name now are removed. Fields of others are taken over: name only what is yours.
///
/// # Errors
/// As the API server answers.
pub async fn apply<K>(api: &Api<K>, name: &str, manager: &str, value: &Value) -> Result<K, Failure>
where
    K: Clone + DeserializeOwned + Debug,
{
    call(api.patch(name, &PatchParams::apply(manager).force(), &Patch::Apply(value))).await
}

/// Applies `status`, the whole of what `manager` says about the object.
///
/// # Errors
/// As the API server answers; [`FailureKind::NotFound`] when the object is gone.
pub async fn apply_status<K>(api: &Api<K>, name: &str, manager: &str, status: &Value) -> Result<K, Failure>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let value = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": name},
        "status": status,
    });
    call(api.patch_status(name, &PatchParams::apply(manager).force(), &Patch::Apply(&value))).await
}

/// Deletes the object; `false` when it was gone already.
///
/// # Errors
/// As the API server answers.
pub async fn delete<K>(api: &Api<K>, name: &str) -> Result<bool, Failure>
where
    K: Clone + DeserializeOwned + Debug,
{
    match call(api.delete(name, &DeleteParams::default())).await {
        Ok(_) => Ok(true),
        Err(failure) if failure.kind == FailureKind::NotFound => Ok(false),
        Err(failure) => Err(failure),
    }
}
