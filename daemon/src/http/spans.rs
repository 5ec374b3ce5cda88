//! What the span of an HTTP call says about it.

use mecha_core::trace::{Span, attribute};

use super::Call;
use super::path::unescape;
use super::routes::{Match, Route};

/// Header that names the callee of an invocation by any path.
const APP_ID: &str = "dapr-app-id";

/// Sets the attributes of a call, by its building block.
pub(super) fn describe(span: &mut Span, call: &Call, found: &Match<'_>) {
    let api = format!("{} {}", call.method, call.path);
    span.set(attribute::DAPR_PROTOCOL, "http");
    span.set(attribute::HTTP_REQUEST_METHOD, call.method.to_string());
    for (name, value) in &call.headers {
        if attribute::is_header(name.as_str())
            && let Ok(value) = value.to_str()
        {
            span.set(name.as_str().to_owned(), value.to_owned());
        }
    }
    let route = match found {
        Match::Known(matched) => Some(matched.route),
        Match::OtherMethod | Match::None => None,
    };
    match route {
        Some(Route::Invoke { id, method }) => invocation(span, id, method),
        None => {
            if let Some(id) = call.headers.get(APP_ID).and_then(|value| value.to_str().ok()) {
                invocation(span, id, call.path.trim_start_matches('/'));
            }
        }
        Some(
            Route::StateGet { store, .. }
            | Route::StateSave { store }
            | Route::StateDelete { store, .. }
            | Route::StateBulkGet { store }
            | Route::StateTransact { store }
            | Route::StateQuery { store },
        ) => component(span, "state", store, &api),
        Some(Route::SecretGet { store, .. } | Route::SecretList { store }) => component(span, "secrets", store, &api),
        Some(Route::Binding { name }) => component(span, "bindings", name, &api),
        Some(
            Route::ConfigurationGet { store }
            | Route::ConfigurationSubscribe { store }
            | Route::ConfigurationUnsubscribe { store, .. },
        ) => component(span, "configuration", store, &api),
        Some(Route::Publish { topic, .. } | Route::PublishBulk { topic, .. }) => {
            span.set(attribute::MESSAGING_SYSTEM, attribute::MESSAGING_PUBSUB);
            span.set(attribute::MESSAGING_DESTINATION_NAME, plain(topic));
        }
        Some(_) => {}
    }
    span.set(attribute::DAPR_API, api);
}

fn invocation(span: &mut Span, id: &str, method: &str) {
    span.set(attribute::RPC_SERVICE, attribute::RPC_SERVICE_INVOCATION);
    span.set(attribute::NET_PEER_NAME, plain(id));
    span.set(attribute::DAPR_INVOKE_METHOD, plain(method));
}

/// A component that is called like a database.
fn component(span: &mut Span, block: &'static str, name: &str, api: &str) {
    span.set(attribute::DB_SYSTEM, block);
    span.set(attribute::DB_NAME, plain(name));
    span.set(attribute::DB_STATEMENT, api.to_owned());
    span.set(attribute::DB_CONNECTION_STRING, block);
}

/// A path parameter as its user wrote it.
fn plain(text: &str) -> String {
    unescape(text).map_or_else(|| text.to_owned(), std::borrow::Cow::into_owned)
}
