//! Where the log of a Machine was left, so that it can go on there after its stream broke: which lines of a new stream are
//! known already. Pure.

use std::collections::VecDeque;

use godwit_api::host::PLATFORM_STREAM;
use godwit_api::log::Line;

/// The platform's remarks are few and come again whole: so many of the last are known by their texts.
const REMARKS_KEPT: usize = 256;

/// What was seen of one Machine's lines.
///
/// A Machine's clock may be set back, and lines of one moment may be equal, so neither stamps nor texts tell lines apart.
/// What does: all lines before the first one with the highest stamp have lower stamps, so that line is found again as the
/// first with this stamp or a higher one, and as many lines follow it as were counted.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The highest stamp of a line that the Machine wrote.
    highest: Option<String>,
    /// Lines seen from the first one with that stamp on.
    count: u64,
    /// The line with the highest stamp was the first of all: lines of the same moment may stand before it.
    is_first: bool,
    remarks: VecDeque<(String, String)>,
}

impl Seen {
    /// From when on a new stream must show lines, if anything was seen.
    pub fn since(&self) -> Option<&str> {
        self.highest.as_deref()
    }

    pub fn note(&mut self, line: &Line) {
        if line.head.stream == PLATFORM_STREAM {
            if self.remarks.len() == REMARKS_KEPT {
                self.remarks.pop_front();
            }
            self.remarks.push_back((line.head.timestamp.clone(), line.message.clone()));
            return;
        }
        if self.highest.as_ref().is_none_or(|highest| line.head.timestamp > *highest) {
            self.is_first = self.highest.is_none();
            self.highest = Some(line.head.timestamp.clone());
            self.count = 0;
        }
        self.count += 1;
    }

    /// For the lines of a new stream, in its order.
    pub fn known(&self) -> Known {
        Known { seen: self.clone(), left: self.count, is_found: false, is_over: self.highest.is_none() }
    }
}

/// Tells lines that were seen before a stream began from those that are new.
#[derive(Debug)]
pub struct Known {
    seen: Seen,
    left: u64,
    is_found: bool,
    is_over: bool,
}

impl Known {
    pub fn has(&mut self, line: &Line) -> bool {
        let stamp = &line.head.timestamp;
        if line.head.stream == PLATFORM_STREAM {
            return self.seen.remarks.iter().any(|(at, text)| at == stamp && *text == line.message);
        }
        let Some(highest) = self.seen.highest.as_ref().filter(|_| !self.is_over) else { return false };
        if !self.is_found && stamp < highest {
            return true;
        }
        // If it is higher, the last line that was seen is not kept any more.
        let is_known = match self.is_found || stamp == highest {
            true if self.seen.is_first => stamp == highest,
            true => self.left > 0,
            false => false,
        };
        self.is_found = true;
        self.left = self.left.saturating_sub(1);
        self.is_over = !is_known;
        is_known
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use godwit_api::log::Head;
    use proptest::prelude::*;

    use super::*;

    fn line(stream: &str, stamp: u32, text: &str) -> Line {
        let head = Head { timestamp: format!("2026-01-01T00:00:00.{stamp:06}Z"), stream: stream.into() };
        Line { head: Arc::new(head), message: text.into(), partial: false }
    }

    /// Lines of a log whose stream breaks after each of `cuts` more lines; what a reader prints.
    fn printed(log: &[Line], cuts: &[usize]) -> Vec<Line> {
        let (mut seen, mut all) = (Seen::default(), Vec::new());
        for lines in cuts.iter().copied().chain([log.len()]) {
            let mut known = seen.known();
            // As a host does: from the first line that is not older.
            let from = seen.since().and_then(|since| log.iter().position(|line| line.head.timestamp.as_str() >= since));
            let new: Vec<Line> =
                log[from.unwrap_or(0)..].iter().filter(|line| !known.has(line)).take(lines).cloned().collect();
            new.iter().for_each(|line| seen.note(line));
            all.extend(new);
        }
        all
    }

    proptest! {
        /// Equal lines, equal stamps, a clock that is set back: each line comes once, in its order.
        #[test]
        fn a_log_that_breaks_anywhere_is_printed_whole_and_once(
            stamps in proptest::collection::vec(1_u32..12, 0..40), cuts in proptest::collection::vec(0_usize..9, 0..9),
        ) {
            // Older than all others, so that it is not this one that the first stream ends with.
            let first = [line("stdout", 0, "first")];
            let log: Vec<Line> = first.into_iter().chain(stamps.iter().map(|stamp| line("stdout", *stamp, "x"))).collect();
            let cuts: Vec<usize> = [2].into_iter().chain(cuts).collect();
            prop_assert_eq!(printed(&log, &cuts), log);
        }
    }

    #[test]
    fn what_was_rotated_away_hides_nothing_and_remarks_are_told_once() {
        let mut seen = Seen::default();
        for stamp in [1, 2, 2] {
            seen.note(&line("stdout", stamp, "x"));
        }
        seen.note(&line(PLATFORM_STREAM, 3, "started"));
        let mut known = seen.known();
        assert!(!known.has(&line("stdout", 5, "x")) && !known.has(&line("stdout", 5, "x")));
        assert!(known.has(&line(PLATFORM_STREAM, 3, "started")) && !known.has(&line(PLATFORM_STREAM, 4, "stopped")));
        // The first line of all may have unseen ones of its moment before it: none of that moment is shown again.
        let mut seen = Seen::default();
        seen.note(&line("stdout", 2, "x"));
        let mut known = seen.known();
        assert!(
            known.has(&line("stdout", 1, "x"))
                && known.has(&line("stdout", 2, "x"))
                && known.has(&line("stdout", 2, "x"))
        );
        assert!(!known.has(&line("stdout", 3, "x")));
        assert!(!Seen::default().known().has(&line("stdout", 1, "x")));
    }
}
