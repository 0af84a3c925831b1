//! Volumes: the block map, the clone device, hydration, NBD on both sides, front ends and the keeper. It knows
//! nothing of Machines, hosts or the store.

pub mod backing;
pub mod device;
pub mod error;
pub mod exporter;
pub mod front;
pub mod host;
pub mod keeper;
pub mod lock;
pub mod map;
pub mod map_file;
pub mod nbd;
pub mod pace;
pub mod precopy;
pub mod process;
pub mod roles;
pub mod schedule;
pub mod shm;
pub mod source;
pub mod spec;
pub mod traces;

pub use device::{CloneConfig, CloneDevice, CloneParts, CloneStatus};
pub use error::{Result, VolumeError};
