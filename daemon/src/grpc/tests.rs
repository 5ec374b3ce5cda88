//! The front over a real socket, with in-memory components.

mod calls;
mod edge;
mod streams;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mecha_components_api::{
    CancellationToken, Changes, Component, ConfigItem, ConfigurationStore, Metadata, Registry, Result as ApiResult,
    SystemClock, async_trait,
};
use mecha_core::app::{Body, BodyError};
use mecha_core::health::Health;
use mecha_core::loader::{Loader, LoaderCx};
use mecha_core::metrics::{Metrics, MetricsConfig};
use mecha_core::ops::Ops;
use mecha_core::policies::Policies;
use mecha_core::store::{Handle, Info};
use mecha_core::trace::{Sampler, Tracer};
use mecha_core::{Core, CoreParts, Identity, Tasks};
use mecha_proto::common::{Etag, StateItem};
use mecha_proto::runtime::dapr_client::DaprClient;
use mecha_resources::Loaded;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tonic::Status;
use tonic::transport::Channel;
use tonic_types::{ErrorDetail, StatusExt};

use super::{GrpcOptions, limits, router};
use crate::peer::testing::{Names, Sidecar, TestApp};
use crate::proxy::OwnApp;
use crate::serve::{Listener, serve};
use crate::token::ApiToken;

const DOCUMENTS: &str = "
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: { name: mem }
spec: { type: state.in-memory, version: v1 }
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: { name: bus }
spec: { type: pubsub.in-memory, version: v1 }
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: { name: env }
spec: { type: secretstores.local.env, version: v1 }
";

type Client = DaprClient<Channel>;

/// A running server.
struct Rig {
    core: Arc<Core>,
    address: SocketAddr,
    client: Client,
    watched: mpsc::Sender<Changes>,
    _sidecar: Sidecar,
    servers: Tasks,
}

impl Rig {
    async fn start() -> Self {
        Self::with(GrpcOptions { max_body: 4 << 20, ..GrpcOptions::default() }, Tracer::pass_through()).await
    }

    async fn with(options: GrpcOptions, tracer: Tracer) -> Self {
        let sidecar = Sidecar::start("shop", &Names::default(), Some(TestApp::echo()), OwnApp::None).await;
        let metrics = Arc::new(
            Metrics::new(MetricsConfig { record_error_codes: true, ..MetricsConfig::new("shop", "") }).unwrap(),
        );
        let core = Arc::new(Core::new(CoreParts {
            identity: Identity { app_id: "shop".into(), namespace: "".into(), pod_name: "".into() },
            health: Arc::new(Health::new("shop".into(), vec!["app"])),
            metrics: metrics.clone(),
            tracer,
            app: None,
            invoke: sidecar.invoke.clone(),
        }));
        load(&core, metrics).await;
        let (watched, changes) = mpsc::channel(4);
        let store = FakeConfiguration(Arc::new(tokio::sync::Mutex::new(changes)));
        let handle = Handle { info: info("conf"), ops: Ops::default(), extra: (), inner: Arc::new(store) as Arc<_> };
        core.store.edit(|s| s.configuration.insert("conf".into(), Arc::new(handle))).await;

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let servers = Tasks::new();
        let service = router(core.clone(), options, Some(sidecar.proxy.clone()));
        tokio::spawn(serve(Listener::Tcp(listener), service, limits(4096), servers.clone()));
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        let client = DaprClient::new(channel).max_decoding_message_size(usize::MAX);
        Self { core, address, client, watched, _sidecar: sidecar, servers }
    }

    fn client(&self) -> Client {
        self.client.clone()
    }

    /// A call as bytes: status and details come back as headers.
    async fn raw(&self, path: &str, headers: &[(&'static str, &str)]) -> http::Response<Bytes> {
        let empty_message = Full::new(Bytes::from_static(&[0; 5])).map_err(BodyError::from).boxed_unsync();
        self.raw_with(path, headers, empty_message).await
    }

    async fn raw_with(&self, path: &str, headers: &[(&'static str, &str)], body: Body) -> http::Response<Bytes> {
        let io = TokioIo::new(TcpStream::connect(self.address).await.unwrap());
        let (mut send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        let mut req = http::Request::post(format!("http://{}{path}", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            req = req.header(*name, *value);
        }
        let res = send.send_request(req.body(body).unwrap()).await.unwrap();
        let (mut parts, body) = res.into_parts();
        let all = body.collect().await.unwrap();
        if let Some(trailers) = all.trailers() {
            parts.headers.extend(trailers.clone());
        }
        http::Response::from_parts(parts, all.to_bytes())
    }

    fn metric(&self, start: &str) -> Vec<String> {
        self.core.metrics.encode().lines().filter(|l| l.starts_with(start)).map(str::to_owned).collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.servers.stopping().cancel();
        self.core.tasks.stopping().cancel();
    }
}

async fn load(core: &Arc<Core>, metrics: Arc<Metrics>) {
    let mut registry = Registry::new();
    mecha_components::register_all(&mut registry);
    let mut loaded = Loaded::default();
    loaded.read_text("test.yaml", DOCUMENTS);
    assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
    let (policies, _) = Policies::compile(&[], metrics);
    let cx = LoaderCx {
        strict: false,
        scoped_secrets: false,
        strict_components: false,
        home: std::env::temp_dir(),
        clock: Arc::new(SystemClock),
        env: Arc::new(|name| (name == "GREETING").then(|| "hello".to_owned())),
        default_secret_store: String::new(),
        denied: Vec::new(),
        left_out: mecha_components::left_out,
    };
    let loader = Arc::new(Loader::new(core.clone(), registry, Arc::new(policies), cx));
    let components = loaded.components.into_iter().map(|c| c.value).collect();
    loader.load_all(components).await.unwrap();
}

fn info(name: &str) -> Info {
    Info { name: name.into(), kind: "test".into(), version: "v1".into(), capabilities: Vec::new() }
}

/// Hands on the changes that a test makes.
#[derive(Debug)]
struct FakeConfiguration(Arc<tokio::sync::Mutex<mpsc::Receiver<Changes>>>);

#[async_trait]
impl Component for FakeConfiguration {}

#[async_trait]
impl ConfigurationStore for FakeConfiguration {
    async fn get(&self, keys: &[&str], _: &Metadata) -> ApiResult<Changes> {
        Ok(keys.iter().map(|k| ((*k).to_owned(), item(&format!("value of {k}")))).collect())
    }

    async fn watch(
        &self,
        _: Vec<String>,
        _: Metadata,
        out: mpsc::Sender<Changes>,
        stop: CancellationToken,
    ) -> ApiResult<()> {
        let mut changes = self.0.lock().await;
        loop {
            tokio::select! {
                Some(changed) = changes.recv() => { let _ = out.send(changed).await; }
                () = stop.cancelled() => return Ok(()),
            }
        }
    }
}

fn item(value: &str) -> ConfigItem {
    ConfigItem { value: value.to_owned(), version: "1".to_owned(), metadata: BTreeMap::new() }
}

fn state(key: &str, value: &'static str) -> StateItem {
    StateItem { key: key.to_owned(), value: Bytes::from_static(value.as_bytes()), ..StateItem::default() }
}

fn with_etag(item: StateItem, etag: &str) -> StateItem {
    StateItem { etag: Some(Etag { value: etag.to_owned() }), ..item }
}

fn reason(status: &Status) -> String {
    let found = status.get_error_details_vec().into_iter().find_map(|d| match d {
        ErrorDetail::ErrorInfo(info) => Some(info.reason),
        _ => None,
    });
    found.unwrap_or_default()
}

fn token(text: &str) -> Option<ApiToken> {
    ApiToken::new(text)
}

fn tracing_on() -> Tracer {
    Tracer::on(Sampler::new(1.0), None)
}
