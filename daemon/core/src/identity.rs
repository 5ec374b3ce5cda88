use std::sync::Arc;

/// Who this sidecar is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// App id; never empty.
    pub app_id: Arc<str>,
    /// Namespace; empty when none is set.
    pub namespace: Arc<str>,
    /// Pod name; empty outside Kubernetes.
    pub pod_name: Arc<str>,
}

impl Identity {
    /// The namespace that counts for identity: `default` when none is set.
    #[must_use]
    pub fn namespace_or_default(&self) -> &str {
        if self.namespace.is_empty() { "default" } else { &self.namespace }
    }
}
