//! Owns the network of a host: the address plan, the link and namespace of each
//! Machine, the packet rules, and the bridge that joins the hosts of a dev fleet.
//! Must not know drivers, images, the store or the API: a role hands in ids and
//! addresses, and gets back the path of a network namespace.

mod bridge;
mod detached;
mod elements;
mod error;
mod fabric;
mod host;
mod machine;
mod namespace;
mod netlink;
mod nfnetlink;
mod nft;
pub mod plan;
mod rules;
mod sysctl;

pub use error::Error;
pub use fabric::{Direction, Fabric, FabricOptions, HostLink};
pub use machine::{Found, HostNet, MachineNet, Options};
