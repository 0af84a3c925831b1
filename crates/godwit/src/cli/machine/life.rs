//! `machine start`, `stop`, `restart`, `kill`, `wait`, `cordon`: Machines that exist, moved through their
//! life. Each takes several; the first that fails ends the command and is named.

use std::time::{Duration, Instant};

use godwit_api::AppName;
use godwit_api::Span;
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{
    MachinesCordon, MachinesRestart, MachinesSignal, MachinesStart, MachinesStop, MachinesUncordon, MachinesWait,
};
use godwit_api::error::Status;
use godwit_api::machine::{Machine, MachineState, RestartQuery, SignalMachine, StopMachine, WaitQuery};
use godwit_base::http::client::{CallError, HEAD_TIMEOUT};
use http::HeaderMap;

use super::follow::{Goal, SmokeOption};
use super::{Target, Targets, WaitOption, changes};
use crate::cli::context::Context;
use crate::cli::output::short_digest;
use crate::error::{CliError, Result};
use crate::exit::Exit;

/// Control restarts a Machine before it answers, so that takes a stop and a start.
const RESTART_TIMEOUT: Duration = Duration::from_secs(180);
/// One call of `wait`; longer waits call again.
const WAIT_SLICE: Duration = Duration::from_secs(20);

#[derive(clap::Args)]
pub struct StartOptions {
    #[command(flatten)]
    targets: Targets,
    #[command(flatten)]
    wait: WaitOption,
    #[command(flatten)]
    smoke: SmokeOption,
}

#[derive(clap::Args)]
pub struct StopOptions {
    #[command(flatten)]
    targets: Targets,
    /// The signal that asks the process to stop
    #[arg(short, long)]
    signal: Option<String>,
    /// How long to wait after the signal before it is killed
    #[arg(long, value_parser = super::duration, value_name = "DURATION")]
    timeout: Option<Duration>,
    #[command(flatten)]
    wait: WaitOption,
}

#[derive(clap::Args)]
pub struct RestartOptions {
    #[command(flatten)]
    targets: Targets,
    /// The signal that asks the process to stop
    #[arg(short, long)]
    signal: Option<String>,
    /// How long to wait after the signal before it is killed
    #[arg(long, visible_alias = "time", value_parser = super::duration, value_name = "DURATION")]
    timeout: Option<Duration>,
    /// Kill it at once
    #[arg(long)]
    force_stop: bool,
    #[command(flatten)]
    wait: WaitOption,
    #[command(flatten)]
    smoke: SmokeOption,
}

#[derive(clap::Args)]
pub struct KillOptions {
    #[command(flatten)]
    targets: Targets,
    /// The signal to send
    #[arg(short, long, default_value = "SIGKILL")]
    signal: String,
}

#[derive(clap::Args)]
pub struct WaitOptions {
    #[command(flatten)]
    target: Target,
    /// The state: started, stopped, destroyed, or settled (any state that lasts)
    #[arg(long, default_value = "started")]
    state: String,
    /// How long to wait
    #[arg(short, long, default_value = "5m", value_parser = super::duration, value_name = "DURATION")]
    wait_timeout: Duration,
}

#[derive(clap::Args)]
pub struct CordonOptions {
    #[command(flatten)]
    targets: Targets,
}

/// The Machines that a command means, all looked up before any is changed.
pub async fn look_up(targets: &Targets, context: &Context) -> Result<Vec<(AppName, Machine)>> {
    let mut found = Vec::new();
    for which in &targets.machines {
        found.push(context.machine(&targets.app, which).await?);
    }
    Ok(found)
}

fn report(context: &Context, done: &[(AppName, Machine)]) -> Result<()> {
    if context.output.json {
        let machines: Vec<&Machine> = done.iter().map(|(_, machine)| machine).collect();
        return context.output.json(&machines);
    }
    Ok(())
}

pub async fn start(options: &StartOptions, context: &Context) -> Result<()> {
    let headers = options.targets.lease.headers()?;
    let mut done = Vec::new();
    for (app, machine) in look_up(&options.targets, context).await? {
        let path = [app.as_str(), machine.id.as_str()];
        context.client.call_with::<MachinesStart>(&path, &Empty {}, &Empty {}, &headers, HEAD_TIMEOUT).await?;
        let machine = if options.wait.detach {
            context.show(&app, &machine.id).await?
        } else {
            let (timeout, smoke) = (options.wait.wait_timeout, options.smoke.time());
            let goal = Goal { before: Some(&machine), version: None, or_stopped: false, timeout, smoke };
            context.follow_start(&app, &machine, goal).await?
        };
        context.output.say(format!("Machine {} is {}.", machine.id, machine.state.as_str()));
        done.push((app, machine));
    }
    report(context, &done)
}

pub async fn stop(options: &StopOptions, context: &Context) -> Result<()> {
    let headers = options.targets.lease.headers()?;
    let request = StopMachine { signal: options.signal.clone(), timeout: options.timeout.map(Span) };
    let mut done = Vec::new();
    for (app, machine) in look_up(&options.targets, context).await? {
        let path = [app.as_str(), machine.id.as_str()];
        context.client.call_with::<MachinesStop>(&path, &Empty {}, &request, &headers, HEAD_TIMEOUT).await?;
        let machine = if options.wait.detach {
            context.show(&app, &machine.id).await?
        } else {
            let wanted = [MachineState::Stopped, MachineState::Created, MachineState::Failed];
            context.wait_for(&app, &machine.id, &wanted, None, options.wait.wait_timeout).await?
        };
        context.output.say(format!("Machine {} is {}.", machine.id, machine.state.as_str()));
        done.push((app, machine));
    }
    report(context, &done)
}

pub async fn restart(options: &RestartOptions, context: &Context) -> Result<()> {
    let headers = options.targets.lease.headers()?;
    let query = RestartQuery {
        timeout: options.timeout.map(|timeout| Span(timeout).to_string()),
        signal: options.signal.clone(),
        force_stop: options.force_stop.then_some(true),
    };
    let mut done = Vec::new();
    for (app, machine) in look_up(&options.targets, context).await? {
        let path = [app.as_str(), machine.id.as_str()];
        context.output.say(format!("Restarting Machine {}.", machine.id));
        context.client.call_with::<MachinesRestart>(&path, &query, &Empty {}, &headers, RESTART_TIMEOUT).await?;
        let machine = if options.wait.detach {
            context.show(&app, &machine.id).await?
        } else {
            let (timeout, smoke) = (options.wait.wait_timeout, options.smoke.time());
            let goal = Goal { before: Some(&machine), version: None, or_stopped: false, timeout, smoke };
            context.follow_start(&app, &machine, goal).await?
        };
        context.output.say(format!("Machine {} is {}.", machine.id, machine.state.as_str()));
        tell_newer_image(context, &app, &machine).await;
        done.push((app, machine));
    }
    report(context, &done)
}

/// A restart runs the image that the Machine had. Who loaded a newer one under its tag may have expected that.
async fn tell_newer_image(context: &Context, app: &AppName, machine: &Machine) {
    // The restart is done: that the list of images is not to be had is no failure of it.
    if let Ok(Some(newer)) = changes::moved_tag(context, machine).await {
        let (image, id) = (&machine.config.image, &machine.id);
        context.output.say(format!(
            "It still runs {}; {image} is {} now.",
            short_digest(&machine.image_ref.digest),
            short_digest(&newer)
        ));
        context.output.say(format!("  hint: `godwit machine update {id} -a {app}` switches to the newer image"));
    }
}

pub async fn kill(options: &KillOptions, context: &Context) -> Result<()> {
    let headers = options.targets.lease.headers()?;
    let request = SignalMachine { signal: options.signal.clone() };
    let mut done = Vec::new();
    for (app, machine) in look_up(&options.targets, context).await? {
        let path = [app.as_str(), machine.id.as_str()];
        context.client.call_with::<MachinesSignal>(&path, &Empty {}, &request, &headers, HEAD_TIMEOUT).await?;
        context.output.say(format!("{} was sent to Machine {}.", options.signal, machine.id));
        done.push((app, machine));
    }
    report(context, &done)
}

pub async fn wait(options: &WaitOptions, context: &Context) -> Result<()> {
    let (app, machine) = context.machine(&options.target.app, &options.target.machine).await?;
    let output = context.output;
    if options.state == "settled" {
        use MachineState::{Created, Destroyed, Failed, Started, Stopped};
        let lasting = [Started, Stopped, Created, Failed, Destroyed];
        let machine = context.wait_for(&app, &machine.id, &lasting, None, options.wait_timeout).await?;
        output.say(format!("Machine {} is {}.", machine.id, machine.state.as_str()));
        return if output.json { output.json(&machine) } else { Ok(()) };
    }
    let deadline = Instant::now() + options.wait_timeout;
    let _progress = output.progress(format!("waiting until Machine {} is {}", machine.id, options.state));
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let slice = left.min(WAIT_SLICE).as_secs().max(1);
        let query = WaitQuery { state: Some(options.state.clone()), timeout: Some(slice), ..WaitQuery::default() };
        let path = [app.as_str(), machine.id.as_str()];
        let waited = tokio::select! {
            waited = context.client.call::<MachinesWait>(&path, &query, &Empty {}) => waited,
            _ = tokio::signal::ctrl_c() => {
                return Err(CliError::new(Exit::Interrupted, "stopped waiting; the Machine was not changed"));
            }
        };
        match waited {
            Ok(answer) => {
                return if output.json { output.json(&answer) } else { Ok(()) };
            }
            Err(CallError::Answered(error)) if error.status == Status::Timeout || error.code == 408 => {
                if Instant::now() >= deadline {
                    let state = context.show(&app, &machine.id).await?.state;
                    let why = format!("Machine {} is {}, not {}", machine.id, state.as_str(), options.state);
                    return Err(CliError::new(Exit::TimedOut, why));
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

pub async fn cordon(options: &CordonOptions, context: &Context, cordon: bool) -> Result<()> {
    let headers: HeaderMap = options.targets.lease.headers()?;
    let mut done = Vec::new();
    for (app, machine) in look_up(&options.targets, context).await? {
        let (path, client) = ([app.as_str(), machine.id.as_str()], &context.client);
        if cordon {
            client.call_with::<MachinesCordon>(&path, &Empty {}, &Empty {}, &headers, HEAD_TIMEOUT).await?;
            context.output.say(format!("Machine {} receives no new requests.", machine.id));
        } else {
            client.call_with::<MachinesUncordon>(&path, &Empty {}, &Empty {}, &headers, HEAD_TIMEOUT).await?;
            context.output.say(format!("Machine {} receives requests again.", machine.id));
        }
        done.push((app.clone(), context.show(&app, &machine.id).await?));
    }
    report(context, &done)
}
