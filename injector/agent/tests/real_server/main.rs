//! The agent on a real API server, with the rights it has when installed and no others.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

mod cluster;
mod secrets;
mod sets;
mod status;
mod stock;

use std::io;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// All that is logged in this process from the first call on.
pub(crate) fn logs() -> Arc<Mutex<Vec<u8>>> {
    static LOGS: OnceLock<Arc<Mutex<Vec<u8>>>> = OnceLock::new();
    let logs = LOGS.get_or_init(|| {
        let logs = Logs::default();
        let subscriber =
            tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_ansi(false).with_writer(logs.clone());
        tracing::subscriber::set_global_default(subscriber.finish()).unwrap();
        logs.0
    });
    logs.clone()
}

#[derive(Clone, Default)]
struct Logs(Arc<Mutex<Vec<u8>>>);

impl io::Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Logs {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}
