use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mecha_components_api::Clock;
use rustix::time::{ClockId, clock_gettime};

/// One reading of both clocks, in milliseconds.
///
/// Leases and back-offs use the monotonic clock of the kernel, which all processes of
/// the machine share and which no clock setting moves; it starts anew at boot, so every
/// stored value is also checked for being impossibly far ahead. TTL and retention use
/// the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Now {
    /// Milliseconds since 1970.
    pub wall: i64,
    /// Milliseconds since boot, suspension excluded.
    pub mono: i64,
}

/// Where [`Now`] comes from.
#[derive(Clone, Debug)]
pub(crate) struct Clocks {
    wall: Arc<dyn Clock>,
}

impl Clocks {
    pub(crate) fn new(wall: Arc<dyn Clock>) -> Self {
        Self { wall }
    }

    pub(crate) fn now(&self) -> Now {
        Now { wall: unix_millis(self.wall.now()), mono: monotonic() }
    }
}

/// Milliseconds of `d`, saturating.
pub(crate) fn millis(d: Duration) -> i64 {
    i64::try_from(d.as_millis()).unwrap_or(i64::MAX)
}

fn unix_millis(t: SystemTime) -> i64 {
    match t.duration_since(UNIX_EPOCH) {
        Ok(d) => millis(d),
        Err(before) => -millis(before.duration()),
    }
}

/// Milliseconds of the kernel's monotonic clock.
pub(crate) fn monotonic() -> i64 {
    let t = clock_gettime(ClockId::Monotonic);
    t.tv_sec * 1000 + t.tv_nsec / 1_000_000
}
