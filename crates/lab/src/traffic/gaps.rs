//! Times without an answer, from the moments at which answers came.

use std::time::{Duration, Instant};

/// Shorter ones are nothing that anybody asks about.
const WORTH_KEEPING: Duration = Duration::from_millis(5);
/// Kept at most; past it only longer ones than the shortest kept could matter, and they still replace it.
const KEPT_MAX: usize = 100_000;

#[derive(Debug, Default)]
pub struct Gaps {
    last: Option<Instant>,
    kept: Vec<(Instant, Instant)>,
}

impl Gaps {
    /// An answer came at `now`; not before the last one.
    pub fn answered(&mut self, now: Instant) {
        let Some(last) = self.last.replace(now) else { return };
        if now.duration_since(last) < WORTH_KEEPING {
            return;
        }
        if self.kept.len() < KEPT_MAX {
            self.kept.push((last, now));
            return;
        }
        let shortest = self.kept.iter_mut().min_by_key(|(from, to)| to.duration_since(*from));
        if let Some(shortest) = shortest.filter(|(from, to)| to.duration_since(*from) < now.duration_since(last)) {
            *shortest = (last, now);
        }
    }

    /// The longest one that lies in the time between `from` and `to`, or reaches into it. One that has not ended at
    /// `to` counts up to there.
    pub fn longest(&self, from: Instant, to: Instant) -> Duration {
        let open = self.last.map(|last| (last, to)).filter(|(last, to)| last < to);
        let inside = self.kept.iter().copied().chain(open).filter(|(begin, end)| *end >= from && *begin <= to);
        inside.map(|(begin, end)| end.duration_since(begin)).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_is_found_in_the_time_asked_about() {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let mut gaps = Gaps::default();
        assert_eq!(gaps.longest(at(0), at(100)), Duration::ZERO);
        for ms in [0, 10, 20, 320, 330, 340, 500] {
            gaps.answered(at(ms));
        }
        let longest = |from, to| gaps.longest(at(from), at(to)).as_millis();
        assert_eq!(longest(0, 500), 300);
        assert_eq!(longest(321, 500), 160, "the time before is not asked about");
        assert_eq!(longest(100, 200), 300, "it lies in the midst of it");
        assert_eq!(longest(325, 330), 10);
        assert_eq!(longest(450, 900), 400, "no answer has come since 500");
    }
}
