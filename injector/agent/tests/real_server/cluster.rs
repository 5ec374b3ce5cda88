//! An API server with an agent, and sidecars that connect to it.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use kube::{Api, Client};
use mecha_agent::{Agent, Options};
use mecha_apiserver::testing::{self, eventually_ok};
pub(crate) use mecha_apiserver::testing::{LIMIT, eventually};
use mecha_apiserver::{CapabilityBinding, Role};
use mecha_identity::rustls::pki_types::ServerName;
use mecha_identity::testing::Ca;
use mecha_identity::{Bundle, Expect, Live, SpiffeId};
use mecha_proto::delivery::delivery_client::DeliveryClient;
use mecha_proto::operator::operator_client::OperatorClient;
use mecha_resources::kinds::CapabilityBindingStatus;
use mecha_testkit::servers::Kubernetes;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

/// The namespace of the control part.
pub(crate) const SYSTEM: &str = "mecha-system";
/// The namespace with the bindings.
pub(crate) const BINDINGS: &str = "mecha-cluster-local";
/// Whom sidecars meet.
pub(crate) const AGENT: &str = "spiffe://cluster.local/ns/mecha-system/dapr-operator";

/// All that the agent's account may do.
const RIGHTS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: mecha-agent}
rules:
- apiGroups: [dapr.io]
  resources: [components, subscriptions, configurations, resiliencies, httpendpoints]
  verbs: [get, list, watch]
- {apiGroups: [""], resources: [secrets], verbs: [get, watch]}
- {apiGroups: [""], resources: [pods], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: mecha-agent}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: mecha-agent}
subjects: [{kind: ServiceAccount, name: mecha-agent, namespace: mecha-system}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: mecha-agent, namespace: mecha-cluster-local}
rules:
- {apiGroups: [mecha.dev], resources: [capabilitybindings], verbs: [get, list, watch]}
- {apiGroups: [mecha.dev], resources: [capabilitybindings/status], verbs: [patch]}
- {apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: mecha-agent, namespace: mecha-cluster-local}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: mecha-agent}
subjects: [{kind: ServiceAccount, name: mecha-agent, namespace: mecha-system}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: mecha-agent, namespace: mecha-system}
rules:
- {apiGroups: [""], resources: [configmaps], verbs: [get, list, watch, create, patch, delete]}
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, create, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: mecha-agent, namespace: mecha-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: mecha-agent}
subjects: [{kind: ServiceAccount, name: mecha-agent, namespace: mecha-system}]
"#;

pub(crate) struct Cluster {
    pub(crate) server: Kubernetes,
    /// The administrator.
    pub(crate) admin: Client,
    pub(crate) ca: Ca,
}

impl Cluster {
    /// A cluster with the kinds of mecha.dev and those of dapr.io.
    pub(crate) async fn start() -> Option<Self> {
        let cluster = Self::without_dapr().await?;
        cluster.install_dapr();
        Some(cluster)
    }

    pub(crate) async fn without_dapr() -> Option<Self> {
        let server = Kubernetes::start()?;
        let admin = testing::client(&server.kubeconfig(), None).await;
        let cluster = Self { server, admin, ca: Ca::new("test") };
        cluster.install("");
        cluster.server.create_namespaces(&[SYSTEM, BINDINGS, "shop", "other"]);
        cluster.server.create_account(SYSTEM, "mecha-agent");
        cluster.server.apply(RIGHTS).unwrap();
        Some(cluster)
    }

    pub(crate) fn install_dapr(&self) {
        self.install("/dapr");
    }

    fn install(&self, folder: &str) {
        let crds = format!("{}/../../deploy/crds{folder}", env!("CARGO_MANIFEST_DIR"));
        self.server.define(Path::new(&crds));
    }

    pub(crate) fn bundle(&self) -> Bundle {
        Bundle::from_pem(&self.ca.root_pem()).unwrap()
    }

    /// A replica of the agent that serves sidecars.
    pub(crate) async fn agent(&self, instance: &str) -> (Agent, Role) {
        let token = self.server.token_of(SYSTEM, "mecha-agent");
        let client = testing::client_with_token(&self.server.kubeconfig(), &token).await;
        let role = testing::role(client, SYSTEM, instance);
        let live = Live::new(self.bundle());
        live.set_identity(self.ca.identity(AGENT));
        let options =
            Options { listen: ([127, 0, 0, 1], 0).into(), patience: Duration::from_millis(500), ..Options::default() };
        let agent = Agent::start(options, &role, live).await.unwrap();
        eventually("the agent is ready", || async { role.ready.waiting().is_empty().then_some(()) }).await;
        (agent, role)
    }

    /// A connection as the sidecar of `app_id` has it.
    pub(crate) async fn sidecar(&self, agent: &Agent, namespace: &str, app_id: &str) -> Channel {
        let live = Live::new(self.bundle());
        live.set_identity(self.ca.identity(&format!("spiffe://public/ns/{namespace}/{app_id}")));
        dial(agent.address(), live).await.unwrap()
    }

    pub(crate) async fn stock(&self, agent: &Agent, namespace: &str, app_id: &str) -> OperatorClient<Channel> {
        OperatorClient::new(self.sidecar(agent, namespace, app_id).await)
    }

    pub(crate) async fn delivery(&self, agent: &Agent, namespace: &str, app_id: &str) -> DeliveryClient<Channel> {
        DeliveryClient::new(self.sidecar(agent, namespace, app_id).await).max_decoding_message_size(64 << 20)
    }

    /// The status of a binding, once it is as it should be.
    pub(crate) async fn status(
        &self,
        name: &str,
        what: &str,
        holds: impl Fn(&CapabilityBindingStatus) -> bool,
    ) -> CapabilityBindingStatus {
        let bindings: Api<CapabilityBinding> = Api::namespaced(self.admin.clone(), BINDINGS);
        eventually_ok(what, async || match bindings.get(name).await.unwrap().status {
            Some(status) if holds(&status) => Ok(status),
            other => Err(other),
        })
        .await
    }

    pub(crate) fn apply(&self, document: &Value) {
        self.server.apply(&document.to_string()).unwrap();
    }
}

/// Connects as `live`; the other end must be the agent.
pub(crate) async fn dial(address: SocketAddr, live: Arc<Live>) -> Result<Channel, tonic::transport::Error> {
    let tls = TlsConnector::from(Arc::new(live.client_config(Expect::Id(SpiffeId::parse(AGENT).unwrap()))));
    let connect = tower::service_fn(move |_| {
        let tls = tls.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::try_from("dapr-operator").unwrap();
            Ok::<_, io::Error>(TokioIo::new(tls.connect(name, stream).await?))
        }
    });
    Endpoint::from_static("http://dapr-operator").connect_with_connector(connect).await
}

/// A Component as people write it.
pub(crate) fn component(namespace: &str, name: &str, scopes: &[&str], metadata: Value) -> Value {
    json!({
        "apiVersion": "dapr.io/v1alpha1", "kind": "Component",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"type": "state.in-memory", "version": "v1", "metadata": metadata},
        "scopes": scopes,
    })
}

/// A binding of the environment in namespace `shop`, as the hub writes it.
pub(crate) fn binding(revision: i64, entries: Value) -> Value {
    json!({
        "apiVersion": "mecha.dev/v1alpha1", "kind": "CapabilityBinding",
        "metadata": {"name": "shop", "namespace": BINDINGS},
        "spec": {
            "environment": "team-a/shop", "namespace": "shop", "cluster": "local", "revision": revision,
            "leaderEpoch": 1, "digest": format!("sha256:{revision}"), "entries": entries,
        },
    })
}

/// An entry of a binding.
pub(crate) fn entry(claim: &str, revision: i64, document: &Value) -> Value {
    json!({
        "claim": claim, "backend": "b", "role": "Active", "access": "ReadWrite", "revision": revision,
        "document": document.to_string(),
    })
}

/// Names of documents as they travel.
pub(crate) fn names<'r>(resources: impl IntoIterator<Item = &'r bytes::Bytes>) -> Vec<String> {
    resources.into_iter().map(|json| read(json)["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

pub(crate) fn read(json: &[u8]) -> Value {
    serde_json::from_slice(json).unwrap()
}
