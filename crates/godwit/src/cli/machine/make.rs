//! `machine run`, `create` and `update`: Machines made and changed.

use godwit_api::AppName;
use godwit_api::endpoints::{MachinesCreate, MachinesUpdate};
use godwit_api::machine::{Machine, MachineState};
use http::HeaderMap;
use serde_json::Value;

use super::changes::{self, value_of};
use super::document::Document;
use super::follow::{Goal, SmokeOption};
use super::remove::RemoveFlags;
use super::spec::{Config, ConfigFlags, object};
use super::{LeaseOption, Target, WaitOption, mounts, parse};
use crate::cli::context::{AppOption, Asked, Context, ON_THE_WAY_UP};
use crate::cli::{document, places};
use crate::error::{CliError, Result};

#[derive(clap::Args)]
pub struct RunOptions {
    #[command(flatten)]
    app: AppOption,
    /// The image, `name[:tag][@digest]`
    #[arg(value_name = "IMAGE", required_unless_present = "machine_config")]
    image: Option<String>,
    /// Words that stand where no word may: told with the right spelling.
    #[arg(hide = true)]
    words: Vec<String>,
    /// The command to run instead of the image's command
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
    /// The name; default: a random one
    #[arg(short, long)]
    name: Option<String>,
    /// The region to run in; default: any
    #[arg(short, long, value_name = "REGION")]
    region: Option<String>,
    /// The host to run on; default: any host with room
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    #[command(flatten)]
    config: ConfigFlags,
    /// Create the Machine, but do not start it
    #[arg(long)]
    skip_launch: bool,
    /// Send no requests to it until it is uncordoned
    #[arg(long, visible_alias = "skip-dns-registration")]
    skip_service_registration: bool,
    #[command(flatten)]
    wait: WaitOption,
    #[command(flatten)]
    smoke: SmokeOption,
}

#[derive(clap::Args)]
pub struct UpdateOptions {
    #[command(flatten)]
    target: Target,
    /// The new image
    #[arg(short, long, value_name = "IMAGE")]
    image: Option<String>,
    /// The command to run instead of the image's command, quoted as in a shell
    #[arg(short = 'C', long, value_name = "COMMAND", conflicts_with = "words")]
    command: Option<String>,
    /// The same as --command, as separate words
    #[arg(last = true, value_name = "COMMAND")]
    words: Vec<String>,
    #[command(flatten)]
    config: ConfigFlags,
    #[command(flatten)]
    remove: RemoveFlags,
    /// Do not start it if it is stopped
    #[arg(long, visible_alias = "skip-start")]
    skip_launch: bool,
    #[command(flatten)]
    lease: LeaseOption,
    #[command(flatten)]
    wait: WaitOption,
    #[command(flatten)]
    smoke: SmokeOption,
}

pub async fn run(options: &RunOptions, context: &Context, launch_it: bool) -> Result<()> {
    refuse_words(options)?;
    let app = context.app(&options.app)?;
    let Document { mut config, mut request, notes } = options.config.document()?.unwrap_or_default();
    notes.iter().for_each(|note| context.output.warn(note));
    if let Some(image) = &options.image {
        config.insert("image".into(), image.clone().into());
    }
    if !options.command.is_empty() {
        object(&mut config, "init")?.insert("cmd".into(), options.command.clone().into());
    }
    options.config.apply(&mut config)?;
    let region = options.region.clone().or_else(|| request.get("region")?.as_str().map(str::to_owned));
    mounts::resolve(context, &app, region.as_deref(), None, &mut config).await?;
    let launched = launch_it && !options.skip_launch && request.get("skip_launch") != Some(&Value::Bool(true));
    for (name, value) in [("name", &options.name), ("region", &options.region), ("host", &options.host)] {
        if let Some(value) = value {
            request.insert(name.into(), value.clone().into());
        }
    }
    for (name, set) in [("skip_launch", !launched), ("skip_service_registration", options.skip_service_registration)] {
        if set {
            request.insert(name.into(), true.into());
        }
    }
    request.insert("config".into(), config.into());
    launch(context, &app, request, launched, &options.wait, &options.smoke).await
}

/// Creates a Machine by a whole request, waits for it, and answers with its id and where its app is.
pub async fn launch(
    context: &Context,
    app: &AppName,
    request: Config,
    launched: bool,
    wait: &WaitOption,
    smoke: &SmokeOption,
) -> Result<()> {
    let machine = place(context, app, request, launched, wait, smoke).await?;
    if !wait.detach {
        places::warn_of_closed_ports(context, app, &machine).await;
    }
    if context.output.json {
        return context.output.json(&machine);
    }
    println!("{}", machine.id);
    places::print(context, app, &[&machine]).await;
    Ok(())
}

/// Creates a Machine by a whole request and waits for it.
pub async fn place(
    context: &Context,
    app: &AppName,
    request: Config,
    launched: bool,
    wait: &WaitOption,
    smoke: &SmokeOption,
) -> Result<Machine> {
    let output = context.output;
    let mut machine = {
        let _progress = output.progress("creating a Machine");
        if let Some(image) = request.get("config").and_then(|config| config.get("image")?.as_str()) {
            context.about(Asked::Image(image.to_owned()));
        }
        let host = request.get("host").and_then(Value::as_str).map(str::to_owned);
        let made = document::send::<MachinesCreate>(context, &[app.as_str()], &request.into(), HeaderMap::new()).await;
        match made {
            Ok(machine) => machine,
            Err(error) => return Err(context.or_unknown_host(error, host.as_deref()).await),
        }
    };
    output.say(format!("Machine {} ({}) is on host {}.", machine.id, machine.name, machine.host_id));
    if !wait.detach {
        let timeout = wait.wait_timeout;
        machine = if launched {
            let goal = Goal { before: None, version: None, or_stopped: false, timeout, smoke: smoke.time() };
            context.follow_start(app, &machine, goal).await?
        } else {
            // Made without a launch, it is stopped once its host holds image and files.
            let wanted = [MachineState::Stopped];
            context.wait_for(app, &machine.id, &wanted, Some(&ON_THE_WAY_UP), timeout).await?
        };
        output.say(format!("It is {}.", machine.state.as_str()));
    }
    Ok(machine)
}

pub async fn update(options: &UpdateOptions, context: &Context) -> Result<()> {
    let (app, machine) = context.machine(&options.target.app, &options.target.machine).await?;
    let before = value_of(&machine.config)?;
    let given = options.config.document()?;
    let has_document = given.is_some();
    let Document { mut config, mut request, notes } =
        given.unwrap_or_else(|| Document { config: before.clone(), ..Document::default() });
    notes.iter().for_each(|note| context.output.warn(note));
    options.remove.apply(&mut config)?;
    if let Some(image) = &options.image {
        config.insert("image".into(), image.clone().into());
    }
    let command = match &options.command {
        Some(command) => parse::shell_words("--command", command)?,
        None => options.words.clone(),
    };
    if !command.is_empty() || options.command.is_some() {
        object(&mut config, "init")?.insert("cmd".into(), command.into());
    }
    if config.get("image").is_none_or(|image| image.as_str() == Some("")) {
        config.insert("image".into(), machine.config.image.clone().into());
    }
    options.config.apply(&mut config)?;
    mounts::resolve(context, &app, None, Some(&machine.id), &mut config).await?;
    let output = context.output;
    let after = changes::normal(&config);
    let mut lines = changes::difference(&before, &after);
    lines.extend(changes::of_image(context, &machine, &after).await?);
    if lines.is_empty() {
        output.say("Nothing to change.");
        return if output.json { output.json(&machine) } else { Ok(()) };
    }
    output.say(format!("Machine {} changes:", machine.id));
    lines.iter().for_each(|line| output.say(format!("  {line}")));
    context.confirm(&format!("Update Machine {}?", machine.id))?;
    request.insert("config".into(), config.into());
    if options.skip_launch {
        request.insert("skip_launch".into(), true.into());
    }
    if !has_document || !request.contains_key("current_version") {
        request.insert("current_version".into(), machine.instance_id.to_string().into());
    }
    let path = [app.as_str(), machine.id.as_str()];
    let mut updated =
        document::send::<MachinesUpdate>(context, &path, &request.into(), options.lease.headers()?).await?;
    if !options.wait.detach {
        let version = updated.instance_id.clone();
        let goal = Goal {
            before: Some(&machine),
            version: Some(&version),
            or_stopped: options.skip_launch,
            timeout: options.wait.wait_timeout,
            smoke: options.smoke.time(),
        };
        updated = context.follow_start(&app, &machine, goal).await?;
    }
    if !options.wait.detach {
        places::warn_of_closed_ports(context, &app, &updated).await;
    }
    if output.json {
        return output.json(&updated);
    }
    output.say(format!("Machine {} is now at version {}.", updated.id, updated.instance_id));
    Ok(())
}

/// A word after the image may be the value of a flag that takes none, or the Machine's command: which, nobody knows.
fn refuse_words(options: &RunOptions) -> Result<()> {
    if options.words.is_empty() {
        return Ok(());
    }
    let image = options.image.as_deref().unwrap_or("IMAGE");
    let words = shlex::try_join(options.words.iter().map(String::as_str)).unwrap_or_else(|_| options.words.join(" "));
    let rest = shlex::try_join(options.command.iter().map(String::as_str)).unwrap_or_default();
    let command = format!("{words} {rest}");
    Err(CliError::usage(format!("unexpected `{words}` after the image {image}"))
        .hint(format!("write the command after `--`: godwit machine run {image} [flags] -- {}", command.trim_end())))
}
