//! Other webhooks beside ours, and in its place.

use std::convert::Infallible;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::harness::{Cluster, containers, localhost, opted_in, pod, variable};

/// What another webhook does.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// Sends the caller elsewhere.
    Redirect,
    /// Appends this container, once.
    Append(Value),
}

/// A webhook of somebody else; it ends when it is dropped.
pub(crate) struct Other {
    port: u16,
    root: String,
    _task: JoinSet<()>,
}

impl Cluster {
    /// Takes the place of our webhook, with a certificate that nobody registered.
    pub(crate) async fn imposter(&self, answer: Answer) -> Other {
        let other = other(answer).await;
        self.front.add(other.port);
        self.front.freeze(false);
        other
    }

    /// Registers another webhook for all pods under this name: API servers call webhooks in the order of names.
    fn register(&self, name: &str, other: &Other) {
        let url = format!("https://127.0.0.1:{}/mutate", other.port);
        let document = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": name},
            "webhooks": [{
                "name": format!("{name}.example.org"),
                "clientConfig": {"url": url, "caBundle": STANDARD.encode(&other.root)},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
                "sideEffects": "None", "admissionReviewVersions": ["v1"], "reinvocationPolicy": "IfNeeded",
            }],
        });
        self.server.apply(&document.to_string()).unwrap();
    }
}

async fn other(answer: Answer) -> Other {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let tls = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(localhost(0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, answer) = (tls.clone(), answer.clone());
            connections.spawn(async move {
                let Ok(stream) = tls.accept(stream).await else { return };
                let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let answer = answer.clone();
                    async move {
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        Ok::<_, Infallible>(answered(&answer, &body))
                    }
                });
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    Other { port, root: made.cert.pem(), _task: task }
}

fn answered(answer: &Answer, body: &[u8]) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    let Answer::Append(container) = answer else {
        *response.status_mut() = StatusCode::FOUND;
        response.headers_mut().insert("location", "https://127.0.0.1:1/mutate".parse().unwrap());
        return response;
    };
    let review: Value = serde_json::from_slice(body).unwrap();
    let request = &review["request"];
    let mut said = json!({"uid": request["uid"], "allowed": true});
    if !containers(&request["object"], "containers").contains(&container["name"].as_str().unwrap().to_owned()) {
        let patch = json!([{"op": "add", "path": "/spec/containers/-", "value": container}]);
        said["patchType"] = json!("JSONPatch");
        said["patch"] = json!(STANDARD.encode(patch.to_string()));
    }
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": said});
    *response.body_mut() = Full::new(Bytes::from(review.to_string()));
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    response
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_another_webhook_adds_after_ours_gets_its_variables_or_a_clear_refusal() {
    let Some(cluster) = Cluster::start().await else { return };
    let injector = cluster.injector("a", cluster.options()).await;
    let late = other(Answer::Append(json!({"name": "late", "image": "late:1"}))).await;
    cluster.register("zz-mesh", &late);
    let made = crate::harness::eventually("the other webhook takes part", async || {
        let made = cluster.try_out("default", &opted_in("orders")).await.unwrap();
        (containers(&made, "containers").len() == 2).then_some(made)
    })
    .await;
    assert_eq!(
        (containers(&made, "initContainers"), containers(&made, "containers")),
        (vec!["daprd".into()], vec!["app".into(), "late".into()])
    );
    for container in made["spec"]["containers"].as_array().unwrap() {
        assert_eq!(variable(container, "DAPR_HTTP_PORT"), Some("3500"));
        assert_eq!(variable(container, "DAPR_GRPC_PORT"), Some("50001"));
    }
    // Pods that do not ask are between the other webhook and the API server.
    let plain = cluster.try_out("default", &pod("plain", json!({}))).await.unwrap();
    assert!(plain["spec"]["containers"][1]["env"].is_null());

    // Its container wants a port of the sidecar.
    let clash =
        other(Answer::Append(json!({"name": "greedy", "image": "g", "ports": [{"containerPort": 3500}]}))).await;
    cluster.register("zz-clash", &clash);
    let refused = crate::harness::eventually("the clash is seen", async || {
        cluster.try_out("default", &opted_in("orders")).await.err().map(|error| error.to_string())
    })
    .await;
    assert!(refused.contains("containers[greedy].ports") && refused.contains("3500"), "{refused}");
    let elsewhere = pod("orders", json!({"dapr.io/enabled": "true", "dapr.io/http-port": "3600"}));
    cluster.try_out("default", &elsewhere).await.unwrap();
    injector.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn api_servers_follow_no_redirect_of_a_webhook() {
    let Some(cluster) = Cluster::start().await else { return };
    let redirecting = other(Answer::Redirect).await;
    cluster.register("redirecting", &redirecting);
    let refused = crate::harness::eventually("the webhook is asked", async || {
        cluster.try_out("default", &pod("plain", json!({}))).await.err().map(|error| error.to_string())
    })
    .await;
    assert!(refused.contains("redirecting.example.org"), "{refused}");
}
