//! A [`StateStore`] that is the state API of a sidecar.

use std::path::Path;
use std::time::SystemTime;

use async_trait::async_trait;
use mecha_components_api::{
    BulkState, Component, Concurrency, Consistency, DeleteState, Error, GetState, Item, Metadata, Result, SetState,
    StateCaps, StateStore, TransactOp, TransactState, Ttl, Value,
};
use mecha_proto::common::state_options::StateConsistency;
use mecha_proto::runtime::GetStateRequest;
use mecha_tests::{Fault, Got, Item as Write, Op, escape};

use super::wire::{Around, Daemon, TARGET, Wire, error};
use crate::manifest::Recipe;

#[derive(Debug)]
pub(super) struct StateClient {
    daemon: Daemon,
    caps: StateCaps,
    transactional: bool,
}

impl StateClient {
    pub(super) async fn start(wire: Wire, recipe: &Recipe, dir: &Path) -> std::result::Result<Self, String> {
        // Raw keys: the cases use characters and spaces of their own.
        let around = Around { app_id: "conformance", more: &[("keyPrefix", "none")], ..Around::default() };
        let daemon = Daemon::start(wire, recipe, dir, around).await;
        let (mut caps, mut transactional) = (StateCaps::default(), false);
        for name in daemon.capabilities().await? {
            match name.as_str() {
                "ETAG" => caps.etag = true,
                "TTL" => caps.ttl = true,
                "TRANSACTIONAL" => transactional = true,
                "DELETE_WITH_PREFIX" => caps.delete_with_prefix = true,
                "KEYS_LIKE" => caps.keys_like = true,
                "ACTOR" => caps.actor = true,
                // The client does not query; that the name is known is enough.
                "QUERY_API" => {}
                other => return Err(format!("the metadata API lists the unknown capability {other}")),
            }
        }
        Ok(Self { daemon, caps, transactional })
    }

    fn upsert(&self, req: &SetState<'_>) -> Result<Write> {
        let mut item = match (&req.value, self.daemon.wire()) {
            (Value::Json(json), Wire::Http) => Write::new(req.key, json.clone()),
            (Value::Json(json), Wire::Grpc) => {
                Write::new(req.key, json.clone()).metadata("contentType", "application/json")
            }
            (Value::Binary(bytes), Wire::Grpc) => Write::new(req.key, bytes.clone()),
            (Value::Binary(_), Wire::Http) => return Err(Error::unsupported("JSON bodies have no form for bytes")),
        };
        if let Some(etag) = req.etag {
            item = item.etag(etag);
        }
        if req.concurrency == Concurrency::FirstWrite {
            item = item.first_write();
        }
        if req.consistency == Consistency::Strong {
            item = item.strong();
        }
        Ok(match req.ttl {
            None => item,
            Some(Ttl::Never) => item.metadata("ttlInSeconds", "-1"),
            Some(Ttl::After(life)) => item.metadata("ttlInSeconds", &life.as_secs().to_string()),
        })
    }
}

fn item(got: Got) -> Result<Item> {
    let expires = match got.metadata.get("ttlExpireTime") {
        None => None,
        Some(text) => {
            let at: jiff::Timestamp =
                text.parse().map_err(|e| Error::internal(format!("ttlExpireTime {text} is no time: {e}")))?;
            Some(SystemTime::from(at))
        }
    };
    let etag = Some(got.etag).filter(|e| !e.is_empty());
    Ok(Item { value: got.value, etag, expires, content_type: None })
}

#[async_trait]
impl Component for StateClient {
    async fn close(&self) {
        self.daemon.end();
    }
}

#[async_trait]
impl StateStore for StateClient {
    fn caps(&self) -> StateCaps {
        self.caps
    }

    async fn get(&self, req: GetState<'_>) -> Result<Option<Item>> {
        let strong = req.consistency == Consistency::Strong;
        let found = match self.daemon.wire() {
            // The harness asks for no consistency; this front does.
            Wire::Grpc => {
                let consistency =
                    if strong { StateConsistency::ConsistencyStrong } else { StateConsistency::ConsistencyEventual };
                let request = GetStateRequest {
                    store_name: TARGET.to_owned(),
                    key: req.key.to_owned(),
                    consistency: consistency.into(),
                    ..GetStateRequest::default()
                };
                let got = self.daemon.grpc.clone().get_state(request).await;
                let got = got.map_err(|status| error(&Fault::of_status(&status)))?.into_inner();
                let found = !got.data.is_empty() || !got.etag.is_empty();
                found.then(|| Got { value: got.data, etag: got.etag, metadata: got.metadata, ..Got::default() })
            }
            Wire::Http => {
                let consistency = if strong { "strong" } else { "eventual" };
                let path = format!("/v1.0/state/{TARGET}/{}?consistency={consistency}", escape(req.key));
                let reply = self.daemon.http.get(path).try_send().await.map_err(Error::unavailable)?;
                match reply.status {
                    200 => Some(Got {
                        etag: reply.header("etag").to_owned(),
                        metadata: match reply.header("metadata.ttlExpireTime") {
                            "" => Default::default(),
                            at => [("ttlExpireTime".to_owned(), at.to_owned())].into(),
                        },
                        value: reply.body,
                        ..Got::default()
                    }),
                    204 => None,
                    _ => return Err(error(&Fault::of_reply(&reply))),
                }
            }
        };
        found.map(item).transpose()
    }

    async fn set(&self, req: SetState<'_>) -> Result<()> {
        self.daemon.api.save(TARGET, &[self.upsert(&req)?]).await.map_err(|e| error(&e))
    }

    async fn delete(&self, req: DeleteState<'_>) -> Result<()> {
        self.daemon.api.delete(TARGET, req.key, req.etag).await.map_err(|e| error(&e))
    }

    fn bulk(&self) -> Option<&dyn BulkState> {
        Some(self)
    }

    fn transact(&self) -> Option<&dyn TransactState> {
        self.transactional.then_some(self as &dyn TransactState)
    }
}

#[async_trait]
impl BulkState for StateClient {
    async fn get_many(&self, reqs: &[GetState<'_>]) -> Result<Vec<Result<Option<Item>>>> {
        let keys: Vec<&str> = reqs.iter().map(|r| r.key).collect();
        let answers = self.daemon.api.bulk_get(TARGET, &keys).await.map_err(|e| error(&e))?;
        let named: Vec<&str> = answers.iter().map(|a| a.key.as_str()).collect();
        if named != keys {
            return Err(Error::internal(format!("asked for {keys:?}, answered {named:?}")));
        }
        let one = |got: Got| {
            if !got.error.is_empty() {
                return Err(Error::internal(got.error));
            }
            let found = !got.value.is_empty() || !got.etag.is_empty();
            found.then(|| item(got)).transpose()
        };
        Ok(answers.into_iter().map(one).collect())
    }
}

#[async_trait]
impl TransactState for StateClient {
    async fn transact(&self, ops: Vec<TransactOp<'_>>, _: &Metadata) -> Result<()> {
        let build = |op: &TransactOp<'_>| {
            Ok(match op {
                TransactOp::Set(set) => Op::Upsert(self.upsert(set)?),
                TransactOp::Delete(delete) => {
                    let item = Write::new(delete.key, "");
                    Op::Delete(delete.etag.map_or(item.clone(), |etag| item.etag(etag)))
                }
            })
        };
        let ops = ops.iter().map(build).collect::<Result<Vec<_>>>()?;
        self.daemon.api.transact(TARGET, &ops).await.map_err(|e| error(&e))
    }
}
