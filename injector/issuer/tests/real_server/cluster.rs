//! An API server with an issuer, and pods that ask it for certificates.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client};
pub(crate) use mecha_apiserver::testing::LIMIT;
use mecha_apiserver::{Role, testing};
use mecha_identity::{Bundle, Expect, KeyKind, KeyPair, Live, SpiffeId};
use mecha_issuer::{BUNDLE_CONFIG_MAP, BUNDLE_KEY, Issuer, Options};
use mecha_proto::sentry::ca_client::CaClient;
use mecha_proto::sentry::sign_certificate_request::TokenValidator;
use mecha_proto::sentry::{SignCertificateRequest, SignCertificateResponse};
use mecha_testkit::servers::Kubernetes;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::Endpoint;

/// The namespace of the control part.
pub(crate) const SYSTEM: &str = "mecha-system";
/// The audience of projected tokens.
pub(crate) const AUDIENCE: &str = "dapr.io/sentry";

/// All that the issuer's account may do.
const RIGHTS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: mecha-issuer}
rules:
- {apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create]}
- {apiGroups: [""], resources: [pods], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [namespaces], verbs: [list, watch]}
- {apiGroups: [""], resources: [configmaps], verbs: [create]}
- {apiGroups: [""], resources: [configmaps], resourceNames: [mecha-trust-bundle], verbs: [list, watch, patch]}
- {apiGroups: [dapr.io], resources: [configurations], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: mecha-issuer}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: mecha-issuer}
subjects: [{kind: ServiceAccount, name: mecha-agent, namespace: mecha-system}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: mecha-issuer, namespace: mecha-system}
rules:
- {apiGroups: [""], resources: [secrets], verbs: [create]}
- {apiGroups: [""], resources: [secrets], resourceNames: [mecha-trust-root], verbs: [get, list, watch, update]}
- {apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: mecha-issuer, namespace: mecha-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: mecha-issuer}
subjects: [{kind: ServiceAccount, name: mecha-agent, namespace: mecha-system}]
"#;

pub(crate) struct Cluster {
    pub(crate) server: Kubernetes,
    /// The administrator.
    pub(crate) admin: Client,
}

impl Cluster {
    pub(crate) async fn start() -> Option<Self> {
        let server = Kubernetes::start()?;
        let admin = testing::client(&server.kubeconfig(), None).await;
        let cluster = Self { server, admin };
        cluster.namespace(SYSTEM);
        cluster.account(SYSTEM, "mecha-agent");
        cluster.server.apply(RIGHTS).unwrap();
        Some(cluster)
    }

    pub(crate) fn namespace(&self, name: &str) {
        self.server.create_namespaces(&[name]);
    }

    pub(crate) fn account(&self, namespace: &str, name: &str) {
        self.server.create_account(namespace, name);
    }

    /// A replica of the control part.
    pub(crate) async fn role(&self, instance: &str) -> Role {
        let token = self.server.token_of(SYSTEM, "mecha-agent");
        let client = testing::client_with_token(&self.server.kubeconfig(), &token).await;
        testing::role(client, SYSTEM, instance)
    }

    /// A running issuer.
    pub(crate) async fn issuer(&self, instance: &str, options: Options) -> (Issuer, Role) {
        let role = self.role(instance).await;
        let options = Options { listen: ([127, 0, 0, 1], 0).into(), ..options };
        (Issuer::start(options, &role).await.unwrap(), role)
    }

    /// A pod as injection leaves it.
    pub(crate) async fn pod(&self, namespace: &str, name: &str, account: &str, app_id: &str) -> Pod {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name,
                "annotations": {"dapr.io/enabled": "true", "dapr.io/app-id": app_id},
                "labels": {"dapr.io/app-id": app_id, "dapr.io/sidecar-injected": "true"},
            },
            "spec": {"serviceAccountName": account, "containers": [{"name": "app", "image": "app:1"}]},
        });
        let pods: Api<Pod> = Api::namespaced(self.admin.clone(), namespace);
        pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap()
    }

    /// What the kubelet would mount into `pod`; without one, a token that is bound to nothing.
    pub(crate) async fn token(&self, namespace: &str, account: &str, pod: Option<&Pod>, audience: &str) -> String {
        let bound = pod.map(|pod| BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
        });
        let spec = TokenRequestSpec {
            audiences: Some(vec![audience.to_owned()]),
            bound_object_ref: bound,
            expiration_seconds: Some(7200),
            ..TokenRequestSpec::default()
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin.clone(), namespace);
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let answer = accounts.create_token_request(account, &PostParams::default(), &request).await.unwrap();
        answer.status.unwrap().token.unwrap()
    }

    /// The trust bundle that is mounted in `namespace`, once it is there.
    pub(crate) async fn bundle(&self, namespace: &str) -> Bundle {
        let maps: Api<ConfigMap> = Api::namespaced(self.admin.clone(), namespace);
        let found = eventually("the trust bundle", || async {
            let map = maps.get_opt(BUNDLE_CONFIG_MAP).await.unwrap();
            map.and_then(|map| map.data?.get(BUNDLE_KEY).cloned())
        });
        Bundle::from_pem(&found.await).unwrap()
    }
}

/// Waits until `look` finds something. Tasks may wait so, too: what `look` gives can be sent to other threads.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, look: impl Fn() -> F) -> T {
    let search = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, search).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

/// A request as a sidecar sends it, with a new key.
pub(crate) fn request(namespace: &str, id: &str, token: &str) -> SignCertificateRequest {
    let key = KeyPair::generate(KeyKind::P256).unwrap();
    SignCertificateRequest {
        id: id.to_owned(),
        namespace: namespace.to_owned(),
        token: token.to_owned(),
        token_validator: TokenValidator::Kubernetes.into(),
        certificate_signing_request: key.request_pem().unwrap().into_bytes().into(),
        ..SignCertificateRequest::default()
    }
}

/// Sends `request` as a sidecar does that has `bundle` and no certificate: the other end must be `dapr-sentry`.
pub(crate) async fn send(
    issuer: &Issuer,
    bundle: Bundle,
    request: SignCertificateRequest,
) -> Result<SignCertificateResponse, tonic::Status> {
    let sentry = SpiffeId::control("cluster.local", SYSTEM, "dapr-sentry").unwrap();
    let tls = TlsConnector::from(Arc::new(Live::new(bundle).client_config(Expect::Id(sentry))));
    let address = issuer.address();
    let connect = tower::service_fn(move |_| {
        let tls = tls.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::try_from("dapr-sentry").unwrap();
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, stream).await?))
        }
    });
    let channel = Endpoint::from_static("http://dapr-sentry").timeout(LIMIT).connect_with_connector(connect).await;
    let channel = channel.map_err(|e| tonic::Status::unavailable(format!("{e:?}")))?;
    Ok(CaClient::new(channel).sign_certificate(request).await?.into_inner())
}

/// Whether the certificate leads to a root of `bundle` now.
pub(crate) fn leads_to(certificate: &[u8], bundle: &Bundle) -> Result<(), webpki::Error> {
    let leaf = CertificateDer::from_pem_slice(certificate).unwrap();
    let anchors: Vec<_> = bundle.ders().map(|der| webpki::anchor_from_trusted_cert(der).unwrap()).collect();
    webpki::EndEntityCert::try_from(&leaf)?
        .verify_for_usage(
            &[webpki::ring::ECDSA_P256_SHA256],
            &anchors,
            &[],
            UnixTime::now(),
            webpki::KeyUsage::client_auth(),
            None,
            None,
        )
        .map(|_| ())
}

/// The URIs of a certificate, and its end.
pub(crate) fn names(certificate: &[u8]) -> (Vec<String>, SystemTime) {
    let (_, block) = x509_parser::pem::parse_x509_pem(certificate).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&block.contents).unwrap();
    let all = parsed.subject_alternative_name().unwrap().unwrap().value.general_names.iter();
    let all = all.map(|name| match name {
        x509_parser::extensions::GeneralName::URI(uri) => (*uri).to_owned(),
        other => format!("{other:?}"),
    });
    let end = u64::try_from(parsed.validity().not_after.timestamp()).unwrap();
    (all.collect(), SystemTime::UNIX_EPOCH + Duration::from_secs(end))
}
