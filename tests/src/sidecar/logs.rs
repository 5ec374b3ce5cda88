use std::io::{BufRead as _, BufReader, Read};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

/// More than any test prints; what comes after it is dropped, so that a log storm fails a test and not
/// the machine.
const LIMIT: usize = 32 << 20;

/// What a child process prints, gathered by threads.
#[derive(Clone, Debug, Default)]
pub(super) struct Logs {
    text: Arc<Mutex<String>>,
    readers: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Logs {
    /// Reads `output` to its end.
    pub(super) fn follow(&self, output: impl Read + Send + 'static) {
        let text = Arc::clone(&self.text);
        let reader = std::thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut line = Vec::new();
            while output.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                let mut text = text.lock();
                if text.len() < LIMIT {
                    text.push_str(&String::from_utf8_lossy(&line));
                }
                line.clear();
            }
        });
        self.readers.lock().push(reader);
    }

    /// Everything so far.
    pub(super) fn text(&self) -> String {
        self.text.lock().clone()
    }

    /// Waits for the rest of an ended process's output.
    pub(super) fn finish(&self) {
        for reader in self.readers.lock().drain(..) {
            let _ = reader.join();
        }
    }
}
