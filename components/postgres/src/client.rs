//! A bounded pool of connections, and operations with a deadline that are repeated when that is safe.
//!
//! A connection is lent to one operation at a time. One that was in use when its operation
//! was dropped or ran out of time is closed, never lent again: nobody waits behind an answer
//! that nobody wants.
//!
//! The driver splits a connection into a handle and a future that moves the bytes. The pool
//! (deadpool) runs that future as a task, owned by the pooled connection and aborted with it;
//! no other task is started by this crate.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use deadpool_postgres::{
    ClientWrapper, Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolConfig, QueueMode, RecyclingMethod,
    Timeouts,
};
use futures_util::TryStreamExt;
use futures_util::future::{join, join_all};
use mecha_components_api::{Error, ErrorKind, Result};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{NoTls, SimpleQueryMessage};

use crate::config::{Mode, PgConfig};
use crate::error::{Done, Fault, Remedy, Twice};
use crate::sql::{Param, Rows, Sql, inline};
use crate::tls;

/// A connection that lay idle this long is asked whether it lives before it is lent.
const TRUSTED_IDLE: Duration = Duration::from_secs(5);
/// How long it may take to answer.
const CHECK_LIMIT: Duration = Duration::from_secs(2);
/// An attempt that may be repeated gets no more time than this, so that a half-open connection
/// is found although the operation would be allowed to wait longer.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);
/// How long an operation goes on while nothing answers at the server's address.
const UNREACHABLE_LIMIT: Duration = Duration::from_secs(2);
/// First and longest pause between two attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// How often prepared statements may turn out stale within one operation.
const PREPARE_AGAIN: u32 = 3;
/// Operations that may wait for a connection, per connection.
const WAITING_PER_CONNECTION: usize = 512;
/// Statements of a transaction that are sent before their answers are awaited.
const PIPELINE: usize = 16;
/// How often idle connections are looked through, at most.
const SHRINK_EVERY: Duration = Duration::from_secs(30);

/// One server, shared by all callers.
pub(crate) struct Client {
    /// Servers and database.
    place: String,
    pool: Pool,
    mode: Mode,
    timeout: Duration,
    max_idle: Duration,
    waiting: AtomicUsize,
    most_waiting: usize,
    born: Instant,
    /// Milliseconds after `born` at which idle connections were last looked through.
    shrunk: AtomicU64,
}

/// What an operation consists of.
#[derive(Clone, Copy)]
enum Job<'a> {
    Ping,
    Read(&'a Sql, &'a [Param<'a>]),
    Write(&'a Sql, &'a [Param<'a>]),
    Transact(&'a [Step<'a>]),
}

/// One statement of a transaction.
#[derive(Debug)]
pub(crate) struct Step<'a> {
    pub(crate) sql: &'a Sql,
    pub(crate) params: Vec<Param<'a>>,
    /// What it means when the statement changes nothing; `None` when that is fine.
    pub(crate) must_change: Option<fn() -> Error>,
}

enum Answer {
    Nothing,
    Rows(Rows),
    Changed(u64),
}

/// A borrowed connection. Dropped while busy, it is closed.
pub(crate) struct Lease {
    connection: Option<Object>,
    busy: bool,
}

/// One more caller than before, until dropped.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.busy
            && let Some(connection) = self.connection.take()
        {
            drop(Object::take(connection));
        }
    }
}

impl Lease {
    /// The connection.
    ///
    /// # Errors
    /// Never: it is there until the lease is dropped.
    pub(crate) fn get(&self) -> std::result::Result<&ClientWrapper, Fault> {
        match &self.connection {
            Some(connection) => Ok(connection),
            None => Err(Fault::refused(Error::internal("the connection was given back already"))),
        }
    }

    /// The work is done and the connection may be lent again.
    pub(crate) fn settle(&mut self) {
        self.busy = false;
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("pool", &self.pool.status()).field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Client {
    /// See [`mecha_components_api::Component::place`].
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// Sets the pool up; connects to nothing yet.
    pub(crate) fn new(config: &PgConfig) -> Result<Self> {
        let manager_config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = match &config.tls {
            None => Manager::from_config(config.connect.clone(), NoTls, manager_config),
            Some(tls) => Manager::from_config(config.connect.clone(), tls::connector(tls)?, manager_config),
        };
        let lifetime = config.max_lifetime;
        let mut builder = Pool::builder(manager)
            .config(PoolConfig {
                max_size: config.max_conns,
                timeouts: Timeouts::default(),
                // The idle ones stay idle and can be closed.
                queue_mode: QueueMode::Lifo,
            })
            .pre_recycle(Hook::async_fn(move |client: &mut ClientWrapper, metrics| {
                if metrics.age() > lifetime {
                    return Box::pin(std::future::ready(Err(HookError::message("old"))));
                }
                if metrics.last_used() < TRUSTED_IDLE || client.is_closed() {
                    return Box::pin(std::future::ready(Ok(())));
                }
                Box::pin(async move {
                    match timeout(CHECK_LIMIT, client.check_connection()).await {
                        Ok(Ok(())) => Ok(()),
                        Ok(Err(e)) => Err(HookError::Backend(e)),
                        Err(_) => Err(HookError::message("silent")),
                    }
                })
            }));
        if config.limit_statements {
            // What a caller no longer waits for should not go on for ever on the server.
            let set = format!("SET statement_timeout = {}", config.timeout.as_millis());
            builder = builder.post_create(Hook::async_fn(move |client: &mut ClientWrapper, _| {
                let set = set.clone();
                Box::pin(async move { client.batch_execute(&set).await.map_err(HookError::Backend) })
            }));
        }
        let pool = builder.build().map_err(|e| Error::internal(format!("cannot set up the connection pool: {e}")))?;
        let connect = &config.connect;
        let place = format!(
            "{:?} {:?} {}",
            connect.get_hosts(),
            connect.get_ports(),
            connect.get_dbname().or(connect.get_user()).unwrap_or_default()
        );
        Ok(Self {
            place,
            pool,
            mode: config.mode,
            timeout: config.timeout,
            max_idle: config.max_idle,
            waiting: AtomicUsize::new(0),
            most_waiting: config.max_conns.saturating_mul(WAITING_PER_CONNECTION),
            born: Instant::now(),
            shrunk: AtomicU64::new(0),
        })
    }

    /// How statements travel.
    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// Longest time of one operation.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Asks the server whether it is there.
    pub(crate) async fn ping(&self) -> Result<()> {
        self.run("ping", Twice::Harmless, Job::Ping).await.map(|_| ())
    }

    /// Rows of a statement that changes nothing.
    pub(crate) async fn read(&self, what: &'static str, sql: &Sql, params: &[Param<'_>]) -> Result<Rows> {
        match self.run(what, Twice::Harmless, Job::Read(sql, params)).await? {
            Answer::Rows(rows) => Ok(rows),
            Answer::Nothing | Answer::Changed(_) => Ok(Rows::Binary(Vec::new())),
        }
    }

    /// Number of rows that a statement changed. Acknowledged means committed.
    pub(crate) async fn write(&self, what: &'static str, twice: Twice, sql: &Sql, params: &[Param<'_>]) -> Result<u64> {
        match self.run(what, twice, Job::Write(sql, params)).await? {
            Answer::Changed(rows) => Ok(rows),
            Answer::Nothing | Answer::Rows(_) => Ok(0),
        }
    }

    /// All steps in order, or none.
    pub(crate) async fn transact(&self, what: &'static str, twice: Twice, steps: &[Step<'_>]) -> Result<()> {
        self.run(what, twice, Job::Transact(steps)).await.map(|_| ())
    }

    /// Refuses all further operations. Connections in use are closed when they come back.
    pub(crate) fn close(&self) {
        self.pool.close();
    }

    /// A connection for work that this module does not know. The lease is busy until settled.
    pub(crate) async fn lease(&self, deadline: Instant) -> std::result::Result<Lease, Fault> {
        self.shrink();
        match timeout_at(deadline, self.pool.get()).await {
            Ok(Ok(connection)) => Ok(Lease { connection: Some(connection), busy: true }),
            Ok(Err(e)) => Err(Fault::connecting(e)),
            Err(_) => Err(Fault::no_connection()),
        }
    }

    /// Counts one caller in.
    fn enter(&self) -> Result<Place<'_>> {
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
        let place = Place(&self.waiting);
        if waiting >= self.most_waiting {
            return Err(Error::new(ErrorKind::Overloaded, "too many operations wait for a connection; see 'maxConns'"));
        }
        Ok(place)
    }

    async fn run(&self, what: &'static str, twice: Twice, job: Job<'_>) -> Result<Answer> {
        let _place = self.enter()?;
        let started = Instant::now();
        let deadline = started + self.timeout;
        let mut pause = BACKOFF.0;
        let mut stale = 0;
        loop {
            let limit = match twice {
                Twice::Harmless => deadline.min(Instant::now() + ATTEMPT_LIMIT),
                Twice::No => deadline,
            };
            let fault = match self.attempt(job, limit).await {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            self.cure(fault.remedy);
            stale += u32::from(fault.remedy == Remedy::Prepare);
            let wait = jitter(pause);
            let end = match fault.done {
                Done::Unreachable => deadline.min(started + UNREACHABLE_LIMIT),
                _ => deadline,
            };
            if !fault.may_retry(twice) || stale > PREPARE_AGAIN || Instant::now() + wait >= end {
                return Err(fault.into_error(what));
            }
            tracing::debug!(operation = what, error = %fault.error, "trying again");
            sleep(wait).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    async fn attempt(&self, job: Job<'_>, limit: Instant) -> std::result::Result<Answer, Fault> {
        let mut lease = self.lease(limit).await?;
        let outcome = match timeout_at(limit, perform(lease.get()?, self.mode, job)).await {
            Ok(outcome) => outcome,
            Err(_) => return Err(Fault::no_answer()),
        };
        match &outcome {
            Ok(_) => lease.settle(),
            Err(fault) if matches!(fault.remedy, Remedy::Keep | Remedy::Prepare) => lease.settle(),
            Err(_) => {}
        }
        outcome
    }

    /// Does to the idle connections what a fault asks for.
    pub(crate) fn cure(&self, remedy: Remedy) {
        match remedy {
            Remedy::Keep | Remedy::Drop => {}
            Remedy::DropAll => drop(self.pool.retain(|_, _| false)),
            Remedy::Prepare => self.pool.manager().statement_caches.clear(),
        }
    }

    /// Closes what lay idle too long, at most once per period: nobody else would.
    fn shrink(&self) {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        let last = self.shrunk.load(Ordering::Relaxed);
        let every = u64::try_from(SHRINK_EVERY.min(self.max_idle).as_millis()).unwrap_or(u64::MAX);
        if now.saturating_sub(last) < every
            || self.shrunk.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_err()
        {
            return;
        }
        drop(self.pool.retain(|_, metrics| metrics.last_used() < self.max_idle));
    }
}

/// A pause between half of `pause` and all of it, so that callers do not come back together.
pub(crate) fn jitter(pause: Duration) -> Duration {
    // The clock's last digits are random enough for this.
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
    let half = pause / 2;
    half + half.mul_f64(f64::from(nanos % 1_000) / 1_000.0)
}

async fn perform(client: &ClientWrapper, mode: Mode, job: Job<'_>) -> std::result::Result<Answer, Fault> {
    match job {
        Job::Ping => client.check_connection().await.map(|()| Answer::Nothing).map_err(|e| Fault::of(&e)),
        Job::Read(sql, params) => read(client, mode, sql, params).await.map(Answer::Rows),
        Job::Write(sql, params) => write(client, mode, sql, params).await.map(Answer::Changed),
        Job::Transact(steps) => transact(client, mode, steps).await.map(|()| Answer::Nothing),
    }
}

pub(crate) async fn read(
    client: &ClientWrapper,
    mode: Mode,
    sql: &Sql,
    params: &[Param<'_>],
) -> std::result::Result<Rows, Fault> {
    let of = |e: tokio_postgres::Error| Fault::of(&e);
    match mode {
        Mode::Cached if sql.keep => {
            let statement = client.prepare_typed_cached(&sql.text, &sql.types).await.map_err(of)?;
            let rows = client.query_raw(&statement, params).await.map_err(of)?;
            Ok(Rows::Binary(rows.try_collect().await.map_err(of)?))
        }
        Mode::Cached | Mode::OneShot => {
            let typed = params.iter().map(|p| (p, p.ty()));
            let rows = client.query_typed_raw(&sql.text, typed).await.map_err(of)?;
            Ok(Rows::Binary(rows.try_collect().await.map_err(of)?))
        }
        Mode::Simple => {
            let text = inline(&sql.text, params).map_err(Fault::refused)?;
            let messages = client.simple_query(&text).await.map_err(of)?;
            let rows = messages.into_iter().filter_map(|m| match m {
                SimpleQueryMessage::Row(row) => Some(row),
                _ => None,
            });
            Ok(Rows::Text(rows.collect()))
        }
    }
}

async fn write(client: &ClientWrapper, mode: Mode, sql: &Sql, params: &[Param<'_>]) -> std::result::Result<u64, Fault> {
    let of = |e: tokio_postgres::Error| Fault::of(&e);
    match mode {
        Mode::Cached if sql.keep => {
            let statement = client.prepare_typed_cached(&sql.text, &sql.types).await.map_err(of)?;
            client.execute_raw(&statement, params).await.map_err(of)
        }
        Mode::Cached | Mode::OneShot => {
            let typed: Vec<(&(dyn ToSql + Sync), Type)> =
                params.iter().map(|p| (p as &(dyn ToSql + Sync), p.ty())).collect();
            client.execute_typed(&sql.text, &typed).await.map_err(of)
        }
        Mode::Simple => {
            let text = inline(&sql.text, params).map_err(Fault::refused)?;
            let messages = client.simple_query(&text).await.map_err(of)?;
            Ok(changed(&messages))
        }
    }
}

/// Rows that the last statement of a text changed.
pub(crate) fn changed(messages: &[SimpleQueryMessage]) -> u64 {
    messages
        .iter()
        .rev()
        .find_map(|m| match m {
            SimpleQueryMessage::CommandComplete(rows) => Some(*rows),
            _ => None,
        })
        .unwrap_or(0)
}

/// Two round trips in all for up to [`PIPELINE`] steps: the answers are read after everything
/// was sent.
async fn transact(client: &ClientWrapper, mode: Mode, steps: &[Step<'_>]) -> std::result::Result<(), Fault> {
    let of = |e: tokio_postgres::Error| Fault::of(&e);
    if mode == Mode::Cached {
        // Before the transaction, so that its statements go out in their order without a pause.
        for step in steps {
            client.prepare_typed_cached(&step.sql.text, &step.sql.types).await.map_err(of)?;
        }
    }
    let mut begin = true;
    for some in steps.chunks(PIPELINE) {
        // Futures send when they are first polled, and both `join` and a `join_all` of this
        // size poll in order.
        let work = join_all(some.iter().map(|step| write(client, mode, step.sql, &step.params)));
        let outcomes = if std::mem::take(&mut begin) {
            let (begun, outcomes) = join(client.batch_execute("BEGIN"), work).await;
            begun.map_err(of)?;
            outcomes
        } else {
            work.await
        };
        for (step, outcome) in some.iter().zip(outcomes) {
            let refusal = match (outcome, step.must_change) {
                (Ok(0), Some(refusal)) => Fault::refused(refusal()),
                (Ok(_), _) => continue,
                (Err(fault), _) => fault,
            };
            return Err(rolled_back(client, refusal).await);
        }
    }
    match client.batch_execute("COMMIT").await {
        Ok(()) => Ok(()),
        Err(e) => {
            let mut fault = Fault::of(&e);
            // A connection that ends in the middle of a commit says nothing about it.
            if fault.remedy == Remedy::Drop {
                fault.done = Done::Perhaps;
            }
            Err(fault)
        }
    }
}

/// Ends the transaction; a connection that cannot even do that is closed, which has the same effect.
async fn rolled_back(client: &ClientWrapper, mut fault: Fault) -> Fault {
    if matches!(fault.remedy, Remedy::Keep | Remedy::Prepare) && client.batch_execute("ROLLBACK").await.is_err() {
        fault.remedy = Remedy::Drop;
    }
    // The commit was not sent, so nothing can have been kept.
    if fault.done == Done::Perhaps {
        fault.done = Done::Nothing;
    }
    fault
}
