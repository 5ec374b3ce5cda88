//! `secretstores.kubernetes`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mecha_components_api::{
    BuildCx, Component, ConfigErrors, Error, ErrorKind, Field, FieldType, Metadata, Prepared, Registration, Result,
    Secret, SecretCaps, SecretMap, SecretStore, async_trait,
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::server::{Place, Server};

/// Where pods find their service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// A Secret holds at most 1 MiB, which base64 and metadata make less than this.
const MAX_SECRET: usize = 4 * 1024 * 1024;
/// Secrets asked for at once; all of the largest size still fit one page.
const PAGE: usize = 16;
const MAX_PAGE: usize = PAGE * MAX_SECRET;
/// Most bytes that one list may hold, and most pages.
const MAX_LIST: usize = 64 * 1024 * 1024;
const MAX_PAGES: usize = 4096;

const FIELDS: &[Field] = &[
    Field::new(
        "defaultNamespace",
        FieldType::Text,
        "Namespace of the Secrets when a request names none (metadata `namespace`) and the sidecar has none (NAMESPACE).",
    ),
    Field::new(
        "kubeconfigPath",
        FieldType::Text,
        "Path of a kubeconfig file with a token or a client certificate. Default: the service account of the pod, \
         else the file that KUBECONFIG names.",
    ),
    Field::new(
        "mecha.namespaces",
        FieldType::Text,
        "Other namespaces that requests may name, separated by commas; * is any. In strict mode requests stay in the \
         sidecar's own namespace and in defaultNamespace when nothing is said; else the API server alone decides.",
    ),
    Field::new(
        "mecha.serviceAccountPath",
        FieldType::Text,
        "Folder with the files `token` and `ca.crt` of the pod's service account; read again when they change.",
    )
    .default(ACCOUNT),
];

pub(crate) fn registration() -> Registration<dyn SecretStore> {
    Registration {
        kind: "secretstores.kubernetes",
        aliases: &[],
        versions: &["v1"],
        summary: "Secrets of the cluster's namespace, by the service account of the pod or a kubeconfig file",
        fields: FIELDS,
        prepare,
    }
}

fn prepare(md: &Metadata, _: &str) -> Result<Box<dyn Prepared<dyn SecretStore>>, ConfigErrors> {
    let mut errors = ConfigErrors::new();
    let config = Config {
        default_namespace: errors.text(md, "defaultNamespace", ""),
        kubeconfig: md.get_non_empty("kubeconfigPath").map(PathBuf::from),
        namespaces: md.get_non_empty("mecha.namespaces").map(list),
        account: errors.text(md, "mecha.serviceAccountPath", ACCOUNT).into(),
    };
    for namespace in config.namespaces.iter().flatten().chain([&config.default_namespace]) {
        if !namespace.is_empty() && namespace != "*" && !is_label(namespace) {
            errors.push("mecha.namespaces", format!("'{namespace}' is no name of a namespace"));
        }
    }
    errors.finish(Box::new(config) as Box<dyn Prepared<dyn SecretStore>>)
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[derive(Clone, Debug)]
pub(crate) struct Config {
    default_namespace: String,
    kubeconfig: Option<PathBuf>,
    namespaces: Option<Vec<String>>,
    account: PathBuf,
}

/// Variables that Kubernetes and its users set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    pub(crate) host: String,
    pub(crate) port: String,
    pub(crate) kubeconfig: String,
}

impl Surroundings {
    fn of_this_process() -> Self {
        let read = |name: &str| std::env::var(name).unwrap_or_default();
        Self {
            host: read("KUBERNETES_SERVICE_HOST"),
            port: read("KUBERNETES_SERVICE_PORT"),
            kubeconfig: read("KUBECONFIG"),
        }
    }
}

#[async_trait]
impl Prepared<dyn SecretStore> for Config {
    async fn build(self: Box<Self>, cx: &BuildCx) -> Result<Arc<dyn SecretStore>> {
        Ok(Arc::new(KubernetesSecrets::open(*self, cx, &Surroundings::of_this_process()).await?))
    }
}

/// `secretstores.kubernetes`.
#[derive(Debug)]
pub(crate) struct KubernetesSecrets {
    server: Server,
    /// Of a request that names none; empty when nobody said.
    namespace: String,
    reach: Reach,
}

/// Which namespaces requests may name.
#[derive(Debug, PartialEq, Eq)]
enum Reach {
    /// Any; the API server decides.
    Any,
    /// These, the first ones without being named.
    These(Vec<String>),
}

impl KubernetesSecrets {
    pub(crate) async fn open(config: Config, cx: &BuildCx, surroundings: &Surroundings) -> Result<Self> {
        let place = place(&config, surroundings)?;
        let reach = match config.namespaces {
            Some(names) if names.iter().any(|name| name == "*") => Reach::Any,
            None if !cx.strict => Reach::Any,
            names => {
                let own = [cx.namespace.to_string(), config.default_namespace.clone()];
                Reach::These(own.into_iter().chain(names.into_iter().flatten()).filter(|n| !n.is_empty()).collect())
            }
        };
        let namespace = if cx.namespace.is_empty() { config.default_namespace } else { cx.namespace.to_string() };
        Ok(Self { server: Server::open(cx.name.clone(), place).await?, namespace, reach })
    }

    /// The namespace that a request is for.
    fn namespace<'n>(&'n self, metadata: &'n Metadata) -> Result<&'n str> {
        let named = metadata.get_non_empty("namespace");
        let namespace = named.unwrap_or(&self.namespace);
        if namespace.is_empty() {
            return Err(Error::invalid(
                "namespace is missing on metadata and NAMESPACE env variable; or set defaultNamespace",
            ));
        }
        if !is_label(namespace) {
            return Err(Error::invalid(format!("'{}' is no name of a namespace", namespace.escape_default())));
        }
        match &self.reach {
            Reach::These(names) if !names.iter().any(|name| name == namespace) => Err(Error::new(
                ErrorKind::PermissionDenied,
                format!(
                    "this store does not read the namespace {namespace}; a store with mecha.namespaces: {namespace} does"
                ),
            )),
            _ => Ok(namespace),
        }
    }
}

fn place(config: &Config, surroundings: &Surroundings) -> Result<Place> {
    if let Some(path) = &config.kubeconfig {
        return Ok(Place::Kubeconfig(path.clone()));
    }
    let Surroundings { host, port, kubeconfig } = surroundings;
    if !host.is_empty() && !port.is_empty() {
        let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.clone() };
        return Ok(Place::Pod { address: format!("{host}:{port}"), account: config.account.clone() });
    }
    // It may name several; the first one counts here.
    match std::env::split_paths(kubeconfig).find(|path| !path.as_os_str().is_empty()) {
        Some(path) => Ok(Place::Kubeconfig(path)),
        None => Err(Error::new(
            ErrorKind::FailedPrecondition,
            "no API server is known: outside a cluster set kubeconfigPath or KUBECONFIG, in a pod Kubernetes sets \
             KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT",
        )),
    }
}

/// An RFC 1123 label, which names of namespaces are.
fn is_label(name: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = name.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|c| inner(*c) || *c == b'-')
        && bytes.first().copied().is_some_and(inner)
        && bytes.last().copied().is_some_and(inner)
}

/// An RFC 1123 subdomain, which names of Secrets are.
fn is_subdomain(name: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let part = |part: &str| {
        let bytes = part.as_bytes();
        bytes.iter().all(|c| inner(*c) || *c == b'-')
            && bytes.first().copied().is_some_and(inner)
            && bytes.last().copied().is_some_and(inner)
    };
    (1..=253).contains(&name.len()) && name.split('.').all(part)
}

#[derive(Deserialize)]
struct Document<'a> {
    metadata: Name,
    /// Base64 holds no escapes, so nothing is copied.
    #[serde(borrow, default)]
    data: Option<BTreeMap<String, &'a str>>,
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(default)]
    metadata: PageMetadata,
    #[serde(borrow, default)]
    items: Option<Vec<Document<'a>>>,
}

#[derive(Default, Deserialize)]
struct PageMetadata {
    #[serde(default, rename = "continue")]
    next: String,
}

impl Document<'_> {
    fn values(&self) -> Result<SecretMap> {
        let name = &self.metadata.name;
        let one = |(key, coded): (&String, &&str)| {
            let bytes = STANDARD.decode(coded).map(Zeroizing::new);
            let bytes = bytes.map_err(|_| Error::internal(format!("key {key} of Secret {name} is not base64")))?;
            let text = match std::str::from_utf8(&bytes) {
                Ok(text) => Secret::new(text),
                Err(_) => {
                    // As for the incumbent: the APIs carry text.
                    tracing::warn!(secret = %name, key = %key, "the value is no UTF-8 text, what is not becomes U+FFFD");
                    Secret::new(String::from_utf8_lossy(&bytes).into_owned())
                }
            };
            Ok((key.clone(), text))
        };
        self.data.iter().flatten().map(one).collect()
    }
}

fn broken(what: &str) -> Error {
    Error::internal(format!("the API server's answer for {what} cannot be read"))
}

#[async_trait]
impl Component for KubernetesSecrets {
    async fn ping(&self) -> Result<()> {
        self.server.get("/version", MAX_SECRET, "its version", "every account may read it by default").await?;
        Ok(())
    }
}

#[async_trait]
impl SecretStore for KubernetesSecrets {
    fn caps(&self) -> SecretCaps {
        // Secrets have several keys, but the incumbent does not say so.
        SecretCaps::default()
    }

    async fn get(&self, name: &str, metadata: &Metadata) -> Result<SecretMap> {
        let namespace = self.namespace(metadata)?;
        if !is_subdomain(name) {
            let name = name.escape_default();
            return Err(Error::not_found(format!("secret {name} not found: no Secret can have this name")));
        }
        let what = format!("secret {name} in namespace {namespace}");
        let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
        let right = format!(
            "allow it to this pod's service account by a Role in {namespace} with the verb get on secrets, resourceNames \
             [{name}], and a RoleBinding"
        );
        let answer = self.server.get(&path, MAX_SECRET, &what, &right).await?;
        let document: Document<'_> = serde_json::from_slice(&answer).map_err(|_| broken(&what))?;
        document.values()
    }

    async fn list(&self, metadata: &Metadata) -> Result<BTreeMap<String, SecretMap>> {
        let namespace = self.namespace(metadata)?;
        let what = format!("the list of secrets in namespace {namespace}");
        let right = format!(
            "allow it to this pod's service account by a Role in {namespace} with the verb list on secrets and a RoleBinding"
        );
        let mut found = BTreeMap::new();
        let (mut next, mut bytes) = (String::new(), 0usize);
        for _ in 0..MAX_PAGES {
            let mut path = format!("/api/v1/namespaces/{namespace}/secrets?limit={PAGE}");
            if !next.is_empty() {
                path.push_str("&continue=");
                path.extend(utf8_percent_encode(&next, NON_ALPHANUMERIC));
            }
            let answer = self.server.get(&path, MAX_PAGE, &what, &right).await?;
            bytes = bytes.saturating_add(answer.len());
            if bytes > MAX_LIST {
                let message = format!("{what} has more than {MAX_LIST} bytes; ask for single secrets");
                return Err(Error::new(ErrorKind::TooLarge, message));
            }
            let page: Page<'_> = serde_json::from_slice(&answer).map_err(|_| broken(&what))?;
            for document in page.items.iter().flatten() {
                found.insert(document.metadata.name.clone(), document.values()?);
            }
            next = page.metadata.next;
            if next.is_empty() {
                return Ok(found);
            }
        }
        Err(Error::new(ErrorKind::TooLarge, format!("{what} has too many pages; ask for single secrets")))
    }
}
