//! One client for both fronts, so that a case is written once.

mod bodies;
mod calls;
mod fault;

use std::collections::BTreeMap;

use bytes::Bytes;

pub use self::fault::{Expect, Fault};
use crate::grpc::Grpc;
use crate::http::Http;

/// The API of a sidecar, over one of its fronts.
#[derive(Clone, Debug)]
pub struct Api {
    front: Front,
}

/// Which front, and the client of it.
#[derive(Clone, Debug)]
pub enum Front {
    /// HTTP.
    Http(Http),
    /// gRPC.
    Grpc(Box<Grpc>),
}

/// A state item to be written.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Item {
    pub(crate) key: String,
    pub(crate) value: Bytes,
    pub(crate) etag: Option<String>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) first_write: bool,
    pub(crate) strong: bool,
}

/// An operation of a transaction.
#[derive(Clone, Debug)]
pub enum Op {
    /// Write.
    Upsert(Item),
    /// Remove.
    Delete(Item),
}

/// A value that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Got {
    /// Key; only bulk reads say it.
    pub key: String,
    /// Value.
    pub value: Bytes,
    /// ETag.
    pub etag: String,
    /// Metadata, such as `ttlExpireTime`.
    pub metadata: BTreeMap<String, String>,
    /// What went wrong with this key of a bulk read.
    pub error: String,
}

impl Item {
    /// A value; over HTTP it must be JSON text.
    pub fn new(key: &str, value: impl Into<Bytes>) -> Self {
        Self { key: key.to_owned(), value: value.into(), ..Self::default() }
    }

    /// Only while the stored ETag is this one.
    pub fn etag(mut self, etag: &str) -> Self {
        self.etag = Some(etag.to_owned());
        self
    }

    /// Item metadata.
    pub fn metadata(mut self, key: &str, value: &str) -> Self {
        self.metadata.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Only when nobody wrote before.
    pub fn first_write(mut self) -> Self {
        self.first_write = true;
        self
    }

    /// With strong consistency.
    pub fn strong(mut self) -> Self {
        self.strong = true;
        self
    }
}

impl Got {
    /// The value as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.value).into_owned()
    }
}

impl Api {
    /// Over this front.
    #[must_use]
    pub fn new(front: Front) -> Self {
        Self { front }
    }

    /// `http` or `grpc`; part of keys and of messages when a case fails.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.front {
            Front::Http(_) => "http",
            Front::Grpc(_) => "grpc",
        }
    }

    /// Whether this is HTTP.
    #[must_use]
    pub fn is_http(&self) -> bool {
        matches!(self.front, Front::Http(_))
    }
}
