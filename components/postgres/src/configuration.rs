//! `configuration.postgresql`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use mecha_components_api::{
    BuildCx, CancellationToken, Changes, Component, ConfigErrors, ConfigItem, ConfigurationStore, Error, ErrorKind,
    Field, FieldType, Metadata, Prepared, Registration, Result,
};
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio_postgres::types::Type;

use crate::client::Client;
use crate::config::{FIELDS, PgConfig, is_table, with_fields};
use crate::sql::{Param, Sql};
use crate::watch::Watch;

/// Longest name that PostgreSQL keeps.
const LONGEST_NAME: usize = 63;
/// Request metadata that names the channel.
const CHANNEL: &str = "pgNotifyChannel";

static ALL_FIELDS: [Field; FIELDS.len() + 2] = with_fields([
    Field::new("table", FieldType::Text, "Table with the columns key, value, version and metadata; it must exist.")
        .required(),
    Field::new(
        "notifyChannel",
        FieldType::Text,
        "Channel that a trigger of the table notifies; a request may name another one as `pgNotifyChannel`.",
    ),
]);

/// How `register` makes it known.
pub(crate) fn registration() -> Registration<dyn ConfigurationStore> {
    Registration {
        kind: "configuration.postgresql",
        aliases: &["configuration.postgres"],
        versions: &["v1"],
        summary: "Configuration in a PostgreSQL table, with changes by LISTEN and NOTIFY",
        fields: &ALL_FIELDS,
        prepare,
    }
}

#[derive(Debug)]
struct StoreConfig {
    server: PgConfig,
    table: String,
    channel: Option<String>,
}

/// The store.
struct PgConfiguration {
    client: Arc<Client>,
    server: PgConfig,
    table: String,
    channel: Option<String>,
    reader: Reader,
}

/// Reads the table.
#[derive(Debug)]
pub(crate) struct Reader {
    all: Sql,
    some: Sql,
}

fn prepare(md: &Metadata, _: &str) -> std::result::Result<Box<dyn Prepared<dyn ConfigurationStore>>, ConfigErrors> {
    let mut errors = ConfigErrors::new();
    let table = match md.get_non_empty("table") {
        None => {
            errors.push("table", "missing postgreSQL configuration table name");
            String::new()
        }
        Some(name) => name.to_owned(),
    };
    if !table.is_empty() && !is_table(&table) {
        errors.push("table", format!("invalid table name '{table}'"));
    } else if table.len() > LONGEST_NAME {
        errors.push("table", format!("'table' may have {LONGEST_NAME} characters at most"));
    }
    let config = StoreConfig {
        server: PgConfig::read(md, &mut errors),
        table,
        channel: md.get_non_empty("notifyChannel").map(str::to_owned),
    };
    errors.finish(Box::new(config) as Box<dyn Prepared<dyn ConfigurationStore>>)
}

#[async_trait]
impl Prepared<dyn ConfigurationStore> for StoreConfig {
    async fn build(self: Box<Self>, _: &BuildCx) -> Result<Arc<dyn ConfigurationStore>> {
        let Self { server, table, channel } = *self;
        let client = Arc::new(Client::new(&server)?);
        let there = Sql::once("SELECT to_regclass($1) IS NOT NULL".into());
        let rows = client.read("look for the table", &there, &[Param::Text(&table)]).await?;
        if !rows.iter().next().is_some_and(|row| row.bool(0).unwrap_or(false)) {
            let text = format!(
                "postgreSQL configuration table '{table}' does not exist; create it, with a trigger for changes"
            );
            return Err(Error::new(ErrorKind::FailedPrecondition, text));
        }
        let reader = Reader::new(&table);
        Ok(Arc::new(PgConfiguration { client, server, table, channel, reader }))
    }
}

impl Reader {
    pub(crate) fn new(table: &str) -> Self {
        let select = format!("SELECT key::text, value::text, version::text, metadata::text FROM {table}");
        Self {
            some: Sql::new(format!("{select} WHERE key = ANY($1)"), &[Type::TEXT_ARRAY]),
            all: Sql::new(select, &[]),
        }
    }

    /// The items of `keys`, of all keys when there are none.
    pub(crate) async fn read(&self, client: &Client, keys: &[&str]) -> Result<Changes> {
        let rows = if keys.is_empty() {
            client.read("get configuration", &self.all, &[]).await?
        } else {
            client.read("get configuration", &self.some, &[Param::Texts(keys)]).await?
        };
        let mut items = Changes::new();
        for row in rows.iter() {
            let item = ConfigItem {
                value: row.text(1)?.unwrap_or_default().to_owned(),
                version: row.text(2)?.unwrap_or_default().to_owned(),
                metadata: row.text(3)?.map(metadata).unwrap_or_default(),
            };
            let key = row.needed(0)?;
            // Of several rows the one with the highest number counts.
            if items.get(key).is_none_or(|have: &ConfigItem| numeric(&item.version) > numeric(&have.version)) {
                items.insert(key.to_owned(), item);
            }
        }
        Ok(items)
    }
}

/// The version as a number; everything else is lower than any number.
pub(crate) fn numeric(version: &str) -> i64 {
    version.trim().parse().unwrap_or(-1)
}

/// A JSON object of texts; other values as their JSON text.
pub(crate) fn metadata(json: &str) -> BTreeMap<String, String> {
    let members: BTreeMap<String, &RawValue> = serde_json::from_str(json).unwrap_or_default();
    members.into_iter().map(|(k, v)| (k, plain(v))).collect()
}

/// The text of a string; the JSON text of everything else, with the digits that it has.
pub(crate) fn plain(value: &RawValue) -> String {
    match value.get() {
        "null" => String::new(),
        text => serde_json::from_str(text).unwrap_or_else(|_| text.to_owned()),
    }
}

impl fmt::Debug for PgConfiguration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgConfiguration")
            .field("table", &self.table)
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Component for PgConfiguration {
    async fn ping(&self) -> Result<()> {
        self.client.ping().await
    }

    async fn close(&self) {
        self.client.close();
    }
}

#[async_trait]
impl ConfigurationStore for PgConfiguration {
    async fn get(&self, keys: &[&str], _metadata: &Metadata) -> Result<Changes> {
        if keys.iter().any(|k| k.contains('\0')) {
            return Err(Error::invalid("PostgreSQL cannot hold a key with the character NUL"));
        }
        self.reader.read(&self.client, keys).await
    }

    async fn watch(
        &self,
        keys: Vec<String>,
        metadata: Metadata,
        out: mpsc::Sender<Changes>,
        stop: CancellationToken,
    ) -> Result<()> {
        let channel = metadata.get_non_empty(CHANNEL).or(self.channel.as_deref()).unwrap_or_default();
        if channel.is_empty() {
            let text = format!("unable to subscribe to '{}'. {CHANNEL} attribute cannot be empty", self.table);
            return Err(Error::invalid(text));
        }
        if channel.len() > LONGEST_NAME || channel.contains('\0') {
            return Err(Error::invalid(format!("{CHANNEL} may have {LONGEST_NAME} characters at most")));
        }
        let watch = Watch::new(&self.server, &self.client, &self.reader, channel, keys)?;
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            outcome = watch.run(out) => outcome,
        }
    }
}
