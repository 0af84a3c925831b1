//! Changes of a range: which blocks must arrive first, which lock is taken, when a bit is set. It must not know what
//! the change does to the file, nor how blocks arrive.

use std::io;

use crate::device::Inner;
use crate::error::{Result, VolumeError};
use crate::map::{BLOCK_BYTES, GROUP_BLOCKS};
use crate::source::Extent;

/// What a change does to `[offset, offset + len)` of the file.
pub(super) type Act<'a> = dyn Fn(&Inner, u64, u64) -> io::Result<()> + 'a;

impl Inner {
    /// Applies a change, group by group.
    pub(super) fn change(&self, offset: u64, len: u64, act: &Act) -> Result<()> {
        let (mut at, end) = (offset, offset + len);
        if len > 0 && self.map.complete() {
            self.open_for_changes()?;
            return act(self, offset, len).map_err(VolumeError::io("writing the volume's file"));
        }
        while at < end {
            let group_end = (at / (GROUP_BLOCKS * BLOCK_BYTES) + 1) * GROUP_BLOCKS * BLOCK_BYTES;
            let piece = group_end.min(end) - at;
            self.change_in_group(at, piece, act)?;
            at += piece;
        }
        Ok(())
    }

    fn change_in_group(&self, offset: u64, len: u64, act: &Act) -> Result<()> {
        let end = offset + len;
        let blocks = self.geometry.touched(offset, len);
        loop {
            for (at, len) in self.partial_edges(offset, len).into_iter().flatten() {
                self.wait_present(at, len)?;
            }
            let failed = VolumeError::io("writing the volume's file");
            if blocks.clone().all(|block| self.map.present(block)) {
                let _shared = self.stripe(blocks.start).read().unwrap_or_else(|poison| poison.into_inner());
                // Under the lock nobody can take a block back that is present.
                self.open_for_changes()?;
                if blocks.clone().all(|block| self.map.present(block)) {
                    blocks.for_each(|block| self.map.will_write(block));
                    return act(self, offset, len).map_err(failed);
                }
                continue;
            }
            let _alone = self.stripe(blocks.start).write().unwrap_or_else(|poison| poison.into_inner());
            self.open_for_changes()?;
            let ready = |block| self.map.present(block) || self.geometry.covers(block, offset, end);
            if !blocks.clone().all(ready) {
                continue;
            }
            blocks.clone().filter(|block| self.map.present(*block)).for_each(|block| self.map.will_write(block));
            act(self, offset, len).map_err(failed)?;
            let mut arrived = false;
            for block in blocks.filter(|block| !self.map.present(*block)) {
                self.map.overwritten(block);
                arrived = true;
            }
            if arrived {
                self.announce();
            }
            return Ok(());
        }
    }

    /// The parts of a range that lie in blocks which it does not cover: those must be present before a change.
    pub(super) fn partial_edges(&self, offset: u64, len: u64) -> [Option<(u64, u64)>; 2] {
        let blocks = self.geometry.touched(offset, len);
        if blocks.is_empty() {
            return [None, None];
        }
        let end = offset + len;
        let edge = |block| {
            let (first, last) = self.geometry.span(block, 1);
            let (from, to) = (first.max(offset), last.min(end));
            (!self.geometry.covers(block, offset, end)).then_some((from, to - from))
        };
        let last = blocks.end - 1;
        [edge(blocks.start), if last == blocks.start { None } else { edge(last) }]
    }

    /// Wakes whoever waits for blocks.
    pub(super) fn announce(&self) {
        self.lock_work().progress += 1;
        self.arrived.notify_all();
    }
}

/// Turns stretches with absent blocks into data: an absent block's hole says nothing.
pub(super) fn without_absent(inner: &Inner, offset: u64, local: Vec<Extent>) -> Vec<Extent> {
    if inner.map.complete() {
        return local;
    }
    let mut found: Vec<Extent> = Vec::new();
    let mut push = |len: u64, zero: bool| match found.last_mut() {
        Some(last) if last.zero == zero => last.len += len,
        _ => found.push(Extent { len, zero }),
    };
    let mut at = offset;
    for extent in local {
        let end = at + extent.len;
        while at < end {
            let block = at / BLOCK_BYTES;
            let stop = ((block + 1) * BLOCK_BYTES).min(end);
            push(stop - at, extent.zero && inner.map.present(block));
            at = stop;
        }
    }
    found
}
