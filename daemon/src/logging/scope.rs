use std::borrow::Cow;

use super::RUNTIME_SCOPE;

/// Scope of what components say.
const CONTRIB_SCOPE: &str = "dapr.contrib";

/// Our crates that are part of the runtime; their modules become sub-scopes.
const RUNTIME_CRATES: [&str; 2] = ["mechad", "mecha_core"];

/// The `scope` of a line from a `tracing` target: a target that starts with
/// `dapr.` is one already, a module of the runtime becomes `dapr.runtime.<module>`,
/// component crates are `dapr.contrib`, libraries keep their name.
pub fn scope(target: &str) -> Cow<'_, str> {
    if target.starts_with("dapr.") {
        return Cow::Borrowed(target);
    }
    let mut parts = target.split("::");
    let name = parts.next().unwrap_or_default();
    if RUNTIME_CRATES.contains(&name) {
        return match parts.next() {
            Some(module) => Cow::Owned(format!("{RUNTIME_SCOPE}.{module}")),
            None => Cow::Borrowed(RUNTIME_SCOPE),
        };
    }
    match name {
        "mecha_resiliency" => Cow::Borrowed("dapr.runtime.resiliency"),
        "mecha_resources" => Cow::Borrowed("dapr.runtime.resources"),
        name if name.starts_with("mecha") => Cow::Borrowed(CONTRIB_SCOPE),
        _ if target.contains("::") => Cow::Owned(target.replace("::", ".")),
        _ => Cow::Borrowed(target),
    }
}

/// Whether a target belongs to a library.
pub(super) fn is_foreign(target: &str) -> bool {
    !target.starts_with("dapr.") && !target.starts_with("mecha")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_become_scopes() {
        for (target, expected) in [
            ("dapr.runtime", "dapr.runtime"),
            ("dapr.runtime.hotreload", "dapr.runtime.hotreload"),
            ("mechad", "dapr.runtime"),
            ("mechad::http::state", "dapr.runtime.http"),
            ("mecha_core::pubsub", "dapr.runtime.pubsub"),
            ("mecha_resiliency::retry", "dapr.runtime.resiliency"),
            ("mecha_sqlite::state", "dapr.contrib"),
            ("hyper::proto::h1", "hyper.proto.h1"),
            ("rustls", "rustls"),
        ] {
            assert_eq!(scope(target), expected);
        }
        assert!(is_foreign("hyper::proto"));
        assert!(!is_foreign("mecha_sqlite"));
    }
}
