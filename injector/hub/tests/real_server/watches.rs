//! A storm of lapsed watches: whatever is watched is gone from the history, again and again, also between the pages of
//! a list. It is asked for anew with growing pauses, and what was edited meanwhile is decided.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Method, Request, Response, Uri};
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::json;

use crate::harness::{ACCOUNT, Cluster, EVENTS, Hub, client, eventually, platform};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Pages of each list that are refused before one is given.
const LOST_PAGES: u32 = 2;
/// The longest pause between two tries, as `follow` has it.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A way to the API server on which every watch has lapsed while the storm lasts. Lists come in pages of one.
#[derive(Clone)]
struct Storm {
    inner: Client,
    rages: Arc<AtomicBool>,
    asked: Arc<Mutex<BTreeMap<String, Asked>>>,
}

/// How often a path was asked for.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    lists: u32,
    later_pages: u32,
    watches: u32,
}

impl Storm {
    fn new(inner: Client) -> Self {
        Self { inner, rages: Arc::new(AtomicBool::new(true)), asked: Arc::default() }
    }

    /// What is said instead of the API server.
    fn said(&self, method: &Method, uri: &Uri) -> Option<Response<Body>> {
        let query = uri.query().unwrap_or_default();
        let has = |key: &str| query.split('&').any(|part| part.split('=').next() == Some(key));
        if *method != Method::GET || !(has("watch") || has("limit")) {
            return None;
        }
        let mut all = self.asked.lock();
        let asked = all.entry(uri.path().to_owned()).or_default();
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Expired", "code": 410,
            "message": "too old resource version: 1 (2)",
        });
        let rages = self.rages.load(Ordering::SeqCst);
        if has("watch") {
            asked.watches += 1;
            // An API server has two ways to say so.
            return rages.then(|| {
                let event = format!("{}\n", json!({"type": "ERROR", "object": status}));
                match asked.watches % 2 {
                    0 => answer(200, event),
                    _ => answer(410, status.to_string()),
                }
            });
        }
        if !has("continue") {
            asked.lists += 1;
            return None;
        }
        asked.later_pages += 1;
        (rages && asked.later_pages <= LOST_PAGES).then(|| answer(410, status.to_string()))
    }

    fn asked(&self, path: &str) -> Asked {
        self.asked.lock().get(path).copied().unwrap_or_default()
    }
}

fn answer(status: u16, body: String) -> Response<Body> {
    let response = Response::builder().status(status).header("content-type", "application/json");
    response.body(Body::from(body.into_bytes())).unwrap()
}

impl tower_service::Service<Request<Body>> for Storm {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let said = self.said(request.method(), request.uri());
        let uri = request.uri().to_string().replace("limit=500", "limit=1");
        *request.uri_mut() = uri.parse().unwrap();
        let inner = self.inner.clone();
        Box::pin(async move {
            match said {
                Some(said) => Ok(said),
                None => Ok(inner.send(request).await?),
            }
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_storm_of_lapsed_watches_it_lists_with_growing_pauses_and_goes_on_deciding() {
    let Some((cluster, hub)) = Cluster::shop("kafka", "postgres").await else { return };
    hub.stop().await;
    let storm = Storm::new(client(&cluster.server, Some(ACCOUNT)).await);
    let began = Instant::now();
    let hub = Hub::start(Client::new(storm.clone(), "default"), "b", Cluster::options());
    // Nothing but lists tells it of this.
    cluster.apply(EVENTS);
    cluster.bound("events").await;
    let classes = "/apis/mecha.dev/v1alpha1/environmentclasses";
    let backends = "/apis/mecha.dev/v1alpha1/capabilitybackends";
    eventually("both ways of refusing a watch", async || (storm.asked(classes).watches >= 4).then_some(())).await;
    assert!(storm.asked(backends).later_pages > LOST_PAGES, "a list of several pages was cut, and made again");
    let all = storm.asked.lock().clone();
    // Two tenths of a second, four, eight and so on: five pauses until the longest.
    let most = 8 + u32::try_from(began.elapsed().as_secs() / LONGEST_PAUSE.as_secs()).unwrap();
    for (path, asked) in all {
        assert!(asked.lists <= most && asked.watches <= most, "{path}: {asked:?}, at most {most}");
    }

    storm.rages.store(false, Ordering::SeqCst);
    let before = storm.asked(classes);
    eventually("watches that stand", async || (storm.asked(classes).watches > before.watches).then_some(())).await;
    let stands = storm.asked(classes);
    cluster.apply(&platform("redis", "postgres"));
    cluster.phase("events", "Prepare").await;
    assert_eq!(storm.asked(classes).lists, stands.lists, "a watch told it");
    hub.stop().await;
}
