//! The command line as a whole: one definition from which parser, help and completions come. What a group of commands
//! takes stands beside the code that carries it out.

use clap::{Parser, Subcommand};

use crate::{cli, dev, roles};

#[derive(Parser)]
#[command(
    name = "godwit",
    version,
    about = "Runs images as Machines on your own Linux servers",
    disable_help_subcommand = true,
    infer_subcommands = false,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Arguments {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(clap::Args, Clone)]
pub struct Global {
    /// Answer with JSON on standard output
    #[arg(short = 'j', long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// Say only what was asked for: ids in lists, no progress
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub quiet: bool,
    /// Show every column of a table, with full times
    #[arg(long, global = true, help_heading = "Global options")]
    pub wide: bool,
    /// Do not ask
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub yes: bool,
    /// The fleet that is meant, of those that `godwit config add` made
    #[arg(long, global = true, env = "GODWIT_CONTEXT", value_name = "CONTEXT", help_heading = "Global options")]
    pub context: Option<String>,
    /// Where control's API is
    #[arg(long, global = true, env = "GODWIT_API_URL", value_name = "URL", help_heading = "Global options")]
    pub api_url: Option<String>,
    /// An operator's token
    #[arg(
        long,
        visible_alias = "access-token",
        global = true,
        env = "GODWIT_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        help_heading = "Global options"
    )]
    pub token: Option<String>,
    /// Trust an https:// address by the authorities in this PEM file, not by the system's
    #[arg(long, global = true, env = "GODWIT_CA_FILE", value_name = "FILE", help_heading = "Global options")]
    pub ca_file: Option<String>,
    /// When to use colour; NO_COLOR turns it off too
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", help_heading = "Global options")]
    pub color: ColorChoice,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq)]
pub enum ColorChoice {
    Auto,
    Always,
    Never,
}

#[derive(Subcommand)]
pub enum Command {
    /// Named groups of Machines that serve the same thing
    #[command(subcommand, visible_alias = "app")]
    Apps(cli::apps::Command),
    /// Run and manage Machines
    #[command(subcommand, visible_aliases = ["machines", "m"])]
    Machine(cli::machine::Command),
    /// How many Machines an app has
    #[command(subcommand)]
    Scale(cli::scale::Command),
    /// Disks that outlive a Machine's process and move with it
    #[command(subcommand, visible_alias = "volume")]
    Volumes(cli::volumes::Command),
    /// Moves of Machines and volumes to other hosts
    #[command(subcommand, visible_alias = "migrations")]
    Migration(cli::migration::Command),
    /// Host names of an app and their certificates
    #[command(subcommand, visible_aliases = ["certificates", "cert"])]
    Certs(cli::certs::Command),
    /// Images that Machines run
    #[command(subcommand, visible_alias = "images")]
    Image(cli::image::Command),
    /// The servers of the fleet
    #[command(subcommand, visible_alias = "hosts")]
    Host(cli::host::Command),
    /// Private addresses of Machines
    #[command(subcommand)]
    Ips(cli::ips::Command),
    /// Show an app and its Machines
    Status(cli::status::Options),
    Logs(cli::logs::Options),
    Proxy(cli::proxy::Options),
    /// Which fleet this command line talks to
    #[command(subcommand)]
    Config(cli::config::Command),
    /// Print a completion script for a shell
    Completions {
        shell: clap_complete::Shell,
    },
    /// Run one role of the platform in the foreground
    #[command(subcommand)]
    Run(roles::Command),
    /// A whole fleet on this machine, for development and proofs (needs root)
    Dev(dev::Options),
    /// What fits at a place of a command line; asked by the completion scripts
    #[command(hide = true, name = "__complete")]
    Complete {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Reads rows of the store before an edge does; started by an edge
    #[command(hide = true, name = "taste-updates")]
    Taster,
    /// A process that serves a volume; started by an agent
    #[command(hide = true)]
    VolumeProcess {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    /// One host of a dev fleet; started by `godwit dev`
    #[command(hide = true)]
    DevHost(dev::HostOptions),
    /// Print help for a command, or the table of exit codes
    Help {
        /// A command, or `exit-codes`
        topic: Vec<String>,
    },
}
