//! Arrows between the crates of this repository.

use super::Finding;
use super::graph::{Graph, Package};

/// What a crate may see of this repository.
#[derive(Debug, PartialEq)]
enum Sees {
    /// These, and nothing else.
    Only(&'static [&'static str]),
    /// The component contract and the crates that implement it.
    EveryComponent,
    /// All: it tests or measures the rest.
    Everything,
}

const API: &str = "mecha-components-api";
const FACADE: &str = "mecha-components";
const IDENTITY: &str = "mecha-identity";
const TESTKIT: &str = "mecha-testkit";
const CONTROL: &str = "mecha-control";
const CORE: &str = "mecha-core";
const DAEMON: &str = "mechad";
const OTLP: &str = "mecha-otlp";
const TRACE: &str = "mecha-trace";

/// Crates outside `components/`; a component sees the contract and nothing else.
const HOUSE: &[(&str, Sees)] = &[
    ("mecha-proto", Sees::Only(&[])),
    ("mecha-resources", Sees::Only(&[])),
    (API, Sees::Only(&[])),
    (TESTKIT, Sees::Only(&[API])),
    (FACADE, Sees::EveryComponent),
    ("mecha-resiliency", Sees::Only(&[API])),
    (CORE, Sees::Only(&[API, "mecha-resources", "mecha-resiliency", TRACE])),
    // Spans, and what sends them: the same in the sidecar and the control part, so that a trace covers both.
    (TRACE, Sees::Only(&[])),
    (OTLP, Sees::Only(&[TRACE])),
    // Who a workload is; the sidecar and the control part prove it to each other with the same code.
    (IDENTITY, Sees::Only(&[])),
    (DAEMON, Sees::Only(&[API, FACADE, CORE, IDENTITY, OTLP, "mecha-proto", "mecha-resiliency", "mecha-resources"])),
    ("mecha-decide", Sees::Only(&["mecha-resources"])),
    ("mecha-patch", Sees::Only(&["mecha-resources"])),
    ("mecha-apiserver", Sees::Only(&["mecha-resources", TRACE])),
    // A role sees what it needs: the hub delivers nothing, the agent decides nothing, the webhook does neither.
    ("mecha-hub", Sees::Only(&["mecha-apiserver", "mecha-decide", "mecha-resources"])),
    ("mecha-agent", Sees::Only(&["mecha-apiserver", IDENTITY, "mecha-proto", "mecha-resources"])),
    ("mecha-webhook", Sees::Only(&["mecha-apiserver", "mecha-patch"])),
    ("mecha-issuer", Sees::Only(&["mecha-apiserver", IDENTITY, "mecha-proto"])),
    ("mecha-sources", Sees::Only(&["mecha-apiserver", "mecha-resources"])),
    (
        CONTROL,
        Sees::Only(&[
            "mecha-agent",
            "mecha-apiserver",
            "mecha-hub",
            "mecha-issuer",
            OTLP,
            "mecha-sources",
            "mecha-webhook",
        ]),
    ),
    ("mecha", Sees::Only(&["mecha-apiserver", "mecha-decide", "mecha-patch", "mecha-proto", "mecha-resources"])),
    ("mecha-tests", Sees::Everything),
    ("mecha-bench", Sees::Everything),
    // Writes the generated tables from the registry of components; never sees mecha-proto, see FAR.
    ("xtask", Sees::Only(&[API, FACADE, CORE, "mecha-resources"])),
];

/// Crates of the registry a crate must not name itself, and why. What comes with others does not count.
const NOT_NAMED: &[(&str, &[&str], &str)] = &[(
    CORE,
    &["axum", "hyper", "hyper-rustls", "hyper-util", "reqwest", "tonic", "tonic-prost"],
    "calls go through the Transport trait that mecha-core owns; put the code into daemon/src",
)];

/// Crates that must not come in at all, not even through others, and why.
const FAR: &[(&str, &[&str], &str)] = &[
    ("mecha-decide", PURE, "deciders are pure: take the facts as arguments"),
    ("mecha-patch", PURE, "patches are pure: take the facts as arguments"),
    ("xtask", &["mecha-proto"], "generated code that does not compile must be repairable by `xtask codegen`"),
    (CONTROL, &[DAEMON, CORE, FACADE, API], "the control part links no driver; share types in proto/resources"),
    (DAEMON, KUBERNETES, "the sidecar pays for no Kubernetes client; what it needs comes from the agent"),
];

const KUBERNETES: &[&str] = &["k8s-openapi", "kube", "kube-client", "kube-core", "kube-runtime"];
const PURE: &[&str] = &["tokio", "kube", "kube-client", "kube-runtime"];

pub(super) fn check(graph: &Graph) -> Vec<Finding> {
    let mut findings = Vec::new();
    for member in graph.members() {
        findings.extend(local(graph, member));
        findings.extend(named(member));
        findings.extend(far(graph, member));
        if member.name == API {
            findings.extend(contract(member));
        }
    }
    findings
}

/// A crate that implements components: in a folder of its own below `components/`.
fn is_component(package: &Package) -> bool {
    package.manifest.starts_with("components/")
        && package.manifest.matches('/').count() == 2
        && ![API, TESTKIT, FACADE].contains(&package.name.as_str())
}

fn sees(package: &Package) -> Option<&'static Sees> {
    if is_component(package) {
        return Some(&Sees::Only(&[API]));
    }
    HOUSE.iter().find(|(name, _)| *name == package.name).map(|(_, sees)| sees)
}

fn local(graph: &Graph, member: &Package) -> Vec<Finding> {
    let Some(sees) = sees(member) else {
        return vec![Finding::new(
            &member.manifest,
            format!("crate {} has no place in the house", member.name),
            "put its arrows into HOUSE in tests/xtask/src/tidy/arrows.rs, or make it a module",
        )];
    };
    let component = |name: &str| graph.members().any(|other| other.name == name && is_component(other));
    let wrong = member.dependencies.iter().filter(|dependency| dependency.is_local()).filter(|dependency| {
        let name = dependency.name.as_str();
        let tested_with = dependency.is_dev() && (name == TESTKIT || name == member.name);
        let seen = match sees {
            Sees::Everything => true,
            Sees::EveryComponent => name == API || component(name),
            Sees::Only(names) => names.contains(&name),
        };
        !seen && !tested_with
    });
    wrong
        .map(|dependency| {
            let may = match sees {
                Sees::Only([]) => "no crate of this repository".to_owned(),
                Sees::Only(names) => names.join(", "),
                Sees::EveryComponent => format!("{API} and the components"),
                Sees::Everything => "everything".to_owned(),
            };
            let next = if component(&dependency.name) && is_component(member) {
                format!("components do not see one another: move what both need into {API}")
            } else {
                "move the code to where the arrow allows it, or pass it in through a trait".to_owned()
            };
            Finding::new(
                &member.manifest,
                format!("{} depends on {}; it may see {may}", member.name, dependency.name),
                next,
            )
        })
        .collect()
}

fn named(member: &Package) -> Vec<Finding> {
    let rules = NOT_NAMED.iter().filter(|(name, ..)| *name == member.name);
    rules
        .flat_map(|(_, banned, why)| {
            let hits = member.dependencies.iter().filter(|d| !d.is_dev() && banned.contains(&d.name.as_str()));
            hits.map(move |d| {
                Finding::new(&member.manifest, format!("{} depends on {} directly", member.name, d.name), *why)
            })
        })
        .collect()
}

fn far(graph: &Graph, member: &Package) -> Vec<Finding> {
    let rules = FAR.iter().filter(|(name, ..)| *name == member.name);
    let mut findings = Vec::new();
    for (name, banned, why) in rules {
        for banned in *banned {
            if let Some(way) = graph.way(member, |p| p.name == *banned) {
                findings.push(Finding::new(
                    &member.manifest,
                    format!("{name} must not link {banned}, which comes in by {}", way.join(" -> ")),
                    *why,
                ));
            }
        }
    }
    if member.name == CONTROL
        && let Some(way) = graph.way(member, is_component)
    {
        findings.push(Finding::new(
            &member.manifest,
            format!("{CONTROL} must not link a driver; one comes in by {}", way.join(" -> ")),
            "share types in proto/resources",
        ));
    }
    findings
}

/// The component contract compiles with every component, so it stays small.
fn contract(member: &Package) -> Option<Finding> {
    let tokio = member.dependencies.iter().find(|d| d.name == "tokio" && !d.is_dev())?;
    let more: Vec<_> = tokio.features.iter().filter(|feature| *feature != "sync").map(String::as_str).collect();
    (!more.is_empty()).then(|| {
        Finding::new(
            &member.manifest,
            format!("{API} asks for tokio's {}; only `sync` is allowed", more.join(", ")),
            "put the code that needs it into the crate that runs it",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::graph::sample::Sample;
    use super::*;

    fn clean() -> Sample {
        Sample::new()
            .registry("tokio", &[])
            .registry("hyper", &[])
            .registry("http", &[])
            .member("proto", "mecha-proto", &[])
            .member("proto/resources", "mecha-resources", &[])
            .member("components/api", API, &["tokio"])
            .member("components/testkit", TESTKIT, &[API, "tokio"])
            .member("components/builtin", "mecha-builtin", &[API, "hyper", "dev:mecha-testkit"])
            .member("components/sqlite", "mecha-sqlite", &[API, "tokio", "dev:mecha-testkit"])
            .member("components", FACADE, &[API, "mecha-builtin", "mecha-sqlite"])
    }

    fn report(sample: Sample) -> Vec<String> {
        check(&sample.graph()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_house_as_drawn_is_clean() {
        let house = clean()
            .member("daemon/resiliency", "mecha-resiliency", &[API])
            .member("daemon/core", CORE, &[API, "mecha-resources", "mecha-resiliency", "http", "dev:hyper"])
            .member("daemon", DAEMON, &[CORE, FACADE, API, "mecha-proto", "hyper"])
            .member("injector/decide", "mecha-decide", &["mecha-resources", "http"])
            .member("identity", IDENTITY, &["rustls"])
            .member("telemetry/trace", TRACE, &[])
            .member("telemetry/otlp", OTLP, &[TRACE, "hyper"])
            .member("injector/apiserver", "mecha-apiserver", &["mecha-resources", "kube", "dev:mecha-testkit"])
            .member("injector/hub", "mecha-hub", &["mecha-apiserver", "mecha-decide", "mecha-resources", "kube"])
            .member("injector/agent", "mecha-agent", &["mecha-apiserver", IDENTITY, "mecha-proto", "kube"])
            .member("injector", CONTROL, &["mecha-agent", "mecha-apiserver", "mecha-hub", OTLP, "tokio"])
            .member("cli", "mecha", &["mecha-decide", "mecha-resources"])
            .member("tests", "mecha-tests", &[DAEMON, FACADE, "mecha-builtin"])
            .member("tests/xtask", "xtask", &[FACADE]);
        assert_eq!(report(house), [""; 0]);
    }

    #[test]
    fn a_component_sees_no_other_and_no_daemon_crate() {
        let found = report(clean().member("components/redis", "mecha-redis", &[API, "mecha-builtin", CORE]).member(
            "daemon/core",
            CORE,
            &[API],
        ));
        assert_eq!(found.len(), 2, "{found:#?}");
        assert!(found[0].starts_with("components/redis/Cargo.toml: mecha-redis depends on mecha-builtin"));
        assert!(found[0].contains("components do not see one another"));
        assert!(found[1].contains("mecha-redis depends on mecha-core; it may see mecha-components-api"));
    }

    #[test]
    fn a_test_of_a_component_sees_the_testkit_and_no_more() {
        let found = report(clean().member("components/redis", "mecha-redis", &[API, "dev:mecha-builtin"]));
        assert_eq!(found.len(), 1, "{found:#?}");
    }

    #[test]
    fn core_names_no_http_or_grpc_library() {
        let found = report(clean().member("daemon/core", CORE, &[API, "hyper"]));
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].contains("mecha-core depends on hyper directly") && found[0].contains("Transport"));
    }

    #[test]
    fn the_control_part_links_no_driver_even_through_others() {
        let found =
            report(clean().member("injector/decide", "mecha-decide", &["mecha-resources", "mecha-sqlite"]).member(
                "injector",
                CONTROL,
                &["mecha-decide"],
            ));
        assert!(
            found.iter().any(|f| f.contains("a driver; one comes in by mecha-control -> mecha-decide -> mecha-sqlite")),
            "{found:#?}"
        );
        assert!(
            found.iter().any(|f| f.starts_with("injector/decide/Cargo.toml: mecha-decide depends on mecha-sqlite"))
        );
    }

    #[test]
    fn pure_crates_have_no_runtime_and_no_client() {
        let found = report(clean().registry("kube-client", &["tokio"]).registry("helper", &["kube-client"]).member(
            "injector/patch",
            "mecha-patch",
            &["helper"],
        ));
        assert_eq!(found.len(), 2, "{found:#?}");
        assert!(found[0].contains("mecha-patch -> helper -> kube-client -> tokio"), "{found:#?}");
        assert!(found[1].contains("mecha-patch -> helper -> kube-client\n"), "{found:#?}");
    }

    #[test]
    fn the_generator_never_needs_what_it_generates() {
        let found = report(clean().member("tests/xtask", "xtask", &["mecha-proto"]));
        assert!(found.iter().any(|f| f.contains("xtask must not link mecha-proto")), "{found:#?}");
    }

    #[test]
    fn a_new_crate_asks_for_its_place() {
        let found = report(clean().member("console", "mecha-console", &[]));
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("mecha-console has no place in the house") && found[0].contains("HOUSE"));
    }
}
