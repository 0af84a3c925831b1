//! How long to wait before attempt n: exponential, bounded, with full jitter so that a fleet does not come back in
//! step. Pure: the caller draws the random number.

use std::time::Duration;

pub(crate) const BACKOFF_FIRST: Duration = Duration::from_millis(50);
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// `attempt` counts failures in a row from 1. The wait lies between a tenth of the ceiling and the ceiling: full
/// jitter, without the chance of a hot loop.
pub(crate) fn backoff(attempt: u32, random: u64) -> Duration {
    let doublings = attempt.saturating_sub(1).min(16);
    let ceiling = BACKOFF_FIRST.saturating_mul(1 << doublings).min(BACKOFF_MAX);
    let floor = ceiling / 10;
    let span_us = (ceiling - floor).as_micros() as u64;
    floor + Duration::from_micros(random % (span_us + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_stay_bounded_and_never_vanish() {
        for attempt in 1..100 {
            for random in [0, 1, u64::MAX / 2, u64::MAX] {
                let wait = backoff(attempt, random);
                assert!(wait >= BACKOFF_FIRST / 10 && wait <= BACKOFF_MAX);
            }
        }
        assert!(backoff(1, u64::MAX) <= BACKOFF_FIRST);
        assert!(backoff(50, 0) >= BACKOFF_MAX / 10);
    }
}
