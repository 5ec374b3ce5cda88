//! The control part, by what it leaves at the API server.

use super::failed;
use crate::error::Result;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use mecha_apiserver::{FailureKind, call};
use serde::Serialize;
use std::fmt;

/// Where the control part is installed.
pub(crate) const NAMESPACE: &str = "mecha-system";

/// The roles, the lease of each role's leader, and what does not happen without it.
const ROLES: [(&str, &str, &str); 3] = [
    ("hub", "mecha-hub", "nothing is decided; what is bound keeps running"),
    ("agent", "mecha-agent", "documents and certificates are not delivered; sidecars go on with what they have"),
    ("injector", "mecha-injector", "the webhook is not maintained, and pods that ask for a sidecar may be refused"),
];

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// As it should be.
    Ok,
    /// It works, and somebody should look.
    Warning,
    /// It does not work.
    Failed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        })
    }
}

/// One role.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Part {
    pub(crate) role: String,
    pub(crate) state: State,
    pub(crate) leader: String,
    pub(crate) detail: String,
}

/// How the roles are: whether somebody leads each.
pub(crate) async fn parts(client: &Client, namespace: &str) -> Result<Vec<Part>> {
    let api: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let mut parts = Vec::with_capacity(ROLES.len());
    for (role, name, without) in ROLES {
        let lease = match call(api.get(name)).await {
            Ok(lease) => Some(lease),
            Err(failure) if failure.kind == FailureKind::NotFound => None,
            Err(failure) if failure.kind == FailureKind::Forbidden => {
                let detail = format!("this account may not read the Lease {namespace}/{name}");
                parts.push(Part { role: role.to_owned(), state: State::Warning, leader: String::new(), detail });
                continue;
            }
            Err(failure) => return Err(failed(&format!("reading Lease {namespace}/{name}"), &failure)),
        };
        parts.push(part(role, without, namespace, lease.as_ref()));
    }
    Ok(parts)
}

fn part(role: &str, without: &str, namespace: &str, lease: Option<&Lease>) -> Part {
    let spec = lease.and_then(|lease| lease.spec.clone()).unwrap_or_default();
    let holder = spec.holder_identity.unwrap_or_default();
    let now = k8s_openapi::jiff::Timestamp::now();
    let age = spec.renew_time.map(|time| now.duration_since(time.0).as_secs());
    let life = i64::from(spec.lease_duration_seconds.unwrap_or_default());
    let (state, detail) = match (holder.is_empty(), age) {
        (false, Some(age)) if age <= life => (State::Ok, format!("renewed {age} s ago")),
        (false, Some(age)) => (
            State::Failed,
            format!("the lease ran out {} s ago: {without}; look at the pods in {namespace}", age - life),
        ),
        _ => (State::Failed, format!("nobody leads: {without}; is it installed in {namespace}?")),
    };
    Part { role: role.to_owned(), state, leader: holder, detail }
}
