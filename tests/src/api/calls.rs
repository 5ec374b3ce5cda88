use std::collections::BTreeMap;

use base64::Engine as _;
use bytes::Bytes;
use mecha_proto::common::state_options::StateConcurrency;
use mecha_proto::common::{Etag, StateOptions};
use mecha_proto::runtime::{
    BulkPublishRequest, BulkPublishRequestEntry, DeleteStateRequest, ExecuteStateTransactionRequest,
    GetBulkSecretRequest, GetBulkStateRequest, GetSecretRequest, GetStateRequest, InvokeBindingRequest,
    PublishEventRequest, SaveStateRequest, SetMetadataRequest,
};
use serde_json::{Value, json};

use super::bodies::list;
use super::{Api, Fault, Front, Got, Item, Op};
use crate::http::{Http, Reply, Request, escape};

/// Metadata as callers write it.
type Metadata<'a> = &'a [(&'a str, &'a str)];
/// What an output binding answers: data, if any, and metadata.
type BindingAnswer = (Option<Bytes>, BTreeMap<String, String>);
/// Entries of a bulk publish: id, content type, event.
type Entries<'a> = &'a [(&'a str, &'a str, &'a str)];

impl Api {
    /// Saves items.
    ///
    /// # Errors
    /// As the front says it; so do all calls here.
    pub async fn save(&self, store: &str, items: &[Item]) -> Result<(), Fault> {
        match &self.front {
            Front::Http(http) => {
                let body = list(items.iter().map(Item::json_text));
                empty(json_post(http, &format!("/v1.0/state/{}", escape(store)), body).await)
            }
            Front::Grpc(client) => {
                let states = items.iter().map(Item::message).collect();
                let request = SaveStateRequest { store_name: store.to_owned(), states };
                client.as_ref().clone().save_state(request).await.map(drop).map_err(|s| Fault::of_status(&s))
            }
        }
    }

    /// Reads a key. Over gRPC absent and empty look the same: no ETag.
    pub async fn get(&self, store: &str, key: &str) -> Result<Option<Got>, Fault> {
        match &self.front {
            Front::Http(http) => {
                let reply = sent(http.get(format!("/v1.0/state/{}/{}", escape(store), escape(key)))).await;
                match reply.status {
                    200 => Ok(Some(Got {
                        etag: reply.header("etag").to_owned(),
                        metadata: header_metadata(&reply),
                        value: reply.body,
                        ..Got::default()
                    })),
                    204 => Ok(None),
                    _ => Err(Fault::of_reply(&reply)),
                }
            }
            Front::Grpc(client) => {
                let request =
                    GetStateRequest { store_name: store.to_owned(), key: key.to_owned(), ..GetStateRequest::default() };
                let got = client.as_ref().clone().get_state(request).await.map_err(|s| Fault::of_status(&s))?;
                let got = got.into_inner();
                let found = !got.data.is_empty() || !got.etag.is_empty();
                Ok(found.then(|| Got { value: got.data, etag: got.etag, metadata: got.metadata, ..Got::default() }))
            }
        }
    }

    /// Reads several keys.
    pub async fn bulk_get(&self, store: &str, keys: &[&str]) -> Result<Vec<Got>, Fault> {
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        match &self.front {
            Front::Http(http) => {
                let body = json!({"keys": keys}).to_string();
                let reply = json_post(http, &format!("/v1.0/state/{}/bulk", escape(store)), body.into()).await;
                if reply.status != 200 {
                    return Err(Fault::of_reply(&reply));
                }
                Ok(bulk_items(&reply))
            }
            Front::Grpc(client) => {
                let request =
                    GetBulkStateRequest { store_name: store.to_owned(), keys, ..GetBulkStateRequest::default() };
                let got = client.as_ref().clone().get_bulk_state(request).await.map_err(|s| Fault::of_status(&s))?;
                let items = got.into_inner().items.into_iter();
                Ok(items
                    .map(|item| Got {
                        key: item.key,
                        value: item.data,
                        etag: item.etag,
                        metadata: item.metadata,
                        error: item.error,
                    })
                    .collect())
            }
        }
    }

    /// Removes a key.
    pub async fn delete(&self, store: &str, key: &str, etag: Option<&str>) -> Result<(), Fault> {
        match &self.front {
            Front::Http(http) => {
                let mut request = http.delete(format!("/v1.0/state/{}/{}", escape(store), escape(key)));
                if let Some(etag) = etag {
                    request = request.header("if-match", etag);
                }
                empty(sent(request).await)
            }
            Front::Grpc(client) => {
                let request = DeleteStateRequest {
                    store_name: store.to_owned(),
                    key: key.to_owned(),
                    etag: etag.map(|etag| Etag { value: etag.to_owned() }),
                    options: Some(StateOptions {
                        concurrency: StateConcurrency::ConcurrencyUnspecified.into(),
                        ..StateOptions::default()
                    }),
                    ..DeleteStateRequest::default()
                };
                client.as_ref().clone().delete_state(request).await.map(drop).map_err(|s| Fault::of_status(&s))
            }
        }
    }

    /// Runs a transaction.
    pub async fn transact(&self, store: &str, operations: &[Op]) -> Result<(), Fault> {
        match &self.front {
            Front::Http(http) => {
                let operations = list(operations.iter().map(Op::json_text));
                let body = [b"{\"operations\":", operations.as_ref(), b"}"].concat();
                empty(json_post(http, &format!("/v1.0/state/{}/transaction", escape(store)), body.into()).await)
            }
            Front::Grpc(client) => {
                let request = ExecuteStateTransactionRequest {
                    store_name: store.to_owned(),
                    operations: operations.iter().map(Op::message).collect(),
                    ..ExecuteStateTransactionRequest::default()
                };
                let done = client.as_ref().clone().execute_state_transaction(request).await;
                done.map(drop).map_err(|s| Fault::of_status(&s))
            }
        }
    }

    /// Publishes an event.
    pub async fn publish(
        &self,
        pubsub: &str,
        topic: &str,
        content_type: &str,
        data: impl Into<Bytes>,
        metadata: Metadata<'_>,
    ) -> Result<(), Fault> {
        match &self.front {
            Front::Http(http) => {
                let path = format!("/v1.0/publish/{}/{}{}", escape(pubsub), escape(topic), query(metadata));
                let mut request = http.post(path, data);
                if !content_type.is_empty() {
                    request = request.header("content-type", content_type);
                }
                empty(sent(request).await)
            }
            Front::Grpc(client) => {
                let request = PublishEventRequest {
                    pubsub_name: pubsub.to_owned(),
                    topic: topic.to_owned(),
                    data: data.into(),
                    data_content_type: content_type.to_owned(),
                    metadata: owned(metadata),
                };
                client.as_ref().clone().publish_event(request).await.map(drop).map_err(|s| Fault::of_status(&s))
            }
        }
    }

    /// Publishes several events; the failed ones, by id.
    pub async fn bulk_publish(
        &self,
        pubsub: &str,
        topic: &str,
        entries: Entries<'_>,
        metadata: Metadata<'_>,
    ) -> Result<Vec<String>, Fault> {
        match &self.front {
            Front::Http(http) => {
                let list: Vec<Value> = entries
                    .iter()
                    .map(|(id, content_type, event)| {
                        let json = content_type.contains("json");
                        let event = if json { serde_json::from_str(event).unwrap() } else { Value::from(*event) };
                        json!({"entryId": id, "contentType": content_type, "event": event})
                    })
                    .collect();
                let path = format!("/v1.0/publish/bulk/{}/{}{}", escape(pubsub), escape(topic), query(metadata));
                let reply = json_post(http, &path, Value::from(list).to_string().into()).await;
                if reply.status == 204 {
                    return Ok(Vec::new());
                }
                let document: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
                let Some(failed) = document["failedEntries"].as_array() else { return Err(Fault::of_reply(&reply)) };
                Ok(failed.iter().map(|entry| entry["entryId"].as_str().unwrap_or_default().to_owned()).collect())
            }
            Front::Grpc(client) => {
                let entries = entries
                    .iter()
                    .map(|(id, content_type, event)| {
                        let bytes = match *content_type {
                            "application/octet-stream" => {
                                base64::engine::general_purpose::STANDARD.decode(event).unwrap().into()
                            }
                            _ => Bytes::copy_from_slice(event.as_bytes()),
                        };
                        BulkPublishRequestEntry {
                            entry_id: (*id).to_owned(),
                            event: bytes,
                            content_type: (*content_type).to_owned(),
                            metadata: BTreeMap::new(),
                        }
                    })
                    .collect();
                let request = BulkPublishRequest {
                    pubsub_name: pubsub.to_owned(),
                    topic: topic.to_owned(),
                    entries,
                    metadata: owned(metadata),
                };
                let done = client.as_ref().clone().bulk_publish_event(request).await;
                let done = done.map_err(|s| Fault::of_status(&s))?.into_inner();
                Ok(done.failed_entries.into_iter().map(|entry| entry.entry_id).collect())
            }
        }
    }

    /// Calls an output binding. Over HTTP `data` is JSON text and may be left out with an empty one.
    pub async fn binding(
        &self,
        name: &str,
        operation: &str,
        data: &str,
        metadata: Metadata<'_>,
    ) -> Result<BindingAnswer, Fault> {
        match &self.front {
            Front::Http(http) => {
                let mut body = format!("{{\"operation\":{},\"metadata\":{}", json!(operation), json!(owned(metadata)));
                if !data.is_empty() {
                    body.push_str(",\"data\":");
                    body.push_str(data);
                }
                body.push('}');
                let reply = json_post(http, &format!("/v1.0/bindings/{}", escape(name)), body.into()).await;
                match reply.status {
                    200 => Ok((Some(reply.body.clone()), header_metadata(&reply))),
                    204 => Ok((None, header_metadata(&reply))),
                    _ => Err(Fault::of_reply(&reply)),
                }
            }
            Front::Grpc(client) => {
                let request = InvokeBindingRequest {
                    name: name.to_owned(),
                    data: Bytes::copy_from_slice(data.as_bytes()),
                    metadata: owned(metadata),
                    operation: operation.to_owned(),
                };
                let done = client.as_ref().clone().invoke_binding(request).await.map_err(|s| Fault::of_status(&s))?;
                let done = done.into_inner();
                Ok((Some(done.data).filter(|data| !data.is_empty()), done.metadata))
            }
        }
    }

    /// Reads a secret.
    pub async fn secret(&self, store: &str, key: &str) -> Result<BTreeMap<String, String>, Fault> {
        match &self.front {
            Front::Http(http) => {
                let reply = sent(http.get(format!("/v1.0/secrets/{}/{}", escape(store), escape(key)))).await;
                if reply.status != 200 {
                    return Err(Fault::of_reply(&reply));
                }
                Ok(texts(&reply.json()))
            }
            Front::Grpc(client) => {
                let request = GetSecretRequest {
                    store_name: store.to_owned(),
                    key: key.to_owned(),
                    ..GetSecretRequest::default()
                };
                let done = client.as_ref().clone().get_secret(request).await.map_err(|s| Fault::of_status(&s))?;
                Ok(done.into_inner().data)
            }
        }
    }

    /// Reads all secrets.
    pub async fn secrets(&self, store: &str) -> Result<BTreeMap<String, BTreeMap<String, String>>, Fault> {
        match &self.front {
            Front::Http(http) => {
                let reply = sent(http.get(format!("/v1.0/secrets/{}/bulk", escape(store)))).await;
                if reply.status != 200 {
                    return Err(Fault::of_reply(&reply));
                }
                let document = reply.json();
                let all = document.as_object().unwrap().iter();
                Ok(all.map(|(name, values)| (name.clone(), texts(values))).collect())
            }
            Front::Grpc(client) => {
                let request = GetBulkSecretRequest { store_name: store.to_owned(), ..GetBulkSecretRequest::default() };
                let done = client.as_ref().clone().get_bulk_secret(request).await.map_err(|s| Fault::of_status(&s))?;
                Ok(done.into_inner().data.into_iter().map(|(name, values)| (name, values.secrets)).collect())
            }
        }
    }

    /// Writes an entry of the metadata document.
    pub async fn set_metadata(&self, key: &str, value: &str) -> Result<(), Fault> {
        match &self.front {
            Front::Http(http) => {
                let request = http.request("PUT", format!("/v1.0/metadata/{}", escape(key)));
                empty(sent(request.body(value.to_owned())).await)
            }
            Front::Grpc(client) => {
                let request = SetMetadataRequest { key: key.to_owned(), value: value.to_owned() };
                client.as_ref().clone().set_metadata(request).await.map(drop).map_err(|s| Fault::of_status(&s))
            }
        }
    }
}

async fn json_post(http: &Http, path: &str, body: Bytes) -> Reply {
    sent(http.post(path, body).header("content-type", "application/json")).await
}

/// A daemon that is gone is a fault with status 0, as over gRPC it is one with a code.
async fn sent(request: Request) -> Reply {
    let none = |text: String| Reply { status: 0, headers: http::HeaderMap::new(), body: text.into() };
    request.try_send().await.unwrap_or_else(none)
}

fn empty(reply: Reply) -> Result<(), Fault> {
    if reply.status != 204 {
        return Err(Fault::of_reply(&reply));
    }
    assert!(reply.body.is_empty(), "204 with a body: {reply:?}");
    Ok(())
}

fn header_metadata(reply: &Reply) -> BTreeMap<String, String> {
    // Header names have no case; the keys that matter get theirs back.
    let named = |name: &str| {
        let known = ["ttlExpireTime", "statusCode"].into_iter().find(|known| known.eq_ignore_ascii_case(name));
        known.unwrap_or(name).to_owned()
    };
    let pairs = reply.headers.iter().filter_map(|(name, value)| {
        let key = name.as_str().strip_prefix("metadata.")?;
        Some((named(key), value.to_str().ok()?.to_owned()))
    });
    pairs.collect()
}

/// Items of a bulk read, with their data byte for byte.
fn bulk_items(reply: &Reply) -> Vec<Got> {
    let raw: Vec<BTreeMap<String, Box<serde_json::value::RawValue>>> =
        serde_json::from_slice(&reply.body).unwrap_or_else(|e| panic!("{e} in {reply:?}"));
    let text = |item: &BTreeMap<String, Box<serde_json::value::RawValue>>, name: &str| {
        item.get(name).and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default()
    };
    raw.iter()
        .map(|item| Got {
            key: text(item, "key"),
            value: item.get("data").map_or_else(Bytes::new, |raw| Bytes::copy_from_slice(raw.get().as_bytes())),
            etag: text(item, "etag"),
            metadata: item.get("metadata").and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default(),
            error: text(item, "error"),
        })
        .collect()
}

fn texts(value: &Value) -> BTreeMap<String, String> {
    let members = value.as_object().unwrap_or_else(|| panic!("no object: {value}")).iter();
    members.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

fn owned(metadata: Metadata<'_>) -> BTreeMap<String, String> {
    metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn query(metadata: Metadata<'_>) -> String {
    let pairs: Vec<String> = metadata.iter().map(|(key, value)| format!("metadata.{key}={}", escape(value))).collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}
