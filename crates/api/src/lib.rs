//! The nouns of Godwit and the shapes in which they travel: ids, epochs, the public Machines API, the host API
//! that control calls, the door's protocol, and the rows of the fleet store. One definition an endpoint: its
//! route, its client call and its OpenAPI operation all come from the same `Endpoint`.
//!
//! This crate does no IO, reads no clock and draws no randomness; it must not know who serves or calls it.

pub mod app;
pub mod certificate;
pub mod config;
pub mod door;
pub mod duration;
pub mod endpoint;
pub mod endpoints;
pub mod error;
pub mod event;
pub mod fact;
pub mod fields;
pub mod fleet;
pub mod host;
pub mod hostname;
pub mod ids;
pub mod keys;
pub mod lease;
pub mod log;
pub mod machine;
pub mod migration;
pub mod openapi;
pub mod route;
pub mod row;
pub mod session;
pub mod signal;
pub mod ticket;
pub mod unbuilt;
pub mod volume;

pub use duration::Span;
pub use endpoint::{Endpoint, Method};
pub use error::{ApiError, Status};
pub use hostname::Hostname;
pub use ids::{AppName, EdgeId, Epoch, HostId, InstanceId, MachineId, MigrationId, VolumeId};
