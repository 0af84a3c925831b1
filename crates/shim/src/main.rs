//! `godwit-shim`: holds one Machine in a container, from before its start until after its end, and outlives whoever
//! started it. One thread, no runtime, little memory.
//!
//! It is started by the container driver with the Machine's folder as its working folder; what to do stands there
//! (`run/order.json`). One line on standard output tells how the start went. It must not know agents, fleets or images.
//! With the argument `volumes` it holds nothing, and copies files into or out of a stopped Machine's volumes (`stopped`).

mod builder;
mod construction;
mod copy;
mod entry;
mod error;
mod exec;
mod filter;
mod holder;
mod logs;
mod oci;
mod root;
mod seccomp;
mod server;
mod session;
mod start;
mod state_dir;
mod stopped;
mod sys;
mod tenant;
mod terminal;
mod user;
mod volumes;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Whatever the agent failed to mark close-on-exec must not live as long as the Machine.
    sys::close_from(3);
    if std::env::args().nth(1).as_deref() == Some(godwit_driver::protocol::VOLUMES_ARGUMENT) {
        return match stopped::serve() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("godwit-shim: a copy: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let heap = sys::HeapMark::here();
    let outcome = std::env::current_dir().map_err(error::ShimError::io("no working folder")).and_then(|dir| {
        std::env::set_current_dir("/").map_err(error::ShimError::io("cannot leave the working folder"))?;
        start::run(&dir, heap)
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("godwit-shim: {}", error::chain(&error));
            start::report_failure(&error);
            ExitCode::FAILURE
        }
    }
}
