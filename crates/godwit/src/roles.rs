//! `godwit run ROLE --config FILE`: one role in the foreground, until SIGTERM or SIGINT. It reads the configuration,
//! opens the log, and hands both to the role's crate. `check` looks instead of running.

mod check;
mod clean;

use std::error::Error;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use godwit_base::TaskGroup;
use godwit_base::task::terminated;
use godwit_base::telemetry;
use serde::de::DeserializeOwned;

use crate::args::Global;
use crate::error::{CliError, Result};

/// What a role's own drain leaves behind is waited for so long.
const LEFTOVER_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(clap::Args)]
pub struct Options {
    /// The configuration file (TOML; see docs/configuration.md)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration and this server, report what is missing, and start nothing
    #[arg(long)]
    check: bool,
    /// Write the log as JSON
    #[arg(long)]
    log_json: bool,
}

#[derive(clap::Args)]
pub struct AgentOptions {
    #[command(flatten)]
    role: Options,
    /// Stop every Machine on this host and delete all data of the platform, including volumes; asks first
    #[arg(long, conflicts_with = "check")]
    clean: bool,
}

/// Of a role whose listening sockets can be handed over.
#[derive(clap::Args)]
pub struct ProxyOptions {
    #[command(flatten)]
    role: Options,
    /// Replace the running process that uses the same data directory, for upgrades: it hands over its listening
    /// sockets and finishes its requests
    #[arg(long)]
    take_over: bool,
}

#[derive(Subcommand)]
pub enum Command {
    /// Serve the API, place Machines and keep the fleet's state
    Control(Options),
    /// Run Machines on this host
    Agent(AgentOptions),
    /// Pass requests to the Machines of this host
    Door(ProxyOptions),
    /// Receive the traffic of users and pass it to Machines
    Edge(ProxyOptions),
}

pub fn run(command: Command, global: &Global) -> Result<ExitCode> {
    if let Some(looked) = check::wanted(&command, global.json) {
        return looked;
    }
    if let Command::Agent(AgentOptions { role, clean: true }) = &command {
        return clean::agent(&role.config, global).map(|()| ExitCode::SUCCESS);
    }
    start(command).map(|()| ExitCode::SUCCESS)
}

fn start(command: Command) -> Result<()> {
    match command {
        Command::Control(options) => {
            let config = configured::<godwit_control::Raw, godwit_control::Config>("control", &options)?;
            serve("control", godwit_control::run(config, terminated()))
        }
        Command::Agent(options) => {
            let config = configured::<godwit_agent::Raw, godwit_agent::Config>("agent", &options.role)?;
            serve("agent", async {
                let group = TaskGroup::new();
                let stopping = group.token();
                tokio::spawn(async move {
                    terminated().await;
                    stopping.cancel();
                });
                godwit_agent::run(config, group).await
            })
        }
        Command::Door(options) => {
            use godwit_proxy::door::{DoorConfig, RawDoorConfig, run};
            let config = configured::<RawDoorConfig, DoorConfig>("door", &options.role)?;
            let config = DoorConfig { take_over: options.take_over, ..config };
            serve("door", async { run(config, stop_token()).await })
        }
        Command::Edge(options) => {
            use godwit_proxy::edge::{EdgeConfig, RawEdgeConfig, run};
            let config = configured::<RawEdgeConfig, EdgeConfig>("edge", &options.role)?;
            // The very program that runs now, whatever lies at its path meanwhile.
            let taster = Some(vec!["/proc/self/exe".to_owned(), TASTER.to_owned()]);
            let config = EdgeConfig { taster, take_over: options.take_over, ..config };
            serve("edge", async { run(config, stop_token(), reloads(options.role.config)).await })
        }
    }
}

/// What an edge starts to try updates aside, as `Command::Taster` is called.
const TASTER: &str = "taste-updates";

pub fn taster() -> Result<()> {
    use godwit_proxy::edge::taste;
    let provider = taste::provider();
    let read = |key: &str, value: &[u8]| taste::read(key, value, &provider);
    Ok(taste::serve(std::io::stdin().lock(), std::io::stdout().lock(), read)?)
}

/// A keeper, a server or an exporter of a volume. Its log goes where its agent has sent standard error.
pub fn volume_process(arguments: &[std::ffi::OsString]) -> ExitCode {
    telemetry::init("volume", false);
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            eprintln!("cannot find this program: {error}");
            return ExitCode::FAILURE;
        }
    };
    godwit_volume::roles::run(arguments, move || {
        let mut command = std::process::Command::new(&program);
        command.arg("volume-process");
        command
    })
}

/// Raw, then checked; both kinds of mistakes name the file.
fn configured<Raw, Config>(role: &'static str, options: &Options) -> Result<Config>
where
    Raw: DeserializeOwned,
    Config: TryFrom<Raw>,
    Config::Error: Error,
{
    let config = read::<Raw, Config>(&options.config)?;
    telemetry::init(role, options.log_json);
    Ok(config)
}

fn read<Raw, Config>(path: &Path) -> Result<Config>
where
    Raw: DeserializeOwned,
    Config: TryFrom<Raw>,
    Config::Error: Error,
{
    let raw: Raw = godwit_base::config::read(path).map_err(|error| CliError::failed(telemetry::chain(&error)))?;
    Config::try_from(raw).map_err(|error| CliError::failed(format!("{}: {}", path.display(), telemetry::chain(&error))))
}

fn serve<E: Error>(role: &str, work: impl Future<Output = Result<(), E>>) -> Result<()> {
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(LEFTOVER_TIMEOUT);
    done.map_err(|error| CliError::failed(format!("{role}: {}", telemetry::chain(&error))))
}

/// The usual soft limit is 1,024, for the sake of programs that use select(2): an edge's clients alone are more.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, "the limit on open files stays as it was");
    }
}

/// What may change while an edge serves, read anew at each SIGHUP. A file that is wrong changes nothing.
fn reloads(path: PathBuf) -> tokio::sync::mpsc::Receiver<godwit_proxy::edge::Live> {
    use godwit_proxy::edge::{EdgeConfig, RawEdgeConfig};
    use tokio::signal::unix::{SignalKind, signal};
    let (tell, reloaded) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        let Ok(mut hangups) = signal(SignalKind::hangup()) else { return };
        while hangups.recv().await.is_some() {
            let raw = godwit_base::config::read::<RawEdgeConfig>(&path).map_err(|error| telemetry::chain(&error));
            let config = raw.and_then(|raw| EdgeConfig::try_from(raw).map_err(|error| telemetry::chain(&error)));
            match config {
                Ok(config) => drop(tell.send(config.live).await),
                Err(error) => tracing::warn!(path = %path.display(), error, "the configuration is not taken over"),
            }
        }
    });
    reloaded
}

fn stop_token() -> tokio_util::sync::CancellationToken {
    let token = tokio_util::sync::CancellationToken::new();
    let stopping = token.clone();
    tokio::spawn(async move {
        terminated().await;
        stopping.cancel();
    });
    token
}
