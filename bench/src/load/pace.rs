//! When requests are due, and the workers that send them.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::line::Line;
use super::{Load, SharedTally, lock};

/// What is due, shared by the clock and the workers.
#[derive(Clone, Debug)]
pub(super) struct Schedule(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    began: Instant,
    counts_from: Instant,
    ends_at: Instant,
    /// Time between two requests; `None` in a closed loop.
    interval: Option<Duration>,
    due: Mutex<Due>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Due {
    waiting: VecDeque<Instant>,
    over: bool,
}

impl Schedule {
    pub(super) fn fixed(per_second: u32, load: Load) -> Self {
        Self::new(load, Some(Duration::from_secs(1) / per_second.max(1)))
    }

    pub(super) fn closed_loop(load: Load) -> Self {
        Self::new(load, None)
    }

    fn new(load: Load, interval: Option<Duration>) -> Self {
        let began = Instant::now();
        let counts_from = began + load.warm_up;
        Self(Arc::new(Inner {
            began,
            counts_from,
            ends_at: counts_from + load.measured,
            interval,
            due: Mutex::default(),
            wake: Notify::new(),
        }))
    }

    pub(super) fn counts_from(&self) -> Instant {
        self.0.counts_from
    }

    pub(super) fn ends_at(&self) -> Instant {
        self.0.ends_at
    }

    fn due(&self) -> std::sync::MutexGuard<'_, Due> {
        self.0.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes requests due until the run is over.
    pub(super) async fn run(self) {
        if let Some(interval) = self.0.interval
            && let Err(e) = self.tick(interval).await
        {
            eprintln!("the clock of the load generator failed: {e}");
        }
        self.due().over = true;
        self.0.wake.notify_waiters();
    }

    /// A kernel timer: tokio's own counts in milliseconds, which is longer than a request takes.
    async fn tick(&self, interval: Duration) -> std::io::Result<()> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let every = Timespec {
            tv_sec: i64::try_from(interval.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(interval.subsec_nanos()),
        };
        let mut next = Instant::now() + interval;
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: every, it_value: every })?;
        #[allow(deprecated, reason = "an OwnedFd keeps its descriptor; the replacement is an unsafe function")]
        let timer: AsyncFd<OwnedFd> = AsyncFd::new(timer)?;
        while next < self.0.ends_at {
            let mut ready = timer.readable().await?;
            let mut expirations = [0u8; 8];
            if rustix::io::read(timer.get_ref(), &mut expirations).is_err() {
                ready.clear_ready();
                continue;
            }
            let now = Instant::now();
            let mut fresh = 0;
            {
                let mut due = self.due();
                while next <= now && next < self.0.ends_at {
                    due.waiting.push_back(next);
                    next += interval;
                    fresh += 1;
                }
            }
            for _ in 0..fresh {
                self.0.wake.notify_one();
            }
        }
        Ok(())
    }

    /// The time the next request is due, once it is; `None` when the run is over.
    async fn next(&self) -> Option<Instant> {
        if self.0.interval.is_none() {
            let now = Instant::now();
            return (now < self.0.ends_at).then_some(now);
        }
        loop {
            let woken = self.0.wake.notified();
            let mut woken = std::pin::pin!(woken);
            woken.as_mut().enable();
            {
                let mut due = self.due();
                if let Some(at) = due.waiting.pop_front() {
                    return Some(at);
                }
                if due.over {
                    return None;
                }
            }
            woken.await;
        }
    }
}

/// Sends what is due over one line until the run is over.
pub(super) async fn worker(mut line: Line, schedule: Schedule, tally: SharedTally) {
    while let Some(due) = schedule.next().await {
        let sent = Instant::now();
        let answer = line.shoot().await;
        if due >= schedule.0.counts_from {
            lock(&tally).add(due, sent, answer);
        } else if let Err(reason) = answer {
            lock(&tally).reason.get_or_insert(reason);
        }
        // Errors of a dead target must not spin.
        if schedule.0.began.elapsed() > Duration::ZERO && lock(&tally).errors > 1000 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
