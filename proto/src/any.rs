use std::fmt;

use bytes::Bytes;
use prost::{DecodeError, Message, Name};

/// Prefix of a type URL, by convention of `google.protobuf.Any`.
const PREFIX: &str = "type.googleapis.com/";

/// `google.protobuf.Any` with shared bytes; converts from and into [`prost_types::Any`].
///
/// In an invocation an empty `type_url` means that `value` is the plain body.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
#[prost(skip_debug)]
pub struct Any {
    /// `type.googleapis.com/<message name>`, or empty.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The encoded message, or plain bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

impl Any {
    /// Plain bytes, without a type.
    #[must_use]
    pub fn plain(value: impl Into<Bytes>) -> Self {
        Self { type_url: String::new(), value: value.into() }
    }

    /// The encoded `message` and its type.
    #[must_use]
    pub fn pack<M: Message + Name>(message: &M) -> Self {
        Self { type_url: format!("{PREFIX}{}", M::full_name()), value: message.encode_to_vec().into() }
    }

    /// The message inside.
    ///
    /// `None` when it is of another type; the part of the URL before the last slash does not count.
    ///
    /// # Errors
    /// The value is not an encoded `M`.
    pub fn unpack<M: Message + Name + Default>(&self) -> Result<Option<M>, DecodeError> {
        match self.type_url.rsplit_once('/') {
            Some((_, name)) if name == M::full_name() => M::decode(self.value.clone()).map(Some),
            _ => Ok(None),
        }
    }
}

/// The value is a payload: only its size is shown.
impl fmt::Debug for Any {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Any").field("type_url", &self.type_url).field("bytes", &self.value.len()).finish()
    }
}

impl Name for Any {
    const PACKAGE: &'static str = "google.protobuf";
    const NAME: &'static str = "Any";
}

impl From<prost_types::Any> for Any {
    fn from(any: prost_types::Any) -> Self {
        Self { type_url: any.type_url, value: any.value.into() }
    }
}

impl From<Any> for prost_types::Any {
    fn from(any: Any) -> Self {
        Self { type_url: any.type_url, value: any.value.into() }
    }
}
