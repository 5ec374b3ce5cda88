//! Limits how much a fault may write into the log.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

const WINDOW: Duration = Duration::from_secs(1);
const LINES: u32 = 10;

/// Lets ten lines a second through and counts the others.
#[derive(Debug, Default)]
pub(super) struct Quiet(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    since: Option<Instant>,
    lines: u32,
    held_back: u64,
}

impl Quiet {
    /// `Some(n)` when a line may be written now, `n` being how many were held back before it.
    pub(super) fn pass(&self) -> Option<u64> {
        let now = Instant::now();
        let mut window = self.0.lock();
        if window.since.is_none_or(|since| now - since >= WINDOW) {
            window.since = Some(now);
            window.lines = 0;
        }
        if window.lines >= LINES {
            window.held_back += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ten_lines_a_second_and_the_rest_is_counted() {
        let quiet = Quiet::default();
        assert_eq!((0..25).filter_map(|_| quiet.pass()).count(), 10);
        tokio::time::advance(WINDOW).await;
        assert_eq!(quiet.pass(), Some(15));
        assert_eq!(quiet.pass(), Some(0));
    }
}
