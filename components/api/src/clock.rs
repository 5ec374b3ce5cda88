use std::fmt;
use std::time::SystemTime;

/// Wall clock. Components and core ask it instead of the operating system, so
/// that clock jumps can be tested. Timers use the runtime's monotonic clock.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// The current wall-clock time.
    fn now(&self) -> SystemTime;
}

/// The operating system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}
