//! `state.postgresql` version v2: bytes in a `bytea` column, a UUID as ETag.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mecha_components_api::{
    BuildCx, ConfigErrors, Error, Field, FieldType, Metadata, Prepared, Registration, Result, StateStore, Value,
};
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::client::Client;
use crate::config::{FIELDS, PgConfig, bare, is_table, period, table, with_fields};
use crate::migrations::{self, migrate};
use crate::sql::{Param, RowRef};
use crate::state::{Columns, Layout, PgState, Sweep};

const CLEANUP: Duration = Duration::from_secs(3600);

pub(crate) const METADATA_TABLE_NAME: Field =
    Field::new("metadataTableName", FieldType::Text, "Table that holds the versions of the layouts.")
        .default("dapr_metadata");
pub(crate) const CLEANUP_INTERVAL: Field = Field::new(
    "cleanupInterval",
    FieldType::Duration,
    "Period in which writes delete expired rows; 0 or less never deletes them. They are invisible at once in any case.",
)
.default("1h")
.aliases(&["cleanupIntervalInSeconds"]);

static ALL_FIELDS: [Field; FIELDS.len() + 3] = with_fields([
    Field::new("tablePrefix", FieldType::Text, "Comes before the name of the table `state`; may begin with a schema."),
    METADATA_TABLE_NAME,
    CLEANUP_INTERVAL,
]);

/// How `register` makes it known.
pub(crate) fn registration() -> Registration<dyn StateStore> {
    Registration {
        kind: "state.postgresql",
        aliases: &["state.postgres", "state.yugabyte", "state.yugabytedb"],
        versions: &["v2"],
        summary: "State in PostgreSQL, as bytes; the version for new applications",
        fields: &ALL_FIELDS,
        prepare,
    }
}

#[derive(Debug)]
struct V2Config {
    server: PgConfig,
    prefix: String,
    metadata_table: String,
    cleanup: Option<Duration>,
}

/// Columns of version v2.
#[derive(Debug)]
struct V2;

fn prepare(md: &Metadata, _: &str) -> std::result::Result<Box<dyn Prepared<dyn StateStore>>, ConfigErrors> {
    let mut errors = ConfigErrors::new();
    let prefix = errors.text(md, "tablePrefix", "");
    if !is_table(&format!("{prefix}state")) {
        errors.push("tablePrefix", "'tablePrefix' must be the beginning of a table name");
    }
    let config = V2Config {
        server: PgConfig::read(md, &mut errors),
        prefix,
        metadata_table: table(md, &mut errors, "metadataTableName", "dapr_metadata"),
        cleanup: period(md, &mut errors, ["cleanupInterval", "cleanupIntervalInSeconds"], CLEANUP),
    };
    errors.finish(Box::new(config) as Box<dyn Prepared<dyn StateStore>>)
}

#[async_trait]
impl Prepared<dyn StateStore> for V2Config {
    async fn build(self: Box<Self>, _: &BuildCx) -> Result<Arc<dyn StateStore>> {
        let client = Client::new(&self.server)?;
        let table = format!("{}state", self.prefix);
        let name = bare(&table);
        let steps = [
            format!(
                "CREATE TABLE IF NOT EXISTS {table} (
                    key text NOT NULL PRIMARY KEY,
                    value bytea NOT NULL,
                    etag uuid NOT NULL DEFAULT gen_random_uuid(),
                    created_at timestamp with time zone NOT NULL DEFAULT now(),
                    updated_at timestamp with time zone,
                    expires_at timestamp with time zone
                )"
            ),
            format!("CREATE INDEX IF NOT EXISTS \"{name}_expires_at_idx\" ON {table} (expires_at)"),
            format!("ALTER TABLE {table} ADD COLUMN IF NOT EXISTS row_id bigint GENERATED ALWAYS AS IDENTITY"),
            format!("CREATE UNIQUE INDEX IF NOT EXISTS \"{name}_row_id_uidx\" ON {table} (row_id)"),
        ];
        let key = format!("migrations-state-v2-{}", self.prefix);
        let layout = migrations::Layout {
            metadata_table: &self.metadata_table,
            key: &key,
            version: 2,
            table: &table,
            steps: &steps,
        };
        migrate(&client, &layout).await?;
        let row = format!("last-cleanup-state-v2-{}", self.prefix);
        let sweep = self.cleanup.map(|every| Sweep::new(&table, "expires_at", &self.metadata_table, &row, every));
        Ok(Arc::new(PgState::<V2>::new(client, table, sweep)))
    }
}

impl Layout for V2 {
    type Body = Bytes;

    fn columns() -> Columns {
        Columns {
            select: "value",
            value: ["value", ""],
            used: 1,
            types: [Type::BYTEA, Type::BOOL],
            etag: "etag",
            etag_type: Type::UUID,
            renew: ", etag = gen_random_uuid()",
            updated: "updated_at",
            expires: "expires_at",
        }
    }

    fn body(value: Value) -> Result<Bytes> {
        match value {
            Value::Json(bytes) if std::str::from_utf8(&bytes).is_err() => {
                Err(Error::invalid("the JSON value is not valid UTF-8"))
            }
            Value::Json(bytes) | Value::Binary(bytes) => Ok(bytes),
        }
    }

    fn params(body: &Bytes) -> [Param<'_>; 2] {
        [Param::Bytes(body), Param::Bool(true)]
    }

    fn value(row: RowRef<'_>, at: usize) -> Result<Bytes> {
        row.bytea(at)
    }

    /// What is no UUID cannot be the ETag of any row.
    fn etag(text: &str) -> Result<Param<'static>> {
        match Uuid::parse_str(text) {
            Ok(id) => Ok(Param::Uuid(id)),
            Err(_) => Err(Error::conflict("the ETag does not match")),
        }
    }
}
