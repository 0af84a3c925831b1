//! How often, and after what pause, a broken download is tried again. Pure.

use std::time::Duration;

/// Tries in a row that bring nothing before we give up.
const MAX_FRUITLESS_TRIES: u32 = 6;
/// Tries of one blob in all, however much each brings: a server that sends a byte per
/// connection does not hold us for ever.
const MAX_TRIES: u32 = 50;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The tries of one download.
#[derive(Debug, Default)]
pub(super) struct Tries {
    all: u32,
    fruitless: u32,
}

impl Tries {
    /// After a failed try that brought `bytes`: how long to wait, or `None` to give up.
    pub(super) fn failed(&mut self, bytes: u64) -> Option<Duration> {
        self.all += 1;
        self.fruitless = if bytes > 0 { 0 } else { self.fruitless + 1 };
        if self.all >= MAX_TRIES || self.fruitless >= MAX_FRUITLESS_TRIES {
            return None;
        }
        // 2^6 at most: the bound above keeps `fruitless` small.
        Some(LONGEST_PAUSE.min(FIRST_PAUSE * 2u32.pow(self.fruitless)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fruitless_tries_wait_longer_and_end() {
        let mut tries = Tries::default();
        let pauses: Vec<_> = std::iter::from_fn(|| tries.failed(0)).take(100).collect();
        assert_eq!(pauses.len(), 5);
        assert!(pauses.is_sorted() && pauses.iter().all(|p| *p <= LONGEST_PAUSE));
    }

    #[test]
    fn tries_that_bring_something_go_on_but_not_for_ever() {
        let mut tries = Tries::default();
        let pauses: Vec<_> = std::iter::from_fn(|| tries.failed(1)).take(100).collect();
        assert_eq!(pauses.len(), 49);
        assert!(pauses.iter().all(|p| *p == FIRST_PAUSE));
    }
}
