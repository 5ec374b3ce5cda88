//! `configuration.redis`: plain keys whose values are `text||version`.

use std::sync::Arc;

use async_trait::async_trait;
use mecha_components_api::{
    BuildCx, CancellationToken, Changes, Component, ConfigErrors, ConfigItem, ConfigurationStore, Error, Field,
    FieldType, Metadata, Prepared, Registration, Result,
};
use redis::Value;
use tokio::sync::mpsc;

use crate::client::Client;
use crate::config::{Block, RedisConfig, redis_fields};
use crate::error::is;
use crate::keyspace;
use crate::watch::Watch;

/// Between the text and its version.
const SEPARATOR: &str = "||";
/// Keys in one command.
const CHUNK: usize = 256;

const FIELDS: &[Field] = redis_fields![min_retry: "8ms";];

/// How `register` makes it known.
pub(crate) fn registration() -> Registration<dyn ConfigurationStore> {
    Registration {
        kind: "configuration.redis",
        aliases: &[],
        versions: &["v1"],
        summary: "Configuration as keys of a Redis, with changes by keyspace events",
        fields: FIELDS,
        prepare,
    }
}

struct RedisConfigurationConfig(RedisConfig);

/// The store.
#[derive(Debug)]
struct RedisConfiguration {
    client: Arc<Client>,
}

fn prepare(
    md: &Metadata,
    _version: &str,
) -> std::result::Result<Box<dyn Prepared<dyn ConfigurationStore>>, ConfigErrors> {
    let mut errors = ConfigErrors::new();
    let redis = RedisConfig::read(md, &mut errors, Block::Configuration);
    errors.finish(Box::new(RedisConfigurationConfig(redis)) as Box<dyn Prepared<dyn ConfigurationStore>>)
}

#[async_trait]
impl Prepared<dyn ConfigurationStore> for RedisConfigurationConfig {
    async fn build(self: Box<Self>, _cx: &BuildCx) -> Result<Arc<dyn ConfigurationStore>> {
        Ok(Arc::new(RedisConfiguration { client: Client::open(self.0).await? }))
    }
}

#[async_trait]
impl Component for RedisConfiguration {
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
impl ConfigurationStore for RedisConfiguration {
    /// Keys that hold another type than text are left out, as absent ones are.
    async fn get(&self, keys: &[&str], _metadata: &Metadata) -> Result<Changes> {
        let mut found = Changes::new();
        if keys.is_empty() {
            for_all(&self.client, |key, text| {
                found.insert(key, item(&text));
            })
            .await?;
        } else {
            let keys: Vec<String> = keys.iter().map(|k| (*k).to_owned()).collect();
            for (key, text) in texts(&self.client, &keys).await? {
                if let Some(text) = text {
                    found.insert(key, item(&text));
                }
            }
        }
        Ok(found)
    }

    async fn watch(
        &self,
        keys: Vec<String>,
        _metadata: Metadata,
        out: mpsc::Sender<Changes>,
        stop: CancellationToken,
    ) -> Result<()> {
        if self.client.is_cluster() {
            return Err(Error::unsupported(
                "configuration of a Redis cluster cannot be watched: each node tells its own changes only",
            ));
        }
        Watch::new(&self.client, keys, out, stop).run().await;
        Ok(())
    }
}

/// The text of each key, in order; `None` where there is none.
pub(crate) async fn texts(client: &Client, keys: &[String]) -> Result<Vec<(String, Option<String>)>> {
    let mut found = Vec::with_capacity(keys.len());
    let op = client.read("get configuration");
    if client.is_cluster() {
        for key in keys {
            let mut cmd = redis::cmd("GET");
            cmd.arg(key);
            let value = match client.try_call(op, &cmd).await {
                Ok(value) => value,
                Err(crate::error::Fault::Sent(e)) if is(&e, "WRONGTYPE") => Value::Nil,
                Err(fault) => return Err(client.error(op, fault)),
            };
            found.push((key.clone(), text(value)));
        }
        return Ok(found);
    }
    for chunk in keys.chunks(CHUNK) {
        let mut cmd = redis::cmd("MGET");
        cmd.arg(chunk);
        let Value::Array(values) = client.call(op, &cmd).await? else {
            return Err(Error::internal("get configuration: the server's answer has another form than expected"));
        };
        found.extend(chunk.iter().cloned().zip(values.into_iter().map(text)));
    }
    Ok(found)
}

/// Calls `each` with every key that holds text.
pub(crate) async fn for_all(client: &Client, mut each: impl FnMut(String, String) + Send) -> Result<()> {
    if client.is_cluster() {
        return Err(Error::unsupported("the keys of a Redis cluster cannot be listed; name the keys"));
    }
    let mut cursor = 0;
    loop {
        let (next, keys) = keyspace::step(client, cursor, "*").await?;
        for (key, text) in texts(client, &keys).await? {
            if let Some(text) = text {
                each(key, text);
            }
        }
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        _ => None,
    }
}

/// Splits a stored text into value and version.
pub(crate) fn item(text: &str) -> ConfigItem {
    let mut parts = text.split(SEPARATOR);
    let value = parts.next().unwrap_or_default().to_owned();
    let version = parts.next().unwrap_or_default().to_owned();
    ConfigItem { value, version, ..ConfigItem::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_a_value_and_perhaps_a_version() {
        let split = |text: &str| {
            let item = item(text);
            (item.value, item.version)
        };
        assert_eq!(split("on||3"), ("on".to_owned(), "3".to_owned()));
        assert_eq!(split("on"), ("on".to_owned(), String::new()));
        assert_eq!(split("||3"), (String::new(), "3".to_owned()));
        assert_eq!(split("a|b||1||x"), ("a|b".to_owned(), "1".to_owned()));
    }
}
