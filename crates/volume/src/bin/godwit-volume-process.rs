//! A keeper, or the server that it starts, as a process: `keeper SPEC` or `serve SPEC KEEPER_PID`. The `godwit` binary
//! has the same two roles; this one stands alone for tests and for mending by hand.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use godwit_volume::keeper;
use godwit_volume::spec::VolumeSpec;

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["keeper", spec] => tell(keep(Path::new(spec))),
        ["serve", spec, keeper_pid] => match keeper_pid.parse() {
            Ok(pid) => tell(VolumeSpec::read(Path::new(spec)).and_then(|spec| keeper::serve(&spec, pid))),
            Err(_) => usage(),
        },
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: godwit-volume-process keeper SPEC | serve SPEC KEEPER_PID");
    ExitCode::from(2)
}

fn keep(path: &Path) -> godwit_volume::Result<()> {
    let spec = VolumeSpec::read(path)?;
    let path = PathBuf::from(path);
    let program = std::env::current_exe().map_err(godwit_volume::VolumeError::io("finding this program"))?;
    keeper::run(spec, move || {
        let mut command = Command::new(&program);
        command.arg("serve").arg(&path).arg(std::process::id().to_string());
        command
    })
}

fn tell(result: godwit_volume::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}
