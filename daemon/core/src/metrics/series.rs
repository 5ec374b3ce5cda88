//! Series and the handles that write to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Marks a gauge that has never been set. A NaN with this payload is produced
/// by no arithmetic, so it cannot collide with a real value.
const UNSET: u64 = 0x7ff8_dead_beef_0001;

#[derive(Debug)]
pub(super) struct Series {
    pub(super) labels: Box<[Box<str>]>,
    pub(super) cell: Cell,
}

#[derive(Debug)]
pub(super) enum Cell {
    Counter(AtomicU64),
    /// `f64` bits, or [`UNSET`].
    Gauge(AtomicU64),
    Histogram(HistogramCell),
}

#[derive(Debug)]
pub(super) struct HistogramCell {
    pub(super) bounds: Arc<[f64]>,
    /// One per bound plus one for everything above; not cumulative.
    pub(super) buckets: Box<[AtomicU64]>,
    /// `f64` bits.
    pub(super) sum: AtomicU64,
}

/// A counter that was looked up once; writing is one relaxed atomic add.
/// The default does nothing.
#[derive(Clone, Debug, Default)]
pub struct Counter(pub(super) Option<Arc<Series>>);

/// A gauge that was looked up once; writing is one relaxed store.
#[derive(Clone, Debug, Default)]
pub struct Gauge(pub(super) Option<Arc<Series>>);

/// A histogram that was looked up once; writing is lock-free.
#[derive(Clone, Debug, Default)]
pub struct Histogram(pub(super) Option<Arc<Series>>);

impl Series {
    /// A series appears with its first value, not when a handle is made.
    pub(super) fn is_touched(&self) -> bool {
        match &self.cell {
            Cell::Counter(value) => value.load(Ordering::Relaxed) > 0,
            Cell::Gauge(bits) => bits.load(Ordering::Relaxed) != UNSET,
            Cell::Histogram(cell) => cell.buckets.iter().any(|bucket| bucket.load(Ordering::Relaxed) > 0),
        }
    }
}

impl Cell {
    pub(super) fn counter() -> Self {
        Cell::Counter(AtomicU64::new(0))
    }

    pub(super) fn gauge() -> Self {
        Cell::Gauge(AtomicU64::new(UNSET))
    }

    pub(super) fn histogram(bounds: &Arc<[f64]>) -> Self {
        Cell::Histogram(HistogramCell {
            bounds: Arc::clone(bounds),
            buckets: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        })
    }
}

impl HistogramCell {
    fn record(&self, value: f64) {
        // A bound is inclusive (`le`).
        let at = self.bounds.partition_point(|bound| *bound < value);
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        let mut old = self.sum.load(Ordering::Relaxed);
        loop {
            let new = (f64::from_bits(old) + value).to_bits();
            match self.sum.compare_exchange_weak(old, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => old = now,
            }
        }
    }
}

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        if let Some(Cell::Counter(value)) = self.0.as_ref().map(|series| &series.cell) {
            value.fetch_add(n, Ordering::Relaxed);
        }
    }
}

impl Gauge {
    /// Sets the value.
    pub fn set(&self, value: f64) {
        if let Some(Cell::Gauge(bits)) = self.0.as_ref().map(|series| &series.cell) {
            bits.store(value.to_bits(), Ordering::Relaxed);
        }
    }
}

impl Histogram {
    /// Records a value in the metric's own unit. Not-a-number is ignored.
    pub fn record(&self, value: f64) {
        if value.is_nan() {
            return;
        }
        if let Some(Cell::Histogram(cell)) = self.0.as_ref().map(|series| &series.cell) {
            cell.record(value);
        }
    }

    /// Records a duration in milliseconds.
    pub fn record_ms(&self, elapsed: Duration) {
        self.record(elapsed.as_secs_f64() * 1000.0);
    }
}
