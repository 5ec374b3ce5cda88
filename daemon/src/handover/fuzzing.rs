//! See [`crate::fuzzing`].

use super::wire::Message;

/// A message of the hand-over, written again.
#[must_use]
pub fn message(line: &[u8]) -> Option<Vec<u8>> {
    serde_json::to_vec(&serde_json::from_slice::<Message>(line).ok()?).ok()
}
