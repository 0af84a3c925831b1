//! The processes of this crate, by the arguments that start them: `keeper SPEC`, `serve SPEC KEEPER_PID`,
//! `export SPEC`, `export-serve SPEC KEEPER_PID`, `precopy SPEC` (which prints what it did, as JSON). A binary hands its arguments in and says how it is started again;
//! each role reads its own spec. It must not know what the binary is called.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

use crate::error::{Result, VolumeError, chain};
use crate::exporter::{self, ExportSpec};
use crate::keeper;
use crate::precopy::{self, PrecopySpec};
use crate::spec::VolumeSpec;

/// Another keeper of the same volume or migration lives.
pub const EXIT_TAKEN: u8 = 3;
const EXIT_USAGE: u8 = 2;

const USAGE: &str =
    "usage: keeper SPEC | serve SPEC KEEPER_PID | export SPEC | export-serve SPEC KEEPER_PID | precopy SPEC";

/// Runs a role to its end. `again` makes a command of this program that takes a role's arguments.
pub fn run(arguments: &[OsString], again: impl Fn() -> Command) -> ExitCode {
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    let done = match words[..] {
        ["keeper", spec] => keep(spec, &again),
        ["export", spec] => export(spec, &again),
        ["precopy", spec] => precopy(spec),
        ["serve", spec, keeper_pid] => {
            pid(keeper_pid).and_then(|pid| VolumeSpec::read(Path::new(spec)).and_then(|spec| keeper::serve(&spec, pid)))
        }
        ["export-serve", spec, keeper_pid] => pid(keeper_pid)
            .and_then(|pid| ExportSpec::read(Path::new(spec)).and_then(|spec| exporter::serve(&spec, pid))),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", chain(&error));
            match error {
                VolumeError::Taken { .. } => ExitCode::from(EXIT_TAKEN),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn keep(spec: &str, again: &impl Fn() -> Command) -> Result<()> {
    let server = child(again, "serve", spec);
    keeper::run(VolumeSpec::read(Path::new(spec))?, server)
}

fn export(spec: &str, again: &impl Fn() -> Command) -> Result<()> {
    let server = child(again, "export-serve", spec);
    exporter::run(ExportSpec::read(Path::new(spec))?, server)
}

fn precopy(spec: &str) -> Result<()> {
    let status = precopy::run(&PrecopySpec::read(Path::new(spec))?)?;
    let text =
        serde_json::to_string(&status).map_err(|error| VolumeError::io("telling what was done")(error.into()))?;
    println!("{text}");
    Ok(())
}

fn child(again: &impl Fn() -> Command, role: &'static str, spec: &str) -> impl Fn() -> Command {
    move || {
        let mut command = again();
        command.args([role, spec]).arg(std::process::id().to_string());
        command
    }
}

fn pid(text: &str) -> Result<u32> {
    text.parse().map_err(|_| VolumeError::Process { what: format!("`{text}` is not a process id") })
}
