//! The components of one binary.
//!
//! Each technology is a feature of this crate, all on by default;
//! `mecha-builtin` is always there. A build without a technology can still tell
//! its users so: [`KNOWN`] names every component and the feature it needs.

use mecha_components_api::Registry;

/// Every component type of a shipped binary with the feature that compiles it
/// in; an empty feature is always compiled in.
pub const KNOWN: &[(&str, &str)] = &[
    ("state.in-memory", ""),
    ("state.postgresql", "postgres"),
    ("state.redis", "redis"),
    ("state.sqlite", "sqlite"),
    ("pubsub.in-memory", ""),
    ("pubsub.kafka", "kafka"),
    ("pubsub.mecha", "broker"),
    ("pubsub.redis", "redis"),
    ("bindings.cron", ""),
    ("bindings.http", ""),
    ("bindings.kafka", "kafka"),
    ("bindings.localstorage", ""),
    ("bindings.postgresql", "postgres"),
    ("bindings.redis", "redis"),
    ("configuration.postgresql", "postgres"),
    ("configuration.redis", "redis"),
    ("lock.redis", "redis"),
    ("secretstores.kubernetes", "kubernetes"),
    ("secretstores.local.env", ""),
    ("secretstores.local.file", ""),
    ("nameresolution.kubernetes", ""),
    ("nameresolution.mdns", "mdns"),
    ("nameresolution.sqlite", "sqlite"),
];

/// Registers every component that is compiled in.
pub fn register_all(registry: &mut Registry) {
    mecha_builtin::register(registry);
    #[cfg(feature = "broker")]
    mecha_broker::register(registry);
    #[cfg(feature = "kafka")]
    mecha_kafka::register(registry);
    #[cfg(feature = "kubernetes")]
    mecha_kubernetes::register(registry);
    #[cfg(feature = "mdns")]
    mecha_mdns::register(registry);
    #[cfg(feature = "postgres")]
    mecha_postgres::register(registry);
    #[cfg(feature = "redis")]
    mecha_redis::register(registry);
    #[cfg(feature = "sqlite")]
    mecha_sqlite::register(registry);
}

/// The feature that `kind` needs, when this build was made without it.
#[must_use]
pub fn left_out(kind: &str) -> Option<&'static str> {
    let (_, feature) = KNOWN.iter().find(|(known, _)| known.eq_ignore_ascii_case(kind))?;
    let compiled_in = match *feature {
        "broker" => cfg!(feature = "broker"),
        "kafka" => cfg!(feature = "kafka"),
        "kubernetes" => cfg!(feature = "kubernetes"),
        "mdns" => cfg!(feature = "mdns"),
        "postgres" => cfg!(feature = "postgres"),
        "redis" => cfg!(feature = "redis"),
        "sqlite" => cfg!(feature = "sqlite"),
        _ => true,
    };
    (!compiled_in).then_some(feature)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds() -> Vec<&'static str> {
        let mut r = Registry::new();
        register_all(&mut r);
        let mut kinds: Vec<&str> = Vec::new();
        kinds.extend(r.state.iter().map(|c| c.kind));
        kinds.extend(r.pubsub.iter().map(|c| c.kind));
        kinds.extend(r.input.iter().map(|c| c.kind));
        kinds.extend(r.output.iter().map(|c| c.kind));
        kinds.extend(r.secrets.iter().map(|c| c.kind));
        kinds.extend(r.configuration.iter().map(|c| c.kind));
        kinds.extend(r.lock.iter().map(|c| c.kind));
        kinds.extend(r.resolvers.iter().map(|c| c.kind));
        kinds
    }

    #[test]
    fn what_is_registered_is_what_is_known_and_compiled_in() {
        let mut have = kinds();
        let mut want: Vec<&str> = KNOWN.iter().map(|(k, _)| *k).filter(|k| left_out(k).is_none()).collect();
        have.sort_unstable();
        have.dedup();
        want.sort_unstable();
        assert_eq!(have, want);
    }

    #[test]
    fn a_stranger_is_not_called_left_out() {
        assert_eq!(left_out("state.nosuch"), None);
    }
}
