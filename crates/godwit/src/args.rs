//! The command line as a whole: one definition from which parser, help and completions come. What a group of commands
//! takes stands beside the code that carries it out.

use clap::{Parser, Subcommand};

use crate::{cli, dev, roles};

#[derive(Parser)]
#[command(
    name = "godwit",
    version,
    about = "Runs OCI images as Machines on your own Linux servers",
    long_about = "Runs OCI images as Machines on your own Linux servers\n\n\
        A Machine is a container that runs an image. Machines belong to an app, which has a name and URLs. Hosts are the \
        servers that run Machines. An edge receives the traffic of an app's users and passes it to its Machines. Control \
        serves the API that this command talks to, and places Machines on hosts.",
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
    /// Print JSON to standard output
    #[arg(short = 'j', long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// Print ids only, and no progress
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub quiet: bool,
    /// Show every column of a table, with full times
    #[arg(long, global = true, help_heading = "Global options")]
    pub wide: bool,
    /// Answer yes to every question
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub yes: bool,
    /// The fleet to use, one of those added with `godwit config add`
    #[arg(long, global = true, env = "GODWIT_CONTEXT", value_name = "CONTEXT", help_heading = "Global options")]
    pub context: Option<String>,
    /// The address of control's API
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
    /// Trust the certificate authorities in this PEM file instead of the system's
    #[arg(long, global = true, env = "GODWIT_CA_FILE", value_name = "FILE", help_heading = "Global options")]
    pub ca_file: Option<String>,
    /// When to use colour; NO_COLOR turns it off as well
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
    /// Create, list and destroy apps; an app is a named group of Machines
    #[command(subcommand, visible_alias = "app")]
    Apps(cli::apps::Command),
    /// Run and manage Machines; a Machine is a container that runs an image
    #[command(subcommand, visible_aliases = ["machines", "m"])]
    Machine(cli::machine::Command),
    /// Show or change how many Machines an app has
    #[command(subcommand)]
    Scale(cli::scale::Command),
    /// Manage volumes: disks that outlive restarts and move with their Machine
    #[command(subcommand, visible_alias = "volume")]
    Volumes(cli::volumes::Command),
    /// Show, watch and cancel moves of Machines and volumes between hosts
    #[command(subcommand, visible_alias = "migrations")]
    Migration(cli::migration::Command),
    /// Manage an app's host names and their TLS certificates
    #[command(subcommand, visible_aliases = ["certificates", "cert"])]
    Certs(cli::certs::Command),
    /// Load, list and remove images
    #[command(subcommand, visible_alias = "images")]
    Image(cli::image::Command),
    /// Manage hosts: the servers that run Machines
    #[command(subcommand, visible_alias = "hosts")]
    Host(cli::host::Command),
    /// Show the private addresses of Machines
    #[command(subcommand)]
    Ips(cli::ips::Command),
    /// Show an app and its Machines
    Status(cli::status::Options),
    Logs(cli::logs::Options),
    Proxy(cli::proxy::Options),
    /// Configure which fleet this command talks to
    #[command(subcommand)]
    Config(cli::config::Command),
    /// Print a completion script for a shell
    Completions {
        shell: clap_complete::Shell,
    },
    /// Run one role of the platform in the foreground: control, agent, door or edge
    #[command(subcommand)]
    Run(roles::Command),
    /// Run a whole fleet on this computer, for development and tests (needs root)
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
    /// Show the help of a command, or the table of exit codes
    Help {
        /// A command, or `exit-codes` for the table of exit codes
        topic: Vec<String>,
    },
}
