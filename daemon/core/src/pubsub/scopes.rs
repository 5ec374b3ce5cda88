//! Who may publish and subscribe which topic.

use std::collections::BTreeSet;

use mecha_components_api::Metadata;

/// Topic rules of one component, as far as they concern this app.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicScopes {
    /// `allowedTopics`; empty means every topic.
    allowed: BTreeSet<String>,
    /// `protectedTopics`: only for apps that a scope names explicitly.
    protected: BTreeSet<String>,
    /// `publishingScopes` of this app; `None` when it is not named.
    publish: Option<BTreeSet<String>>,
    /// `subscriptionScopes` of this app; `None` when it is not named.
    subscribe: Option<BTreeSet<String>>,
}

impl TopicScopes {
    /// Reads the scope keys of a component for one app.
    #[must_use]
    pub fn from_metadata(md: &Metadata, app_id: &str) -> Self {
        Self {
            allowed: csv(md.get("allowedTopics").unwrap_or_default()),
            protected: csv(md.get("protectedTopics").unwrap_or_default()),
            publish: scope(md.get("publishingScopes").unwrap_or_default(), app_id),
            subscribe: scope(md.get("subscriptionScopes").unwrap_or_default(), app_id),
        }
    }

    /// Whether this app may publish to `topic`.
    #[must_use]
    pub fn may_publish(&self, topic: &str) -> bool {
        self.may(topic, self.publish.as_ref())
    }

    /// Whether this app may subscribe to `topic`.
    #[must_use]
    pub fn may_subscribe(&self, topic: &str) -> bool {
        self.may(topic, self.subscribe.as_ref())
    }

    fn may(&self, topic: &str, scope: Option<&BTreeSet<String>>) -> bool {
        if !self.allowed.is_empty() && !self.allowed.contains(topic) {
            return false;
        }
        match scope {
            Some(topics) => topics.contains(topic),
            None => !self.protected.contains(topic),
        }
    }
}

fn csv(text: &str) -> BTreeSet<String> {
    text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned).collect()
}

/// `app1=t1,t2;app2=`: the topics of one app, an empty list for "nothing".
fn scope(text: &str, app_id: &str) -> Option<BTreeSet<String>> {
    text.split(';').filter_map(|rule| rule.split_once('=')).find(|(app, _)| app.trim() == app_id).map(|(_, t)| csv(t))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scopes(pairs: &[(&str, &str)]) -> TopicScopes {
        TopicScopes::from_metadata(&pairs.iter().copied().collect(), "shop")
    }

    #[test]
    fn without_rules_everything_is_allowed() {
        assert!(scopes(&[]).may_publish("a"));
    }

    #[test]
    fn allowed_topics_bind_everybody() {
        let s = scopes(&[("allowedTopics", "a, b")]);
        assert!(s.may_publish("b") && !s.may_subscribe("c"));
    }

    #[test]
    fn a_named_app_gets_its_list_and_nothing_else() {
        let s = scopes(&[("publishingScopes", "shop=a,b;other=c"), ("subscriptionScopes", "shop=")]);
        assert!(s.may_publish("a") && !s.may_publish("c") && !s.may_subscribe("a"));
    }

    #[test]
    fn protected_topics_need_an_explicit_scope() {
        let s = scopes(&[("protectedTopics", "p"), ("publishingScopes", "shop=p")]);
        assert!(s.may_publish("p") && !s.may_subscribe("p") && s.may_subscribe("q"));
    }
}
