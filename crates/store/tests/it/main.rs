//! The store as its users see it: one suite on SQLite directly and through a real socket, a model check, and
//! processes that are killed.

mod bed;
mod child;
mod conformance;
mod crash;
mod following;
mod model;
mod protocol;
mod watching;
