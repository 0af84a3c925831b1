//! Edge and door with real sockets: clients speak to an edge, the edge to a door, the door to backends on loopback
//! that stand for Machines, and to the agent's side of the unix socket. Routes come from a real store.

mod agent;
mod backend;
mod client;
mod fleet;
#[path = "../h1/raw.rs"]
mod raw;
mod relay;
mod scripted;
#[path = "../h1/table.rs"]
mod table;

mod access;
mod bodies;
mod certificates;
mod eject;
mod failures;
mod h2_downgrade;
mod handlers;
mod headers;
mod held;
mod interim;
mod join;
mod limits;
mod moves;
mod owed;
mod proxy_protocol;
mod reach;
mod replay;
mod rfc9113;
mod sleep;
mod smuggling;
mod taste;
mod tls;
mod tunnels;
mod upgrade;
mod wake;
