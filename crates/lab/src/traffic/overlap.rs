//! Whether two processes of the app were alive at one moment, as far as their answers tell: a process that answers what
//! was asked after a later process had already answered did not end before the later one began.

use std::collections::BTreeMap;
use std::time::Instant;

/// Processes that are remembered; a Machine that starts more often than that is broken in another way.
const PROCESSES_MAX: usize = 10_000;

#[derive(Debug, Default)]
pub struct Overlap {
    /// By the name that a process gives itself.
    seen: BTreeMap<String, Seen>,
}

#[derive(Debug)]
struct Seen {
    first_answered: Instant,
    /// When the last question was sent that it answered.
    last_asked: Instant,
}

impl Overlap {
    pub fn answered(&mut self, process: &str, asked: Instant, answered: Instant) {
        if let Some(seen) = self.seen.get_mut(process) {
            seen.first_answered = seen.first_answered.min(answered);
            seen.last_asked = seen.last_asked.max(asked);
        } else if self.seen.len() < PROCESSES_MAX {
            self.seen.insert(process.to_owned(), Seen { first_answered: answered, last_asked: asked });
        }
    }

    /// How many were surely alive at one moment. 0 if none was seen.
    pub fn most_at_once(&self) -> usize {
        let alive = |moment: Instant| {
            let around = |seen: &&Seen| seen.first_answered <= moment && moment <= seen.last_asked;
            self.seen.values().filter(around).count().max(1)
        };
        let moments = self.seen.values().flat_map(|seen| [seen.first_answered, seen.last_asked]);
        moments.map(alive).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn two_that_answer_by_turns_were_alive_together() {
        let begin = Instant::now();
        let check = |answers: &[(&str, u64, u64)], most: usize| {
            let mut overlap = Overlap::default();
            for (process, asked, answered) in answers {
                let at = |ms: &u64| begin + Duration::from_millis(*ms);
                overlap.answered(process, at(asked), at(answered));
            }
            assert_eq!(overlap.most_at_once(), most, "{answers:?}");
        };
        check(&[], 0);
        check(&[("a", 1, 2), ("a", 3, 4), ("b", 3, 7), ("b", 8, 9)], 1);
        check(&[("a", 1, 2), ("b", 3, 4), ("a", 5, 6), ("b", 7, 8)], 2);
        // The answer was late, the question was not.
        check(&[("a", 1, 2), ("a", 2, 9), ("b", 3, 4)], 1);
    }
}
