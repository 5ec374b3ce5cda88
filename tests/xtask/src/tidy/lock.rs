//! One crypto provider (ring) and one TLS stack (rustls) in the whole tree.

use std::collections::BTreeSet;

use super::Finding;
use super::graph::Graph;

const LOCK: &str = "Cargo.lock";

/// Packages that must not be in the tree, unless only these depend on them.
const BANNED: &[(&str, &[&str])] = &[
    ("aws-lc-rs", &[]),
    ("aws-lc-sys", &["aws-lc-rs"]),
    ("boring", &[]),
    ("boring-sys", &["boring"]),
    ("native-tls", &[]),
    ("openssl", &["native-tls"]),
    // librdkafka speaks TLS through OpenSSL; it stays inside components/kafka.
    ("openssl-sys", &["rdkafka-sys", "openssl", "native-tls"]),
    ("rustls-openssl", &[]),
    ("s2n-tls", &[]),
];

/// Packages of which two versions would be two stacks.
const SINGLE: &[&str] = &["ring", "rustls", "tokio-rustls", "rustls-webpki", "rustls-pki-types"];

pub(super) fn check(graph: &Graph) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, allowed) in BANNED {
        for package in graph.named(name) {
            let users: BTreeSet<_> = graph.dependents(package).map(|p| p.name.as_str()).collect();
            let wrong: Vec<_> = users.into_iter().filter(|user| !allowed.contains(user)).collect();
            if !wrong.is_empty() {
                findings.push(Finding::new(
                    LOCK,
                    format!("{name} {} is in the tree through {}", package.version, wrong.join(", ")),
                    format!("choose features with rustls and ring; `cargo tree -i {name} -e features` shows who asks"),
                ));
            }
        }
    }
    for name in SINGLE {
        let versions: BTreeSet<_> = graph.named(name).map(|p| p.version.as_str()).collect();
        if versions.len() > 1 {
            let versions: Vec<_> = versions.into_iter().collect();
            findings.push(Finding::new(
                LOCK,
                format!("{name} is in the tree in versions {}", versions.join(" and ")),
                format!("bring its users to one version; `cargo tree -d -i {name}` shows them"),
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::graph::sample::Sample;
    use super::*;

    fn report(sample: Sample) -> Vec<String> {
        check(&sample.graph()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ring_alone_is_clean_and_kafka_may_bring_openssl() {
        let found = report(
            Sample::new()
                .registry("ring", &[])
                .registry("rustls", &["ring"])
                .registry("openssl-sys", &[])
                .registry("rdkafka-sys", &["openssl-sys"]),
        );
        assert_eq!(found, [""; 0]);
    }

    #[test]
    fn a_second_provider_is_named_with_who_brings_it() {
        let found = report(
            Sample::new()
                .registry("aws-lc-sys", &[])
                .registry("aws-lc-rs", &["aws-lc-sys"])
                .registry("rustls", &["aws-lc-rs"]),
        );
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].contains("aws-lc-rs 1.0.0 is in the tree through rustls"), "{found:#?}");
    }

    #[test]
    fn a_second_tls_stack_is_named() {
        let found = report(
            Sample::new()
                .registry("openssl-sys", &[])
                .registry("openssl", &["openssl-sys"])
                .registry("native-tls", &["openssl"])
                .registry("http-client", &["native-tls"]),
        );
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].contains("native-tls 1.0.0 is in the tree through http-client"));
    }

    #[test]
    fn two_versions_of_rustls_are_two_stacks() {
        let found = report(Sample::new().registry("rustls", &[]).version("rustls", "0.22.4", &[]));
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("versions 0.22.4 and 1.0.0"), "{found:#?}");
    }
}
