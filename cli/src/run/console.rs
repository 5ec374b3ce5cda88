//! What apps and sidecars print: split into lines, prefixed for the terminal, copied to log files.
//!
//! One thread does all writing, behind a bounded queue. A terminal that is paused therefore slows the apps down,
//! as it would without mecha, but never the part that handles signals and process exits.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::{mpsc, oneshot, watch};

/// Chunks waiting to be written.
const QUEUE: usize = 64;
/// Bytes read from a pipe at once.
const CHUNK: usize = 16 * 1024;
/// A longer line is broken into lines of this size.
const MAX_LINE: usize = 64 * 1024;
/// Lines kept of a sidecar's log, to explain its end.
const TAIL_LINES: usize = 20;
const TAIL_LINE_BYTES: usize = 2 * 1024;
/// A log file of this size becomes `FILE.1`, and a new one is begun.
const MAX_LOG_BYTES: u64 = 32 * 1024 * 1024;
/// How long the last output may take to reach a slow reader.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Where output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// The terminal. mecha still keeps a file of its own, for `mecha logs`.
    Console,
    /// Log files beside the app.
    File,
    /// Both.
    FileAndConsole,
}

impl Destination {
    /// Whether output is shown.
    pub(crate) fn on_console(self) -> bool {
        self != Self::File
    }

    /// Whether the user asked for files of their own.
    pub(crate) fn in_file(self) -> bool {
        self != Self::Console
    }
}

/// The writer of everything. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Console {
    queue: mpsc::Sender<Job>,
    closed: watch::Receiver<bool>,
}

enum Job {
    Write { console: Vec<u8>, file: Option<(Arc<LogFile>, Vec<u8>)> },
    Flush(oneshot::Sender<()>),
}

impl Console {
    /// Starts the writer.
    pub(crate) fn start() -> io::Result<Self> {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let (closed_tx, closed) = watch::channel(false);
        std::thread::Builder::new().name("console".to_owned()).spawn(move || write_all(jobs, &closed_tx))?;
        Ok(Self { queue, closed })
    }

    /// Shows a line of mecha's own.
    pub(crate) async fn say(&self, line: impl Into<String>) {
        let mut line: String = line.into();
        line.push('\n');
        self.send(Job::Write { console: line.into_bytes(), file: None }).await;
    }

    /// Waits until everything so far is written, but not for ever.
    pub(crate) async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        let flushed = async {
            self.send(Job::Flush(done)).await;
            // An error means that the writer is gone, and nothing can be waited for.
            let _ = wait.await;
        };
        // A reader that takes nothing for this long has had its chance.
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, flushed).await;
    }

    /// Resolves when nobody reads standard output any more.
    pub(crate) async fn closed(&self) {
        let mut closed = self.closed.clone();
        if closed.wait_for(|closed| *closed).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    async fn send(&self, job: Job) {
        // Fails only when the writer is gone; then there is nowhere to write to.
        let _ = self.queue.send(job).await;
    }
}

fn write_all(mut jobs: mpsc::Receiver<Job>, closed: &watch::Sender<bool>) {
    let mut out = io::stdout();
    let mut broken = false;
    while let Some(job) = jobs.blocking_recv() {
        match job {
            Job::Write { console, file } => {
                if !broken && !console.is_empty() && out.write_all(&console).and_then(|()| out.flush()).is_err() {
                    // A terminal or reader that is gone stays gone; the log files go on.
                    broken = true;
                    closed.send_replace(true);
                }
                if let Some((file, bytes)) = file {
                    file.append(&bytes);
                }
            }
            Job::Flush(done) => drop(done.send(())),
        }
    }
}

/// A log file that never grows without bound.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    open: Mutex<Option<(File, u64)>>,
}

impl LogFile {
    /// Begins a new file, with its folder.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        Ok(Self { path: path.to_owned(), open: Mutex::new(Some((begin(path)?, 0))) })
    }

    fn append(&self, bytes: &[u8]) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((file, size)) = open.as_mut() else { return };
        let result = (|| {
            if *size > 0 && *size + bytes.len() as u64 > MAX_LOG_BYTES {
                let mut old = self.path.clone().into_os_string();
                old.push(".1");
                std::fs::rename(&self.path, &old)?;
                *file = begin(&self.path)?;
                *size = 0;
            }
            *size += bytes.len() as u64;
            file.write_all(bytes)
        })();
        if let Err(error) = result {
            // The disk is full or the folder gone: say it once, and let the apps run on.
            eprintln!("warning: {} is written no further: {error}", self.path.display());
            *open = None;
        }
    }
}

fn begin(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Severity of a sidecar's log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    /// The level a line names, in the text or the JSON form; none for lines that are no log lines.
    fn of(line: &[u8]) -> Option<Self> {
        const PLAIN: &[u8] = b"level=";
        const JSON: &[u8] = b"\"level\":\"";
        // The level stands near the beginning; the message after it may quote anything.
        let head = &line[..line.len().min(256)];
        let find =
            |key: &[u8]| head.windows(key.len()).position(|window| window == key).map(|at| &head[at + key.len()..]);
        let rest = if line.starts_with(b"{") { find(JSON) } else { find(PLAIN) }?;
        let end = rest.iter().position(|byte| !byte.is_ascii_alphabetic()).unwrap_or(rest.len());
        match &rest[..end] {
            b"debug" => Some(Self::Debug),
            b"info" => Some(Self::Info),
            b"warn" | b"warning" => Some(Self::Warn),
            b"error" | b"fatal" | b"panic" => Some(Self::Error),
            _ => None,
        }
    }
}

/// The last lines of a stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail {
    lines: Arc<Mutex<VecDeque<Vec<u8>>>>,
}

impl Tail {
    fn push(&self, line: &[u8]) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == TAIL_LINES {
            lines.pop_front();
        }
        lines.push_back(line[..line.len().min(TAIL_LINE_BYTES)].to_vec());
    }

    /// The lines, each indented; empty when there were none.
    pub(crate) fn show(&self) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(|line| format!("\n    {}", String::from_utf8_lossy(line))).collect()
    }
}

/// What happens to the lines of a stream.
#[derive(Clone, Debug)]
pub(crate) struct Sink {
    /// Shown before each line; none hides the lines.
    pub(crate) prefix: Option<String>,
    /// Lines below this level are not shown.
    pub(crate) level: Level,
    pub(crate) file: Option<Arc<LogFile>>,
    pub(crate) tail: Option<Tail>,
}

impl Sink {
    fn take(&self, line: &[u8], shown: &mut Last, console: &mut Vec<u8>, file: &mut Vec<u8>) {
        if let Some(prefix) = &self.prefix {
            // A line without a level belongs to the one before it (a trace), or is no log at all: shown then.
            if self.level > Level::Debug {
                shown.0 = Level::of(line).unwrap_or(shown.0);
            }
            if shown.0 >= self.level {
                console.extend_from_slice(prefix.as_bytes());
                console.extend_from_slice(line);
                console.push(b'\n');
            }
        }
        if self.file.is_some() {
            file.extend_from_slice(line);
            file.push(b'\n');
        }
        if let Some(tail) = &self.tail {
            tail.push(line);
        }
    }
}

/// Level of the last line that had one.
struct Last(Level);

/// Reads a stream to its end and passes its lines on.
pub(crate) async fn pump(mut stream: impl AsyncRead + Unpin, sink: Sink, console: Console) {
    let mut lines = Lines::default();
    let mut chunk = vec![0; CHUNK];
    let mut last = Last(Level::Error);
    loop {
        // An error on a pipe means the same as its end.
        let read = stream.read(&mut chunk).await.unwrap_or(0);
        let (mut shown, mut kept) = (Vec::new(), Vec::new());
        let mut take = |line: &[u8]| sink.take(line, &mut last, &mut shown, &mut kept);
        match read {
            0 => lines.finish(&mut take),
            read => lines.push(&chunk[..read], &mut take),
        }
        if !shown.is_empty() || !kept.is_empty() {
            let file = sink.file.clone().filter(|_| !kept.is_empty()).map(|file| (file, kept));
            console.send(Job::Write { console: shown, file }).await;
        }
        if read == 0 {
            return;
        }
    }
}

/// Cuts bytes into lines. Bytes pass as they are, whatever their encoding.
#[derive(Debug, Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn push(&mut self, mut bytes: &[u8], take: &mut impl FnMut(&[u8])) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.extend(&bytes[..end], take);
            let line = self.rest.strip_suffix(b"\r").unwrap_or(&self.rest);
            take(line);
            self.rest.clear();
            bytes = &bytes[end + 1..];
        }
        self.extend(bytes, take);
    }

    fn extend(&mut self, mut bytes: &[u8], take: &mut impl FnMut(&[u8])) {
        while self.rest.len() + bytes.len() > MAX_LINE {
            let (now, later) = bytes.split_at(MAX_LINE - self.rest.len());
            self.rest.extend_from_slice(now);
            take(&self.rest);
            self.rest.clear();
            bytes = later;
        }
        self.rest.extend_from_slice(bytes);
    }

    fn finish(&mut self, take: &mut impl FnMut(&[u8])) {
        if !self.rest.is_empty() {
            take(&self.rest);
            self.rest.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sink(level: Level) -> Sink {
        Sink { prefix: Some("== APP == ".into()), level, file: None, tail: None }
    }

    fn shown(sink: &Sink, lines: &[&str]) -> String {
        let (mut console, mut file) = (Vec::new(), Vec::new());
        let mut last = Last(Level::Error);
        for line in lines {
            sink.take(line.as_bytes(), &mut last, &mut console, &mut file);
        }
        String::from_utf8(console).unwrap()
    }

    #[test]
    fn each_line_gets_the_prefix() {
        assert_eq!(shown(&sink(Level::Debug), &["a", ""]), "== APP == a\n== APP == \n");
    }

    #[test]
    fn quiet_lines_of_a_sidecar_are_hidden_with_what_follows_them() {
        let lines = [
            "starting without a log",
            r#"time="2026-01-01T00:00:00Z" level=info msg="level=error in text" scope=dapr"#,
            "  continued",
            r#"time="2026-01-01T00:00:00Z" level=warning msg="careful""#,
            "  a trace",
            r#"{"level":"info","msg":"x"}"#,
            r#"{"level":"fatal","msg":"y"}"#,
        ];
        let out = shown(&sink(Level::Warn), &lines);
        assert_eq!(out.lines().count(), 4, "{out}");
        assert!(out.contains("starting") && out.contains("careful") && out.contains("trace") && out.contains("fatal"));
    }

    #[test]
    fn a_tail_keeps_the_last_lines_only() {
        let tail = Tail::default();
        for n in 0..100 {
            tail.push(format!("line {n}").as_bytes());
        }
        let text = tail.show();
        assert!(text.starts_with("\n    line 80") && text.ends_with("\n    line 99"), "{text}");
    }

    #[test]
    fn a_log_file_starts_anew_before_it_grows_too_large() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logs/app.log");
        let log = LogFile::create(&path).unwrap();
        let block = vec![b'x'; (MAX_LOG_BYTES / 2 + 1) as usize];
        log.append(&block);
        log.append(b"new\n");
        assert!(std::fs::metadata(&path).unwrap().len() > MAX_LOG_BYTES / 2);
        log.append(&block);
        log.append(b"last\n");
        let old = folder.path().join("logs/app.log.1");
        assert!(std::fs::metadata(&old).unwrap().len() <= MAX_LOG_BYTES);
        assert!(std::fs::read(&path).unwrap().ends_with(b"last\n"));
    }

    proptest! {
        #[test]
        fn lines_hold_every_byte_however_the_stream_is_cut(
            text in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..2000),
            cut in 1..100_usize,
        ) {
            let mut lines = Lines::default();
            let mut out = Vec::new();
            let mut take = |line: &[u8]| { out.extend_from_slice(line); out.push(b'\n'); };
            for piece in text.chunks(cut) {
                lines.push(piece, &mut take);
            }
            lines.finish(&mut take);
            let mut expected: Vec<u8> = Vec::new();
            for line in text.split_inclusive(|byte| *byte == b'\n') {
                let whole = line.strip_suffix(b"\n").map(|line| line.strip_suffix(b"\r").unwrap_or(line)).unwrap_or(line);
                expected.extend_from_slice(whole);
                expected.push(b'\n');
            }
            prop_assert_eq!(out, expected);
        }

        #[test]
        fn a_line_is_never_kept_beyond_its_bound(length in 0..4 * MAX_LINE) {
            let mut lines = Lines::default();
            let (mut longest, mut total) = (0, 0);
            let mut take = |line: &[u8]| { longest = longest.max(line.len()); total += line.len(); };
            lines.push(&vec![b'x'; length], &mut take);
            lines.finish(&mut take);
            prop_assert!(longest <= MAX_LINE);
            prop_assert_eq!(total, length);
        }
    }
}
