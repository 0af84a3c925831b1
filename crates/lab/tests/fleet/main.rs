//! The whole platform, seen from outside: real processes of the real binary on a dev fleet, harmed in every way that
//! an issue names. Needs root, the built binaries and the demo image (`make test` sees to them).

mod away;
mod bluegreen;
mod certificates;
mod documents;
mod flood;
mod gate;
mod inout;
mod isolation;
mod kills;
mod known;
mod limits;
mod many;
mod moves;
mod postgres;
mod programs;
mod reach;
mod roles;
mod servers;
mod starts;
mod support;
mod updates;
