use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use mecha_components_api::{
    BuildCx, CancellationToken, Component, ConfigErrors, Error, Field, FieldType, Instance, Metadata, NameResolver,
    Prepared, Registration, Result, Target, async_trait,
};
use tokio::net::lookup_host;
use tokio::time::timeout;

const FIELDS: &[Field] =
    &[Field::new("clusterDomain", FieldType::Text, "Domain of the cluster's names.").default(CLUSTER_DOMAIN)];
const CLUSTER_DOMAIN: &str = "cluster.local";
/// Where sidecars listen for each other unless a pod says otherwise.
const PEER_PORT: u16 = 50_002;
/// Longest wait for the cluster's DNS.
const LIMIT: Duration = Duration::from_secs(5);

pub(crate) fn registration() -> Registration<dyn NameResolver> {
    Registration {
        kind: "nameresolution.kubernetes",
        aliases: &[],
        versions: &["v1"],
        summary: "Finds peers by the headless Service of each app, in the DNS of the cluster",
        fields: FIELDS,
        prepare,
    }
}

fn prepare(md: &Metadata, _: &str) -> Result<Box<dyn Prepared<dyn NameResolver>>, ConfigErrors> {
    let domain = md.get("clusterDomain").map(str::trim).filter(|text| !text.is_empty()).unwrap_or(CLUSTER_DOMAIN);
    Ok(Box::new(Config { domain: domain.trim_matches('.').to_owned() }))
}

struct Config {
    domain: String,
}

#[async_trait]
impl Prepared<dyn NameResolver> for Config {
    async fn build(self: Box<Self>, _: &BuildCx) -> Result<Arc<dyn NameResolver>> {
        Ok(Arc::new(ClusterDns { domain: self.domain, port: AtomicU16::new(PEER_PORT) }))
    }
}

/// `nameresolution.kubernetes`.
#[derive(Debug)]
struct ClusterDns {
    domain: String,
    /// Peers listen where this sidecar does: the names say nothing of ports.
    port: AtomicU16,
}

impl ClusterDns {
    fn name(&self, target: Target<'_>) -> String {
        let namespace = if target.namespace.is_empty() { "default" } else { target.namespace };
        // The dot at the end keeps the search domains of the pod out.
        format!("{}-dapr.{namespace}.svc.{}.", target.app_id, self.domain)
    }
}

impl Component for ClusterDns {}

#[async_trait]
impl NameResolver for ClusterDns {
    async fn resolve(&self, target: Target<'_>) -> Result<Vec<Arc<str>>> {
        let name = self.name(target);
        let unknown = |why: &dyn fmt::Display| {
            let Target { app_id, namespace } = target;
            Error::not_found(format!("no host found with the given ID: {app_id} in namespace {namespace:?}: {why}"))
        };
        let looked = timeout(LIMIT, lookup_host((name.as_str(), self.port.load(Ordering::Relaxed)))).await;
        let found = looked.map_err(|_| Error::unavailable(format!("{name}: no answer within {LIMIT:?}")))?;
        let addresses: Vec<Arc<str>> = found.map_err(|e| unknown(&e))?.map(|a| a.to_string().into()).collect();
        if addresses.is_empty() { Err(unknown(&"no address")) } else { Ok(addresses) }
    }

    async fn announce(&self, me: Instance, up: Box<dyn FnOnce() + Send>, stop: CancellationToken) -> Result<()> {
        self.port.store(me.port, Ordering::Relaxed);
        // The Service of the app names this pod once it is ready.
        up();
        stop.cancelled().await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(md: &[(&str, &str)], app_id: &str, namespace: &str) -> String {
        let md: Metadata = md.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let domain = md.get("clusterDomain").unwrap_or(CLUSTER_DOMAIN).trim_matches('.').to_owned();
        assert!(prepare(&md, "v1").is_ok());
        ClusterDns { domain, port: AtomicU16::new(PEER_PORT) }.name(Target { app_id, namespace })
    }

    #[test]
    fn apps_are_found_by_their_headless_service() {
        assert_eq!(named(&[], "cart", "shop"), "cart-dapr.shop.svc.cluster.local.");
        assert_eq!(named(&[("clusterDomain", "corp.internal.")], "cart", ""), "cart-dapr.default.svc.corp.internal.");
    }
}
