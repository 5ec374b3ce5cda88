//! Bounded hand-over of finished lines to the thread that writes them.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Bytes that may wait. About ten thousand lines: a reader that is this far
/// behind is not reading.
const LIMIT: usize = 1 << 20;

/// A buffer that grew past this in a burst is given back afterwards.
const KEEP: usize = 64 << 10;

/// The side that logs. Dropping it ends the thread once all is written.
#[derive(Debug)]
pub(super) struct Queue(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    filled: Condvar,
    written: Condvar,
    dropped: AtomicU64,
    /// Of those, how many [`Queue::news`] has told.
    told: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    buffer: Vec<u8>,
    /// The thread holds lines it took but has not written yet.
    writing: bool,
    closed: bool,
}

impl Queue {
    pub(super) fn start(output: Box<dyn Write + Send>) -> io::Result<Self> {
        let inner = Arc::new(Inner {
            state: Mutex::default(),
            filled: Condvar::new(),
            written: Condvar::new(),
            dropped: AtomicU64::new(0),
            told: AtomicU64::new(0),
        });
        let writer = Arc::clone(&inner);
        thread::Builder::new().name("mecha-log".into()).stack_size(128 << 10).spawn(move || writer.write(output))?;
        Ok(Self(inner))
    }

    /// Queues one line, or drops it when the queue is full. Never waits for the output.
    pub(super) fn push(&self, line: &[u8]) {
        let mut state = self.0.state.lock();
        // One line larger than the whole queue still gets through when nothing waits.
        if !state.buffer.is_empty() && state.buffer.len() + line.len() > LIMIT {
            drop(state);
            self.0.lose(1);
            return;
        }
        let wake = state.buffer.is_empty();
        state.buffer.extend_from_slice(line);
        drop(state);
        if wake {
            self.0.filled.notify_one();
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// Lines lost since the last call. Each is told once, however many ask at a time.
    pub(super) fn news(&self) -> u64 {
        let dropped = self.dropped();
        dropped.saturating_sub(self.0.told.fetch_max(dropped, Ordering::Relaxed))
    }

    pub(super) fn flush(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.0.state.lock();
        while !state.buffer.is_empty() || state.writing {
            if self.0.written.wait_until(&mut state, deadline).timed_out() {
                return state.buffer.is_empty() && !state.writing;
            }
        }
        true
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.0.state.lock().closed = true;
        self.0.filled.notify_one();
    }
}

impl Inner {
    fn lose(&self, lines: u64) {
        self.dropped.fetch_add(lines, Ordering::Relaxed);
    }

    fn write(&self, mut output: Box<dyn Write + Send>) {
        let mut batch = Vec::new();
        let mut reported = 0;
        loop {
            {
                let mut state = self.state.lock();
                state.writing = false;
                self.written.notify_all();
                while state.buffer.is_empty() {
                    if state.closed {
                        return;
                    }
                    self.filled.wait(&mut state);
                }
                state.writing = true;
                batch.clear();
                if batch.capacity() > KEEP {
                    batch = Vec::new();
                }
                std::mem::swap(&mut batch, &mut state.buffer);
            }
            let dropped = self.dropped.load(Ordering::Relaxed);
            if dropped > reported {
                batch.extend_from_slice(lost(dropped - reported).as_bytes());
                reported = dropped;
            }
            // A full disk or a closed pipe must not stop the daemon: it lives without logs.
            if output.write_all(&batch).and_then(|()| output.flush()).is_err() {
                let lines = batch.iter().filter(|byte| **byte == b'\n').count() as u64;
                self.lose(lines);
                // Pointless to report lines lost to an output that fails anyway.
                reported = self.dropped.load(Ordering::Relaxed);
            }
        }
    }
}

/// In the same two forms a reader may expect this is the one that both accept:
/// a plain `key=value` line.
fn lost(lines: u64) -> String {
    format!("level=warning msg=\"{lines} log lines dropped: the output was too slow\" scope=dapr.runtime type=log\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Takes a batch only when the test lets it.
    struct Gate {
        open: mpsc::Receiver<()>,
        out: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.open.recv().map_err(io::Error::other)?;
            self.out.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stalled_output_drops_and_counts_and_never_blocks() {
        let (open, gate) = mpsc::channel();
        let (out, written) = mpsc::channel();
        let queue = Queue::start(Box::new(Gate { open: gate, out })).unwrap();
        let line = [b'x'; 1023].iter().chain(b"\n").copied().collect::<Vec<u8>>();
        for _ in 0..3 * (LIMIT / 1024) {
            queue.push(&line);
        }
        let dropped = queue.dropped();
        assert!(dropped >= (LIMIT / 1024) as u64 - 1, "{dropped}");
        assert!(!queue.flush(Duration::ZERO));
        for _ in 0..8 {
            open.send(()).unwrap();
        }
        assert!(queue.flush(Duration::from_secs(20)));
        let all: Vec<u8> = written.try_iter().flatten().collect();
        let text = String::from_utf8(all).unwrap();
        let kept = text.lines().filter(|line| line.starts_with('x')).count() as u64;
        assert_eq!(kept + dropped, 3 * (LIMIT / 1024) as u64);
        let reported: u64 = text
            .lines()
            .filter_map(|line| line.split_once("msg=\"")?.1.split_once(" log lines dropped"))
            .map(|(lines, _)| lines.parse::<u64>().unwrap())
            .sum();
        assert_eq!(reported, dropped);
    }

    #[test]
    fn a_broken_output_is_survived() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let queue = Queue::start(Box::new(Broken)).unwrap();
        queue.push(b"a\nb\n");
        assert!(queue.flush(Duration::from_secs(20)));
        assert_eq!((queue.dropped(), queue.news(), queue.news()), (2, 2, 0));
        queue.push(b"c\n");
        assert!(queue.flush(Duration::from_secs(20)));
        assert_eq!((queue.dropped(), queue.news(), queue.news()), (3, 1, 0));
    }
}
