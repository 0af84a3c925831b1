//! The dev fleet: control, an edge and N hosts on one machine, each host a set of real processes in namespaces of its
//! own. It writes the roles' configurations, starts and restarts their processes, and removes every trace. It must not
//! know what a role does.
//!
//! ```text
//! godwit dev ─┬─ godwit run control                        (root's namespaces)
//!             ├─ godwit run edge
//!             └─ godwit dev-host w1  (enters netns w1, makes the other namespaces)
//!                  └─ godwit dev-host w1 --inside  = pid 1 of the host: starts, restarts and reaps
//!                       ├─ godwit run agent ── shims, which end up as children of pid 1
//!                       └─ godwit run door
//! ```
//!
//! Every arrow is a parent-death SIGKILL: when `godwit dev` dies, so does the fleet, as if its power were cut.

mod capacity;
mod cgroup;
mod clean;
mod config;
mod fleet;
mod host;
mod inside;
mod line;
mod process;
mod record;
mod report;
mod tls;

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::args::Global;
use crate::error::{CliError, Result};
use crate::exit::Exit;

pub use host::HostOptions;

/// Of the default addresses.
const HTTP_PORT: u16 = 8080;
const HTTPS_PORT: u16 = 8443;
/// More hosts than this on one machine prove nothing.
const HOSTS_MAX: u16 = 64;

#[derive(clap::Args, Clone)]
pub struct Options {
    /// The fleet's directory; a later start with the same directory continues where it stopped
    #[arg(long, value_name = "DIR", required_unless_present = "clean")]
    data: Option<PathBuf>,
    /// Remove the fleet in this directory, and the directory
    #[arg(long, value_name = "DIR", conflicts_with = "data")]
    clean: Option<PathBuf>,
    /// The number of hosts; default: those of an earlier start, or 3
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(HOSTS_MAX)))]
    hosts: Option<u16>,
    /// The address of control's API
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4280")]
    api: SocketAddr,
    /// The address of the edge for HTTP; apps are at http://APP.localhost:PORT
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    http: SocketAddr,
    /// The address of the edge for HTTPS; default: 127.0.0.1:8443, or a free port if --http is given
    #[arg(long, value_name = "ADDR")]
    https: Option<SocketAddr>,
    /// The region of the hosts; if given several times, hosts are spread over the regions
    #[arg(long, value_name = "NAME")]
    region: Vec<String>,
    /// The capacity of each host, for example cpus=4,memory_mb=8192,disk_mb=51200
    #[arg(long, value_name = "LIST", default_value = "")]
    capacity: capacity::Capacity,
    /// How long the edge holds a request for a Machine that starts
    #[arg(long, value_name = "MS")]
    gate_deadline_ms: Option<u64>,
    /// How often the edge looks for idle Machines
    #[arg(long, value_name = "MS")]
    autostop_interval_ms: Option<u64>,
    /// How long a Machine must be idle to be stopped
    #[arg(long, value_name = "MS")]
    autostop_idle_ms: Option<u64>,
    /// Let tests arm crash points in agents
    #[arg(long, hide = true)]
    lab: bool,
}

pub fn run(options: Options, global: &Global) -> Result<()> {
    need_root()?;
    // Hosts die with the thread that started them (PR_SET_PDEATHSIG), so all of them are started by this one: a
    // runtime of one thread, driven by the main thread.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match &options.clean {
        Some(dir) => runtime.block_on(clean::run(dir, global)),
        None => runtime.block_on(fleet::run(&options, global)),
    }
}

pub fn run_host(options: &HostOptions) -> Result<()> {
    host::run(options)
}

fn need_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(CliError::new(Exit::Usage, "a dev fleet needs root: it makes namespaces, links and cgroups")
        .hint("run it with sudo, or as root in a virtual machine"))
}
