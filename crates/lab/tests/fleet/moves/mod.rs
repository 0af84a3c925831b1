//! A Machine moves with its volume while everything goes wrong: one row a fault, and the table is printed. Each row asks
//! the same: no acknowledged write is lost, never two copies, one running Machine at the end where the API says that it
//! is, and nothing left on the host and in the store that have it no more.
//!
//! `GODWIT_MOVES_ALL=1` (`make soak`) runs every instant of every step and the long outages; otherwise the instants are
//! drawn, each step once.

mod bed;
mod control;
mod first;
mod handoff;
pub mod kills;
mod ledger;
mod parts;
mod precopy;
mod refusals;
mod source;
mod still;
mod table;
mod target;
mod traces;

/// Whether all rows are wanted, however long they take.
pub fn everything() -> bool {
    std::env::var_os("GODWIT_MOVES_ALL").is_some_and(|value| !value.is_empty())
}
