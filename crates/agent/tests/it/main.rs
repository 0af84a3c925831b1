//! The agent as a whole: its real journal, a real store behind real HTTP, real images, and Machines of the fake
//! driver, whose state lies on disk and outlives the agent as real Machines do.

mod child;
mod control;
mod door;
mod host;
mod kill;
mod life;
mod listens;
mod reach;
