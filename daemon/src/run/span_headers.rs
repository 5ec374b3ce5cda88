//! Headers of the span exporter whose values lie in secret stores.

use mecha_components_api::{Metadata, Secret};
use mecha_core::ops::Operation;
use mecha_core::store::Found;
use mecha_core::{Core, Cx, Front};
use mecha_resources::{Configuration, SecretRef, ValueSource};

/// Headers with their values, in the order of the document.
pub(super) type Headers = Vec<(String, Secret)>;

/// Those of a document.
fn references(config: &Configuration) -> impl Iterator<Item = (&str, &SecretRef)> {
    let otel = config.tracing.as_ref().and_then(|tracing| tracing.otel.as_ref());
    otel.map_or(&[][..], |otel| &otel.headers).iter().filter_map(|header| match &header.value {
        ValueSource::Secret(reference) => Some((header.name.as_str(), reference)),
        _ => None,
    })
}

/// Whether a document has any.
pub(super) fn any(config: &Configuration) -> bool {
    references(config).next().is_some()
}

/// Reads them. A Configuration names no store, so the default one counts, else the only one
/// there is. A header that cannot be read is logged and left out.
pub(super) async fn read(core: &Core, config: &Configuration, default_store: &str) -> Headers {
    let mut out = Headers::new();
    for (name, reference) in references(config) {
        match one(core, reference, default_store).await {
            Ok(value) => out.push((name.to_owned(), value)),
            Err(e) => tracing::error!(target: "dapr.runtime", "tracing.otel.headers: '{name}' is left out: {e}"),
        }
    }
    out
}

/// Reads them again. One that cannot be read stays as it was: a secret store that is away takes nothing away.
pub(super) async fn read_again(core: &Core, config: &Configuration, default_store: &str, before: &Headers) -> Headers {
    let mut out = Headers::new();
    for (name, reference) in references(config) {
        let value = match one(core, reference, default_store).await {
            Ok(value) => Some(value),
            Err(_) => before.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone()),
        };
        out.extend(value.map(|value| (name.to_owned(), value)));
    }
    out
}

/// Whether both are the same.
pub(super) fn same(one: &Headers, other: &Headers) -> bool {
    let plain = |(name, value): &(String, Secret)| (name.clone(), value.expose().to_owned());
    one.iter().map(plain).eq(other.iter().map(plain))
}

async fn one(core: &Core, reference: &SecretRef, default_store: &str) -> Result<Secret, String> {
    let store = store(core, default_store)?;
    let Found::Running(h) = core.store.secrets(&store) else {
        return Err(format!("secret store '{store}' is not loaded"));
    };
    let (cx, none) = (Cx::new(Front::Http), Metadata::new());
    let found = h.ops.run(&cx, Operation::Get, true, || h.inner.get(&reference.name, &none)).await;
    let mut found = found.map_err(|e| format!("reading secret '{}' from '{store}' failed: {e}", reference.name))?;
    // A store with one value per secret names it like the secret.
    let value = found.remove(&reference.key).or_else(|| found.remove(&reference.name));
    value.ok_or_else(|| format!("secret '{}' of '{store}' has no key '{}'", reference.name, reference.key))
}

fn store(core: &Core, default_store: &str) -> Result<String, String> {
    if !default_store.is_empty() {
        return Ok(default_store.to_owned());
    }
    let snapshot = core.store.snapshot();
    let mut names: Vec<&str> = snapshot.secrets.keys().map(AsRef::as_ref).collect();
    names.sort_unstable();
    match names[..] {
        [only] => Ok(only.to_owned()),
        [] => Err("no secret store is loaded".to_owned()),
        _ => Err(format!("which secret store holds it? There are {}; one is needed", names.join(", "))),
    }
}
