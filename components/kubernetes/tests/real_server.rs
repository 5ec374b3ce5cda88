//! `secretstores.kubernetes` on a real API server, as a service account with few rights.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mecha_components_api::{BuildCx, Error, ErrorKind, Lookup, Metadata, Registry, SecretMap, SecretStore};
use mecha_testkit::servers::Kubernetes;

const CANARY: &str = "canary-8f2c1d";

/// Two teams; `reader` of the first may get and list there, and get one Secret of the second.
const CLUSTER: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: team}
---
apiVersion: v1
kind: Namespace
metadata: {name: other}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: team}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: team}
rules: [{apiGroups: [""], resources: [secrets], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader, namespace: team}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: reader, namespace: team}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: one, namespace: other}
rules: [{apiGroups: [""], resources: [secrets], verbs: [get], resourceNames: [shared]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: one, namespace: other}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: one}
subjects: [{kind: ServiceAccount, name: reader, namespace: team}]
---
apiVersion: v1
kind: Secret
metadata: {name: db.main, namespace: team}
stringData: {user: shop, password: "canary-8f2c1d ü"}
data: {raw: /wBB}
---
apiVersion: v1
kind: Secret
metadata: {name: empty, namespace: team}
---
apiVersion: v1
kind: Secret
metadata: {name: shared, namespace: other}
stringData: {key: of-other}
---
apiVersion: v1
kind: Secret
metadata: {name: private, namespace: other}
stringData: {key: canary-8f2c1d}
"#;

/// A cluster, and the folder in which the token of its reader lies.
struct Cluster {
    server: Kubernetes,
    folder: tempfile::TempDir,
}

impl Cluster {
    fn start() -> Option<Self> {
        let server = Kubernetes::start()?;
        server.apply(CLUSTER).unwrap();
        let cluster = Self { server, folder: tempfile::tempdir().unwrap() };
        cluster.put_token(&cluster.token("reader"));
        fs::write(
            cluster.kubeconfig(),
            format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
                 clusters: [{{name: c, cluster: {{server: '{}', certificate-authority: '{}'}}}}]\n\
                 users: [{{name: u, user: {{tokenFile: token}}}}]\n\
                 contexts: [{{name: test, context: {{cluster: c, user: u}}}}]\n",
                cluster.server.url(),
                cluster.server.authority().display()
            ),
        )
        .unwrap();
        Some(cluster)
    }

    fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("config")
    }

    fn token(&self, account: &str) -> String {
        self.server.kubectl(&["-n", "team", "create", "token", account, "--duration=1h"])
    }

    /// Puts a token where the last one was, as the kubelet does.
    fn put_token(&self, token: &str) {
        let draft = self.folder.path().join("token.new");
        fs::write(&draft, token).unwrap();
        fs::rename(draft, self.folder.path().join("token")).unwrap();
    }

    async fn store(&self, metadata: &[(&str, &str)], strict: bool) -> Arc<dyn SecretStore> {
        let mut md = Metadata::new();
        md.insert("kubeconfigPath", self.kubeconfig().to_string_lossy());
        for (key, value) in metadata {
            md.insert(*key, *value);
        }
        open(&md, strict, self.folder.path()).await.unwrap()
    }
}

async fn open(md: &Metadata, strict: bool, home: &Path) -> Result<Arc<dyn SecretStore>, Error> {
    let mut registry = Registry::new();
    mecha_kubernetes::register(&mut registry);
    let Lookup::Found(found) = Registry::find(&registry.secrets, "secretstores.kubernetes", "v1") else {
        panic!("not registered");
    };
    let prepared = (found.prepare)(md, "v1").unwrap_or_else(|e| panic!("{e}"));
    let cx = BuildCx { namespace: "team".into(), strict, ..BuildCx::for_app("app", "kubernetes", home) };
    prepared.build(&cx).await
}

fn of(namespace: &str) -> Metadata {
    let mut md = Metadata::new();
    md.insert("namespace", namespace);
    md
}

fn text(map: &SecretMap, key: &str) -> String {
    map[key].expose().to_owned()
}

fn refused<T>(outcome: Result<T, Error>, kind: ErrorKind, words: &[&str]) {
    let error = outcome.err().expect("a refusal");
    let shown = format!("{error} {error:?}");
    assert_eq!(error.kind(), kind, "{shown}");
    assert!(words.iter().all(|word| shown.contains(word)), "{shown}");
    assert!(!shown.contains(CANARY) && !shown.contains("Bearer"), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_read_as_the_service_account_may() {
    let Some(cluster) = Cluster::start() else { return };
    let store = cluster.store(&[], false).await;
    let own = Metadata::new();
    store.ping().await.unwrap();

    let db = store.get("db.main", &own).await.unwrap();
    assert_eq!(text(&db, "user"), "shop");
    assert_eq!(text(&db, "password"), format!("{CANARY} ü"));
    assert_eq!(text(&db, "raw"), "\u{fffd}\0A", "what is no text is replaced, as for the incumbent");
    assert!(!format!("{db:?} {store:?}").contains(CANARY));
    assert!(store.get("empty", &own).await.unwrap().is_empty());

    refused(store.get("nosuch", &own).await, ErrorKind::NotFound, &["secret nosuch in namespace team not found"]);
    for name in ["", "Upper", "a/b", "..", "../../namespaces", "a?limit=1", "a%2fb"] {
        refused(store.get(name, &own).await, ErrorKind::NotFound, &["no Secret can have this name"]);
    }
    for namespace in ["Upper", "a/b", "..", "team/secrets/db.main?"] {
        refused(store.get("db.main", &of(namespace)).await, ErrorKind::InvalidArgument, &["no name of a namespace"]);
    }

    // Another namespace: what the cluster allows, and no more.
    assert_eq!(text(&store.get("shared", &of("other")).await.unwrap(), "key"), "of-other");
    refused(
        store.get("private", &of("other")).await,
        ErrorKind::PermissionDenied,
        &["Role in other with the verb get on secrets", "resourceNames [private]", "system:serviceaccount:team:reader"],
    );
    refused(store.list(&of("other")).await, ErrorKind::PermissionDenied, &["Role in other with the verb list"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_has_every_secret_of_the_namespace_over_several_pages() {
    let Some(cluster) = Cluster::start() else { return };
    let many: Vec<_> = (0..40)
        .map(|i| {
            format!(
                "apiVersion: v1\nkind: Secret\nmetadata: {{name: s{i}, namespace: team}}\nstringData: {{k: v{i}}}\n"
            )
        })
        .collect();
    cluster.server.apply(&many.join("---\n")).unwrap();
    // As large as one can be.
    let largest = "x".repeat(1_000_000);
    fs::write(cluster.folder.path().join("value"), &largest).unwrap();
    let file = format!("--from-file=value={}", cluster.folder.path().join("value").display());
    cluster.server.kubectl(&["-n", "team", "create", "secret", "generic", "largest", &file]);
    let store = cluster.store(&[], false).await;
    let all = store.list(&Metadata::new()).await.unwrap();
    assert_eq!(all.len(), 43, "{:?}", all.keys());
    assert!((0..40).all(|i| text(&all[&format!("s{i}")], "k") == format!("v{i}")));
    assert_eq!(text(&all["largest"], "value"), largest);
    assert_eq!(text(&store.get("largest", &Metadata::new()).await.unwrap(), "value"), largest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_mode_stays_in_its_namespace_unless_told_otherwise() {
    let Some(cluster) = Cluster::start() else { return };
    let strict = cluster.store(&[], true).await;
    assert_eq!(text(&strict.get("db.main", &of("team")).await.unwrap(), "user"), "shop");
    refused(
        strict.get("shared", &of("other")).await,
        ErrorKind::PermissionDenied,
        &["does not read the namespace other", "mecha.namespaces: other"],
    );
    for told in ["other", "*", "x, other"] {
        let store = cluster.store(&[("mecha.namespaces", told)], true).await;
        assert_eq!(text(&store.get("shared", &of("other")).await.unwrap(), "key"), "of-other", "{told}");
        assert_eq!(text(&store.get("db.main", &Metadata::new()).await.unwrap(), "user"), "shop", "{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_token_is_used_and_a_useless_one_is_told() {
    let Some(cluster) = Cluster::start() else { return };
    let store = cluster.store(&[], false).await;
    let own = Metadata::new();
    assert_eq!(text(&store.get("db.main", &own).await.unwrap(), "user"), "shop");

    cluster.put_token("no-token-of-this-cluster");
    refused(store.get("db.main", &own).await, ErrorKind::Unauthenticated, &["does not accept our token"]);
    cluster.put_token(&cluster.token("reader"));
    assert_eq!(text(&store.get("db.main", &own).await.unwrap(), "user"), "shop", "the next token is used at once");

    // Half of a rotation: what was read before goes on.
    fs::remove_file(cluster.folder.path().join("token")).unwrap();
    assert_eq!(text(&store.get("db.main", &own).await.unwrap(), "user"), "shop");
    cluster.put_token(&cluster.token("reader"));
    assert_eq!(text(&store.get("db.main", &own).await.unwrap(), "user"), "shop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_is_away_or_hangs_ends_in_an_error_and_comes_back() {
    let Some(mut cluster) = Cluster::start() else { return };
    let store = cluster.store(&[], false).await;
    let own = Metadata::new();
    store.get("db.main", &own).await.unwrap();

    cluster.server.freeze_apiserver();
    let began = Instant::now();
    refused(store.get("db.main", &own).await, ErrorKind::Timeout, &["within 10s"]);
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    cluster.server.thaw_apiserver();

    cluster.server.kill_apiserver();
    refused(store.get("db.main", &own).await, ErrorKind::Unavailable, &["cannot be called"]);
    refused(store.ping().await, ErrorKind::Unavailable, &["cannot be called"]);
    cluster.server.restart_apiserver();
    assert_eq!(text(&store.get("db.main", &own).await.unwrap(), "user"), "shop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_certificate_is_of_somebody_else_is_told_nothing() {
    let Some(cluster) = Cluster::start() else { return };
    let Some(stranger) = Kubernetes::start() else { return };
    let text = fs::read_to_string(cluster.kubeconfig()).unwrap();
    fs::write(cluster.kubeconfig(), text.replace(&cluster.server.url(), &stranger.url())).unwrap();
    let store = cluster.store(&[], false).await;
    refused(store.get("db.main", &Metadata::new()).await, ErrorKind::Unavailable, &["certificate"]);
}

#[tokio::test]
async fn without_a_cluster_the_next_step_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut md = Metadata::new();
    md.insert("kubeconfigPath", folder.path().join("nowhere").to_string_lossy());
    refused(open(&md, false, folder.path()).await, ErrorKind::FailedPrecondition, &["nowhere cannot be read"]);
}
