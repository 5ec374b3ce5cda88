//! `lock.redis`: a key per lock that holds its owner and expires.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use mecha_components_api::{
    BuildCx, Component, ConfigErrors, Error, Field, FieldType, LockStore, Metadata, Prepared, Registration, Result,
    Unlocked,
};
use redis::Value;

use crate::client::Client;
use crate::config::{Block, RedisConfig, Topology, redis_fields};
use crate::keyspace::connected_replicas;
use crate::script::{Script, script};

/// KEYS: the lock. ARGV: the owner. Gives 1 released, -1 not held, -2 held by another.
static UNLOCK: Script = script!(
    "local owner = redis.call('GET', KEYS[1])
     if not owner then return -1 end
     if owner ~= ARGV[1] then return -2 end
     return redis.call('DEL', KEYS[1])"
);

const FIELDS: &[Field] = redis_fields![min_retry: "2s";];

/// How `register` makes it known.
pub(crate) fn registration() -> Registration<dyn LockStore> {
    Registration {
        kind: "lock.redis",
        aliases: &[],
        versions: &["v1"],
        summary: "Leases in one Redis; a failover may lose a lease",
        fields: FIELDS,
        prepare,
    }
}

struct RedisLockConfig(RedisConfig);

/// The locks.
#[derive(Debug)]
struct RedisLock {
    client: Arc<Client>,
}

fn prepare(md: &Metadata, _version: &str) -> std::result::Result<Box<dyn Prepared<dyn LockStore>>, ConfigErrors> {
    let mut errors = ConfigErrors::new();
    let redis = RedisConfig::read(md, &mut errors, Block::Lock);
    if redis.topology == Topology::Cluster {
        errors.push("redisType", "'redisType': a lock cannot live on a cluster, which may lose it in a failover");
    }
    errors.finish(Box::new(RedisLockConfig(redis)) as Box<dyn Prepared<dyn LockStore>>)
}

#[async_trait]
impl Prepared<dyn LockStore> for RedisLockConfig {
    async fn build(self: Box<Self>, _cx: &BuildCx) -> Result<Arc<dyn LockStore>> {
        let client = Client::open(self.0).await?;
        if client.config().topology == Topology::Node {
            let mut info = redis::cmd("INFO");
            info.arg("replication");
            // Not every server that speaks Redis has INFO, and not every user may ask.
            if let Ok(answer) = client.call(client.read("count replicas"), &info).await
                && connected_replicas(&answer).is_some_and(|n| n > 0)
            {
                client.close();
                return Err(Error::new(
                    mecha_components_api::ErrorKind::FailedPrecondition,
                    "replication is not supported: the server has replicas; name its sentinels and set failover",
                ));
            }
        }
        Ok(Arc::new(RedisLock { client }))
    }
}

#[async_trait]
impl Component for RedisLock {
    async fn ping(&self) -> Result<()> {
        self.client.ping().await
    }

    fn place(&self) -> Option<String> {
        Some(self.client.place())
    }

    async fn close(&self) {
        self.client.close();
    }
}

#[async_trait]
impl LockStore for RedisLock {
    async fn try_lock(&self, id: &str, owner: &str, ttl: Duration) -> Result<bool> {
        if id.is_empty() || owner.is_empty() {
            return Err(Error::invalid("a lock needs an id and an owner"));
        }
        let ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).min(1 << 48);
        if ms == 0 {
            return Err(Error::invalid("the expiry of a lock must be greater than zero"));
        }
        let mut cmd = redis::cmd("SET");
        cmd.arg(id).arg(owner).arg("NX").arg("PX").arg(ms);
        match self.client.call(self.client.write("try lock"), &cmd).await? {
            Value::Okay => Ok(true),
            Value::Nil => Ok(false),
            _ => Err(Error::internal("try lock: the server's answer has another form than expected")),
        }
    }

    async fn unlock(&self, id: &str, owner: &str) -> Result<Unlocked> {
        let op = self.client.write("unlock");
        let reply = UNLOCK.run().key(id).arg(owner).on(&self.client, op).await;
        match reply.map_err(|f| self.client.error(op, f))? {
            Value::Int(-1) => Ok(Unlocked::NotHeld),
            Value::Int(-2) => Ok(Unlocked::HeldByOther),
            Value::Int(_) => Ok(Unlocked::Released),
            _ => Err(Error::internal("unlock: the server's answer has another form than expected")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_refused() {
        let md: Metadata = [("redisHost", "r"), ("redisType", "cluster")].into_iter().collect();
        let text = prepare(&md, "v1").err().map(|e| e.to_string()).unwrap_or_default();
        assert!(text.contains("cluster"), "{text}");
    }
}
