//! `state.postgresql` version v1: values in a `jsonb` column, the row's `xmin` as ETag.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use mecha_components_api::{
    BuildCx, ConfigErrors, Error, Field, FieldType, Metadata, Prepared, QueryState, Registration, Result, StateStore,
    Value,
};
use tokio_postgres::types::Type;

use crate::client::Client;
use crate::config::{FIELDS, PgConfig, bare, period, table, with_fields};
use crate::migrations::{self, migrate};
use crate::sql::{Param, RowRef};
use crate::state::{Columns, Layout, PgState, Sweep};
use crate::state_v2::{CLEANUP_INTERVAL, METADATA_TABLE_NAME};

const CLEANUP: Duration = Duration::from_secs(3600);

static ALL_FIELDS: [Field; FIELDS.len() + 3] = with_fields([
    Field::new("tableName", FieldType::Text, "Table that holds the state; may begin with a schema.").default("state"),
    METADATA_TABLE_NAME,
    CLEANUP_INTERVAL,
]);

/// How `register` makes it known.
pub(crate) fn registration() -> Registration<dyn StateStore> {
    Registration {
        kind: "state.postgresql",
        aliases: &["state.postgres", "state.yugabyte", "state.yugabytedb"],
        versions: &["v1"],
        summary: "State in PostgreSQL, as jsonb that other programs can query",
        fields: &ALL_FIELDS,
        prepare,
    }
}

#[derive(Debug)]
struct V1Config {
    server: PgConfig,
    table: String,
    metadata_table: String,
    cleanup: Option<Duration>,
}

/// Columns of version v1.
#[derive(Debug)]
pub(crate) struct V1;

/// JSON text for the column, and whether it is a string that holds base64.
#[derive(Debug)]
pub(crate) struct Body {
    json: Bytes,
    binary: bool,
}

fn prepare(md: &Metadata, _: &str) -> std::result::Result<Box<dyn Prepared<dyn StateStore>>, ConfigErrors> {
    let mut errors = ConfigErrors::new();
    let config = V1Config {
        server: PgConfig::read(md, &mut errors),
        table: table(md, &mut errors, "tableName", "state"),
        metadata_table: table(md, &mut errors, "metadataTableName", "dapr_metadata"),
        cleanup: period(md, &mut errors, ["cleanupInterval", "cleanupIntervalInSeconds"], CLEANUP),
    };
    errors.finish(Box::new(config) as Box<dyn Prepared<dyn StateStore>>)
}

#[async_trait]
impl Prepared<dyn StateStore> for V1Config {
    async fn build(self: Box<Self>, _: &BuildCx) -> Result<Arc<dyn StateStore>> {
        let client = Client::new(&self.server)?;
        let table = &self.table;
        let name = bare(table);
        let steps = [
            format!(
                "CREATE TABLE IF NOT EXISTS {table} (
                    key text NOT NULL PRIMARY KEY,
                    value jsonb NOT NULL,
                    isbinary boolean NOT NULL,
                    insertdate timestamp with time zone NOT NULL DEFAULT now(),
                    updatedate timestamp with time zone NULL
                )"
            ),
            format!("ALTER TABLE {table} ADD COLUMN IF NOT EXISTS expiredate timestamp with time zone"),
            format!("ALTER TABLE {table} ADD COLUMN IF NOT EXISTS row_id bigint GENERATED ALWAYS AS IDENTITY"),
            format!("CREATE UNIQUE INDEX IF NOT EXISTS \"{name}_row_id_uidx\" ON {table} (row_id)"),
        ];
        let layout = migrations::Layout {
            metadata_table: &self.metadata_table,
            key: "migrations",
            version: 3,
            table,
            steps: &steps,
        };
        migrate(&client, &layout).await?;
        let sweep =
            self.cleanup.map(|every| Sweep::new(table, "expiredate", &self.metadata_table, "last-cleanup", every));
        Ok(Arc::new(PgState::<V1>::new(client, self.table, sweep)))
    }
}

impl Layout for V1 {
    type Body = Body;

    fn columns() -> Columns {
        Columns {
            select: "value::text, isbinary",
            value: ["value", "isbinary"],
            used: 2,
            types: [Type::JSONB, Type::BOOL],
            etag: "xmin",
            etag_type: Type::XID,
            renew: "",
            updated: "updatedate",
            expires: "expiredate",
        }
    }

    fn body(value: Value) -> Result<Body> {
        match value {
            Value::Json(json) => {
                // Told here, because the server's answer would not say what is wrong.
                serde_json::from_slice::<&serde_json::value::RawValue>(&json)
                    .map_err(|e| Error::invalid(format!("the value is not valid JSON: {e}")))?;
                Ok(Body { json, binary: false })
            }
            Value::Binary(bytes) => {
                let mut json = String::with_capacity(bytes.len().div_ceil(3) * 4 + 2);
                json.push('"');
                STANDARD.encode_string(&bytes, &mut json);
                json.push('"');
                Ok(Body { json: json.into(), binary: true })
            }
        }
    }

    fn params(body: &Body) -> [Param<'_>; 2] {
        [Param::Json(&body.json), Param::Bool(body.binary)]
    }

    fn value(row: RowRef<'_>, at: usize) -> Result<Bytes> {
        if !row.bool(at + 1)? {
            return row.text_bytes(at);
        }
        let base64 = row.needed(at)?.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
        base64
            .and_then(|text| STANDARD.decode(text).ok())
            .map(Bytes::from)
            .ok_or_else(|| Error::internal("failed to decode binary data: the stored value is not base64"))
    }

    fn etag(text: &str) -> Result<Param<'static>> {
        // Digits only, as the incumbent reads it: no sign, no space.
        let number = if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None };
        number.map(Param::Xid).ok_or_else(|| Error::invalid("invalid etag value: it must be a number of 32 bits"))
    }

    fn query(store: &PgState<Self>) -> Option<&dyn QueryState> {
        Some(store)
    }
}
