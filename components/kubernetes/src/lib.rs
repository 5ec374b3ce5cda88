//! Kubernetes as a secret store.
