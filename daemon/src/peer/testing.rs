//! Two sidecars in one process, for the tests of peers and proxy.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mecha_components_api::{
    BindingEvent, CancellationToken, Component, ConfigItem, Error, Instance, NameResolver, Target as Wanted,
};
use mecha_core::app::{
    AppChannel, AppConfig, AppError, AppProtocol, AppSubscription, AppVerdict, BindingReply, Body, BulkTopicEvent,
    TopicEvent,
};
use mecha_core::invoke::{Invoke, InvokeParts, Transport};
use mecha_core::metrics::Metrics;
use mecha_core::{Identity, Tasks, TraceHeaders};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{Client, Connected, PeerServer, Pool, PoolSettings, TcpDial};
use crate::proxy::{GrpcProxy, OwnApp};

pub(crate) const MAX_BODY: usize = 4 * 1024 * 1024;

type Handler = Box<dyn Fn(Request<Body>) -> Result<Response<Body>, AppError> + Send + Sync>;

/// An app whose answers a test decides.
pub(crate) struct TestApp {
    protocol: AppProtocol,
    handler: Handler,
}

impl std::fmt::Debug for TestApp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TestApp")
    }
}

impl TestApp {
    #[allow(clippy::new_ret_no_self, reason = "shared from the start, as every test needs it")]
    pub(crate) fn new(
        protocol: AppProtocol,
        handler: impl Fn(Request<Body>) -> Result<Response<Body>, AppError> + Send + Sync + 'static,
    ) -> Arc<dyn AppChannel> {
        Arc::new(Self { protocol, handler: Box::new(handler) })
    }

    /// Sends back the body as it comes, and `x-*` facts about the request.
    pub(crate) fn echo() -> Arc<dyn AppChannel> {
        Self::new(AppProtocol::Http, |req| {
            let mut res = Response::new(());
            let map = res.headers_mut();
            map.insert("x-uri", req.uri().to_string().parse().unwrap());
            map.insert("x-method", req.method().as_str().parse().unwrap());
            let length = http_body::Body::size_hint(req.body()).exact();
            map.insert("x-length", length.map_or("none".to_owned(), |l| l.to_string()).parse().unwrap());
            for (name, value) in req.headers() {
                map.append(http::HeaderName::try_from(format!("x-echo-{name}")).unwrap(), value.clone());
            }
            map.insert("content-type", "application/octet-stream".parse().unwrap());
            Ok(res.map(|()| req.into_body()))
        })
    }
}

#[async_trait]
impl AppChannel for TestApp {
    fn protocol(&self) -> AppProtocol {
        self.protocol
    }
    async fn config(&self) -> Result<Option<AppConfig>, AppError> {
        Ok(None)
    }
    async fn subscriptions(&self) -> Result<Option<Vec<AppSubscription>>, AppError> {
        Ok(None)
    }
    async fn topic_event(&self, _: &TopicEvent) -> Result<AppVerdict, AppError> {
        Ok(AppVerdict::Success)
    }
    async fn bulk_topic_event(&self, _: &BulkTopicEvent) -> Result<Vec<AppVerdict>, AppError> {
        Ok(vec![])
    }
    async fn takes_binding(&self, _: &str, _: &str, _: Duration) -> Result<bool, AppError> {
        Ok(false)
    }
    async fn binding_event(
        &self,
        _: &str,
        _: &str,
        _: &BindingEvent,
        _: &TraceHeaders,
    ) -> Result<BindingReply, AppError> {
        Ok(BindingReply::default())
    }
    async fn configuration_event(
        &self,
        _: &str,
        _: &str,
        _: &str,
        _: &BTreeMap<String, ConfigItem>,
    ) -> Result<(), AppError> {
        Ok(())
    }
    async fn probe(&self, _: &str, _: Duration) -> Result<(), AppError> {
        Ok(())
    }
    async fn invoke(&self, req: Request<Body>) -> Result<Response<Body>, AppError> {
        (self.handler)(req)
    }
}

/// Addresses by app id.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names(pub(crate) Arc<Mutex<BTreeMap<String, Vec<Arc<str>>>>>);

#[async_trait]
impl Component for Names {}

#[async_trait]
impl NameResolver for Names {
    async fn resolve(&self, target: Wanted<'_>) -> Result<Vec<Arc<str>>, Error> {
        self.0.lock().get(target.app_id).cloned().ok_or_else(|| Error::not_found("no host found with the given ID"))
    }
    async fn announce(&self, _: Instance, _: Box<dyn FnOnce() + Send>, _: CancellationToken) -> Result<(), Error> {
        Ok(())
    }
}

/// One sidecar.
pub(crate) struct Sidecar {
    pub(crate) invoke: Arc<Invoke>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) proxy: Arc<GrpcProxy>,
    pub(crate) address: SocketAddr,
    pub(crate) server: JoinHandle<()>,
    _tasks: Tasks,
}

impl Sidecar {
    pub(crate) async fn start(id: &str, names: &Names, app: Option<Arc<dyn AppChannel>>, own: OwnApp) -> Self {
        Self::with(id, names, app, own, PoolSettings::default()).await
    }

    pub(crate) async fn with(
        id: &str,
        names: &Names,
        app: Option<Arc<dyn AppChannel>>,
        own: OwnApp,
        settings: PoolSettings,
    ) -> Self {
        let tasks = Tasks::new();
        let pool = Pool::new(Arc::new(TcpDial), settings, tasks.clone());
        let transport: Arc<dyn Transport> = Arc::new(Client::new(pool.clone(), MAX_BODY));
        let invoke = Arc::new(Invoke::new(InvokeParts {
            identity: Identity { app_id: id.into(), namespace: "".into(), pod_name: "".into() },
            host_address: "127.0.0.1".into(),
            host_name: "box".into(),
            app,
            transport,
            metrics: Arc::new(Metrics::disabled()),
            declared_urls_only: false,
            close_internal_routes: false,
            max_body: MAX_BODY,
        }));
        invoke.set_resolver(Some(Arc::new(names.clone())));
        let proxy = Arc::new(GrpcProxy::new(invoke.clone(), pool.clone(), own, false, MAX_BODY));
        let peer = Arc::new(PeerServer::new(invoke.clone(), Some(proxy.clone()), MAX_BODY));
        let (address, server) = serve(move |req| {
            let peer = peer.clone();
            async move { peer.handle(&Connected::default(), req).await }
        })
        .await;
        names.0.lock().insert(id.to_owned(), vec![address.to_string().into()]);
        Self { invoke, pool, proxy, address, server, _tasks: tasks }
    }
}

/// An HTTP/2 server on a free port.
pub(crate) async fn serve<F, Fut>(answer: F) -> (SocketAddr, JoinHandle<()>)
where
    F: Fn(Request<hyper::body::Incoming>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        // Connections end with the server, as those of a process do.
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            stream.set_nodelay(true).unwrap();
            let answer = answer.clone();
            connections.spawn(async move {
                let service = service_fn(move |req| {
                    let answer = answer.clone();
                    async move { Ok::<_, std::convert::Infallible>(answer(req).await) }
                });
                let _ = http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    (address, server)
}

pub(crate) async fn bytes(body: Body) -> Bytes {
    body.collect().await.unwrap().to_bytes()
}

/// Waits until `met`, with a deadline that only a broken test meets.
pub(crate) async fn eventually(mut met: impl FnMut() -> bool) {
    let wait = async {
        while !met() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the condition was not met in time");
}
