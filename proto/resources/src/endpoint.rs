use serde::Serialize;

use crate::component::SecretQuery;
use crate::decode::Obj;
use crate::value::{Meta, NameValue, Resource, ValueSource};

/// An HTTPEndpoint document (`dapr.io/v1alpha1`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpEndpoint {
    /// Name, namespace, scopes.
    #[serde(flatten)]
    pub meta: Meta,
    /// Absolute `http` or `https` URL that paths are appended to.
    pub base_url: String,
    /// Headers added to each request.
    pub headers: Vec<NameValue>,
    /// TLS towards the endpoint.
    pub client_tls: Option<ClientTls>,
    /// Secret store for its references, empty when none is named.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub secret_store: String,
}

/// TLS material of an endpoint, PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientTls {
    /// Authorities to trust.
    #[serde(rename = "rootCA")]
    pub root_ca: Option<ValueSource>,
    /// Own certificate.
    pub certificate: Option<ValueSource>,
    /// Its key.
    pub private_key: Option<ValueSource>,
    /// Whether the server may ask for a renegotiation.
    pub renegotiation: Renegotiation,
}

/// TLS renegotiation, by the names of Go's `crypto/tls`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum Renegotiation {
    /// Refused.
    #[default]
    #[serde(rename = "RenegotiateNever")]
    Never,
    /// Once per connection.
    #[serde(rename = "RenegotiateOnceAsClient")]
    OnceAsClient,
    /// Any number of times.
    #[serde(rename = "RenegotiateFreelyAsClient")]
    FreelyAsClient,
}

impl Resource for HttpEndpoint {
    const KIND: &'static str = "HTTPEndpoint";

    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl HttpEndpoint {
    pub(crate) fn decode(root: &Obj<'_>, meta: Meta) -> Self {
        let secret_store = root.object("auth").map(|a| a.text_or_empty("secretStore")).unwrap_or_default();
        let mut endpoint = Self { meta, base_url: String::new(), headers: Vec::new(), client_tls: None, secret_store };
        let Some(spec) = root.required_object("spec") else { return endpoint };
        endpoint.base_url = spec.required("baseUrl");
        let lower = endpoint.base_url.to_ascii_lowercase();
        let host = lower.strip_prefix("http://").or_else(|| lower.strip_prefix("https://"));
        if !lower.is_empty() && host.is_none_or(|h| h.is_empty() || h.starts_with('/')) {
            spec.error("baseUrl", "must be an absolute URL that starts with http:// or https://");
        }
        endpoint.headers = spec.name_values("headers");
        endpoint.client_tls = spec.object("clientTLS").map(|tls| ClientTls {
            root_ca: tls.object("rootCA").map(|o| o.source()),
            certificate: tls.object("certificate").map(|o| o.source()),
            private_key: tls.object("privateKey").map(|o| o.source()),
            renegotiation: tls
                .one_of(
                    "renegotiation",
                    &[
                        ("RenegotiateNever", Renegotiation::Never),
                        ("RenegotiateOnceAsClient", Renegotiation::OnceAsClient),
                        ("OnceAsClient", Renegotiation::OnceAsClient),
                        ("RenegotiateFreelyAsClient", Renegotiation::FreelyAsClient),
                        ("FreelyAsClient", Renegotiation::FreelyAsClient),
                    ],
                )
                .unwrap_or_default(),
        });
        endpoint
    }

    /// The secrets that it refers to; `default_store` as for components.
    pub fn secret_refs<'c>(&'c self, default_store: &'c str) -> impl Iterator<Item = SecretQuery<'c>> {
        let store = if self.secret_store.is_empty() { default_store } else { &self.secret_store };
        let tls = self.client_tls.iter().flat_map(|t| [&t.root_ca, &t.certificate, &t.private_key]).flatten();
        self.headers.iter().map(|h| &h.value).chain(tls).filter_map(move |v| match v {
            ValueSource::Secret(r) => Some(SecretQuery { store, name: &r.name, key: &r.key }),
            _ => None,
        })
    }
}
