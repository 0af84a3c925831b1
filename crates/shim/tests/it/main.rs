//! Real Machines in real containers, through the driver and the real shim. Needs root, cgroups and a C compiler.

mod adoption;
mod breakouts;
mod fleet;
mod inside;
mod life;
mod limits;
mod logs;
mod loops;
mod volumes;
