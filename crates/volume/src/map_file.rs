//! The durable map's file: does the reads, writes and syncs that `map` asks for, in the order that it asks for them.
//! It must not decide which bits are written.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::error::{Result, VolumeError};
use crate::map::{Geometry, Head, Identity, Page, SlotWrite, Slots, Snapshot};

/// Where a map's bytes go. The file, or a log of the power-cut test.
pub trait MapStore: Send + Sync {
    fn write(&self, slot: &SlotWrite) -> std::io::Result<()>;
    fn sync(&self) -> std::io::Result<()>;
}

impl MapStore for File {
    fn write(&self, slot: &SlotWrite) -> std::io::Result<()> {
        self.write_all_at(&slot.bytes, slot.offset)
    }
    fn sync(&self) -> std::io::Result<()> {
        self.sync_data()
    }
}

/// Opens the map at `path`, or makes an empty one. A half-made one is made anew: nothing used it yet, because its last
/// write is the head.
pub fn open(path: &Path, identity: Identity, geometry: Geometry) -> Result<(File, Slots, Head, Vec<Page>)> {
    let what = |verb: &str| VolumeError::io(format!("{verb} the map {}", path.display()));
    match std::fs::read(path) {
        Ok(bytes) => {
            let (slots, head, pages) = Slots::load(identity, geometry, &bytes)?;
            let file = OpenOptions::new().read(true).write(true).open(path).map_err(what("opening"))?;
            Ok((file, slots, head, pages))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => create(path, identity, geometry),
        Err(error) => Err(what("reading")(error)),
    }
}

fn create(path: &Path, identity: Identity, geometry: Geometry) -> Result<(File, Slots, Head, Vec<Page>)> {
    let what = |verb: &str| VolumeError::io(format!("{verb} the map {}", path.display()));
    let (slots, writes) = Slots::create(identity, geometry);
    let mut bytes = vec![0; geometry.map_file_bytes() as usize];
    for write in &writes {
        bytes[write.offset as usize..write.offset as usize + write.bytes.len()].copy_from_slice(&write.bytes);
    }
    // Renamed into place when whole: a map that exists is never half made.
    godwit_base::durable::write(path, &bytes, 0o600).map_err(what("making"))?;
    let file = OpenOptions::new().read(true).write(true).mode(0o600).open(path).map_err(what("opening"))?;
    let (_, head, pages) = Slots::load(identity, geometry, &bytes)?;
    Ok((file, slots, head, pages))
}

/// One commit. `sync_data` must make every write to the volume's file durable that ended before the snapshot.
pub fn commit(
    store: &dyn MapStore,
    slots: &mut Slots,
    snapshot: Snapshot,
    sync_data: impl FnOnce() -> std::io::Result<()>,
) -> Result<bool> {
    let nothing = snapshot.is_empty();
    sync_data().map_err(VolumeError::io("syncing the volume's file"))?;
    if nothing {
        return Ok(false);
    }
    let writes = snapshot.data_synced(slots);
    for slot in writes.slots() {
        store.write(slot).map_err(VolumeError::io("writing the map"))?;
    }
    store.sync().map_err(VolumeError::io("syncing the map"))?;
    slots.committed(&writes);
    Ok(true)
}
