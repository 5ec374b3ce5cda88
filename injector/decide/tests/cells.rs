//! Every kind of claim with every driver: one environment for each driver asks for all kinds.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use mecha_decide::{Assume, Choice, Consent, Memory, World};
use mecha_resources::kinds::{CapabilityKind, ClaimReason, DecideReason, Documents};

/// Every component of the shipped sidecar, generated from its registry.
const COMPONENTS: &str = include_str!("../../../docs/reference/components.md");
/// Drivers of a stock sidecar, for the kinds that ours has no component of yet.
const STOCK: [&str; 2] = ["crypto.dapr.jwks", "conversation.echo"];

/// The kind that a component serves; sidecars find each other by themselves, nobody claims that.
fn kind_of(component: &str) -> Option<CapabilityKind> {
    let kind = match component.split('.').next()? {
        "bindings" => "binding",
        "secretstores" => "secretstore",
        "nameresolution" => return None,
        block => block,
    };
    let found = CapabilityKind::ALL.iter().copied().find(|known| known.as_str() == kind);
    Some(found.unwrap_or_else(|| panic!("no claim asks for what {component} does")))
}

#[test]
fn every_kind_with_every_driver_is_bound_or_refused_with_a_reason() {
    let listed = COMPONENTS.lines().filter_map(|line| line.strip_prefix("| [`")?.split('`').next());
    let drivers: BTreeMap<&str, CapabilityKind> =
        listed.chain(STOCK).filter_map(|driver| Some((driver, kind_of(driver)?))).collect();
    assert!(drivers.len() > 15, "{drivers:?}");
    let mut text = String::new();
    for (number, (driver, kind)) in drivers.iter().enumerate() {
        let _ = write!(
            text,
            "---\napiVersion: mecha.dev/v1alpha1\nkind: CapabilityBackend\nmetadata: {{name: b{number}, labels: {{cell: b{number}}}}}\n\
             spec: {{kind: {kind}, component: {{type: {driver}, version: v1}}, source: {{none: {{}}}}}}\n\
             ---\napiVersion: mecha.dev/v1alpha1\nkind: Environment\nmetadata: {{name: e{number}, namespace: team}}\n\
             spec: {{className: c{number}}}\n\
             ---\napiVersion: mecha.dev/v1alpha1\nkind: EnvironmentClass\nmetadata: {{name: c{number}}}\n\
             spec:\n  type: development\n  capabilities:\n"
        );
        for asked in CapabilityKind::ALL {
            let _ = writeln!(text, "  - {{kind: {asked}, backendSelector: {{matchLabels: {{cell: b{number}}}}}}}");
        }
        for asked in CapabilityKind::ALL {
            let _ = write!(
                text,
                "---\napiVersion: mecha.dev/v1alpha1\nkind: CapabilityClaim\nmetadata: {{name: {asked}, namespace: team-e{number}}}\n\
                 spec: {{kind: {asked}}}\n"
            );
        }
    }
    let mut documents = Documents::default();
    documents.read_text("cells.yaml", &text);
    assert!(documents.diagnostics.is_empty(), "{:#?}", documents.diagnostics);
    // Claims lie where the environments connect to.
    for claim in &mut documents.claims {
        let environment = claim.value.metadata.namespace.trim_start_matches("team-").to_owned();
        let found = documents.environments.iter().find(|e| e.value.name() == environment).unwrap();
        claim.value.metadata.namespace = mecha_decide::connect_to(&found.value);
    }
    let evaluation =
        World::from_documents(&documents, Assume::Documents).evaluate(&Memory::default(), &Consent::default(), 0);
    assert_eq!(evaluation.claims.len(), drivers.len() * CapabilityKind::ALL.len(), "no cell is left out");

    let drivers: Vec<_> = drivers.iter().collect();
    for outcome in &evaluation.claims {
        let number: usize = outcome.environment.trim_start_matches("team/e").parse().unwrap();
        let (driver, kind) = drivers[number];
        let decision = outcome.decision.as_ref().unwrap();
        if outcome.kind == *kind {
            assert_eq!(decision.choice, Choice::Bind { to: format!("b{number}") }, "{driver} for {kind}");
            assert_eq!(outcome.problem, None);
            let binding = evaluation.bindings.iter().find(|b| b.environment == outcome.environment).unwrap();
            assert_eq!(binding.entries.len(), 1);
            assert!(binding.entries[0].document.contains(&format!("\"{driver}\"")), "{}", binding.entries[0].document);
        } else {
            assert_eq!(decision.choice, Choice::Pending, "{driver} for {}", outcome.kind);
            let (reason, message) = outcome.problem.as_ref().unwrap();
            assert_eq!(*reason, ClaimReason::NoCandidate);
            assert!(!message.is_empty());
            // Those of its kind are other cells; the one of this cell is of another kind.
            let rejected = &decision.explanation.rejected_by;
            let all: u32 = rejected.iter().map(|group| group.count).sum();
            assert_eq!(all as usize, drivers.len(), "each backend has a reason: {rejected:?}");
            assert!(rejected.iter().any(|group| group.reason == DecideReason::KindMismatch), "{rejected:?}");
        }
    }
}
