//! The load generator: one thread, kept connections, latencies that count waiting.
//!
//! At a fixed rate a timer decides when each request is due and a request's latency begins
//! there, whether or not a connection was free: a slow answer shows in every request it held up
//! (no coordinated omission). At saturation each connection sends as soon as it has its answer;
//! latencies of such a run are those of a closed loop and are named so.

mod line;
mod pace;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use http::{HeaderName, HeaderValue, Method, StatusCode};

use crate::process;

/// Latencies above this are counted as this much.
const LONGEST: Duration = Duration::from_secs(60);
/// Time for the answers that are due when a run ends.
const LAST_ANSWERS: Duration = Duration::from_secs(10);
/// Requests on one HTTP/2 connection at the same time.
const STREAMS_PER_CONNECTION: usize = 16;

/// How a request travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    /// HTTP/1.1, one request at a time on a connection.
    Http1,
    /// A unary gRPC call over cleartext HTTP/2; the body is the framed message.
    Grpc,
    /// Redis commands over one connection that all lines share.
    Redis,
    /// Events for a Kafka topic, which is the path, through one producer that all lines share.
    Kafka,
}

/// The request that is sent again and again.
#[derive(Clone, Debug)]
pub(crate) struct Shot {
    pub(crate) to: SocketAddr,
    pub(crate) wire: Wire,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) body: Bytes,
    /// For [`Wire::Redis`]: a command and its arguments; several are a transaction.
    pub(crate) commands: Vec<Vec<Bytes>>,
    /// Any other status is an error.
    pub(crate) expect: StatusCode,
    /// Fewer bytes in an answer are an error.
    pub(crate) least_bytes: usize,
}

/// When requests are sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// So many a second, due at even intervals.
    Rate(u32),
    /// As fast as the connections go.
    Saturation,
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) pace: Pace,
    /// Requests under way at most: connections of HTTP/1.1, streams of gRPC.
    pub(crate) connections: usize,
    /// Run before anything is counted.
    pub(crate) warm_up: Duration,
    /// Run that counts.
    pub(crate) measured: Duration,
}

/// What a run showed.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Nanoseconds from due (or sent, at saturation) to the last byte of the answer.
    pub(crate) latency: Histogram<u64>,
    /// Nanoseconds from due to sent; the generator's and the connections' part of the latency.
    pub(crate) late: Histogram<u64>,
    /// Answers as they should be.
    pub(crate) good: u64,
    /// Everything else.
    pub(crate) errors: u64,
    /// First reason of an error.
    pub(crate) reason: Option<String>,
    /// Length of the part that counts.
    pub(crate) elapsed: Duration,
    /// CPU seconds of all watched processes together.
    pub(crate) cpu: f64,
    /// CPU seconds of the generator.
    pub(crate) own_cpu: f64,
}

/// Sums up what the tasks of a run see.
#[derive(Debug)]
struct Tally {
    latency: Histogram<u64>,
    late: Histogram<u64>,
    good: u64,
    errors: u64,
    reason: Option<String>,
}

type SharedTally = Arc<Mutex<Tally>>;

impl Tally {
    fn new() -> io::Result<Self> {
        let histogram = || Histogram::new_with_bounds(1, nanos(LONGEST), 3).map_err(io::Error::other);
        Ok(Self { latency: histogram()?, late: histogram()?, good: 0, errors: 0, reason: None })
    }

    fn add(&mut self, due: Instant, sent: Instant, answer: Result<(), String>) {
        match answer {
            Ok(()) => {
                self.good += 1;
                self.latency.saturating_record(nanos(due.elapsed()).max(1));
                self.late.saturating_record(nanos(sent.saturating_duration_since(due)).max(1));
            }
            Err(reason) => {
                self.errors += 1;
                self.reason.get_or_insert(reason);
            }
        }
    }
}

/// Runs `load` against one target; `watched` are the processes whose CPU counts.
///
/// # Errors
/// The target cannot be reached at all.
pub(crate) fn run(shot: &Shot, load: Load, watched: &[u32]) -> io::Result<Outcome> {
    // A thread of its own, so that its CPU can be told from everything else's.
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(drive(shot, load, watched))
            })
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the load generator panicked")))
    })
}

async fn drive(shot: &Shot, load: Load, watched: &[u32]) -> io::Result<Outcome> {
    let tally: SharedTally = Arc::new(Mutex::new(Tally::new()?));
    let lines = line::open(shot, load.connections).await?;
    let schedule = match load.pace {
        Pace::Rate(per_second) => pace::Schedule::fixed(per_second, load),
        Pace::Saturation => pace::Schedule::closed_loop(load),
    };
    let mut tasks = Vec::with_capacity(lines.len());
    for line in lines {
        tasks.push(tokio::spawn(pace::worker(line, schedule.clone(), tally.clone())));
    }
    let clock = tokio::spawn(schedule.clone().run());
    // What warms up is not counted, neither in latencies nor in CPU.
    tokio::time::sleep_until(schedule.counts_from().into()).await;
    let (before, own_before) = (cpu(watched), process::own_thread_cpu());
    let began = Instant::now();
    tokio::time::sleep_until(schedule.ends_at().into()).await;
    let (after, own_after) = (cpu(watched), process::own_thread_cpu());
    let elapsed = began.elapsed();
    let in_time = lock(&tally).good;
    let _ = clock.await;
    // A request without an answer counts as an error after this time, not as for ever.
    let deadline = tokio::time::Instant::now() + LAST_ANSWERS;
    for task in tasks {
        if tokio::time::timeout_at(deadline, task).await.is_err() {
            lock(&tally).add(Instant::now(), Instant::now(), Err(format!("no answer within {LAST_ANSWERS:?}")));
        }
    }
    let mut tally = lock(&tally);
    let empty = Tally::new()?;
    let Tally { latency, late, good, errors, reason } = std::mem::replace(&mut *tally, empty);
    let good = if matches!(load.pace, Pace::Saturation) { in_time } else { good };
    Ok(Outcome { latency, late, good, errors, reason, elapsed, cpu: after - before, own_cpu: own_after - own_before })
}

fn cpu(watched: &[u32]) -> f64 {
    watched.iter().map(|pid| process::cpu_seconds(*pid)).sum()
}

fn lock(tally: &SharedTally) -> std::sync::MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}
