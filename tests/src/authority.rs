//! A double of the certificate authority of the control plane, and sidecars that trust it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use ::http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use mecha_identity::rustls::ServerConfig;
use mecha_identity::testing::Ca;
use mecha_identity::{Bundle, CertificateRequest, Clients, Identity, Live};
use mecha_proto::sentry::ca_server::{Ca as Service, CaServer};
use mecha_proto::sentry::{SignCertificateRequest, SignCertificateResponse};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tonic::{Code, Status};

use crate::ports::{free_port, listen};
use crate::sidecar::SidecarBuilder;

/// Trust domain and namespace of the control plane that the double belongs to.
const CONTROL: (&str, &str) = ("cluster.local", "mecha-system");

/// Shortest life of a certificate, whatever is said beside it.
const SHORTEST: Duration = Duration::from_secs(2);

/// A certificate authority that signs what is asked for, as a test wants it.
#[derive(Debug)]
pub struct Authority {
    port: u16,
    folder: TempDir,
    shared: Arc<Shared>,
    live: Arc<Live>,
    server: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    ca: Mutex<Arc<Ca>>,
    lifetime: Mutex<Duration>,
    refusal: Mutex<Option<(Code, String)>>,
    signed: AtomicU64,
    last: Mutex<Option<SignCertificateRequest>>,
}

impl Authority {
    /// An authority with a root of its own, which signs for an hour. The root is in the file of
    /// the trust anchors.
    pub async fn start() -> Self {
        let ca = Arc::new(Ca::new("root"));
        let live = Live::new(Bundle::from_pem(&ca.root_pem()).unwrap());
        live.set_identity(ca.identity(&id("dapr-sentry")));
        let authority = Self {
            port: free_port(),
            folder: tempfile::tempdir().unwrap(),
            shared: Arc::new(Shared {
                ca: Mutex::new(ca.clone()),
                lifetime: Mutex::new(Duration::from_secs(3600)),
                refusal: Mutex::default(),
                signed: AtomicU64::new(0),
                last: Mutex::default(),
            }),
            live,
            server: Mutex::default(),
        };
        authority.publish(&[&ca]);
        authority.serve().await;
        authority
    }

    /// `host:port`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Who signs now.
    #[must_use]
    pub fn ca(&self) -> Arc<Ca> {
        self.shared.ca.lock().clone()
    }

    /// The file of the trust anchors.
    #[must_use]
    pub fn anchors(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    /// Replaces the file of the trust anchors, as a kubelet does: at once.
    pub fn publish(&self, roots: &[&Ca]) {
        let fresh = self.folder.path().join("fresh");
        std::fs::write(&fresh, roots.iter().map(|ca| ca.root_pem()).collect::<String>()).unwrap();
        std::fs::rename(fresh, self.anchors()).unwrap();
    }

    /// Signs with another root from now on, and shows a certificate of it.
    pub fn sign_with(&self, ca: Arc<Ca>) {
        self.live.set_identity(ca.identity(&id("dapr-sentry")));
        *self.shared.ca.lock() = ca;
    }

    /// Shows this identity to callers.
    pub fn appear_as(&self, identity: Identity) {
        self.live.set_identity(identity);
    }

    /// How long the certificates last that are signed from now on.
    pub fn lasting(&self, lifetime: Duration) {
        *self.shared.lifetime.lock() = lifetime;
    }

    /// Refuses to sign from now on, or signs again.
    pub fn refuse(&self, refusal: Option<(Code, &str)>) {
        *self.shared.refusal.lock() = refusal.map(|(code, text)| (code, text.to_owned()));
    }

    /// Certificates signed so far.
    #[must_use]
    pub fn signed(&self) -> u64 {
        self.shared.signed.load(Ordering::Relaxed)
    }

    /// What was last asked for.
    #[must_use]
    pub fn last(&self) -> Option<SignCertificateRequest> {
        self.shared.last.lock().clone()
    }

    /// Goes away, with all its connections.
    pub fn stop(&self) {
        if let Some(server) = self.server.lock().take() {
            server.abort();
        }
    }

    /// Comes back on the same port.
    pub async fn serve(&self) {
        let listener = listen(self.port).await;
        let config = self.live.server_config(Clients::Anybody);
        let service = CaServer::new(Double(self.shared.clone()));
        *self.server.lock() = Some(serve_grpc(listener, config, service));
    }

    /// A sidecar that gets its identity here and talks to others over mTLS.
    pub fn secure(&self, builder: SidecarBuilder) -> SidecarBuilder {
        builder
            .switch("enable-mtls")
            .flag("sentry-address", self.address())
            .env("DAPR_CONTROLPLANE_TRUST_DOMAIN", CONTROL.0)
            .env("DAPR_CONTROLPLANE_NAMESPACE", CONTROL.1)
            .env("MECHA_TRUST_ANCHORS_FILE", self.anchors().to_str().unwrap())
    }

    /// A server of the control plane over mTLS on a free port, under the name of `part`.
    pub async fn serve_part<S>(&self, part: &str, service: S) -> (u16, JoinHandle<()>)
    where
        S: tower_service::Service<Request<Incoming>, Response = Response<tonic::body::Body>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: std::error::Error + Send + Sync,
    {
        let live = Live::new(Bundle::from_pem(&self.ca().root_pem()).unwrap());
        live.set_identity(self.ca().identity(&id(part)));
        let port = free_port();
        (port, serve_grpc(listen(port).await, live.server_config(Clients::Required), service))
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.stop();
    }
}

fn id(part: &str) -> String {
    format!("spiffe://{}/ns/{}/{part}", CONTROL.0, CONTROL.1)
}

struct Double(Arc<Shared>);

#[tonic::async_trait]
impl Service for Double {
    async fn sign_certificate(
        &self,
        request: tonic::Request<SignCertificateRequest>,
    ) -> Result<tonic::Response<SignCertificateResponse>, Status> {
        let request = request.into_inner();
        *self.0.last.lock() = Some(request.clone());
        if let Some((code, text)) = &*self.0.refusal.lock() {
            return Err(Status::new(*code, text));
        }
        let csr = CertificateRequest::parse(&request.certificate_signing_request)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let lifetime = *self.0.lifetime.lock();
        let uri = format!("spiffe://public/ns/{}/{}", request.namespace, request.id);
        let ca = self.0.ca.lock().clone();
        // Certificates know whole seconds only, the last of which is cut off; what is said beside them is exact.
        let chain = ca.answer(&csr, &uri, lifetime.max(SHORTEST) + Duration::from_secs(1));
        self.0.signed.fetch_add(1, Ordering::Relaxed);
        Ok(tonic::Response::new(SignCertificateResponse {
            workload_certificate: chain.into(),
            trust_chain_certificates: vec![ca.root_pem().into()],
            valid_until: Some((SystemTime::now() + lifetime).into()),
            ..SignCertificateResponse::default()
        }))
    }
}

/// A gRPC server over TLS; it ends with the returned task, and its connections with it.
fn serve_grpc<S>(listener: TcpListener, config: ServerConfig, service: S) -> JoinHandle<()>
where
    S: tower_service::Service<Request<Incoming>, Response = Response<tonic::body::Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: std::error::Error + Send + Sync,
{
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let (acceptor, service) = (acceptor.clone(), TowerToHyperService::new(service.clone()));
            connections.spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let server = auto::Builder::new(TokioExecutor::new()).http2_only();
                // It ends when the client has gone, however that was.
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
            while connections.try_join_next().is_some() {}
        }
    })
}
