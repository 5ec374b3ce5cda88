//! See [`crate::fuzzing`].

use bytes::Bytes;
use mecha_core::app::{AppSubscription, AppVerdict, BindingReply};

use super::answers;

/// The verdict in the answer to an event.
#[must_use]
pub fn verdict(body: &[u8]) -> AppVerdict {
    answers::verdict(body)
}

/// The verdicts in the answer to a bulk.
#[must_use]
pub fn bulk_verdicts(body: &[u8], ids: &[&str]) -> Vec<AppVerdict> {
    answers::bulk_verdicts(body, ids.iter().copied())
}

/// The subscriptions in the answer to `/dapr/subscribe`.
///
/// # Errors
/// What is wrong with the answer.
pub fn subscriptions(body: &[u8]) -> Result<Vec<AppSubscription>, String> {
    answers::subscriptions(body).map(|(subs, _)| subs)
}

/// The reply in the answer to a binding event.
#[must_use]
pub fn binding_reply(body: &Bytes) -> BindingReply {
    answers::binding_reply(body)
}
