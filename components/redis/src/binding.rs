//! `bindings.redis`: plain keys as an output binding.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use mecha_components_api::{
    BuildCx, Component, ConfigErrors, Error, Field, FieldType, Invoke, Metadata, OutputBinding, Prepared, Registration,
    Reply, Result,
};
use redis::Value;

use crate::client::Client;
use crate::config::{Block, RedisConfig, redis_fields};
use crate::script::{Script, script};

/// KEYS: the counter. ARGV: life time in seconds or ''. Gives the new value.
static INCREMENT: Script = script!(
    "local value = redis.call('INCR', KEYS[1])
     if ARGV[1] ~= '' then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
     return value"
);

/// Seconds beyond this overflow the server's clock.
const LONGEST_LIFE: i64 = 1 << 38;

const FIELDS: &[Field] = redis_fields![min_retry: "8ms";];

/// How `register` makes it known.
pub(crate) fn registration() -> Registration<dyn OutputBinding> {
    Registration {
        kind: "bindings.redis",
        aliases: &[],
        versions: &["v1"],
        summary: "Writes, reads, counts and removes keys of a Redis",
        fields: FIELDS,
        prepare,
    }
}

struct RedisBindingConfig(RedisConfig);

/// The binding.
#[derive(Debug)]
struct RedisBinding {
    client: Arc<Client>,
}

fn prepare(md: &Metadata, _version: &str) -> std::result::Result<Box<dyn Prepared<dyn OutputBinding>>, ConfigErrors> {
    let mut errors = ConfigErrors::new();
    let redis = RedisConfig::read(md, &mut errors, Block::Binding);
    errors.finish(Box::new(RedisBindingConfig(redis)) as Box<dyn Prepared<dyn OutputBinding>>)
}

#[async_trait]
impl Prepared<dyn OutputBinding> for RedisBindingConfig {
    async fn build(self: Box<Self>, _cx: &BuildCx) -> Result<Arc<dyn OutputBinding>> {
        Ok(Arc::new(RedisBinding { client: Client::open(self.0).await? }))
    }
}

impl RedisBinding {
    async fn create(&self, key: &str, data: &Bytes, life: Option<i64>) -> Result<Reply> {
        let mut cmd = redis::Cmd::with_capacity(5, key.len() + data.len() + 32);
        cmd.arg("SET").arg(key).arg(data.as_ref());
        if let Some(seconds) = life {
            cmd.arg("EX").arg(seconds);
        }
        self.client.call(self.client.write("create"), &cmd).await?;
        Ok(Reply::default())
    }

    async fn get(&self, key: &str, remove: bool) -> Result<Reply> {
        let (name, op) = if remove { ("GETDEL", self.client.write("get")) } else { ("GET", self.client.read("get")) };
        let mut cmd = redis::cmd(name);
        cmd.arg(key);
        let data = match self.client.call(op, &cmd).await? {
            Value::BulkString(bytes) => Some(bytes.into()),
            _ => None,
        };
        Ok(Reply { data, ..Reply::default() })
    }

    async fn increment(&self, key: &str, life: Option<i64>) -> Result<Reply> {
        let op = self.client.write("increment");
        let life = life.map(|s| s.to_string()).unwrap_or_default();
        let reply = INCREMENT.run().key(key).arg(&life).on(&self.client, op).await;
        reply.map_err(|f| self.client.error(op, f))?;
        Ok(Reply::default())
    }

    async fn delete(&self, key: &str) -> Result<Reply> {
        let mut cmd = redis::cmd("DEL");
        cmd.arg(key);
        self.client.call(self.client.repeatable_write("delete"), &cmd).await?;
        Ok(Reply::default())
    }
}

#[async_trait]
impl Component for RedisBinding {
    async fn ping(&self) -> Result<()> {
        self.client.ping().await
    }

    async fn close(&self) {
        self.client.close();
    }
}

#[async_trait]
impl OutputBinding for RedisBinding {
    fn operations(&self) -> &'static [&'static str] {
        &["create", "get", "delete", "increment"]
    }

    async fn invoke(&self, req: Invoke<'_>) -> Result<Reply> {
        let Some(key) = req.metadata.get_non_empty("key") else {
            return Err(Error::invalid("redis binding: missing key in request metadata"));
        };
        match req.operation {
            "create" => self.create(key, &req.data, life(req.metadata)?).await,
            "get" => self.get(key, req.metadata.get("delete") == Some("true")).await,
            "delete" => self.delete(key).await,
            "increment" => self.increment(key, life(req.metadata)?).await,
            other => Err(Error::invalid(format!("redis binding: invalid operation type: {other}"))),
        }
    }
}

/// `ttlInSeconds` of a request.
fn life(md: &Metadata) -> Result<Option<i64>> {
    let Some(text) = md.get_non_empty("ttlInSeconds") else { return Ok(None) };
    match text.parse::<i64>() {
        Ok(seconds) if seconds > 0 => Ok(Some(seconds.min(LONGEST_LIFE))),
        _ => Err(Error::invalid("redis binding: ttlInSeconds must be an integer greater than zero")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn life_times() {
        let read = |text: &str| life(&[("ttlInSeconds", text)].into_iter().collect());
        assert_eq!(life(&Metadata::new()).unwrap(), None);
        assert_eq!(read("7").unwrap(), Some(7));
        for bad in ["0", "-1", "x", "1.5"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
