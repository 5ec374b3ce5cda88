//! What a message says about its call, for the span of that call.

use std::borrow::Cow;
use std::sync::Arc;

use mecha_core::trace::{Span, attribute};
use mecha_proto::runtime as pb;
use parking_lot::Mutex;

/// In the extensions of a request whose span is recorded: attributes that only its message
/// tells. The message is decoded behind the place that owns the span.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes(Arc<Mutex<Vec<Attribute>>>);

type Attribute = (&'static str, Cow<'static, str>);

impl Notes {
    pub(super) fn add(&self, key: &'static str, value: impl Into<Cow<'static, str>>) {
        self.0.lock().push((key, value.into()));
    }

    /// A component that is called like a database.
    fn component(&self, block: &'static str, name: &str) {
        self.add(attribute::DB_SYSTEM, block);
        self.add(attribute::DB_NAME, name.to_owned());
        self.add(attribute::DB_CONNECTION_STRING, block);
    }

    fn topic(&self, topic: &str) {
        self.add(attribute::MESSAGING_SYSTEM, attribute::MESSAGING_PUBSUB);
        self.add(attribute::MESSAGING_DESTINATION_NAME, topic.to_owned());
    }

    pub(super) fn invocation(&self, id: &str, method: &str) {
        self.add(attribute::NET_PEER_NAME, id.to_owned());
        self.add(attribute::DAPR_INVOKE_METHOD, method.to_owned());
    }

    /// Moves everything into the span of a call of `path`.
    pub(super) fn write(&self, span: &mut Span, path: &str) {
        for (key, value) in self.0.lock().drain(..) {
            if key == attribute::DB_SYSTEM {
                span.set(attribute::DB_STATEMENT, path.to_owned());
            }
            match value {
                Cow::Borrowed(text) => span.set(key, text),
                Cow::Owned(text) => span.set(key, text),
            }
        }
    }
}

/// A message that may have something to say.
pub(super) trait Noted {
    /// Adds it.
    fn note(&self, _: &Notes) {}
}

macro_rules! noted {
    ($($message:ident: |$m:ident, $notes:ident| $what:expr;)*) => {$(
        impl Noted for pb::$message {
            fn note(&self, $notes: &Notes) {
                let $m = self;
                $what;
            }
        }
    )*};
}

noted! {
    GetStateRequest: |m, n| n.component("state", &m.store_name);
    GetBulkStateRequest: |m, n| n.component("state", &m.store_name);
    SaveStateRequest: |m, n| n.component("state", &m.store_name);
    DeleteStateRequest: |m, n| n.component("state", &m.store_name);
    DeleteBulkStateRequest: |m, n| n.component("state", &m.store_name);
    ExecuteStateTransactionRequest: |m, n| n.component("state", &m.store_name);
    QueryStateRequest: |m, n| n.component("state", &m.store_name);
    GetSecretRequest: |m, n| n.component("secrets", &m.store_name);
    GetBulkSecretRequest: |m, n| n.component("secrets", &m.store_name);
    InvokeBindingRequest: |m, n| n.component("bindings", &m.name);
    GetConfigurationRequest: |m, n| n.component("configuration", &m.store_name);
    SubscribeConfigurationRequest: |m, n| n.component("configuration", &m.store_name);
    UnsubscribeConfigurationRequest: |m, n| n.component("configuration", &m.store_name);
    PublishEventRequest: |m, n| n.topic(&m.topic);
    BulkPublishRequest: |m, n| n.topic(&m.topic);
}

impl Noted for pb::TryLockRequest {}
impl Noted for pb::UnlockRequest {}
impl Noted for pb::GetMetadataRequest {}
impl Noted for pb::SetMetadataRequest {}
