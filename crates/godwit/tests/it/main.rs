//! The binary as people and scripts meet it: the command line on its own, before an API of laid-out answers, and a dev
//! fleet with everything in it (which needs root, the built shim and the demo image; `make test` sees to them).

#[path = "../../../control/tests/it/agent.rs"]
#[allow(dead_code, reason = "control's own tests turn its knobs")]
mod agent;
mod api;
mod certs;
mod cli;
mod completion;
mod control;
mod dev;
mod follow;
mod hosts;
#[path = "../../../control/tests/it/image.rs"]
#[allow(dead_code, reason = "control's own tests use the rest")]
mod image;
mod lists;
mod machines;
mod mistakes;
mod moves;
mod volumes;
