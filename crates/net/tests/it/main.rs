//! Owns the proof of the host's network against a real kernel: every test lives in
//! namespaces of its own, which vanish with it. Must not touch the machine's own.

mod fabric;
mod fault;
mod life;
mod reach;
mod world;
