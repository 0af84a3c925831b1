//! `godwit-lab`: makes the demo image, sends load, and tells the demo's story. It starts and harms a dev fleet of its
//! own and must not know how the roles work inside.

mod demo;
mod image;
mod load;
mod soak;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "godwit-lab", about = "Proofs and demonstrations of Godwit")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the demo image, an OCI archive around one static binary
    Image(image::Options),
    /// Send requests at a steady rate, without retries, and judge every answer
    Load(load::Options),
    /// Start a dev fleet, wake a Machine, kill its agent and control under load, move another with its volume, clean up
    Demo(demo::Options),
    /// Kill agents, doors and control under load, round after round
    Soak(soak::Options),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Image(options) => image::write(&options).map(|()| true),
        Command::Load(options) => load::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Soak(options) => soak::run(&options),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("godwit-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
