//! The control part's objects at an API server: read, decided by the same engine, written.

pub(crate) mod files;
pub(crate) mod health;
pub(crate) mod steer;
pub(crate) mod view;
pub(crate) mod write;

use crate::error::CliError;
use clap::{Args, ValueHint};
use kube::Client;
use mecha_apiserver::{Access, Failure, FailureKind, connect};
use std::path::PathBuf;

/// Which cluster a command talks to.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ClusterArgs {
    /// Kubeconfig file of the cluster [default: KUBECONFIG, ~/.kube/config, or the pod's service account]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
}

impl ClusterArgs {
    /// Whether a cluster was named.
    pub(crate) fn is_named(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some()
    }

    /// A client. Nothing is sent yet.
    pub(crate) async fn client(&self) -> Result<Client, CliError> {
        let access = Access { kubeconfig: self.kubeconfig.clone(), context: self.context.clone() };
        connect(&access).await.map_err(|error| CliError::new("cluster", error))
    }
}

/// Where documents lie that name no namespace.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct NamespaceArgs {
    /// Namespace of what names none [default: that of the kubeconfig's context, or default]
    #[arg(long, short = 'n', value_name = "NAME")]
    namespace: Option<String>,
}

impl NamespaceArgs {
    /// The namespace, as kubectl takes it.
    pub(crate) fn of(&self, client: &Client) -> String {
        self.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned())
    }
}

/// A request that failed, with what to do next. `what` was to be done.
pub(crate) fn failed(what: &str, failure: &Failure) -> CliError {
    let (code, hint) = match failure.kind {
        FailureKind::Forbidden => {
            ("cluster-forbidden", Some("ask the platform team for this right, or use another --context"))
        }
        FailureKind::Unauthenticated => {
            ("cluster-login", Some("log in again; the kubeconfig's credentials have expired"))
        }
        FailureKind::NotFound => ("cluster-not-found", None),
        FailureKind::Conflict => {
            ("cluster-conflict", Some("somebody else owns the field; --force-conflicts takes it over"))
        }
        FailureKind::Invalid => ("cluster-invalid", None),
        FailureKind::Busy | FailureKind::Timeout | FailureKind::Unavailable => {
            ("cluster-unavailable", Some("run the command again: what it has done so far stays done"))
        }
    };
    let error = CliError::new(code, format!("{what}: {failure}"));
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}
