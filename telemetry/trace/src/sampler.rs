use std::fmt;

use super::context::TraceContext;
use super::ids::TraceId;

/// Share of new traces that is recorded when the Configuration names none.
pub const DEFAULT_SAMPLING_RATIO: f64 = 0.0001;

/// Follows the parent's decision; a new trace is recorded with a fixed
/// probability that depends on its id only, so that all services which ask the
/// same ratio agree (OpenTelemetry `ParentBased(TraceIdRatioBased)`).
#[derive(Clone, Copy, PartialEq)]
pub struct Sampler {
    ratio: f64,
    /// Ids whose sampling bits are below this are recorded.
    bound: u64,
}

impl Sampler {
    /// `ratio` is clamped to 0 … 1; not-a-number counts as 0.
    pub fn new(ratio: f64) -> Self {
        let ratio = if ratio.is_nan() { 0.0 } else { ratio.clamp(0.0, 1.0) };
        Self { ratio, bound: (ratio * (1u64 << 63) as f64) as u64 }
    }

    /// The share of new traces that is recorded.
    pub const fn ratio(&self) -> f64 {
        self.ratio
    }

    /// Whether the span is recorded.
    pub fn is_sampled(&self, parent: Option<&TraceContext>, trace_id: TraceId) -> bool {
        match parent {
            Some(parent) => parent.is_sampled(),
            None => trace_id.sampling_bits() < self.bound,
        }
    }
}

impl Default for Sampler {
    fn default() -> Self {
        Self::new(DEFAULT_SAMPLING_RATIO)
    }
}

/// The description operators look for in the log at start.
impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ratio = String::new();
        go_number(&mut ratio, self.ratio);
        write!(
            f,
            "ParentBased{{root:TraceIDRatioBased{{{ratio}}},remoteParentSampled:AlwaysOnSampler,\
             remoteParentNotSampled:AlwaysOffSampler,localParentSampled:AlwaysOnSampler,\
             localParentNotSampled:AlwaysOffSampler}}"
        )
    }
}

/// A ratio as Go prints it: below 0.0001 with an exponent.
fn go_number(out: &mut String, ratio: f64) {
    use fmt::Write as _;
    // Writing to text cannot fail.
    let _ = if ratio == 0.0 || ratio >= 1e-4 {
        write!(out, "{ratio}")
    } else {
        let shown = format!("{ratio:e}");
        let (digits, exponent) = shown.split_once("e-").unwrap_or((&shown, "0"));
        write!(out, "{digits}e-{exponent:0>2}")
    };
}

impl fmt::Debug for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(low: u64) -> TraceId {
        let mut bytes = [7; 16];
        bytes[8..].copy_from_slice(&low.to_be_bytes());
        TraceId::from_bytes(bytes).unwrap()
    }

    #[test]
    fn the_ratio_cuts_the_id_space() {
        let half = Sampler::new(0.5);
        assert!(half.is_sampled(None, id(0)));
        assert!(half.is_sampled(None, id(u64::MAX / 2 - 1)));
        assert!(!half.is_sampled(None, id(u64::MAX / 2 + 1)));
        assert!(Sampler::new(1.0).is_sampled(None, id(u64::MAX)));
        assert!(!Sampler::new(0.0).is_sampled(None, id(0)));
        assert!(!Sampler::new(f64::NAN).is_sampled(None, id(0)));
    }

    #[test]
    fn the_share_is_about_the_ratio() {
        let sampler = Sampler::new(0.1);
        let sampled = (0..20_000).filter(|_| sampler.is_sampled(None, TraceId::random())).count();
        assert!((1_600..2_400).contains(&sampled), "{sampled}");
    }

    #[test]
    fn the_parent_decides() {
        let on = TraceContext::root(true);
        let off = TraceContext::root(false);
        assert!(Sampler::new(0.0).is_sampled(Some(&on), on.trace_id));
        assert!(!Sampler::new(1.0).is_sampled(Some(&off), off.trace_id));
    }

    #[test]
    fn the_description_is_the_known_one() {
        assert!(Sampler::default().to_string().starts_with("ParentBased{root:TraceIDRatioBased{0.0001},remote"));
        assert!(Sampler::new(0.000_025).to_string().starts_with("ParentBased{root:TraceIDRatioBased{2.5e-05},"));
        assert!(Sampler::new(7.0).to_string().starts_with("ParentBased{root:TraceIDRatioBased{1},"));
    }
}
