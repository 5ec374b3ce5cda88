//! The one thread of a broker that touches the file. Requests that arrive while a
//! commit runs share the next one, and with it its fsync.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use mecha_components_api::Verdict;
use parking_lot::Mutex;
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::{debug, error, info, warn};

use crate::clock::{Clocks, Now};
use crate::config::{Limits, StartFrom};
use crate::error::{Cure, Failure};
use crate::group::{self, Claim, Claimed, GroupRef, Lease, Peek};
use crate::log::{self, Appended, Record, Room};
use crate::maintain;
use crate::owner::{self, Owner};
use crate::schema::{self, FileId, Folder};
use crate::wake::Bell;

/// Requests committed together.
const BATCH: usize = 256;
/// How often the dead are looked for and the file is checked to be still there.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between two looks whether maintenance is due, unless it has more to do.
const MAINTAIN_TICKS: u64 = 5;
/// Ticks between two reports that a group has subscribers.
const TOUCH_TICKS: u64 = 20;
/// Pause between attempts to open a file that could not be opened.
const REOPEN: Duration = Duration::from_millis(500);

/// A request, its answer until the commit, and who waits for it.
#[derive(Debug)]
pub(crate) struct Call<Q, A> {
    pub ask: Q,
    answer: Option<A>,
    reply: oneshot::Sender<Result<A, Failure>>,
}

/// Where the answer to a [`Call`] arrives.
pub(crate) type Answer<A> = oneshot::Receiver<Result<A, Failure>>;

impl<Q, A> Call<Q, A> {
    pub(crate) fn new(ask: Q) -> (Self, Answer<A>) {
        let (reply, answer) = oneshot::channel();
        (Self { ask, answer: None, reply }, answer)
    }

    /// Hands the answer over; gives it back when nobody waits any more.
    fn finish(self, outcome: Result<(), &Failure>) -> Option<A> {
        let answer = match (outcome, self.answer) {
            (Ok(()), Some(answer)) => Ok(answer),
            (Ok(()), None) => Err(Failure::new(Cure::Isolate, "the request was not carried out")),
            (Err(failure), _) => Err(failure.clone()),
        };
        match self.reply.send(answer) {
            Err(Ok(unheard)) => Some(unheard),
            _ => None,
        }
    }
}

/// Arguments of an attachment.
#[derive(Debug)]
pub(crate) struct Attach {
    pub topic: Arc<str>,
    pub group: Arc<str>,
    pub start: StartFrom,
}

/// What the writer can be asked for.
#[derive(Debug)]
pub(crate) enum Work {
    Publish(Call<Vec<Record>, Appended>),
    Attach(Call<Attach, GroupRef>),
    Claim(Call<Claim, Claimed>),
    Settle(Call<(GroupRef, Lease, Verdict), bool>),
    Extend(Call<(GroupRef, Vec<Lease>, Duration), Vec<Lease>>),
    Ping(Call<(), ()>),
    Forget(Call<Arc<str>, ()>),
}

/// A request with the room it takes in the queue.
#[derive(Debug)]
pub(crate) struct Job {
    pub work: Work,
    pub _room: Option<OwnedSemaphorePermit>,
}

/// What the thread shares with those who ask.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Current identity of this process in the folder; 0 while the file is not open.
    pub owner: AtomicI64,
    /// Groups with subscriptions here; an entry for each subscription.
    pub active: Mutex<Vec<i64>>,
}

/// The open file.
struct Db {
    conn: Connection,
    owner: Owner,
    file: Option<FileId>,
    /// The connection syncs each commit.
    durable: bool,
}

pub(crate) struct Writer {
    folder: Folder,
    clocks: Clocks,
    limits: Limits,
    shared: Arc<Shared>,
    db: Option<Db>,
    reopen_at: Option<(Instant, Failure)>,
    bell: Bell,
    room: Room,
    ticks: u64,
    /// Maintenance stopped at its bound.
    unfinished: bool,
}

impl Writer {
    /// Opens the file.
    pub(crate) fn open(folder: Folder, clocks: Clocks, limits: Limits, shared: Arc<Shared>) -> Result<Self, Failure> {
        let bell = Bell::new(folder.wake());
        let mut writer = Self {
            folder,
            clocks,
            limits,
            shared,
            db: None,
            reopen_at: None,
            bell,
            room: Room::default(),
            // Instances started together do not report together.
            ticks: (schema::random() * TOUCH_TICKS as f64) as u64,
            unfinished: false,
        };
        writer.db()?;
        Ok(writer)
    }

    /// Serves until all senders are gone, then frees what is still leased.
    pub(crate) fn run(mut self, jobs: &Receiver<Job>) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut tick_at = Instant::now();
        loop {
            match jobs.recv_timeout(tick_at.saturating_duration_since(Instant::now())) {
                Ok(job) => {
                    batch.push(job);
                    batch.extend(jobs.try_iter().take(BATCH - 1));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            // All sidecar traffic hangs on this thread: a defect that panics costs one
            // batch, whose callers get an error, and not the broker.
            let step = catch_unwind(AssertUnwindSafe(|| {
                self.execute(&mut batch);
                if Instant::now() >= tick_at {
                    let more = self.tick();
                    tick_at = Instant::now() + if more { TICK / 10 } else { TICK };
                }
            }));
            if step.is_err() {
                error!(folder = %self.folder.path().display(), "the broker's thread panicked; opening the file anew");
                self.lose();
                batch.clear();
                tick_at = Instant::now() + TICK;
            }
        }
        self.leave();
    }

    /// Carries a batch out and answers; leaves it empty.
    fn execute(&mut self, batch: &mut Vec<Job>) {
        if batch.is_empty() {
            return;
        }
        if let Err(failure) = self.db() {
            batch.drain(..).for_each(|job| drop(job.finish(Err(&failure))));
            return;
        }
        let now = self.clocks.now();
        let mut todo: Vec<Job> = batch.drain(..).filter_map(|job| self.answer_by_reading(job, now)).collect();
        if todo.is_empty() {
            return;
        }
        match self.commit(&mut todo, now) {
            Err(failure) if todo.len() > 1 && matches!(failure.cure, Cure::Isolate | Cure::Space) => {
                // One of them is at fault, or all of them together are too much for the disk.
                for job in todo {
                    let mut alone = [job];
                    let outcome = self.commit(&mut alone, now);
                    self.answer(alone, outcome);
                }
            }
            outcome => self.answer(todo, outcome),
        }
    }

    /// Answers what needs no write lock; gives the rest back.
    fn answer_by_reading(&mut self, mut job: Job, now: Now) -> Option<Job> {
        let Some(db) = &self.db else { return Some(job) };
        let outcome = match &mut job.work {
            Work::Claim(call) => look(&db.conn, &call.ask, now).map(|peek| match peek {
                Peek::Ready => {}
                Peek::Idle { next_due } => call.answer = Some(Claimed::Messages { taken: Vec::new(), next_due }),
                Peek::Gone => call.answer = Some(Claimed::Gone),
            }),
            Work::Ping(call) => log::counter(&db.conn, "bytes").map(|_| call.answer = Some(())),
            _ => return Some(job),
        };
        match (outcome, &job.work) {
            (Ok(()), Work::Claim(Call { answer: None, .. })) => Some(job),
            (Ok(()), _) => {
                job.finish(Ok(()));
                None
            }
            (Err(e), _) => {
                let failure = Failure::from(e);
                self.note(&failure);
                job.finish(Err(&failure));
                None
            }
        }
    }

    /// One transaction for `jobs`; the answers are in the jobs.
    fn commit(&mut self, jobs: &mut [Job], now: Now) -> Result<(), Failure> {
        let durable = jobs.iter().any(|j| j.work.must_last());
        let mut rings = Vec::new();
        let Some(db) = &mut self.db else { return Err(Failure::new(Cure::Reopen, "the file is not open")) };
        db.set_durable(durable)?;
        let tx = db.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for job in jobs.iter_mut() {
            job.work.run(&tx, db.owner.id, self.limits, &mut self.room, now, &mut rings)?;
        }
        tx.commit()?;
        self.bell.ring(&rings);
        Ok(())
    }

    fn answer(&mut self, jobs: impl IntoIterator<Item = Job>, outcome: Result<(), Failure>) {
        if let Err(failure) = &outcome {
            self.note(failure);
        }
        let mut unheard = Vec::new();
        for job in jobs {
            unheard.extend(job.finish(outcome.as_ref().copied()));
        }
        // Messages taken for a subscription that went away meanwhile.
        let mut back: Vec<Job> = unheard.into_iter().flatten().collect();
        if !back.is_empty() {
            let now = self.clocks.now();
            if let Err(failure) = self.commit(&mut back, now) {
                // Their leases run out.
                debug!(%failure, "could not put messages back");
            }
        }
    }

    /// Draws the consequence of a failure.
    fn note(&mut self, failure: &Failure) {
        if failure.cure == Cure::Reopen {
            warn!(folder = %self.folder.path().display(), %failure, "the broker's file failed; opening it anew");
            self.lose();
        }
    }

    fn lose(&mut self) {
        self.db = None;
        self.shared.owner.store(0, Ordering::Relaxed);
    }

    /// The open file, opened now if it is not.
    fn db(&mut self) -> Result<&mut Db, Failure> {
        if self.db.is_none() {
            if let Some((at, failure)) = &self.reopen_at
                && Instant::now() < *at
            {
                return Err(failure.clone());
            }
            match Db::open(&self.folder) {
                Ok(db) => {
                    if self.reopen_at.take().is_some() {
                        info!(folder = %self.folder.path().display(), "the broker's file is open again");
                    }
                    self.shared.owner.store(db.owner.id, Ordering::Relaxed);
                    self.db = Some(db);
                }
                Err(failure) => {
                    if self.reopen_at.is_none() {
                        warn!(folder = %self.folder.path().display(), %failure, "cannot open the broker's file");
                    }
                    self.reopen_at = Some((Instant::now() + REOPEN, failure.clone()));
                    return Err(failure);
                }
            }
        }
        self.db.as_mut().ok_or_else(|| Failure::new(Cure::Reopen, "the file is not open"))
    }

    /// Housekeeping; true when there is more to do soon.
    fn tick(&mut self) -> bool {
        self.ticks += 1;
        if self
            .db
            .as_ref()
            .is_some_and(|db| db.file != schema::file_id(&self.folder.database()) || !db.owner.is_listed())
        {
            warn!(folder = %self.folder.path().display(), "the broker's file was removed or replaced; opening it anew");
            self.lose();
        }
        if let Err(failure) = self.db() {
            debug!(%failure, "no housekeeping");
            return false;
        }
        match self.housekeeping() {
            Ok(more) => more,
            Err(failure) => {
                debug!(%failure, "housekeeping failed");
                self.note(&failure);
                false
            }
        }
    }

    fn housekeeping(&mut self) -> Result<bool, Failure> {
        let now = self.clocks.now();
        let Some(db) = &mut self.db else { return Ok(false) };
        for dead in owner::find_dead(&self.folder.owners(), db.owner.id) {
            db.set_durable(false)?;
            let tx = db.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let topics = group::free(&tx, dead.id, true)?;
            tx.commit()?;
            if !topics.is_empty() {
                info!(owner = dead.id, "took over the messages of a process that died");
            }
            self.bell.forget(dead.id);
            self.bell.ring(&topics);
            dead.bury();
        }
        if self.ticks.is_multiple_of(TOUCH_TICKS) {
            let active: HashSet<i64> = self.shared.active.lock().iter().copied().collect();
            if !active.is_empty() {
                db.set_durable(false)?;
                let tx = db.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
                group::touch(&tx, &active.into_iter().collect::<Vec<_>>(), now)?;
                tx.commit()?;
            }
        }
        if !self.unfinished && !self.ticks.is_multiple_of(MAINTAIN_TICKS) {
            return Ok(false);
        }
        db.set_durable(false)?;
        self.unfinished = false;
        if maintain::is_due(&db.conn, now)? {
            let tx = db.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
            self.unfinished = maintain::round(&tx, self.limits, now)?;
            tx.commit()?;
        }
        self.unfinished |= maintain::vacuum(&db.conn)?;
        Ok(self.unfinished)
    }

    /// Frees what is still leased, so that nobody waits for the leases to end.
    fn leave(mut self) {
        let Some(mut db) = self.db.take() else { return };
        self.shared.owner.store(0, Ordering::Relaxed);
        let owner = db.owner.id;
        let freed = db
            .conn
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .and_then(|tx| group::free(&tx, owner, false).and_then(|topics| tx.commit().map(|()| topics)));
        match freed {
            Ok(topics) => self.bell.ring(&topics),
            Err(e) => debug!(error = %e, "could not free leases; they run out"),
        }
    }
}

/// A look without a write lock, all of it on one snapshot.
fn look(db: &Connection, claim: &Claim, now: Now) -> rusqlite::Result<Peek> {
    let snapshot = db.unchecked_transaction()?;
    group::peek(&snapshot, claim, now)
}

impl Db {
    fn open(folder: &Folder) -> Result<Self, Failure> {
        let conn = schema::open(folder)?;
        let owner = Owner::register(&folder.owners())?;
        let file = schema::file_id(&folder.database());
        Ok(Self { conn, owner, file, durable: true })
    }

    /// Leases need no fsync: losing some of them in a power cut repeats a delivery, and
    /// the next durable commit syncs the whole log up to itself.
    fn set_durable(&mut self, durable: bool) -> Result<(), Failure> {
        if self.durable != durable {
            self.conn.pragma_update(None, "synchronous", if durable { "FULL" } else { "NORMAL" })?;
            self.durable = durable;
        }
        Ok(())
    }
}

impl Work {
    /// Whether the answer promises that the change survives a power cut.
    fn must_last(&self) -> bool {
        match self {
            Self::Publish(_) | Self::Attach(_) | Self::Forget(_) => true,
            Self::Settle(call) => call.ask.2 == Verdict::Ack,
            Self::Claim(_) | Self::Extend(_) | Self::Ping(_) => false,
        }
    }

    fn run(
        &mut self,
        db: &Connection,
        owner: i64,
        limits: Limits,
        room: &mut Room,
        now: Now,
        rings: &mut Vec<i64>,
    ) -> rusqlite::Result<()> {
        match self {
            Self::Publish(c) => c.answer = Some(log::append(db, &c.ask, limits, room, now, rings)?),
            Self::Attach(c) => {
                c.answer = Some(group::attach(db, &c.ask.topic, &c.ask.group, c.ask.start, now)?);
            }
            Self::Claim(c) => c.answer = Some(group::claim(db, &c.ask, owner, now)?),
            Self::Settle(c) => {
                let (at, lease, verdict) = c.ask;
                let held = group::settle(db, at.group, lease, verdict, now)?;
                if held && verdict == Verdict::Release && !rings.contains(&at.topic) {
                    rings.push(at.topic);
                }
                c.answer = Some(held);
            }
            Self::Extend(c) => c.answer = Some(group::extend(db, c.ask.0.group, &c.ask.1, c.ask.2, now)?),
            Self::Ping(c) => c.answer = Some(()),
            Self::Forget(c) => c.answer = Some(log::forget(db, &c.ask)?),
        }
        Ok(())
    }
}

impl Job {
    /// Answers; what was taken for somebody who left comes back as jobs that release it.
    fn finish(self, outcome: Result<(), &Failure>) -> Option<Vec<Job>> {
        match self.work {
            Work::Publish(c) => drop(c.finish(outcome)),
            Work::Attach(c) => drop(c.finish(outcome)),
            Work::Settle(c) => drop(c.finish(outcome)),
            Work::Extend(c) => drop(c.finish(outcome)),
            Work::Ping(c) => drop(c.finish(outcome)),
            Work::Forget(c) => drop(c.finish(outcome)),
            Work::Claim(c) => {
                let at = c.ask.at;
                if let Some(Claimed::Messages { taken, .. }) = c.finish(outcome) {
                    let release = |lease| Work::Settle(Call::new((at, lease, Verdict::Release)).0);
                    return Some(taken.into_iter().map(|t| Job { work: release(t.lease), _room: None }).collect());
                }
            }
        }
        None
    }
}
