//! The API server: where it is, who we are there, and one bounded call.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, USER_AGENT};
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use mecha_components_api::{Error, ErrorKind, Result, Retry};
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::files::{Content, Files};
use crate::kubeconfig;

/// One call, with a second try after a rotated token.
const CALL: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(5);
/// A disk that answers later than this counts as gone.
const DISK: Duration = Duration::from_secs(10);
/// Unused connections are closed after this time.
const IDLE: Duration = Duration::from_secs(90);
/// Characters of the server's own words that are shown.
const MAX_WORDS: usize = 300;
/// Most bytes of an answer that says why not.
const MAX_REFUSAL: usize = 64 * 1024;

/// Where the API server is, and who we are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// We run in a pod.
    Pod {
        /// Host and port.
        address: String,
        /// The folder with `token` and `ca.crt` of the service account.
        account: PathBuf,
    },
    /// A file says so.
    Kubeconfig(PathBuf),
}

/// The API server. Its files are read again when they change.
pub(crate) struct Server {
    /// Of the component, for the log.
    name: Arc<str>,
    place: Place,
    current: Arc<Mutex<Current>>,
}

struct Current {
    access: Arc<Access>,
    files: Files,
}

/// What the files say.
struct Access {
    base: String,
    token: Option<HeaderValue>,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("place", &self.place).finish_non_exhaustive()
    }
}

/// An answer of success.
pub(crate) type Answer = Content;

impl Server {
    /// Reads the files; calls nobody.
    pub(crate) async fn open(name: Arc<str>, place: Place) -> Result<Self> {
        let from = place.clone();
        let (access, files) = blocking(move || access(&from)).await?;
        let current = Current { access: Arc::new(access?), files };
        Ok(Self { name, place, current: Arc::new(Mutex::new(current)) })
    }

    /// `GET path`, answered with at most `limit` bytes. `what` says in errors what was asked for, `right`
    /// what has to be allowed.
    pub(crate) async fn get(&self, path: &str, limit: usize, what: &str, right: &str) -> Result<Answer> {
        let call = async {
            let access = self.access().await?;
            let (status, answer) = access.get(path, limit).await?;
            let status = if status == StatusCode::UNAUTHORIZED {
                // The token may have been replaced since we looked.
                let again = self.access().await?;
                if Arc::ptr_eq(&access, &again) {
                    return Err(refusal(status, &answer, what, right));
                }
                again.get(path, limit).await?
            } else {
                (status, answer)
            };
            match status {
                (StatusCode::OK, answer) => Ok(answer),
                (status, answer) => Err(refusal(status, &answer, what, right)),
            }
        };
        match tokio::time::timeout(CALL, call).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::timeout(format!("the API server did not give {what} within {}s", CALL.as_secs()))),
        }
    }

    async fn access(&self) -> Result<Arc<Access>> {
        let (name, place, current) = (self.name.clone(), self.place.clone(), self.current.clone());
        blocking(move || {
            let mut current = current.lock();
            if current.files.changed() {
                match access(&place) {
                    (Ok(access), files) => *current = Current { access: Arc::new(access), files },
                    // What is replaced in two steps is whole a moment later.
                    (Err(e), _) => {
                        tracing::warn!(component = %name, error = %e, "the access to the API server changed and cannot be used, what was read before stays");
                        current.files.accept();
                    }
                }
            }
            current.access.clone()
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    match tokio::time::timeout(DISK, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(_)) => Err(Error::internal("reading the files of the service account was cut short")),
        Err(_) => Err(Error::timeout("the disk with the files of the service account did not answer within 10s")),
    }
}

/// Reads all files of a place.
fn access(place: &Place) -> (Result<Access>, Files) {
    let mut files = Files::default();
    let access = match place {
        Place::Pod { address, account } => pod(address, account, &mut files),
        Place::Kubeconfig(path) => outside(path, &mut files),
    };
    (access, files)
}

fn pod(address: &str, account: &Path, files: &mut Files) -> Result<Access> {
    let token = files.read("service account token", &account.join("token"))?;
    let authority = files.read("certificate authority", &account.join("ca.crt"))?;
    let tls = tls(Some(&authority), None)?;
    Access::new(format!("https://{address}"), Some(&token), tls)
}

fn outside(path: &Path, files: &mut Files) -> Result<Access> {
    let config = kubeconfig::read(path, files)?;
    let certificate = config.certificate.as_ref().map(|(chain, key)| (chain.as_slice(), key.as_slice()));
    let tls = tls(config.authority.as_ref().map(|pem| pem.as_slice()), certificate)?;
    Access::new(config.server, config.token.as_ref(), tls)
}

fn unusable(what: &str) -> Error {
    Error::new(ErrorKind::FailedPrecondition, what.to_owned())
}

fn tls(authority: Option<&[u8]>, certificate: Option<(&[u8], &[u8])>) -> Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::internal("no usable TLS version").with_source(e))?;
    let builder = match authority {
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in chain(pem, "the certificate authority of the API server")? {
                roots
                    .add(certificate)
                    .map_err(|_| unusable("the API server's authority has an unusable certificate"))?;
            }
            builder.with_root_certificates(roots)
        }
        None => builder
            .with_native_roots()
            .map_err(|_| unusable("no certificate authority is named, and this machine has none"))?,
    };
    let Some((certificate, key)) = certificate else { return Ok(builder.with_no_client_auth()) };
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| unusable("the client key holds no private key"))?;
    builder
        .with_client_auth_cert(chain(certificate, "the client certificate")?, key)
        .map_err(|_| unusable("the client certificate and its key do not belong together"))
}

fn chain(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>> {
    match CertificateDer::pem_slice_iter(pem).collect::<std::result::Result<Vec<_>, _>>() {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(unusable(&format!("{what} holds no certificate in PEM form"))),
    }
}

impl Access {
    fn new(server: String, token: Option<&Content>, tls: ClientConfig) -> Result<Self> {
        let base = server.trim_end_matches('/').to_owned();
        let uri: Uri = base.parse().map_err(|_| unusable(&format!("'{base}' is no address of an API server")))?;
        if uri.scheme_str() != Some("https") || uri.authority().is_none() {
            return Err(unusable(&format!("'{base}' is no https address of an API server")));
        }
        let token = token.map(|token| {
            let line = Zeroizing::new([b"Bearer ", token.trim_ascii()].concat());
            let mut value =
                HeaderValue::from_bytes(&line).map_err(|_| unusable("the token cannot stand in a header"))?;
            value.set_sensitive(true);
            Ok::<_, Error>(value)
        });
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_nodelay(true);
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(connector);
        Ok(Self { base, token: token.transpose()?, client })
    }

    async fn get(&self, path: &str, limit: usize) -> Result<(StatusCode, Answer)> {
        let mut request = Request::get(format!("{}{path}", self.base))
            .header(ACCEPT, HeaderValue::from_static("application/json"))
            .header(USER_AGENT, HeaderValue::from_static(concat!("mecha/", env!("CARGO_PKG_VERSION"))));
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token);
        }
        let request = request.body(Empty::new()).map_err(|e| Error::internal("no valid request").with_source(e))?;
        let response = self.client.request(request).await.map_err(|e| {
            let retry = if e.is_connect() { Retry::Always } else { Retry::IfIdempotent };
            Error::unavailable(format!("the API server at {} cannot be called", self.base))
                .with_retry(retry)
                .with_source(Causes(Box::new(e)))
        })?;
        let status = response.status();
        let limit = if status.is_success() { limit } else { MAX_REFUSAL };
        let mut answer = Zeroizing::new(Vec::new());
        let mut body = Limited::new(response.into_body(), limit);
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => answer.extend_from_slice(frame.data_ref().map(|d| &d[..]).unwrap_or_default()),
                Err(e) if e.is::<LengthLimitError>() => {
                    return Err(Error::new(ErrorKind::TooLarge, format!("the answer has more than {limit} bytes")));
                }
                Err(e) => {
                    let error = Error::unavailable("the API server broke its answer off");
                    return Err(error.with_retry(Retry::IfIdempotent).with_source(Causes(e)));
                }
            }
        }
        Ok((status, answer))
    }
}

/// An error with what is behind it, in one line.
#[derive(Debug)]
struct Causes(Box<dyn std::error::Error + Send + Sync>);

impl std::fmt::Display for Causes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

impl std::error::Error for Causes {}

/// The part of the server's refusal that is for people.
#[derive(Default, Deserialize)]
struct Refusal {
    #[serde(default)]
    message: String,
}

fn refusal(status: StatusCode, answer: &[u8], what: &str, right: &str) -> Error {
    let words = serde_json::from_slice::<Refusal>(answer).unwrap_or_default().message;
    let words: String = words.chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect();
    let (kind, message) = match status {
        StatusCode::UNAUTHORIZED => (
            ErrorKind::Unauthenticated,
            format!("the API server does not accept our token for {what}: it has expired, or is for another cluster"),
        ),
        StatusCode::FORBIDDEN => {
            (ErrorKind::PermissionDenied, format!("{what} is not allowed to us; {right}. The API server says: {words}"))
        }
        StatusCode::NOT_FOUND => (ErrorKind::NotFound, format!("{what} not found")),
        StatusCode::GONE => (ErrorKind::Conflict, format!("{what} changed while it was read")),
        StatusCode::TOO_MANY_REQUESTS => (ErrorKind::Overloaded, "the API server asks for fewer calls".to_owned()),
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => {
            (ErrorKind::Timeout, format!("the API server ran out of time for {what}"))
        }
        status if status.is_server_error() => {
            (ErrorKind::Unavailable, format!("the API server failed at {what} with {status}: {words}"))
        }
        status if status.is_client_error() => {
            (ErrorKind::InvalidArgument, format!("the API server refuses the call for {what} with {status}: {words}"))
        }
        status => (ErrorKind::Internal, format!("the API server answered {status} to the call for {what}")),
    };
    Error::new(kind, message)
}
