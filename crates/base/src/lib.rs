//! What every role stands on: who calls (`peer`), HTTP served and called, Machines' ports dialed, tasks that end in time,
//! metrics, logs of our own, configuration files, small durable files. It knows no Machine's life.

pub mod backoff;
pub mod check;
pub mod clock;
pub mod config;
pub mod dial;
pub mod distrust;
pub mod durable;
pub mod folder;
pub mod http;
pub mod join_token;
pub mod metrics;
pub mod peer;
pub mod proof;
pub mod secret;
pub mod task;
pub mod telemetry;
pub mod ticket;

pub use distrust::Distrust;
pub use peer::{Peer, Verb, may};
pub use proof::Prover;
pub use task::TaskGroup;
