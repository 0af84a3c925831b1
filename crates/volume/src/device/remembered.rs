//! The source's hashes of blocks that were fetched, kept until the local file is compared with them, so that the source
//! need not read and hash its data a second time. Bounded; what does not fit is asked for again. It must not know how
//! hashes are compared.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::device::lock;
use crate::schedule::Run;
use crate::source::BlockHash;

/// Hashes of 16 GiB of data: some 16 MiB of memory.
const MAX_HASHES: usize = 256 * 1024;
/// A run in more pieces than this is asked for whole: a question costs a round trip.
const MAX_QUESTIONS: usize = 4;

#[derive(Default)]
pub(crate) struct Remembered(Mutex<HashMap<u64, BlockHash>>);

impl Remembered {
    /// The source said these of a run of blocks, and what arrived fits.
    pub fn keep(&self, first: u64, hashes: &[BlockHash]) {
        let mut kept = lock(&self.0);
        for (block, hash) in (first..).zip(hashes) {
            if kept.len() < MAX_HASHES || kept.contains_key(&block) {
                kept.insert(block, *hash);
            }
        }
    }
    /// What is known of a run. It is forgotten: each is compared once, and the room is for others.
    pub fn take(&self, run: Run) -> Vec<Option<BlockHash>> {
        let mut kept = lock(&self.0);
        (run.first..run.first + run.count).map(|block| kept.remove(&block)).collect()
    }
}

/// Which stretches of a run to ask the source about, when these blocks of it are wanted.
pub(crate) fn questions(first: u64, wanted: &[bool]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (block, _) in (first..).zip(wanted).filter(|(_, wanted)| **wanted) {
        match runs.last_mut() {
            Some(run) if run.first + run.count == block => run.count += 1,
            _ => runs.push(Run { first: block, count: 1 }),
        }
    }
    match runs[..] {
        [start, .., end] if runs.len() > MAX_QUESTIONS => {
            vec![Run { first: start.first, count: end.first + end.count - start.first }]
        }
        _ => runs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_blocks_are_asked_for_in_few_questions() {
        let check = |wanted: &str, expected: &[(u64, u64)]| {
            let wanted: Vec<bool> = wanted.bytes().map(|byte| byte == b'x').collect();
            let expected: Vec<Run> =
                expected.iter().map(|(first, count)| Run { first: *first, count: *count }).collect();
            assert_eq!(questions(10, &wanted), expected);
        };
        check("", &[]);
        check("....", &[]);
        check("xxxx", &[(10, 4)]);
        check(".xx.x", &[(11, 2), (14, 1)]);
        check(".x.x.x.x.x.", &[(11, 9)]);
    }
}
