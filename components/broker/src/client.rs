use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use mecha_components_api::{Error, ErrorKind, Result, Verdict};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;

use crate::clock::Clocks;
use crate::config::{Consume, Limits};
use crate::error::closed;
use crate::group::{Claim, Claimed, GroupRef, Lease};
use crate::log::{Appended, Record};
use crate::schema::Folder;
use crate::wake::Sleeper;
use crate::writer::{Answer, Attach, Call, Job, Shared, Work, Writer};

/// Room in the queue of the writer thread: requests count one unit and one more for each KiB.
const QUEUE_UNITS: usize = 64 << 10;
const UNIT_BYTES: usize = 1024;
/// Longest wait for room in the queue.
const ENQUEUE: Duration = Duration::from_secs(5);
/// Longest wait for an answer; above what the writer waits for another process.
const ANSWER: Duration = Duration::from_secs(20);
/// Longest wait for the thread to end.
const CLOSE: Duration = Duration::from_secs(15);

/// Handle of one broker file: requests go to a thread that owns the connection.
#[derive(Debug)]
pub(crate) struct Store {
    folder: Folder,
    shared: Arc<Shared>,
    room: Arc<Semaphore>,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<Thread>>,
}

#[derive(Debug)]
struct Thread {
    handle: JoinHandle<()>,
    ended: oneshot::Receiver<()>,
}

impl Store {
    /// Opens the broker in `folder` and starts its writer thread.
    pub(crate) async fn open(folder: Folder, clocks: Clocks, limits: Limits) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (jobs, queue) = mpsc::channel();
        let (opened, open) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let start = (folder.clone(), shared.clone());
        let handle = thread::Builder::new()
            .name("mecha-broker".to_owned())
            .spawn(move || {
                // Dropped last, also when the thread panics.
                let _end = end;
                match Writer::open(start.0, clocks, limits, start.1) {
                    Ok(writer) => {
                        if opened.send(Ok(())).is_ok() {
                            writer.run(&queue);
                        }
                    }
                    Err(failure) => drop(opened.send(Err(failure))),
                }
            })
            .map_err(|e| Error::unavailable("cannot start the broker's thread").with_source(e))?;
        let path = folder.path();
        match timeout(ANSWER, open).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(failure))) => return Err(failure.to_error(path)),
            Ok(Err(_)) => return Err(closed(path)),
            Err(_) => return Err(Error::timeout(format!("broker at {} could not be opened in time", path.display()))),
        }
        Ok(Self {
            folder,
            shared,
            room: Arc::new(Semaphore::new(QUEUE_UNITS)),
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(Thread { handle, ended })),
        })
    }

    /// Folder of the file.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Stores all of `records` or none; returns after the commit is on the disk.
    pub(crate) async fn publish(&self, records: Vec<Record>) -> Result<()> {
        let bytes = records.iter().map(Record::size).sum();
        match self.call(records, bytes, Work::Publish).await? {
            Appended::Stored => Ok(()),
            Appended::Full { bytes, max } => Err(Error::new(
                ErrorKind::Overloaded,
                format!(
                    "broker at {} is full: {bytes} of {max} bytes (maxBytes) hold messages that a consumer group has \
                     not acknowledged; nothing was stored",
                    self.path().display()
                ),
            )),
        }
    }

    /// Finds or makes the group.
    pub(crate) async fn attach(&self, topic: Arc<str>, group: Arc<str>, consume: &Consume) -> Result<GroupRef> {
        self.call(Attach { topic, group, start: consume.start }, 0, Work::Attach).await
    }

    /// Takes messages. Dropped in the middle, it puts them back.
    pub(crate) async fn claim(&self, claim: Claim) -> Result<Claimed> {
        let room = self.reserve(0).await?;
        let (call, answer) = Call::new(claim);
        self.send(Work::Claim(call), room)?;
        let mut claiming = Claiming { store: self, at: claim.at, answer };
        self.wait(&mut claiming.answer).await
    }

    /// Applies a verdict; false when the lease was taken over.
    pub(crate) async fn settle(&self, at: GroupRef, lease: Lease, verdict: Verdict) -> Result<bool> {
        self.call((at, lease, verdict), 0, Work::Settle).await
    }

    /// Extends leases; returns those that were taken over.
    pub(crate) async fn extend(&self, at: GroupRef, leases: Vec<Lease>, by: Duration) -> Result<Vec<Lease>> {
        self.call((at, leases, by), 0, Work::Extend).await
    }

    /// Whether the file can be read.
    pub(crate) async fn ping(&self) -> Result<()> {
        self.call((), 0, Work::Ping).await
    }

    /// Removes a topic with its messages and groups.
    pub(crate) async fn forget(&self, topic: Arc<str>) -> Result<()> {
        self.call(topic, 0, Work::Forget).await
    }

    /// Puts leases back without waiting, for a subscription that was dropped.
    pub(crate) fn abandon(&self, at: GroupRef, leases: impl Iterator<Item = Lease>) {
        let jobs = self.jobs.lock();
        let Some(jobs) = jobs.as_ref() else { return };
        for lease in leases {
            // Their number is bounded by the in-flight limit of the subscription.
            let (call, _) = Call::new((at, lease, Verdict::Release));
            let _ = jobs.send(Job { work: Work::Settle(call), _room: None });
        }
    }

    /// Notes that the group has a subscription here, while the guard lives.
    pub(crate) fn activate(&self, at: GroupRef) -> Active {
        self.shared.active.lock().push(at.group);
        Active { shared: self.shared.clone(), group: at.group }
    }

    /// Where to wait for news of a topic.
    pub(crate) fn sleeper(&self, topic: i64) -> std::io::Result<Sleeper> {
        Sleeper::bind(&self.folder.wake(), topic, self.shared.owner.load(Ordering::Relaxed))
    }

    /// Ends the thread and waits for it; later calls fail.
    pub(crate) async fn close(&self) {
        drop(self.jobs.lock().take());
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && timeout(CLOSE, thread.ended).await.is_ok()
        {
            // It has nothing left to do but return.
            let _ = thread.handle.join();
        }
    }

    async fn call<Q, A>(&self, ask: Q, bytes: usize, work: impl FnOnce(Call<Q, A>) -> Work) -> Result<A> {
        let room = self.reserve(bytes).await?;
        let (call, mut answer) = Call::new(ask);
        self.send(work(call), room)?;
        self.wait(&mut answer).await
    }

    fn send(&self, work: Work, room: OwnedSemaphorePermit) -> Result<()> {
        match self.jobs.lock().as_ref() {
            Some(jobs) if jobs.send(Job { work, _room: Some(room) }).is_ok() => Ok(()),
            _ => Err(closed(self.path())),
        }
    }

    async fn wait<A>(&self, answer: &mut Answer<A>) -> Result<A> {
        match timeout(ANSWER, answer).await {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(failure))) => Err(failure.to_error(self.path())),
            Ok(Err(_)) => Err(closed(self.path())),
            Err(_) => Err(Error::timeout(format!(
                "broker at {} did not answer in {} s; the request may still be carried out",
                self.path().display(),
                ANSWER.as_secs()
            ))),
        }
    }

    async fn reserve(&self, bytes: usize) -> Result<OwnedSemaphorePermit> {
        let units = (1 + bytes / UNIT_BYTES).min(QUEUE_UNITS);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        match timeout(ENQUEUE, self.room.clone().acquire_many_owned(units)).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(closed(self.path())),
            Err(_) => Err(Error::new(
                ErrorKind::Overloaded,
                format!("broker at {} has too many requests waiting; nothing was stored", self.path().display()),
            )),
        }
    }
}

/// A claim whose answer nobody has read yet.
struct Claiming<'a> {
    store: &'a Store,
    at: GroupRef,
    answer: Answer<Claimed>,
}

impl Drop for Claiming<'_> {
    fn drop(&mut self) {
        // From now on the writer notices that nobody listens; what came before is here.
        self.answer.close();
        if let Ok(Ok(Claimed::Messages { taken, .. })) = self.answer.try_recv() {
            self.store.abandon(self.at, taken.into_iter().map(|t| t.lease));
        }
    }
}

/// While it lives, its group counts as subscribed.
#[derive(Debug)]
pub(crate) struct Active {
    shared: Arc<Shared>,
    group: i64,
}

impl Drop for Active {
    fn drop(&mut self) {
        let mut active = self.shared.active.lock();
        if let Some(i) = active.iter().position(|g| *g == self.group) {
            active.swap_remove(i);
        }
    }
}
