//! Allow and deny lists of the API (`api.allowed`, `api.denied` of the Configuration).

use mecha_resources::API_NAMES;

use crate::cx::Front;

/// One rule of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiRule {
    /// API name, such as `state`.
    pub name: String,
    /// `v1`, `v1.0`, `v1alpha1`, `v1.0-alpha1`…
    pub version: String,
    /// `http` or `grpc`.
    pub protocol: String,
}

/// Both lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiRules {
    allowed: Vec<Rule>,
    denied: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    name: String,
    /// `None`: any version.
    version: Option<String>,
    /// `None`: any protocol.
    front: Option<Front>,
}

const VERSIONS: &[&str] = &["v1", "v1alpha1", "v1alpha2", "v1beta1"];

impl ApiRules {
    /// Reads both lists. A rule with an unknown or empty part matches nothing and is named in the
    /// returned warnings; in strict mode an empty version or protocol matches any.
    #[must_use]
    pub fn compile(allowed: &[ApiRule], denied: &[ApiRule], strict: bool) -> (Self, Vec<String>) {
        let mut warnings = Vec::new();
        let mut list = |rules: &[ApiRule], which: &str| {
            let compiled: Vec<Rule> = rules
                .iter()
                .filter_map(|r| {
                    let rule = compile_one(r, strict);
                    if rule.is_none() {
                        warnings.push(format!(
                            "api.{which} rule (name '{}', version '{}', protocol '{}') matches nothing; \
                             name, version and protocol must each be known",
                            r.name, r.version, r.protocol
                        ));
                    }
                    rule
                })
                .collect();
            compiled
        };
        let rules = Self { allowed: list(allowed, "allowed"), denied: list(denied, "denied") };
        (rules, warnings)
    }

    /// Whether `name` in `version` (`v1`, `v1alpha1`…) is open on this front.
    #[must_use]
    pub fn allows(&self, name: &str, version: &str, front: Front) -> bool {
        if name == "healthz" {
            return true;
        }
        let hit = |r: &Rule| {
            r.name == name && r.front.is_none_or(|f| f == front) && r.version.as_deref().is_none_or(|v| v == version)
        };
        if self.denied.iter().any(hit) {
            return false;
        }
        let mut mine = self.allowed.iter().filter(|r| r.front.is_none_or(|f| f == front)).peekable();
        mine.peek().is_none() || mine.any(hit)
    }

    /// Whether there is no rule at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.allowed.is_empty() && self.denied.is_empty()
    }
}

fn compile_one(r: &ApiRule, strict: bool) -> Option<Rule> {
    let name = r.name.trim().to_lowercase();
    if !API_NAMES.contains(&name.as_str()) {
        return None;
    }
    let front = match r.protocol.trim().to_lowercase().as_str() {
        "http" => Some(Front::Http),
        "grpc" => Some(Front::Grpc),
        "" if strict => None,
        _ => return None,
    };
    let version = r.version.trim().to_lowercase();
    let version = match version.as_str() {
        "" if strict => None,
        v => Some(v.replacen("v1.0-", "v1", 1).replacen("v1.0", "v1", 1)),
    };
    if version.as_deref().is_some_and(|v| !VERSIONS.contains(&v)) {
        return None;
    }
    Some(Rule { name, version, front })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str, version: &str, protocol: &str) -> ApiRule {
        ApiRule { name: name.into(), version: version.into(), protocol: protocol.into() }
    }

    #[test]
    fn deny_wins_and_protocols_are_separate() {
        let (r, _) = ApiRules::compile(&[rule("state", "v1.0", "http")], &[rule("publish", "v1", "grpc")], false);
        assert!(r.allows("state", "v1", Front::Http));
        assert!(!r.allows("publish", "v1", Front::Http), "not in the allow list of http");
        assert!(r.allows("state", "v1", Front::Grpc), "grpc has no allow list");
        assert!(!r.allows("publish", "v1", Front::Grpc));
        assert!(r.allows("healthz", "v1", Front::Http));
        assert!(!r.allows("mecha", "v1", Front::Http));
        let (r, warnings) = ApiRules::compile(&[rule("mecha", "v1", "http")], &[rule("mecha", "v1.0", "grpc")], false);
        assert_eq!(warnings, [] as [&str; 0]);
        assert!(r.allows("mecha", "v1", Front::Http) && !r.allows("mecha", "v1", Front::Grpc));
    }

    #[test]
    fn unknown_parts_match_nothing_and_warn() {
        let (r, warnings) = ApiRules::compile(&[rule("state", "", "http")], &[], false);
        assert_eq!(warnings.len(), 1);
        assert!(r.allows("invoke", "v1", Front::Http));
        let (strict, _) = ApiRules::compile(&[rule("state", "", "http")], &[], true);
        assert!(strict.allows("state", "v1alpha1", Front::Http) && !strict.allows("invoke", "v1", Front::Http));
    }
}
