//! Times on the wire.

use std::time::SystemTime;

use jiff::Timestamp;

/// RFC 3339 in UTC with as many fraction digits as needed.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    Timestamp::try_from(time).map(|t| t.to_string()).unwrap_or_default()
}
