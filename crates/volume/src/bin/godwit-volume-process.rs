//! The processes of a volume, by `roles`. The `godwit` binary has the same ones; this one stands alone for tests and for
//! mending by hand.

use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            eprintln!("finding this program: {error}");
            return ExitCode::FAILURE;
        }
    };
    godwit_volume::roles::run(&arguments, || Command::new(&program))
}
