//! A real `mechad` around one component, reached over HTTP or gRPC.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use bytes::Bytes;
use mecha_components_api::{Error, ErrorKind, Metadata};
use mecha_proto::runtime::GetMetadataRequest;
use mecha_tests::{Api, Fault, Front, Grpc, Http, HttpApp, Sidecar, SidecarBuilder, Signal, component};
use parking_lot::Mutex;
use tonic::Code;

use crate::manifest::Recipe;

/// Name of the component in the daemon.
pub(super) const TARGET: &str = "target";

/// The fronts of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Http,
    Grpc,
}

/// A daemon with one component; it ends with the value, or with [`Daemon::end`].
pub(super) struct Daemon {
    sidecar: Mutex<Option<Sidecar>>,
    pub(super) api: Api,
    pub(super) http: Http,
    pub(super) grpc: Grpc,
    wire: Wire,
}

/// What goes around the component.
#[derive(Clone, Copy, Default)]
pub(super) struct Around<'a> {
    /// Its app id, and with it the default consumer group.
    pub(super) app_id: &'a str,
    /// Keys of the runtime beside those of the recipe.
    pub(super) more: &'a [(&'a str, &'a str)],
    /// Variables of its environment.
    pub(super) env: &'a [(String, String)],
    pub(super) app: Option<&'a HttpApp>,
}

impl Wire {
    pub(crate) const ALL: [Self; 2] = [Self::Http, Self::Grpc];

    /// Its name in the manifest and in the names of tests.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|wire| wire.name() == name)
    }
}

/// Its environment may hold secrets.
impl fmt::Debug for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Daemon").field("wire", &self.wire).finish_non_exhaustive()
    }
}

impl Daemon {
    /// Starts it and waits until it is ready.
    pub(super) async fn start(wire: Wire, recipe: &Recipe, dir: &Path, around: Around<'_>) -> Self {
        let metadata = recipe.metadata(dir);
        let pairs: Vec<(&str, &str)> = metadata.iter().chain(around.more.iter().copied()).collect();
        let mut document = component(TARGET, &recipe.kind, &pairs);
        if !recipe.version.is_empty() {
            document = document.replacen("  version: v1\n", &format!("  version: {}\n", recipe.version), 1);
        }
        let mut builder: SidecarBuilder = Sidecar::builder().app_id(around.app_id).component(document);
        for (key, value) in around.env {
            builder = builder.env(key, value.as_str());
        }
        if let Some(app) = around.app {
            builder = builder.app(app);
        }
        // The harness waits in ways of which the compiler cannot see that they are `Send`.
        let here = tokio::runtime::Handle::current();
        let started = tokio::task::spawn_blocking(move || here.block_on(builder.start())).await;
        let sidecar = started.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
        let (http, grpc) = (sidecar.http(), sidecar.grpc().await);
        let front = match wire {
            Wire::Http => Front::Http(http.clone()),
            Wire::Grpc => Front::Grpc(Box::new(grpc.clone())),
        };
        Self { sidecar: Mutex::new(Some(sidecar)), api: Api::new(front), http, grpc, wire }
    }

    pub(super) fn wire(&self) -> Wire {
        self.wire
    }

    /// What the metadata API says that the component can do.
    pub(super) async fn capabilities(&self) -> Result<Vec<String>, String> {
        match self.wire {
            Wire::Http => {
                let document = self.http.get("/v1.0/metadata").try_send().await?.json();
                let components = document["components"].as_array().cloned().unwrap_or_default();
                let found = components.iter().find(|c| c["name"] == TARGET).ok_or("the component is not listed")?;
                let list = found["capabilities"].as_array().cloned().unwrap_or_default();
                Ok(list.iter().map(|c| c.as_str().unwrap_or_default().to_owned()).collect())
            }
            Wire::Grpc => {
                let got = self.grpc.clone().get_metadata(GetMetadataRequest {}).await.map_err(|e| e.to_string())?;
                let components = got.into_inner().registered_components;
                let found = components.into_iter().find(|c| c.name == TARGET);
                Ok(found.ok_or("the component is not listed")?.capabilities)
            }
        }
    }

    /// Lets it build everything anew; nothing is lost that was acknowledged.
    pub(super) fn reload(&self) -> Result<(), Error> {
        match &*self.sidecar.lock() {
            Some(sidecar) => {
                sidecar.signal(Signal::Hup);
                Ok(())
            }
            None => Err(Error::unavailable("the sidecar ended")),
        }
    }

    /// How often it has become ready.
    pub(super) fn starts(&self) -> Result<usize, Error> {
        match &mut *self.sidecar.lock() {
            Some(sidecar) => {
                let runs = sidecar.runs();
                let log = sidecar.log();
                if runs {
                    Ok(log.matches("dapr initialized").count())
                } else {
                    Err(Error::unavailable(format!("the sidecar ended:\n{log}")))
                }
            }
            None => Err(Error::unavailable("the sidecar ended")),
        }
    }

    /// Ends it.
    pub(super) fn end(&self) {
        drop(self.sidecar.lock().take());
    }
}

/// The component's error as far as the wire tells.
pub(super) fn error(fault: &Fault) -> Error {
    let kind = match (fault.http, fault.grpc) {
        (Some(status), _) => match status {
            400 => ErrorKind::InvalidArgument,
            401 => ErrorKind::Unauthenticated,
            403 => ErrorKind::PermissionDenied,
            404 => ErrorKind::NotFound,
            409 => ErrorKind::Conflict,
            413 => ErrorKind::TooLarge,
            429 => ErrorKind::Overloaded,
            501 => ErrorKind::Unsupported,
            503 => ErrorKind::Unavailable,
            504 => ErrorKind::Timeout,
            _ => ErrorKind::Internal,
        },
        (None, Some(code)) => match code {
            Code::InvalidArgument => ErrorKind::InvalidArgument,
            Code::Unauthenticated => ErrorKind::Unauthenticated,
            Code::PermissionDenied => ErrorKind::PermissionDenied,
            Code::NotFound => ErrorKind::NotFound,
            Code::FailedPrecondition => ErrorKind::FailedPrecondition,
            Code::Aborted => ErrorKind::Conflict,
            Code::ResourceExhausted => ErrorKind::TooLarge,
            Code::Unimplemented => ErrorKind::Unsupported,
            Code::Unavailable => ErrorKind::Unavailable,
            Code::DeadlineExceeded => ErrorKind::Timeout,
            _ => ErrorKind::Internal,
        },
        (None, None) => ErrorKind::Internal,
    };
    Error::new(kind, format!("{} {}", fault.code, fault.message))
}

/// Request metadata as the harness takes it.
pub(super) fn pairs(metadata: &Metadata) -> Vec<(&str, &str)> {
    metadata.iter().collect()
}

/// Response metadata.
pub(super) fn metadata(map: BTreeMap<String, String>) -> Metadata {
    map.into_iter().collect()
}

/// `bytes` as JSON text, if HTTP's JSON bodies can say them: JSON as it is, other text as a string.
pub(super) fn as_json(bytes: &Bytes) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    let json = serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok();
    Some(if json { text.to_owned() } else { serde_json::Value::from(text).to_string() })
}
