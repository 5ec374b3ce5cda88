//! Who gets which certificate.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::DeleteParams;
use mecha_identity::{KeyKind, KeyPair};
use mecha_issuer::Options;
use mecha_proto::sentry::sign_certificate_request::TokenValidator;
use rustls::SignatureScheme;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;
use tonic::Code;

use crate::cluster::{AUDIENCE, Cluster, SYSTEM, leads_to, names, request, send};

const RSA_REQUEST: &[u8] = include_bytes!("rsa.csr");

/// A request with more than a key, as whoever wants more would make it.
fn greedy(change: impl Fn(&mut rcgen::CertificateParams)) -> Vec<u8> {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    change(&mut params);
    let key = rcgen::KeyPair::generate().unwrap();
    params.serialize_request(&key).unwrap().pem().unwrap().into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_gets_a_certificate_for_its_own_app_id_and_nothing_else() {
    let Some(cluster) = Cluster::start().await else { return };
    for namespace in ["shop", "bank"] {
        cluster.namespace(namespace);
        cluster.account(namespace, "orders");
    }
    let (issuer, role) = cluster.issuer("a", Options::default()).await;
    let pod = cluster.pod("shop", "orders-1", "orders", "orders").await;
    let token = cluster.token("shop", "orders", Some(&pod), AUDIENCE).await;
    let bundle = cluster.bundle("shop").await;

    let answer = send(&issuer, bundle.clone(), request("shop", "orders", &token)).await.unwrap();
    leads_to(&answer.workload_certificate, &bundle).unwrap();
    let (uris, end) = names(&answer.workload_certificate);
    assert_eq!(uris, ["spiffe://public/ns/shop/orders"]);
    let valid_until = answer.valid_until.unwrap();
    assert_eq!(SystemTime::UNIX_EPOCH + Duration::from_secs(valid_until.seconds.unsigned_abs()), end);
    let left = end.duration_since(SystemTime::now()).unwrap();
    assert!(left > Duration::from_secs(23 * 3600) && left <= Duration::from_secs(24 * 3600), "{left:?}");
    assert!(answer.jwt.is_none() && answer.per_audience_jwts.is_empty());
    // The audience that stock sidecars ask for, and the other kind of key.
    let spiffe = format!("spiffe://cluster.local/ns/{SYSTEM}/dapr-sentry");
    let mut ed25519 = request("shop", "orders", &cluster.token("shop", "orders", Some(&pod), &spiffe).await);
    let key = KeyPair::generate(KeyKind::Ed25519).unwrap();
    ed25519.certificate_signing_request = key.request_pem().unwrap().into_bytes().into();
    send(&issuer, bundle.clone(), ed25519).await.unwrap();

    let good = request("shop", "orders", &token);
    let with = |change: &dyn Fn(&mut mecha_proto::sentry::SignCertificateRequest)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    let foreign = cluster.token("shop", "orders", Some(&pod), "vault").await;
    let unbound = cluster.token("shop", "orders", None, AUDIENCE).await;
    let refused = [
        ("another namespace", with(&|r| r.namespace = "bank".into()), Code::PermissionDenied, "of namespace shop"),
        ("another app id", with(&|r| r.id = "billing".into()), Code::PermissionDenied, "is orders"),
        ("another audience", with(&|r| r.token = foreign.clone()), Code::Unauthenticated, AUDIENCE),
        ("a token without a pod", with(&|r| r.token = unbound.clone()), Code::Unauthenticated, "not bound to a pod"),
        ("an expired token", with(&|r| r.token = expired(&cluster, &pod)), Code::Unauthenticated, "expired"),
        ("no token", with(&|r| r.token.clear()), Code::Unauthenticated, "no token"),
        ("junk for a token", with(&|r| r.token = "junk".into()), Code::Unauthenticated, "token"),
        (
            "a validator that is not served",
            with(&|r| r.token_validator = TokenValidator::Jwks.into()),
            Code::InvalidArgument,
            "KUBERNETES",
        ),
        (
            "an RSA key",
            with(&|r| r.certificate_signing_request = RSA_REQUEST.into()),
            Code::InvalidArgument,
            "rsaEncryption",
        ),
        (
            "a name of one's own",
            with(&|r| {
                r.certificate_signing_request = greedy(|p| {
                    let uri = "spiffe://cluster.local/ns/mecha-system/dapr-operator";
                    p.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
                })
                .into();
            }),
            Code::InvalidArgument,
            "subjectAltName",
        ),
        (
            "an organisation",
            with(&|r| {
                r.certificate_signing_request =
                    greedy(|p| p.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters")).into();
            }),
            Code::InvalidArgument,
            "organizationName",
        ),
        (
            "an authority of one's own",
            with(&|r| {
                r.certificate_signing_request = greedy(|p| {
                    p.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
                })
                .into();
            }),
            Code::InvalidArgument,
            "basicConstraints",
        ),
    ];
    for (what, request, code, said) in refused {
        let token = request.token.clone();
        let status = send(&issuer, bundle.clone(), request).await.expect_err(what);
        assert_eq!(status.code(), code, "{what}: {status}");
        assert!(status.message().contains(said), "{what}: {status}");
        assert!(token.len() < 10 || !status.message().contains(&token), "{what}: the token is not repeated");
    }

    // The API server vouches for tokens of deleted pods for some seconds more; the issuer does not.
    let pods: Api<Pod> = Api::namespaced(cluster.admin.clone(), "shop");
    pods.delete("orders-1", &DeleteParams::default().grace_period(0)).await.unwrap();
    let gone = send(&issuer, bundle.clone(), good.clone()).await.unwrap_err();
    assert!(matches!(gone.code(), Code::PermissionDenied | Code::Unauthenticated), "{gone}");
    cluster.pod("shop", "orders-1", "orders", "orders").await;
    let replaced = send(&issuer, bundle, good).await.unwrap_err();
    assert!(matches!(replaced.code(), Code::PermissionDenied | Code::Unauthenticated), "{replaced}");
    tokio::time::timeout(crate::cluster::LIMIT, role.tasks.drain()).await.unwrap();
}

/// A token as the API server signed it three hours ago.
fn expired(cluster: &Cluster, pod: &Pod) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({
        "iss": "https://kubernetes.default.svc.cluster.local", "aud": [AUDIENCE], "sub": "system:serviceaccount:shop:orders",
        "iat": now - 3 * 3600, "nbf": now - 3 * 3600, "exp": now - 3600,
        "kubernetes.io": {
            "namespace": "shop",
            "pod": {"name": pod.metadata.name, "uid": pod.metadata.uid},
            "serviceaccount": {"name": "orders", "uid": "0"},
        },
    });
    let path = cluster.server.kubeconfig().with_file_name("sa.key");
    let key = PrivateKeyDer::from_pem_slice(&std::fs::read(path).unwrap()).unwrap();
    let encode = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", encode(&json!({"alg": "ES256", "typ": "JWT"})), encode(&claims));
    let key = any_supported_type(&key).unwrap();
    let signer = key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]).unwrap();
    let signature = numbers(&signer.sign(text.as_bytes()).unwrap());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The two numbers of an ECDSA signature in DER, 32 bytes each, as tokens have them.
fn numbers(der: &[u8]) -> Vec<u8> {
    let mut rest = &der[2..];
    let mut out = Vec::new();
    for _ in 0..2 {
        let (number, tail) = rest[2..].split_at(rest[1].into());
        let digits = &number[number.len().saturating_sub(32)..];
        out.resize(out.len() + 32 - digits.len(), 0);
        out.extend_from_slice(digits);
        rest = tail;
    }
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_of_the_control_part_go_to_its_accounts_alone_and_trust_domains_come_from_configurations() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.namespace("shop");
    for (namespace, account) in [(SYSTEM, "dapr-placement"), (SYSTEM, "guest"), ("shop", "orders")] {
        cluster.account(namespace, account);
    }
    let allowed = BTreeMap::from([("dapr-placement".to_owned(), vec!["dapr-placement".to_owned()])]);
    let (issuer, _role) = cluster.issuer("a", Options { control_accounts: allowed, ..Options::default() }).await;
    let bundle = cluster.bundle(SYSTEM).await;
    let ask = async |namespace: &str, account: &str, app_id: &str, id: &str| {
        let name = format!("{account}-{id}");
        let pod = cluster.pod(namespace, &name, account, app_id).await;
        let token = cluster.token(namespace, account, Some(&pod), AUDIENCE).await;
        let answer = send(&issuer, bundle.clone(), request(namespace, id, &token)).await;
        answer.map(|answer| names(&answer.workload_certificate).0.remove(0))
    };
    let placement = ask(SYSTEM, "dapr-placement", "anything", "dapr-placement").await.unwrap();
    assert_eq!(placement, "spiffe://cluster.local/ns/mecha-system/dapr-placement");
    for id in ["dapr-operator", "dapr-sentry"] {
        let status = ask(SYSTEM, "dapr-placement", id, id).await.unwrap_err();
        assert!(status.message().contains("may not have the control part's id"), "{status}");
    }
    ask(SYSTEM, "guest", "dapr-placement", "dapr-placement").await.unwrap_err();
    // Apps may run beside the control part, as apps; and an app elsewhere is nobody else by its name.
    assert_eq!(ask(SYSTEM, "guest", "shop", "shop").await.unwrap(), "spiffe://public/ns/mecha-system/shop");
    let elsewhere = ask("shop", "orders", "dapr-operator", "dapr-operator").await.unwrap();
    assert_eq!(elsewhere, "spiffe://public/ns/shop/dapr-operator");

    cluster.server.apply(CONFIGURATIONS).unwrap();
    cluster.server.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "configurations.dapr.io"]);
    cluster.server.apply(CONFIGURATION).unwrap();
    let pod = cluster.pod("shop", "configured", "orders", "orders").await;
    let token = cluster.token("shop", "orders", Some(&pod), AUDIENCE).await;
    for (configuration, expected) in [("own", Ok("spiffe://example.org/ns/shop/orders")), ("absent", Err("absent"))] {
        let annotation = format!("dapr.io/config={configuration}");
        cluster.server.kubectl(&["-n", "shop", "annotate", "--overwrite", "pod", "configured", &annotation]);
        let answer = send(&issuer, bundle.clone(), request("shop", "orders", &token)).await;
        match (answer, expected) {
            (Ok(answer), Ok(id)) => assert_eq!(names(&answer.workload_certificate).0, [id]),
            (Err(status), Err(said)) => assert!(status.message().contains(said), "{status}"),
            (answer, _) => panic!("{configuration}: {answer:?}"),
        }
    }
}

const CONFIGURATIONS: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: configurations.dapr.io}
spec:
  group: dapr.io
  scope: Namespaced
  names: {kind: Configuration, plural: configurations}
  versions:
  - name: v1alpha1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
"#;

const CONFIGURATION: &str = "
apiVersion: dapr.io/v1alpha1
kind: Configuration
metadata: {name: own, namespace: shop}
spec: {accessControl: {trustDomain: example.org}}
";
