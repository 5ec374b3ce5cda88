//! A bounded queue from async callers to the threads that own connections.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;
use tokio::sync::{Semaphore, oneshot};

use crate::error::Fault;
use mecha_components_api::{Error, Result};

/// Jobs that may wait at once; callers beyond it wait for a place until their deadline.
const CAPACITY: usize = 1024;

/// Work for a thread that owns a connection.
pub(crate) trait Job: Send {
    /// Whether somebody still waits for the answer.
    fn wanted(&self) -> bool;
    /// Does the work. May be called again after its effects were rolled back.
    fn run(&mut self, db: &Connection) -> Result<(), Fault>;
    /// Answers the caller: with what `run` gave, or with the error.
    fn settle(self: Box<Self>, outcome: Result<()>);
}

/// A closure and the place its result goes to.
pub(crate) struct Call<T, F> {
    work: F,
    value: Option<T>,
    reply: oneshot::Sender<Result<T>>,
}

/// A job on its way.
pub(crate) struct Entry {
    /// The work.
    pub(crate) job: Box<dyn Job>,
    /// Not started after this moment.
    pub(crate) deadline: Instant,
    /// Bytes it will write, to bound a batch.
    pub(crate) weight: usize,
    /// Several statements that must be undone together.
    pub(crate) compound: bool,
    /// Needs a write transaction.
    pub(crate) writes: bool,
}

/// What [`Queue::take`] found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// At least one job.
    Jobs,
    /// None within the time given.
    Nothing,
    /// Closed and empty.
    Closed,
}

#[derive(Default)]
struct Inner {
    jobs: VecDeque<Entry>,
    closed: bool,
}

/// The queue.
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    ready: Condvar,
    places: Semaphore,
}

impl<T, F> Call<T, F>
where
    T: Send + 'static,
    F: FnMut(&Connection) -> Result<T, Fault> + Send + 'static,
{
    /// Boxes `work` with the receiver of its result.
    pub(crate) fn boxed(work: F) -> (Box<dyn Job>, oneshot::Receiver<Result<T>>) {
        let (reply, answer) = oneshot::channel();
        (Box::new(Self { work, value: None, reply }), answer)
    }
}

impl<T, F> Job for Call<T, F>
where
    T: Send,
    F: FnMut(&Connection) -> Result<T, Fault> + Send,
{
    fn wanted(&self) -> bool {
        !self.reply.is_closed()
    }

    fn run(&mut self, db: &Connection) -> Result<(), Fault> {
        self.value = Some((self.work)(db)?);
        Ok(())
    }

    fn settle(self: Box<Self>, outcome: Result<()>) {
        let Self { value, reply, .. } = *self;
        let answer = outcome.and_then(|()| value.ok_or_else(|| Error::internal("the work gave no result")));
        // The caller may have left; its answer goes nowhere then.
        let _ = reply.send(answer);
    }
}

impl Queue {
    pub(crate) fn new() -> Self {
        Self { inner: Mutex::default(), ready: Condvar::new(), places: Semaphore::new(CAPACITY) }
    }

    /// Adds a job, waiting for a place when the queue is full. The caller sets the deadline.
    pub(crate) async fn push(&self, entry: Entry) -> Result<()> {
        let Ok(place) = self.places.acquire().await else { return Err(closed()) };
        // Given back by `take`.
        place.forget();
        {
            let mut inner = self.inner.lock();
            if inner.closed {
                return Err(closed());
            }
            inner.jobs.push_back(entry);
        }
        self.ready.notify_one();
        Ok(())
    }

    /// Moves waiting jobs into `out`: at most `most`, and none beyond the one that brings the
    /// sum of weights over `weight`. Waits for the first one for `patience`, or for ever.
    pub(crate) fn take(&self, out: &mut Vec<Entry>, most: usize, weight: usize, patience: Option<Duration>) -> Taken {
        let until = patience.map(|p| Instant::now() + p);
        let mut inner = self.inner.lock();
        while inner.jobs.is_empty() {
            if inner.closed {
                return Taken::Closed;
            }
            match until {
                None => self.ready.wait(&mut inner),
                Some(until) => {
                    if self.ready.wait_until(&mut inner, until).timed_out() && inner.jobs.is_empty() {
                        return if inner.closed { Taken::Closed } else { Taken::Nothing };
                    }
                }
            }
        }
        let (mut count, mut sum) = (0, 0);
        while count < most && sum < weight {
            let Some(entry) = inner.jobs.pop_front() else { break };
            sum += entry.weight;
            count += 1;
            out.push(entry);
        }
        drop(inner);
        self.places.add_permits(count);
        Taken::Jobs
    }

    /// Refuses new jobs. Those that wait are still taken.
    pub(crate) fn close(&self) {
        self.inner.lock().closed = true;
        self.places.close();
        self.ready.notify_all();
    }

    /// Whether [`Queue::close`] was called.
    pub(crate) fn is_closed(&self) -> bool {
        self.inner.lock().closed
    }
}

/// The component was closed, for example because it was replaced.
pub(crate) fn closed() -> Error {
    Error::unavailable("the SQLite component is closed")
}
