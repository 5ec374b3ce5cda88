use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mecha_components_api::Retry as Repeatable;
use tokio::time::Instant;

use crate::failure::{CallClass, Failure};

/// Pause of a constant retry where none is given.
const DEFAULT_PAUSE: Duration = Duration::from_secs(5);

/// A retry policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// Pauses between attempts.
    pub backoff: Backoff,
    /// Attempts after the first one; `None` is endless.
    pub max_retries: Option<u32>,
    /// HTTP statuses to retry; with a list any other status is final.
    pub http: Option<CodeSet>,
    /// gRPC codes to retry; with a list any other code is final.
    pub grpc: Option<CodeSet>,
}

/// The shape of the pauses.
#[derive(Clone, Debug, PartialEq)]
pub enum Backoff {
    /// Always the same pause.
    Constant {
        /// The pause.
        pause: Duration,
    },
    /// Growing pauses with jitter.
    Exponential {
        /// First interval.
        initial: Duration,
        /// Growth of the interval with each attempt.
        multiplier: f64,
        /// A pause is the interval ± this share of it, from 0 to 1.
        randomization: f64,
        /// The interval grows no further.
        max_interval: Duration,
        /// No attempt begins later than this after the first one; `None` is endless.
        max_elapsed: Option<Duration>,
    },
}

impl Backoff {
    /// Exponential as documents mean it: 500 ms, ×1.5, ± half, 15 min in all.
    #[must_use]
    pub const fn exponential(max_interval: Duration) -> Self {
        Self::Exponential {
            initial: Duration::from_millis(500),
            multiplier: 1.5,
            randomization: 0.5,
            max_interval,
            max_elapsed: Some(Duration::from_secs(15 * 60)),
        }
    }
}

/// What a document means that gives a retry a name and nothing else: endless, 5 s apart.
impl Default for Retry {
    fn default() -> Self {
        Self { backoff: Backoff::Constant { pause: DEFAULT_PAUSE }, max_retries: None, http: None, grpc: None }
    }
}

impl Retry {
    /// `max_retries` attempts more, `pause` apart.
    #[must_use]
    pub const fn constant(pause: Duration, max_retries: u32) -> Self {
        Self { backoff: Backoff::Constant { pause }, max_retries: Some(max_retries), http: None, grpc: None }
    }

    /// The floor for policies that take the place of a built-in one. As in daprd, endless
    /// counts as below the floor.
    #[must_use]
    pub fn with_at_least(mut self, retries: u32) -> Self {
        self.max_retries = Some(self.max_retries.unwrap_or(0).max(retries));
        self
    }

    /// Whether a call of `class` that failed so may be sent again.
    ///
    /// A code that the policy lists is retried whatever the call does, one that a list leaves
    /// out is final. Without a list it is the nature of the failure that decides.
    #[must_use]
    pub fn allows(&self, class: CallClass, failure: &impl Failure) -> bool {
        if let (Some(set), Some(status)) = (&self.http, failure.http_status()) {
            return set.contains(status);
        }
        if let (Some(set), Some(code)) = (&self.grpc, failure.grpc_code()) {
            return set.contains(code);
        }
        match failure.repeatable() {
            Repeatable::Always => true,
            Repeatable::IfIdempotent => class.idempotent,
            Repeatable::Never => false,
        }
    }

    /// The pauses of a call whose first attempt began at `start`.
    #[must_use]
    pub fn pauses(&self, start: Instant) -> Pauses<'_> {
        let interval = match &self.backoff {
            Backoff::Constant { pause } => *pause,
            Backoff::Exponential { initial, max_interval, .. } => (*initial).min(*max_interval),
        };
        Pauses { retry: self, start, interval, taken: 0 }
    }
}

/// The pauses of one call.
#[derive(Debug)]
pub struct Pauses<'r> {
    retry: &'r Retry,
    start: Instant,
    interval: Duration,
    taken: u32,
}

impl Pauses<'_> {
    /// The pause before the next attempt, or `None` when there is to be none. `random` is
    /// from 0 to 1 and places the pause inside its range.
    pub fn next(&mut self, now: Instant, random: f64) -> Option<Duration> {
        if self.retry.max_retries.is_some_and(|max| self.taken >= max) {
            return None;
        }
        let pause = match &self.retry.backoff {
            Backoff::Constant { pause } => *pause,
            Backoff::Exponential { multiplier, randomization, max_interval, max_elapsed, .. } => {
                let spread = randomization.clamp(0.0, 1.0);
                let pause = scale(self.interval, 1.0 - spread + 2.0 * spread * random.clamp(0.0, 1.0));
                self.interval = scale(self.interval, multiplier.max(1.0)).min(*max_interval);
                let elapsed = now.saturating_duration_since(self.start);
                if max_elapsed.is_some_and(|max| elapsed.saturating_add(pause) > max) {
                    return None;
                }
                pause
            }
        };
        self.taken = self.taken.saturating_add(1);
        Some(pause)
    }

    /// Pauses handed out so far.
    #[must_use]
    pub fn taken(&self) -> u32 {
        self.taken
    }
}

fn scale(d: Duration, by: f64) -> Duration {
    Duration::try_from_secs_f64(d.as_secs_f64() * by).unwrap_or(Duration::MAX)
}

/// Codes, as ranges that include both ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CodeSet(Box<[(u16, u16)]>);

impl CodeSet {
    /// The codes of `ranges`.
    #[must_use]
    pub fn new(ranges: impl IntoIterator<Item = (u16, u16)>) -> Self {
        Self(ranges.into_iter().collect())
    }

    /// Whether `code` is one of them.
    #[must_use]
    pub fn contains(&self, code: u16) -> bool {
        self.0.iter().any(|&(low, high)| (low..=high).contains(&code))
    }
}

/// A source of jitter, good enough to spread load and nothing else (SplitMix64).
#[derive(Debug)]
pub struct Jitter(AtomicU64);

impl Jitter {
    /// Always the same sequence.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// A number from 0 to 1.
    pub fn next(&self) -> f64 {
        const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
        let mut z = self.0.fetch_add(GOLDEN, Ordering::Relaxed).wrapping_add(GOLDEN);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        // The upper 53 bits are what an f64 holds exactly.
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Another sequence in each process and for each policy.
impl Default for Jitter {
    fn default() -> Self {
        Self::seeded(RandomState::new().build_hasher().finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mecha_components_api::Error;
    use proptest::prelude::*;

    struct Status(u16);

    impl Failure for Status {
        fn repeatable(&self) -> Repeatable {
            Repeatable::IfIdempotent
        }
        fn http_status(&self) -> Option<u16> {
            Some(self.0)
        }
    }

    #[test]
    fn a_call_is_repeated_only_when_that_is_safe_or_asked_for() {
        let plain = Retry::default();
        assert!(plain.allows(CallClass::ONCE, &Error::unavailable("never sent")));
        assert!(!plain.allows(CallClass::ONCE, &Error::timeout("perhaps done")));
        assert!(plain.allows(CallClass::IDEMPOTENT, &Error::timeout("perhaps done")));
        assert!(!plain.allows(CallClass::IDEMPOTENT, &Error::invalid("wrong")));

        let listed = Retry { http: Some(CodeSet::new([(429, 429), (500, 599)])), ..Retry::default() };
        assert!(listed.allows(CallClass::ONCE, &Status(503)));
        assert!(!listed.allows(CallClass::IDEMPOTENT, &Status(404)));
    }

    #[test]
    fn built_in_overrides_have_a_floor() {
        assert_eq!(Retry::constant(DEFAULT_PAUSE, 1).with_at_least(3).max_retries, Some(3));
        assert_eq!(Retry::constant(DEFAULT_PAUSE, 7).with_at_least(3).max_retries, Some(7));
        assert_eq!(Retry::default().with_at_least(3).max_retries, Some(3));
    }

    proptest! {
        #[test]
        fn exponential_pauses_stay_in_their_range(
            initial_ms in 1u64..5_000,
            max_ms in 1u64..60_000,
            randomization in 0.0f64..=1.0,
            seed in any::<u64>(),
        ) {
            let max_interval = Duration::from_millis(max_ms);
            let max_elapsed = Duration::from_secs(600);
            let retry = Retry {
                backoff: Backoff::Exponential {
                    initial: Duration::from_millis(initial_ms),
                    multiplier: 1.5,
                    randomization,
                    max_interval,
                    max_elapsed: Some(max_elapsed),
                },
                ..Retry::default()
            };
            let start = Instant::now();
            let mut now = start;
            let mut pauses = retry.pauses(start);
            let jitter = Jitter::seeded(seed);
            let mut interval = Duration::from_millis(initial_ms).min(max_interval).as_secs_f64();
            let slack = 1e-6;
            for _ in 0..1_000 {
                let Some(pause) = pauses.next(now, jitter.next()) else { break };
                let p = pause.as_secs_f64();
                prop_assert!(p >= interval * (1.0 - randomization) - slack);
                prop_assert!(p <= interval * (1.0 + randomization) + slack);
                interval = (interval * 1.5).min(max_interval.as_secs_f64());
                now += pause;
                prop_assert!(now - start <= max_elapsed);
            }
        }

        #[test]
        fn there_are_never_more_retries_than_allowed(max in 0u32..20) {
            let retry = Retry::constant(Duration::from_millis(1), max);
            let mut pauses = retry.pauses(Instant::now());
            let mut given = 0;
            while pauses.next(Instant::now(), 0.5).is_some() {
                given += 1;
            }
            prop_assert_eq!(given, max);
        }

        #[test]
        fn jitter_is_from_0_to_1(seed in any::<u64>()) {
            let jitter = Jitter::seeded(seed);
            for _ in 0..100 {
                prop_assert!((0.0..=1.0).contains(&jitter.next()));
            }
        }
    }
}
