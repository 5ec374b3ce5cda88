//! Access control list of the app: which peers may call which of its operations.

use std::collections::HashMap;

use mecha_resources::{AccessControl as Document, AccessPolicy, DefaultAccess};

use super::call::{AccessControl, Question};

/// A compiled access control list.
#[derive(Debug)]
pub struct AccessList {
    /// For callers that no policy names.
    default: DefaultAccess,
    /// By caller's namespace and app id.
    policies: HashMap<(String, String), Policy>,
}

#[derive(Debug)]
struct Policy {
    trust_domain: String,
    default: DefaultAccess,
    /// Exact and prefix names; the longest that fits decides.
    operations: Vec<Operation>,
}

#[derive(Debug)]
struct Operation {
    /// With leading slash, without the `*` of a prefix.
    name: String,
    prefix: bool,
    /// Empty: every verb.
    verbs: Vec<String>,
    action: DefaultAccess,
}

impl AccessList {
    /// Compiles a document.
    ///
    /// # Errors
    /// Which policies lack an app id, a namespace or a trust domain. Nothing may be allowed by a
    /// list that is not understood, so callers have to refuse everything then.
    pub fn compile(document: &Document) -> Result<Self, String> {
        let lacking = |what: &str, of: fn(&AccessPolicy) -> &str| -> Result<(), String> {
            let apps: Vec<&str> =
                document.policies.iter().filter(|p| of(p).is_empty()).map(|p| p.app_id.as_str()).collect();
            if apps.is_empty() {
                return Ok(());
            }
            Err(format!("invalid access control spec. missing {what} for apps: {}", apps.join(", ")))
        };
        if document.policies.iter().any(|p| p.app_id.is_empty()) {
            return Err("invalid access control spec. a policy has no appId".to_owned());
        }
        lacking("trustdomain", |p| &p.trust_domain)?;
        lacking("namespace", |p| &p.namespace)?;
        let policies = document
            .policies
            .iter()
            .map(|p| ((p.namespace.clone(), p.app_id.clone()), policy(p, document.effective_default())))
            .collect();
        Ok(Self { default: document.effective_default(), policies })
    }

    fn decide(&self, q: &Question<'_>) -> DefaultAccess {
        // Without mTLS a caller proves nothing, so no policy can be picked for it.
        let Some(caller) = q.caller else { return self.default };
        let key = (caller.namespace.clone(), caller.app_id.clone());
        let Some(policy) = self.policies.get(&key).filter(|p| p.trust_domain == caller.trust_domain) else {
            return self.default;
        };
        let name = rooted(q.operation);
        let best =
            policy.operations.iter().filter(|o| o.names(&name, q.http)).max_by_key(|o| (!o.prefix, o.name.len()));
        match best {
            Some(operation) if operation.verb_fits(q) => operation.action,
            _ => policy.default,
        }
    }
}

fn policy(p: &AccessPolicy, fallback: DefaultAccess) -> Policy {
    let operations = p
        .operations
        .iter()
        .map(|o| {
            let name = rooted(&o.name);
            let (name, prefix) = match name.strip_suffix('*') {
                Some(start) => (start.to_owned(), true),
                None => (name, false),
            };
            let verbs = if o.http_verb.iter().any(|v| v == "*") { Vec::new() } else { o.http_verb.clone() };
            Operation { name, prefix, verbs, action: o.action }
        })
        .collect();
    Policy { trust_domain: p.trust_domain.clone(), default: p.default_action.unwrap_or(fallback), operations }
}

impl Operation {
    fn names(&self, operation: &str, http: bool) -> bool {
        // HTTP routers often ignore case, so a list must not be passed by it; gRPC names are exact.
        let (known, asked) = if http {
            (self.name.to_lowercase(), operation.to_lowercase())
        } else {
            (self.name.clone(), operation.to_owned())
        };
        if self.prefix { asked.starts_with(&known) || format!("{asked}/") == known } else { asked == known }
    }

    fn verb_fits(&self, q: &Question<'_>) -> bool {
        match q.verb {
            Some(verb) if q.http => {
                self.verbs.is_empty() || self.verbs.iter().any(|v| v.eq_ignore_ascii_case(verb.as_str()))
            }
            _ => true,
        }
    }
}

fn rooted(name: &str) -> String {
    if name.starts_with('/') { name.to_owned() } else { format!("/{name}") }
}

impl AccessControl for AccessList {
    fn check(&self, q: Question<'_>) -> Result<(), String> {
        if self.decide(&q) == DefaultAccess::Allow {
            return Ok(());
        }
        let caller = q.caller.map_or_else(
            || "unknown".to_owned(),
            |c| format!("spiffe://{}/ns/{}/{}", c.trust_domain, c.namespace, c.app_id),
        );
        let verb = q.verb.map_or("NONE", http::Method::as_str);
        Err(format!(
            "access control policy has denied access to id: {caller} operation: {} verb: {verb}",
            q.operation.trim_start_matches('/')
        ))
    }
}

/// Refuses everything: what stands in for a list that is not understood.
#[derive(Clone, Copy, Debug)]
pub struct DenyAll;

impl AccessControl for DenyAll {
    fn check(&self, q: Question<'_>) -> Result<(), String> {
        Err(format!("access control policy is not valid, so operation {} is refused", q.operation))
    }
}

#[cfg(test)]
mod tests {
    use super::super::call::PeerIdentity;
    use super::*;
    use mecha_resources::AccessOperation;

    fn list(default: Option<DefaultAccess>, operations: Vec<(&str, &[&str], DefaultAccess)>) -> AccessList {
        let policies = vec![AccessPolicy {
            app_id: "shop".into(),
            namespace: "ns".into(),
            trust_domain: "public".into(),
            default_action: Some(DefaultAccess::Deny),
            operations: operations
                .into_iter()
                .map(|(name, verbs, action)| AccessOperation {
                    name: name.into(),
                    http_verb: verbs.iter().map(|v| (*v).into()).collect(),
                    action,
                })
                .collect(),
        }];
        AccessList::compile(&Document { default_action: default, trust_domain: String::new(), policies }).unwrap()
    }

    fn ask(list: &AccessList, caller: Option<&str>, operation: &str, verb: &http::Method) -> bool {
        let identity = caller.map(|app| PeerIdentity {
            trust_domain: "public".into(),
            namespace: "ns".into(),
            app_id: app.into(),
        });
        let q = Question { caller: identity.as_ref(), from: None, operation, verb: Some(verb), http: true };
        list.check(q).is_ok()
    }

    #[test]
    fn the_longest_name_and_its_verbs_decide() {
        use DefaultAccess::{Allow, Deny};
        let l = list(None, vec![("/a/*", &["*"], Allow), ("/a/secret", &["*"], Deny), ("/b", &["GET"], Allow)]);
        let (get, post) = (http::Method::GET, http::Method::POST);
        assert!(ask(&l, Some("shop"), "a/x", &get));
        assert!(ask(&l, Some("shop"), "/A/X", &get), "HTTP names ignore case");
        assert!(!ask(&l, Some("shop"), "a/secret", &get));
        assert!(!ask(&l, Some("shop"), "A/SECRET", &get));
        assert!(ask(&l, Some("shop"), "b", &get));
        assert!(!ask(&l, Some("shop"), "b", &post), "another verb falls to the policy's default");
        assert!(!ask(&l, Some("other"), "a/x", &get), "policies without a default deny the rest");
        assert!(!ask(&l, None, "a/x", &get), "without a proven identity the default counts");
    }

    #[test]
    fn the_default_opens_what_no_policy_names() {
        let l = list(Some(DefaultAccess::Allow), vec![]);
        assert!(ask(&l, Some("other"), "x", &http::Method::GET) && ask(&l, None, "x", &http::Method::GET));
        assert!(!ask(&l, Some("shop"), "x", &http::Method::GET));
    }

    #[test]
    fn an_incomplete_policy_is_no_list() {
        let policies = vec![AccessPolicy {
            app_id: "shop".into(),
            namespace: "ns".into(),
            trust_domain: String::new(),
            default_action: None,
            operations: Vec::new(),
        }];
        let e = AccessList::compile(&Document { default_action: None, trust_domain: String::new(), policies });
        assert_eq!(e.unwrap_err(), "invalid access control spec. missing trustdomain for apps: shop");
    }
}
