//! The durable map after a crash at any point, and its live form against a plain model.

use std::sync::atomic::AtomicU64;

use godwit_volume::map::{BLOCK_BYTES, Geometry, Head, Identity, LiveMap, MapError, Page, Slots, slot};
use proptest::prelude::*;

use crate::support::EPOCH;

fn live(geometry: Geometry, head: Head, pages: &[Page]) -> LiveMap {
    let board: Vec<AtomicU64> = (0..LiveMap::board_words(&geometry)).map(|_| AtomicU64::new(0)).collect();
    LiveMap::fresh(Box::new(board), geometry, EPOCH, head, pages).expect("large enough")
}

/// A disk for the map and a set of blocks for the data file, both with and without what was synced.
struct Disk {
    map: Vec<u8>,
    /// Blocks whose data is in the page cache, and those that are durable.
    cached: Vec<bool>,
    durable: Vec<bool>,
}

#[derive(Debug, Clone)]
enum Step {
    Fetched(u64),
    Overwritten(u64),
    WillWrite(u64),
    /// A commit that is cut after so many of its effects, and whether the cut write is torn.
    Commit {
        all: bool,
        cut: Option<(usize, bool)>,
    },
}

fn steps(blocks: u64) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..blocks).prop_map(Step::Fetched),
        3 => (0..blocks).prop_map(Step::Overwritten),
        2 => (0..blocks).prop_map(Step::WillWrite),
        2 => (any::<bool>(), proptest::option::weighted(0.3, (0usize..5, any::<bool>())))
            .prop_map(|(all, cut)| Step::Commit { all, cut }),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However a commit is cut, the map that is read back vouches only for blocks whose data was synced, and never
    /// forgets one that an acknowledged flush promised.
    #[test]
    fn a_bit_is_durable_only_after_its_data(steps in steps(40_000)) {
        let geometry = Geometry::new(40_000 * BLOCK_BYTES - 512).expect("a size");
        let identity = Identity::new("vol_1", EPOCH);
        let (mut slots, writes) = Slots::create(identity, geometry);
        let mut disk = Disk {
            map: vec![0; geometry.map_file_bytes() as usize],
            cached: vec![false; 40_000],
            durable: vec![false; 40_000],
        };
        let put = |map: &mut Vec<u8>, offset: u64, bytes: &[u8]| {
            map[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        };
        for write in &writes {
            put(&mut disk.map, write.offset, &write.bytes);
        }
        let map = live(geometry, Head::default(), &[]);
        let mut promised = Vec::new();
        let mut guest_wrote = Vec::new();
        for step in steps {
            match step {
                Step::Fetched(block) => {
                    disk.cached[block as usize] = true;
                    map.fetched(block);
                }
                Step::Overwritten(block) => {
                    disk.cached[block as usize] = true;
                    map.overwritten(block);
                    guest_wrote.push(block);
                }
                Step::WillWrite(block) => {
                    if map.present(block) {
                        map.will_write(block);
                        guest_wrote.push(block);
                    }
                }
                Step::Commit { all, cut } => {
                    let snapshot = map.snapshot(&slots, all, None);
                    let left = cut.map_or(usize::MAX, |(effects, _)| effects);
                    if left == 0 {
                        break;
                    }
                    disk.durable = disk.cached.clone();
                    let writes = snapshot.data_synced(&slots);
                    for (done, write) in writes.slots().iter().enumerate() {
                        if done + 1 >= left {
                            if cut.is_some_and(|(_, torn)| torn) {
                                put(&mut disk.map, write.offset, &write.bytes[..1000]);
                            }
                            break;
                        }
                        put(&mut disk.map, write.offset, &write.bytes);
                    }
                    if cut.is_some() {
                        break;
                    }
                    slots.committed(&writes);
                    promised.clone_from(&guest_wrote);
                }
            }
        }
        let (_, head, pages) = Slots::load(identity, geometry, &disk.map).expect("one slot of each pair is whole");
        prop_assert!(!head.complete);
        let after = live(geometry, head, &pages);
        for block in 0..geometry.blocks() {
            prop_assert!(!after.present(block) || disk.durable[block as usize], "block {} without data", block);
            prop_assert!(!after.written(block) || after.present(block));
        }
        for block in promised {
            prop_assert!(after.present(block) && after.written(block), "the flushed block {} is forgotten", block);
        }
    }

    /// Whatever bytes stand in a map file, reading it ends in a map or an error.
    #[test]
    fn any_map_file_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..20_000)) {
        let geometry = Geometry::new(1 << 20).expect("a size");
        prop_assert!(Slots::load(Identity::new("vol_1", EPOCH), geometry, &bytes).is_err());
    }

    #[test]
    fn next_absent_agrees_with_a_plain_scan(present in proptest::collection::vec(any::<bool>(), 1..400), from in 0u64..400) {
        let geometry = Geometry::new(present.len() as u64 * BLOCK_BYTES).expect("a size");
        let map = live(geometry, Head::default(), &[]);
        present.iter().enumerate().filter(|(_, present)| **present).for_each(|(block, _)| map.fetched(block as u64));
        let expected = (from..present.len() as u64).find(|block| !present[*block as usize]);
        prop_assert_eq!(map.next_absent(from), expected);
        prop_assert_eq!(map.count_present(), present.iter().filter(|present| **present).count() as u64);
    }
}

/// A map of another epoch or volume, a flipped bit in both slots, another size: none is believed.
#[test]
fn a_map_that_is_not_ours_is_refused() {
    let geometry = Geometry::new(1 << 30).expect("a size");
    let identity = Identity::new("vol_1", EPOCH);
    let (_, writes) = Slots::create(identity, geometry);
    let mut file = vec![0; geometry.map_file_bytes() as usize];
    for write in &writes {
        file[write.offset as usize..][..write.bytes.len()].copy_from_slice(&write.bytes);
    }
    assert!(Slots::load(identity, geometry, &file).is_ok());
    let other_epoch = Identity::new("vol_1", godwit_api::ids::Epoch { n: 8, ..EPOCH });
    assert!(matches!(Slots::load(other_epoch, geometry, &file), Err(MapError::Corrupt { .. })));
    assert!(Slots::load(Identity::new("vol_10", EPOCH), geometry, &file).is_err());
    let smaller = Geometry::new((1 << 30) - 4096).expect("a size");
    assert!(matches!(Slots::load(identity, smaller, &file), Err(MapError::OtherSize { .. })));
    let page = 2 * slot::SLOT_BYTES;
    file[page + 100] ^= 1;
    let refused = Slots::load(identity, geometry, &file).expect_err("a page without a whole slot");
    assert!(refused.to_string().contains("page 0"), "{refused}");
}
