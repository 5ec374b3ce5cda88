//! HTTPEndpoint documents: values and secrets filled in, ready to be called.

use std::collections::HashMap;
use std::sync::Arc;

use http::header::{HeaderName, HeaderValue};
use mecha_components_api::Metadata;
use mecha_core::invoke::{AddressGuard, Endpoint, EndpointTls};
use mecha_core::store::Found;
use mecha_core::{Core, Cx, Front};
use mecha_resources::{HttpEndpoint, Located, ValueSource, env_ref_allowed};

/// The endpoints by name.
pub(super) type Endpoints = HashMap<Box<str>, Arc<Endpoint>>;

/// Makes the endpoints. Beside them the names and causes of those that cannot be made.
pub(super) async fn build(
    core: &Core,
    documents: &[Located<HttpEndpoint>],
    env: &(dyn Fn(&str) -> Option<String> + Send + Sync),
    guarded: bool,
) -> (Endpoints, Vec<(String, String)>) {
    let mut out = HashMap::new();
    let mut failed = Vec::new();
    for doc in documents {
        match one(core, doc, env, guarded).await {
            Ok(endpoint) => drop(out.insert(doc.meta.name.as_str().into(), Arc::new(endpoint))),
            Err(e) => failed.push((doc.meta.name.clone(), e)),
        }
    }
    (out, failed)
}

async fn one(
    core: &Core,
    doc: &HttpEndpoint,
    env: &(dyn Fn(&str) -> Option<String> + Send + Sync),
    guarded: bool,
) -> Result<Endpoint, String> {
    let mut endpoint = Endpoint::new(&doc.meta.name, &doc.base_url)?;
    if guarded {
        endpoint.guard = AddressGuard::Strict;
    }
    for header in &doc.headers {
        let value = value(core, doc, &header.value, env).await?;
        let name =
            HeaderName::try_from(header.name.as_str()).map_err(|_| format!("'{}' is no header name", header.name))?;
        let mut value =
            HeaderValue::from_str(&value).map_err(|_| format!("the value of header '{}' is not valid", header.name))?;
        value.set_sensitive(true);
        endpoint.headers.insert(name, value);
    }
    if let Some(tls) = &doc.client_tls {
        let mut parts = EndpointTls::default();
        for (source, slot) in [
            (&tls.root_ca, &mut parts.root_ca),
            (&tls.certificate, &mut parts.certificate),
            (&tls.private_key, &mut parts.private_key),
        ] {
            if let Some(source) = source {
                *slot = Some(value(core, doc, source, env).await?);
            }
        }
        endpoint.tls = Some(parts);
    }
    Ok(endpoint)
}

async fn value(
    core: &Core,
    doc: &HttpEndpoint,
    source: &ValueSource,
    env: &(dyn Fn(&str) -> Option<String> + Send + Sync),
) -> Result<String, String> {
    match source {
        ValueSource::Plain(text) => Ok(text.expose().to_owned()),
        ValueSource::Env(variable) if env_ref_allowed(variable, env("DAPR_ENV_KEYS").as_deref()) => {
            Ok(env(variable).unwrap_or_default())
        }
        ValueSource::Env(variable) => Err(format!("documents may not read the environment variable '{variable}'")),
        ValueSource::Secret(r) => {
            let Found::Running(h) = core.store.secrets(&doc.secret_store) else {
                return Err(format!("secret store '{}' is not loaded", doc.secret_store));
            };
            let none = Metadata::new();
            let cx = Cx::new(Front::Http);
            let found = h.ops.run(&cx, mecha_core::ops::Operation::Get, true, || h.inner.get(&r.name, &none)).await;
            let found = found.map_err(|e| format!("reading secret '{}' failed: {e}", r.name))?;
            let value = found.get(&r.key).or_else(|| found.get(&r.name));
            value.map(|s| s.expose().to_owned()).ok_or_else(|| format!("secret '{}' has no key '{}'", r.name, r.key))
        }
    }
}
