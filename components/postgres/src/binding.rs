//! `bindings.postgresql`: SQL of the application.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use jiff::Timestamp;
use mecha_components_api::{
    BuildCx, Component, ConfigErrors, Error, Field, Invoke, Metadata, OutputBinding, Prepared, Registration, Reply,
    Result,
};
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{SimpleQueryMessage, Statement};

use crate::client::{Client, changed, jitter};
use crate::config::{FIELDS, Mode, PgConfig, with_fields};
use crate::error::{Fault, Remedy, Twice};
use crate::sql::{quote, substitute};
use crate::value;

const OPERATIONS: &[&str] = &["exec", "query", "close"];
/// Answers of a query are held in memory; larger ones are refused.
const LARGEST_ANSWER: usize = 64 << 20;
/// Pause before a statement that was not run is sent again.
const PAUSE: Duration = Duration::from_millis(100);

static ALL_FIELDS: [Field; FIELDS.len()] = with_fields([]);

/// How `register` makes it known.
pub(crate) fn registration() -> Registration<dyn OutputBinding> {
    Registration {
        kind: "bindings.postgresql",
        aliases: &["bindings.postgres"],
        versions: &["v1"],
        summary: "Runs SQL statements on PostgreSQL",
        fields: &ALL_FIELDS,
        prepare,
    }
}

#[derive(Debug)]
struct BindingConfig(PgConfig);

/// The binding.
struct PgBinding {
    client: Client,
}

/// A JSON value as a parameter. It travels as text, and the server reads it as the type that
/// the statement asks for.
struct Given<'a>(&'a RawValue);

enum Outcome {
    Changed(u64),
    Rows(Vec<u8>),
}

fn prepare(md: &Metadata, _: &str) -> std::result::Result<Box<dyn Prepared<dyn OutputBinding>>, ConfigErrors> {
    let mut errors = ConfigErrors::new();
    let config = BindingConfig(PgConfig::read(md, &mut errors));
    errors.finish(Box::new(config) as Box<dyn Prepared<dyn OutputBinding>>)
}

#[async_trait]
impl Prepared<dyn OutputBinding> for BindingConfig {
    async fn build(self: Box<Self>, _: &BuildCx) -> Result<Arc<dyn OutputBinding>> {
        let client = Client::new(&self.0)?;
        client.ping().await?;
        Ok(Arc::new(PgBinding { client }))
    }
}

impl fmt::Debug for PgBinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgBinding").field("client", &self.client).finish()
    }
}

/// Never shown: it is the application's data.
impl fmt::Debug for Given<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl ToSql for Given<'_> {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> std::result::Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        Ok(match value::parameter(self.0, ty) {
            None => IsNull::Yes,
            Some(text) => {
                out.extend_from_slice(text.as_bytes());
                IsNull::No
            }
        })
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

impl PgBinding {
    /// Once, or again when the server says that it did not run.
    async fn run(&self, query: bool, sql: &str, params: &[&RawValue]) -> Result<Outcome> {
        let deadline = Instant::now() + self.client.timeout();
        loop {
            let fault = match self.attempt(query, sql, params, deadline).await {
                Ok(outcome) => return Ok(outcome),
                Err(fault) => fault,
            };
            self.client.cure(fault.remedy);
            let wait = jitter(PAUSE);
            // A statement may do anything, so only what certainly was not done is repeated; and
            // the server's refusal of a feature will not change.
            if !fault.may_retry(Twice::No) || fault.remedy == Remedy::Prepare || Instant::now() + wait >= deadline {
                return Err(fault.into_error(if query { "query" } else { "exec" }));
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn attempt(
        &self,
        query: bool,
        sql: &str,
        params: &[&RawValue],
        deadline: Instant,
    ) -> std::result::Result<Outcome, Fault> {
        let mut lease = self.client.lease(deadline).await?;
        let mode = self.client.mode();
        let work = async {
            let of = |e: tokio_postgres::Error| Fault::of(&e);
            let db = lease.get()?;
            // As in Dapr: without parameters a text may hold several statements.
            if mode == Mode::Simple || (!query && params.is_empty()) {
                let text =
                    if params.is_empty() { sql.to_owned() } else { inline(sql, params).map_err(Fault::refused)? };
                let messages = db.simple_query(&text).await.map_err(of)?;
                return Ok(if query { Outcome::Rows(texts(&messages)?) } else { Outcome::Changed(changed(&messages)) });
            }
            // Not kept prepared: there may be any number of different statements.
            if mode == Mode::OneShot {
                let unknown = params.iter().map(|p| (Given(p), Type::UNKNOWN));
                let mut rows = std::pin::pin!(db.query_typed_raw(sql, unknown).await.map_err(of)?);
                let mut answer = value::Answer::new(LARGEST_ANSWER);
                while let Some(row) = rows.try_next().await.map_err(of)? {
                    answer.row(&row).map_err(Fault::refused)?;
                }
                let count = rows.rows_affected().unwrap_or(0);
                return Ok(if query { Outcome::Rows(answer.finish()) } else { Outcome::Changed(count) });
            }
            let statement: Statement = db.prepare(sql).await.map_err(of)?;
            if statement.params().len() != params.len() {
                let text =
                    format!("the statement takes {} parameters, {} were given", statement.params().len(), params.len());
                return Err(Fault::refused(Error::invalid(text)));
            }
            let given: Vec<Given<'_>> = params.iter().map(|p| Given(p)).collect();
            if !query {
                return db.execute_raw(&statement, &given).await.map(Outcome::Changed).map_err(of);
            }
            let mut rows = std::pin::pin!(db.query_raw(&statement, &given).await.map_err(of)?);
            let mut answer = value::Answer::new(LARGEST_ANSWER);
            while let Some(row) = rows.try_next().await.map_err(of)? {
                answer.row(&row).map_err(Fault::refused)?;
            }
            Ok(Outcome::Rows(answer.finish()))
        };
        let outcome = match timeout_at(deadline, work).await {
            Ok(outcome) => outcome,
            Err(_) => return Err(Fault::no_answer()),
        };
        // A failed statement leaves nothing behind; one that opened a transaction or changed the
        // session would, so that connection is not lent again.
        if outcome.is_ok() && !leaves_traces(sql) {
            lease.settle();
        }
        outcome
    }
}

/// Whether the session may be another one afterwards.
fn leaves_traces(sql: &str) -> bool {
    const WORDS: [&str; 9] =
        ["BEGIN", "START", "SET", "LISTEN", "PREPARE", "DECLARE", "TEMP", "TEMPORARY", "PG_ADVISORY_LOCK"];
    sql.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .any(|w| WORDS.iter().any(|x| x.eq_ignore_ascii_case(w)))
        && !plain_update(sql)
}

/// `UPDATE … SET …` is the one common statement with such a word in it.
fn plain_update(sql: &str) -> bool {
    let sql = sql.trim_start();
    let first = sql.split_whitespace().next().unwrap_or_default();
    (first.eq_ignore_ascii_case("UPDATE") || first.eq_ignore_ascii_case("INSERT"))
        && !sql.trim_end_matches([';', ' ', '\n']).contains(';')
}

/// `sql` with its parameters written into it.
fn inline(sql: &str, params: &[&RawValue]) -> Result<String> {
    let mut literals = Vec::with_capacity(params.len());
    for param in params {
        let mut literal = String::new();
        match value::parameter(param, &Type::UNKNOWN) {
            None => literal.push_str("NULL"),
            // In brackets, because two minus signs would begin a comment.
            Some(number) if param.get().starts_with(|c: char| c == '-' || c.is_ascii_digit()) => {
                literal = format!("({number})");
            }
            Some(text) => quote(&text, &mut literal),
        }
        literals.push(literal);
    }
    substitute(sql, &literals)
}

/// Rows in text form have no types: every value is a text or null.
fn texts(messages: &[SimpleQueryMessage]) -> std::result::Result<Vec<u8>, Fault> {
    let mut rows = Vec::new();
    for message in messages {
        if let SimpleQueryMessage::Row(row) = message {
            rows.push((0..row.len()).map(|i| row.get(i)).collect::<Vec<_>>());
        }
    }
    serde_json::to_vec(&rows)
        .map_err(|e| Fault::refused(Error::internal(format!("cannot write the rows as JSON: {e}"))))
}

#[async_trait]
impl Component for PgBinding {
    async fn ping(&self) -> Result<()> {
        self.client.ping().await
    }

    async fn close(&self) {
        self.client.close();
    }
}

#[async_trait]
impl OutputBinding for PgBinding {
    fn operations(&self) -> &'static [&'static str] {
        OPERATIONS
    }

    async fn invoke(&self, req: Invoke<'_>) -> Result<Reply> {
        let query = match req.operation {
            "close" => {
                self.client.close();
                return Ok(Reply::default());
            }
            "query" => true,
            "exec" => false,
            other => {
                return Err(Error::invalid(format!("invalid operation type: {other}. Expected exec, query, or close")));
            }
        };
        let sql = req.metadata.get_non_empty("sql").ok_or_else(|| Error::invalid("required metadata not set: sql"))?;
        let params = match req.metadata.get_non_empty("params") {
            None => Vec::new(),
            Some(text) => serde_json::from_str::<Vec<&RawValue>>(text)
                .map_err(|_| Error::invalid("invalid metadata property params: it must be a JSON array"))?,
        };
        let (started, clock) = (Timestamp::now(), Instant::now());
        let outcome = self.run(query, sql, &params).await?;
        let mut metadata: Metadata = [
            ("operation", req.operation.to_owned()),
            ("sql", sql.to_owned()),
            ("start-time", started.to_string()),
            ("end-time", Timestamp::now().to_string()),
            ("duration", value::go_duration(clock.elapsed())),
        ]
        .into_iter()
        .collect();
        let data = match outcome {
            Outcome::Changed(rows) => {
                metadata.insert("rows-affected", rows.to_string());
                None
            }
            Outcome::Rows(json) => Some(Bytes::from(json)),
        };
        let content_type = data.is_some().then(|| "application/json".to_owned());
        Ok(Reply { data, metadata, content_type })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_become_literals() {
        let params: Vec<&RawValue> = serde_json::from_str(r#"["o'b", -9007199254740993.10, null, {"a": 1}]"#).unwrap();
        let sql = inline("UPDATE t SET a = $1, b = -$2, c = $3, d = $4", &params);
        assert_eq!(
            sql.unwrap(),
            "UPDATE t SET a =  'o''b' , b = - (-9007199254740993.10) , c =  NULL , d =  '{\"a\": 1}' "
        );
    }

    #[test]
    fn what_changes_the_session_is_noticed() {
        for sql in ["BEGIN", "begin; insert into t values (1)", "SET search_path = x", "CREATE TEMP TABLE x (a int)"] {
            assert!(leaves_traces(sql), "{sql}");
        }
        for sql in ["UPDATE t SET a = 1", "INSERT INTO t VALUES (1)", "SELECT * FROM settings", "DELETE FROM t;"] {
            assert!(!leaves_traces(sql), "{sql}");
        }
    }
}
