//! Values by the schemas of a registry that speaks Confluent's REST API.
//!
//! A value is a zero byte, the schema's number in four bytes and the Avro value. What is published takes the latest
//! schema of the subject `<topic>-value`; what is received says by which one it was written. Schemas with a number never
//! change, so they are kept; the latest one is asked for again after a while, and stays in use while the registry is away.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::header::{ACCEPT, AUTHORIZATION};
use mecha_components_api::{ConfigErrors, Error, ErrorKind, Metadata, Result, Secret};
use parking_lot::Mutex;
use serde_json::Value;
use tracing::debug;

use crate::avro::{Schema, Style};
use crate::http::{self, Http, is_url, trust};

/// Metadata of a request or subscription that says what its values are.
const TYPE: &str = "valueSchemaType";
/// A record without a value, as JSON has it.
const NULL: &[u8] = b"null";

const MAGIC: u8 = 0;
/// Longest wait for one answer of the registry.
const ASK: Duration = Duration::from_secs(5);
/// How long the latest schema stays in use before a registry that is away is asked again.
const STALE: Duration = Duration::from_secs(10);
/// Most schemas that are kept of each kind.
const KEPT: usize = 1000;
const ACCEPTED: &str = "application/vnd.schemaregistry.v1+json, application/json";

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ValueType {
    Plain,
    Avro,
}

/// A registry, and what was learnt from it.
pub(crate) struct Schemas {
    url: String,
    login: Option<Secret>,
    style: Style,
    /// How long the latest schema of a subject is the latest; `None`: nothing is kept.
    keep: Option<Duration>,
    http: Http,
    latest: Mutex<HashMap<String, Latest>>,
    numbered: Mutex<HashMap<u32, Arc<Schema>>>,
}

#[derive(Clone)]
struct Latest {
    number: u32,
    schema: Arc<Schema>,
    until: Instant,
}

/// Shows no login.
impl fmt::Debug for Schemas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schemas").field("url", &self.url).field("style", &self.style).finish_non_exhaustive()
    }
}

impl ValueType {
    fn of(md: &Metadata) -> Result<Self> {
        match md.get_non_empty(TYPE) {
            None => Ok(Self::Plain),
            Some(name) if name.eq_ignore_ascii_case("none") => Ok(Self::Plain),
            Some(name) if name.eq_ignore_ascii_case("avro") => Ok(Self::Avro),
            Some(_) => Err(Error::invalid(format!("metadata '{TYPE}' must be Avro or None"))),
        }
    }
}

/// What is published: as it is, or by the latest schema of the topic where `md` asks for it.
///
/// # Errors
/// There is no registry or no schema, or the data does not fit it.
pub(crate) async fn encode<'a>(
    schemas: Option<&Schemas>,
    topic: &str,
    data: &'a [u8],
    md: &Metadata,
) -> Result<Cow<'a, [u8]>> {
    if data == NULL || ValueType::of(md)? == ValueType::Plain {
        return Ok(Cow::Borrowed(data));
    }
    wanted(schemas)?.encode(topic, data).await.map(Cow::Owned)
}

/// How the values of a subscription are read: by schemas where its metadata asks for it.
///
/// # Errors
/// There is no registry.
pub(crate) fn reader(schemas: Option<&Arc<Schemas>>, md: &Metadata) -> Result<Option<Arc<Schemas>>> {
    match ValueType::of(md)? {
        ValueType::Plain => Ok(None),
        ValueType::Avro => wanted(schemas).map(|schemas| Some(Arc::clone(schemas))),
    }
}

fn wanted<T>(schemas: Option<T>) -> Result<T> {
    schemas.ok_or_else(|| {
        let text = format!("metadata '{TYPE}' asks for Avro, and the component has no 'schemaRegistryURL'; set it");
        Error::new(ErrorKind::FailedPrecondition, text)
    })
}

impl Schemas {
    /// Reads the keys of the registry; `None` when there is none.
    pub(crate) fn read(md: &Metadata, errors: &mut ConfigErrors) -> Option<Self> {
        // All are read, so that all mistakes are told.
        let caching = errors.bool(md, "schemaCachingEnabled", true);
        let keep = errors.duration(md, "schemaLatestVersionCacheTTL", Duration::from_secs(1), Duration::from_secs(300));
        let style = if errors.bool(md, "useAvroJSON", false) { Style::AvroJson } else { Style::Standard };
        let url = md.get_non_empty("schemaRegistryURL")?.trim().trim_end_matches('/').to_owned();
        if !is_url(&url) || url.contains(['?', '#']) {
            errors.push(
                "schemaRegistryURL",
                "'schemaRegistryURL' must be a URL such as https://registry.example:8081; the login has keys of its own",
            );
        }
        let login = md.get_non_empty("schemaRegistryAPIKey").map(|key| {
            let login = format!("{key}:{}", md.get("schemaRegistryAPISecret").unwrap_or_default());
            Secret::new(format!("Basic {}", STANDARD.encode(login)))
        });
        let tls = match trust(md.get_non_empty("caCert"), false) {
            Ok(tls) => tls,
            Err(why) => {
                errors.push("caCert", format!("'caCert' {why}"));
                return None;
            }
        };
        Some(Self {
            url,
            login,
            style,
            keep: caching.then_some(keep),
            http: http::client(tls),
            latest: Mutex::default(),
            numbered: Mutex::default(),
        })
    }

    async fn encode(&self, topic: &str, json: &[u8]) -> Result<Vec<u8>> {
        let subject = format!("{topic}-value");
        let Latest { number, schema, .. } = self.latest(&subject).await?;
        let value = schema.encode(json, self.style).map_err(|why| {
            Error::invalid(format!("the data does not fit schema {number} of subject {subject}: {why}"))
        })?;
        let mut record = Vec::with_capacity(value.len() + 5);
        record.push(MAGIC);
        record.extend(number.to_be_bytes());
        record.extend(value);
        Ok(record)
    }

    /// The JSON of a record's value.
    ///
    /// # Errors
    /// It was not written by a schema of this registry, or the registry is away.
    pub(crate) async fn decode(&self, record: &[u8]) -> Result<Bytes> {
        let Some(([MAGIC, number @ ..], value)) = record.split_first_chunk::<5>() else {
            let text = format!("it does not begin with the number of a schema, although '{TYPE}' is Avro");
            return Err(Error::invalid(text));
        };
        let number = u32::from_be_bytes(*number);
        let schema = self.numbered(number).await?;
        let json = schema.decode(value, self.style);
        json.map(Bytes::from).map_err(|why| Error::invalid(format!("it is no value of schema {number}: {why}")))
    }

    async fn latest(&self, subject: &str) -> Result<Latest> {
        let known = self.latest.lock().get(subject).cloned();
        if let Some(known) = known.as_ref().filter(|known| Instant::now() < known.until) {
            return Ok(known.clone());
        }
        // Subjects are topics, whose characters all stand for themselves.
        let asked = self.ask(format!("/subjects/{subject}/versions/latest"), || {
            format!("subject {subject} has no schema; register one there, or publish without '{TYPE}'")
        });
        let (number, schema, keep) = match (asked.await, known) {
            (Ok(answer), known) => {
                let number = answer["id"].as_u64().and_then(|id| u32::try_from(id).ok());
                let number = number.ok_or_else(|| self.broken("the answer has no 'id'"))?;
                let same = known.filter(|known| known.number == number).map(|known| known.schema);
                let schema = same.map_or_else(|| self.schema(&answer), Ok)?;
                (number, schema, self.keep)
            }
            (Err(e), Some(known)) if matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) => {
                debug!("Kafka: the schema of {subject} at hand stays in use: {e}");
                (known.number, known.schema, Some(STALE))
            }
            (Err(e), _) => return Err(e),
        };
        let latest = Latest { number, schema, until: Instant::now() + keep.unwrap_or_default() };
        if keep.is_some() {
            keep_in(&mut self.latest.lock(), subject.to_owned(), latest.clone());
        }
        Ok(latest)
    }

    async fn numbered(&self, number: u32) -> Result<Arc<Schema>> {
        if let Some(schema) = self.numbered.lock().get(&number) {
            return Ok(Arc::clone(schema));
        }
        let answer = self.ask(format!("/schemas/ids/{number}"), || {
            format!("it has no schema {number}; the record was written by another registry's")
        });
        let schema = self.schema(&answer.await?)?;
        if self.keep.is_some() {
            keep_in(&mut self.numbered.lock(), number, Arc::clone(&schema));
        }
        Ok(schema)
    }

    fn schema(&self, answer: &Value) -> Result<Arc<Schema>> {
        let refused = |why: String| {
            let text = format!("the schema of {} cannot be used: {why}", self.url);
            Error::new(ErrorKind::FailedPrecondition, text)
        };
        if let Some(kind) = answer["schemaType"].as_str().filter(|kind| !kind.eq_ignore_ascii_case("avro")) {
            return Err(refused(format!("it is of type {kind}, and only AVRO is available")));
        }
        if answer["references"].as_array().is_some_and(|references| !references.is_empty()) {
            return Err(refused("it refers to other subjects; register it with their types in it".to_owned()));
        }
        let text = answer["schema"].as_str().ok_or_else(|| self.broken("the answer has no 'schema'"))?;
        Schema::parse(text).map(Arc::new).map_err(refused)
    }

    fn broken(&self, what: &str) -> Error {
        Error::unavailable(format!("schema registry {}: {what}", self.url))
    }

    async fn ask(&self, path: String, absent: impl FnOnce() -> String) -> Result<Value> {
        let mut request = Request::get(format!("{}{path}", self.url)).header(ACCEPT, ACCEPTED);
        if let Some(login) = &self.login {
            request = request.header(AUTHORIZATION, login.expose());
        }
        let request = request.body(Full::new(Bytes::new()));
        let request = request.map_err(|_| self.broken("no request can be made of the URL and the key"))?;
        let answer = tokio::time::timeout(ASK, http::send(&self.http, request)).await;
        let (status, body) = answer
            .map_err(|_| Error::timeout(format!("schema registry {}: no answer within {ASK:?}", self.url)))?
            .map_err(|e| self.broken(&e))?;
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        let said = answer["message"].as_str().unwrap_or_default();
        let failed = |kind, why: &str| Err(Error::new(kind, format!("schema registry {}: {why}", self.url)));
        match status.as_u16() {
            200 => Ok(answer),
            401 | 403 => failed(
                ErrorKind::Unauthenticated,
                &format!("{status} {said}; see schemaRegistryAPIKey and schemaRegistryAPISecret"),
            ),
            404 => failed(ErrorKind::FailedPrecondition, &absent()),
            _ => failed(ErrorKind::Unavailable, &format!("{status} {said}")),
        }
    }
}

/// Forgets all where there is no room: they are asked for again.
fn keep_in<K: std::hash::Hash + Eq, V>(map: &mut HashMap<K, V>, key: K, value: V) {
    if map.len() >= KEPT && !map.contains_key(&key) {
        map.clear();
    }
    map.insert(key, value);
}
