//! From an environment to its class, and from a claim to the rule that serves it.

use std::collections::BTreeMap;
use std::fmt;

use mecha_resources::kinds::{
    CapabilityKind, CapabilityRule, Environment, EnvironmentClass, EnvironmentReason, SwapStrategy,
};

use crate::canonical::digest_of;

/// Why an environment has no class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClassProblem {
    /// None has the name or the labels.
    NotFound(String),
    /// Several have the labels.
    Ambiguous(Vec<String>),
}

impl ClassProblem {
    /// The reason for a condition.
    #[must_use]
    pub const fn reason(&self) -> EnvironmentReason {
        match self {
            Self::NotFound(_) => EnvironmentReason::ClassNotFound,
            Self::Ambiguous(_) => EnvironmentReason::ClassAmbiguous,
        }
    }
}

impl fmt::Display for ClassProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound(wanted) => {
                write!(f, "no EnvironmentClass has {wanted}; create one or change the environment")
            }
            Self::Ambiguous(names) => {
                write!(
                    f,
                    "EnvironmentClasses {} all have the labels asked for; name one by className",
                    names.join(", ")
                )
            }
        }
    }
}

/// The class of an environment, by name or by labels.
///
/// # Errors
/// None or several fit.
pub fn resolve_class<'c>(
    environment: &Environment,
    classes: &'c BTreeMap<String, EnvironmentClass>,
) -> Result<&'c EnvironmentClass, ClassProblem> {
    if let Some(name) = &environment.spec.class_name {
        return classes.get(name).ok_or_else(|| ClassProblem::NotFound(format!("the name {name}")));
    }
    let Some(selector) = environment.spec.selector() else {
        return Err(ClassProblem::NotFound("been named".to_owned()));
    };
    let mut fitting = classes.values().filter(|class| selector.matches(&class.metadata.labels));
    match (fitting.next(), fitting.next()) {
        (Some(class), None) => Ok(class),
        (None, _) => Err(ClassProblem::NotFound(format!("the labels {selector}"))),
        (Some(first), Some(second)) => {
            let names = [first, second].into_iter().chain(fitting).map(|c| c.name().to_owned());
            Err(ClassProblem::Ambiguous(names.collect()))
        }
    }
}

/// The first rule of a class for claims of this kind and name.
#[must_use]
pub fn rule_for<'c>(class: &'c EnvironmentClass, kind: CapabilityKind, claim: &str) -> Option<&'c CapabilityRule> {
    let fits =
        |rule: &&CapabilityRule| rule.kind == kind && (rule.names.is_empty() || rule.names.iter().any(|n| n == claim));
    class.spec.capabilities.iter().find(fits)
}

/// How claims of a rule move.
#[must_use]
pub fn strategy_for(rule: &CapabilityRule) -> SwapStrategy {
    let named = rule.swap.as_ref().and_then(|swap| swap.strategy);
    named.unwrap_or(match rule.kind {
        CapabilityKind::Pubsub | CapabilityKind::Binding => SwapStrategy::Drain,
        _ => SwapStrategy::Immediate,
    })
}

/// Longest name of an environment inside a namespace's name of at most 63 characters.
const MAX_NAME: usize = 57;

/// The namespace of an environment's claims, in the hub and in every member: its name and five
/// characters that depend on where it comes from, so that it is the same wherever it is computed.
#[must_use]
pub fn connect_to(environment: &Environment) -> String {
    let name = environment.name().replace('.', "-");
    let name = name.get(..MAX_NAME).unwrap_or(&name).trim_end_matches('-');
    format!("{name}-{}", digest_of(&(environment.namespace(), environment.name())).short(5))
}

/// An environment as a word of letters, digits and underscores, for prefixes. Two environments may have the
/// same word; [`crate::claim_slug`] tells them apart.
#[must_use]
pub fn environment_slug(environment: &str) -> String {
    let word: String =
        environment.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect();
    word.trim_matches('_').to_owned()
}
