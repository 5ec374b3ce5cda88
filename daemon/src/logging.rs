//! Log lines in the incumbent's text and JSON forms.
//!
//! Code logs with `tracing`; a target that starts with `dapr.` becomes the
//! line's `scope` as it is, other targets are mapped ([`scope`]). An error
//! event with a field `fatal` is written with `level=fatal`.
//!
//! Lines are queued in memory and written by a thread of their own, so a slow
//! reader of standard output never holds up a request: when the queue is full,
//! lines are dropped and counted, and a line says how many were.

mod format;
mod level;
mod limit;
mod queue;
mod scope;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime};

use mecha_core::metrics::{Metric, Metrics};
use thiserror::Error;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

use format::{Fields, Line};
pub use level::Level;
use limit::{RateLimit, Verdict};
use queue::Queue;
pub use scope::scope;

use crate::cli::LogOptions;

/// A line without a scope of its own belongs here.
pub const RUNTIME_SCOPE: &str = "dapr.runtime";

/// Longest `Drop` waits for queued lines.
const DROP_FLUSH: Duration = Duration::from_secs(1);

/// What every line says about where it comes from.
#[derive(Clone, Debug)]
pub struct LogIdentity {
    /// Left out of lines when empty.
    pub app_id: String,
    /// Host name.
    pub instance: String,
    /// Version of the runtime whose lines these look like.
    pub version: &'static str,
}

/// Why logging could not be set up.
#[derive(Debug, Error)]
pub enum LogError {
    /// The file given by `--log-file` cannot be appended to.
    #[error("cannot append logs to {path}: {source}. Check --log-file and the folder's permissions")]
    File {
        /// As given.
        path: PathBuf,
        /// From the operating system.
        source: io::Error,
    },
    /// No thread for writing.
    #[error("cannot start the thread that writes logs: {0}")]
    Thread(io::Error),
    /// Somebody else installed a subscriber for this process.
    #[error("logging is already set up in this process")]
    AlreadyInstalled,
}

/// The way to change and flush logging. Dropping the last value waits up to a
/// second for queued lines.
#[derive(Debug)]
pub struct Logging {
    shared: Arc<Shared>,
}

/// What was lost on the way to the output, for the metrics.
#[derive(Clone, Debug)]
pub struct LogLosses {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    level: AtomicU8,
    json: bool,
    identity: LogIdentity,
    queue: Queue,
    limit: RateLimit,
}

/// Writes events; made by [`Logging::new`].
#[derive(Debug)]
pub struct LogLayer {
    shared: Arc<Shared>,
}

thread_local! {
    /// Reused per thread: a log line allocates nothing once its buffers have grown.
    static SCRATCH: RefCell<(Fields, String)> = RefCell::default();
}

impl Logging {
    /// Opens the output and starts its thread. The layer is to be installed by
    /// the caller; [`Logging::install`] does both.
    pub fn new(options: &LogOptions, identity: LogIdentity) -> Result<(Self, LogLayer), LogError> {
        let output: Box<dyn Write + Send> = match &options.file {
            None => Box::new(io::stdout()),
            Some(path) => {
                let mut open = OpenOptions::new();
                open.append(true).create(true);
                #[cfg(unix)]
                std::os::unix::fs::OpenOptionsExt::mode(&mut open, 0o644);
                Box::new(open.open(path).map_err(|source| LogError::File { path: path.clone(), source })?)
            }
        };
        Self::to(output, options.level, options.json, identity)
    }

    /// Makes the layer the process's subscriber. Once per process.
    pub fn install(options: &LogOptions, identity: LogIdentity) -> Result<Self, LogError> {
        let (logging, layer) = Self::new(options, identity)?;
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::AlreadyInstalled)?;
        Ok(logging)
    }

    fn to(
        output: Box<dyn Write + Send>,
        level: Level,
        json: bool,
        identity: LogIdentity,
    ) -> Result<(Self, LogLayer), LogError> {
        let queue = Queue::start(output).map_err(LogError::Thread)?;
        let level = AtomicU8::new(level as u8);
        let shared = Arc::new(Shared { level, json, identity, queue, limit: RateLimit::default() });
        Ok((Self { shared: Arc::clone(&shared) }, LogLayer { shared }))
    }

    /// Changes the least severe level written, from now on.
    pub fn set_level(&self, level: Level) {
        self.shared.level.store(level as u8, Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
    }

    /// The least severe level written.
    pub fn level(&self) -> Level {
        self.shared.level()
    }

    /// Lines lost since the start because the output was too slow or failed.
    pub fn dropped(&self) -> u64 {
        self.shared.queue.dropped()
    }

    /// The way to count lost lines in the metrics.
    pub fn losses(&self) -> LogLosses {
        LogLosses { shared: Arc::clone(&self.shared) }
    }

    /// Waits until all lines queued so far are written. `false`: not in time.
    /// Blocks; meant for the end of the process.
    pub fn flush(&self, limit: Duration) -> bool {
        self.shared.queue.flush(limit)
    }

    /// Writes panics as error lines, with their place, before the process goes on
    /// or ends.
    pub fn report_panics(&self) {
        let shared = Arc::clone(&self.shared);
        std::panic::set_hook(Box::new(move |panic| {
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            let text = panic.payload_as_str().unwrap_or("no text");
            tracing::error!(target: "dapr.runtime", place, "panic: {text}");
            shared.queue.flush(DROP_FLUSH);
        }));
    }
}

impl LogLosses {
    /// Brings `mecha_log_dropped_total` up to date. Asked for at each scrape: the counter is then
    /// that of the metrics in force, which reloads replace.
    pub fn count_in(&self, metrics: &Metrics) {
        metrics.counter(Metric::LogDroppedTotal, &[]).add(self.shared.queue.news());
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        self.flush(DROP_FLUSH);
    }
}

impl Shared {
    fn level(&self) -> Level {
        Level::from_u8(self.level.load(Ordering::Relaxed))
    }

    /// By what is known of a callsite before it runs.
    fn is_enabled(&self, metadata: &Metadata<'_>) -> bool {
        if !metadata.is_event() {
            return false;
        }
        let line = Level::of(metadata);
        let least = self.level();
        // Libraries are quieter than us: their "info" is our "debug".
        if scope::is_foreign(metadata.target()) && line < Level::Warning {
            return line == Level::Info && least == Level::Debug && *metadata.level() == tracing::Level::INFO;
        }
        line >= least && *metadata.level() != tracing::Level::TRACE
    }
}

impl<S: Subscriber> Layer<S> for LogLayer {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.shared.is_enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.shared.is_enabled(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match self.shared.level() {
            Level::Debug => LevelFilter::DEBUG,
            Level::Info => LevelFilter::INFO,
            Level::Warning => LevelFilter::WARN,
            Level::Error | Level::Fatal => LevelFilter::ERROR,
        })
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let write = |fields: &mut Fields, line: &mut String| {
            fields.clear();
            line.clear();
            event.record(fields);
            let level = Level::of(metadata);
            let scope = scope(metadata.target());
            if matches!(level, Level::Warning | Level::Error) {
                match self.shared.limit.check(&scope, fields.component(), fields.message()) {
                    Verdict::Write => {}
                    Verdict::WriteAfter(suppressed) => fields.add_suppressed(suppressed),
                    Verdict::Suppress => return,
                }
            }
            fields.sort();
            let new = Line { time: SystemTime::now(), level, scope: &scope, identity: &self.shared.identity, fields };
            if self.shared.json {
                new.json(line)
            } else {
                new.text(line)
            }
            self.shared.queue.push(line.as_bytes());
        };
        SCRATCH.with(|scratch| match scratch.try_borrow_mut() {
            Ok(mut scratch) => {
                let (fields, line) = &mut *scratch;
                write(fields, line);
            }
            // A value's Display logged something itself.
            Err(_) => write(&mut Fields::default(), &mut String::new()),
        });
    }
}
