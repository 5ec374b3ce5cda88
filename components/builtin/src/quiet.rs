use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

const GAP: Duration = Duration::from_secs(1);

/// Lets one log line a second through, so that a fault that repeats with every
/// event cannot fill the disk.
#[derive(Debug, Default)]
pub(crate) struct Quiet(Mutex<(Option<Instant>, u64)>);

impl Quiet {
    /// `Some(n)` when a line may be written now, `n` being how many were held back before it.
    pub(crate) fn pass(&self) -> Option<u64> {
        let mut state = self.0.lock();
        let now = Instant::now();
        if state.0.is_some_and(|last| now - last < GAP) {
            state.1 += 1;
            return None;
        }
        state.0 = Some(now);
        Some(std::mem::take(&mut state.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_line_a_second_and_the_rest_is_counted() {
        let quiet = Quiet::default();
        assert_eq!(quiet.pass(), Some(0));
        assert_eq!(quiet.pass(), None);
        assert_eq!(quiet.pass(), None);
        tokio::time::advance(GAP).await;
        assert_eq!(quiet.pass(), Some(2));
    }
}
