//! Reaching the API server.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::error::Failure;
use crate::follow::WATCH_SILENCE;

/// Longest wait for the answer to one request that is no watch.
pub const CALL_LIMIT: Duration = Duration::from_secs(15);
/// Longest wait for a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A connection on which an answer is silent for longer is given up. Later than a watch would, which needs no error
/// for that.
const SILENCE_LIMIT: Duration = WATCH_SILENCE.saturating_add(Duration::from_secs(5));

/// Where the API server is and who we are.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// A kubeconfig file; without one `KUBECONFIG`, the home folder's and the pod's service account are tried.
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig; without one its current context.
    pub context: Option<String>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The kubeconfig file is wrong.
    #[error("the kubeconfig {} cannot be used: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: kube::config::KubeconfigError,
    },
    /// Nothing says where the API server is.
    #[error(
        "no API server is known ({0}); name a kubeconfig with --kubeconfig or KUBECONFIG, or run in a pod with a \
         service account"
    )]
    Unknown(String),
    /// The settings make no client.
    #[error("a client for the API server cannot be made: {0}")]
    Client(#[source] kube::Error),
}

/// A client. Nothing is sent yet.
///
/// # Errors
/// [`AccessError`] names the file or the setting that is wrong.
pub async fn connect(access: &Access) -> Result<Client, AccessError> {
    let options = KubeConfigOptions { context: access.context.clone(), ..KubeConfigOptions::default() };
    let mut config = match &access.kubeconfig {
        Some(path) => {
            let wrong = |source| AccessError::File { path: path.clone(), source };
            let file = Kubeconfig::read_from(path).map_err(wrong)?;
            Config::from_custom_kubeconfig(file, &options).await.map_err(wrong)?
        }
        None if access.context.is_some() => {
            Config::from_kubeconfig(&options).await.map_err(|e| AccessError::Unknown(e.to_string()))?
        }
        None => Config::infer().await.map_err(|e| AccessError::Unknown(e.to_string()))?,
    };
    // Whoever asks decides about trying again, and must hear that the server is busy.
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_LIMIT);
    config.read_timeout = Some(SILENCE_LIMIT);
    // Else it would count from the answer before.
    config.reset_reader_on_write = true;
    config.write_timeout = Some(CALL_LIMIT);
    Client::try_from(config).map_err(AccessError::Client)
}

/// `request` with a deadline: [`CALL_LIMIT`].
///
/// # Errors
/// [`Failure`], with [`crate::FailureKind::Timeout`] when the deadline passes.
pub async fn call<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Failure> {
    match tokio::time::timeout(CALL_LIMIT, request).await {
        Ok(answer) => answer.map_err(Failure::from),
        Err(_) => Err(Failure::timeout(CALL_LIMIT)),
    }
}
