//! Where everything of a containerised Machine lies, and the records that the driver and the shim leave for each
//! other. Both sides use this file; it starts nothing.

use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

use crate::durable;
use crate::handle::{Exit, Handle};
use crate::spec::Spec;

/// What a shim is told to do: the spec and the driver's own options.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    pub spec: Spec,
    /// Relative to the root of each cgroup hierarchy.
    pub cgroup_parent: String,
    /// Folder for what libcontainer keeps while the container lives.
    pub state_dir: PathBuf,
    /// CLOCK_MONOTONIC just before the shim was spawned; the shim's log counts from here.
    pub spawned_at_ns: u64,
}

/// The files of one Machine's folder.
#[derive(Debug, Clone)]
pub struct Layout {
    pub dir: PathBuf,
}

impl Layout {
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }
    pub fn run(&self) -> PathBuf {
        self.dir.join("run")
    }
    pub fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }
    /// Where the overlay is mounted, in the shim's mount namespace only.
    pub fn root(&self) -> PathBuf {
        self.run().join("root")
    }
    pub fn socket(&self) -> PathBuf {
        self.run().join("shim.sock")
    }
    /// Locked for as long as a shim lives.
    pub fn lock(&self) -> PathBuf {
        self.run().join("lock")
    }
    pub fn shim_log(&self) -> PathBuf {
        self.run().join("shim.log")
    }
    fn order_file(&self) -> PathBuf {
        self.run().join("order.json")
    }
    fn handle_file(&self) -> PathBuf {
        self.run().join("handle.json")
    }
    fn exit_file(&self) -> PathBuf {
        self.run().join("exit.json")
    }

    pub fn write_order(&self, order: &Order) -> io::Result<()> {
        durable::write(&self.order_file(), order)
    }
    pub fn order(&self) -> io::Result<Option<Order>> {
        durable::read(&self.order_file())
    }

    /// Written by the shim before anything of the image runs: from then on the instance counts as started.
    pub fn write_handle(&self, handle: &Handle) -> io::Result<()> {
        durable::write(&self.handle_file(), handle)
    }
    pub fn handle(&self) -> io::Result<Option<Handle>> {
        durable::read(&self.handle_file())
    }
    /// A start that failed leaves nothing to find.
    pub fn forget_handle(&self) -> io::Result<()> {
        match std::fs::remove_file(self.handle_file()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// On disk for good before anybody hears of the exit.
    pub fn write_exit(&self, exit: &Exit) -> io::Result<()> {
        durable::write_synced(&self.exit_file(), exit)
    }
    /// The exit of `instance`; an older instance's record does not count.
    pub fn exit_of(&self, instance: &str) -> io::Result<Option<Exit>> {
        Ok(durable::read::<Exit>(&self.exit_file())?.filter(|exit| exit.instance == instance))
    }
}
