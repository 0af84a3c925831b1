//! The binary as people and scripts meet it: the command line on its own, before an API of laid-out answers, and a dev
//! fleet with everything in it (which needs root, the built shim and the demo image; `make test` sees to them).

mod api;
mod certs;
mod cli;
mod dev;
mod moves;
mod volumes;
