//! Waiting between attempts: doubling, bounded, with full jitter, so that many callers do not come back together.

use std::time::Duration;

/// A series of waits. `next()` draws from 0 to the present ceiling, and the ceiling doubles up to `max`.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    ceiling: Duration,
}

impl Backoff {
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, ceiling: first }
    }

    /// The next wait: at least an eighth of the ceiling, so that a loop of failures never spins.
    pub fn next_wait(&mut self) -> Duration {
        let ceiling = self.ceiling;
        self.ceiling = (ceiling * 2).min(self.max);
        let floor = ceiling / 8;
        let spread = u64::try_from((ceiling - floor).as_micros()).unwrap_or(u64::MAX).max(1);
        floor + Duration::from_micros(crate::secret::random_u64() % spread)
    }

    pub fn reset(&mut self) {
        self.ceiling = self.first;
    }
}
