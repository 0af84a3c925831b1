//! How a volume is shown to a Machine. FUSE with a loop device on top serves containers and any VMM; vhost-user-blk and
//! ublk are to join behind the same trait. It must not know clones beyond what they promise.
//!
//! **Why /dev/fuse and not io_uring.** A server that dies must be replaced without its guests seeing an error. For
//! /dev/fuse that is proven: the keeper holds the descriptor, and FUSE_NOTIFY_RESEND gives the successor every request
//! that was read but not answered. Requests that sat in a dead process's ring have no such way back. The ring is
//! faster for a single random read; the loop's direct IO gives most of that back at depth.

pub mod fuse;
pub mod loop_device;

use std::sync::Arc;

use crate::device::CloneDevice;
use crate::error::Result;

/// A way to show a device. Started once in each process that serves it.
pub trait Frontend: Send {
    /// Serves from now on, on threads of its own.
    fn start(&mut self, device: Arc<CloneDevice>) -> Result<()>;
    /// Returns when nothing is left to serve: the device was detached.
    fn wait(&mut self);
}
