//! `machine clone`: another Machine with the configuration of one that is there. A volume belongs to one Machine, so
//! those of the first are never taken along.

use godwit_api::AppName;
use godwit_api::machine::Machine;
use serde_json::Value;

use super::follow::SmokeOption;
use super::mounts::MountSpec;
use super::spec::Config;
use super::{Target, WaitOption, changes, make, mounts};
use crate::cli::context::Context;
use crate::cli::output::short_digest;
use crate::error::{CliError, Result};

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    target: Target,
    /// The name; default: a random one
    #[arg(short, long)]
    name: Option<String>,
    /// The region to run in; default: the region of the original
    #[arg(short, long, value_name = "REGION")]
    region: Option<String>,
    /// The host to run on; default: any host in the region with room
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// A volume to mount in place of the original's: an id, or a name that exactly one free volume has
    #[arg(short, long = "volume", value_name = "VOLUME:/PATH")]
    volumes: Vec<MountSpec>,
    #[command(flatten)]
    wait: WaitOption,
    #[command(flatten)]
    smoke: SmokeOption,
}

pub async fn run(options: &Options, context: &Context) -> Result<()> {
    let (app, machine) = context.machine(&options.target.app, &options.target.machine).await?;
    // Who names a host means its region.
    let region = match &options.host {
        Some(_) => options.region.as_deref(),
        None => Some(options.region.as_deref().unwrap_or(&machine.region)),
    };
    let mut config = own_config(&machine, &options.volumes)?;
    mounts::resolve(context, &app, region, None, &mut config).await?;
    let mut request = request(context, &machine, config).await?;
    for (name, value) in [("region", region), ("host", options.host.as_deref()), ("name", options.name.as_deref())] {
        if let Some(value) = value {
            request.insert(name.into(), value.into());
        }
    }
    make::launch(context, &app, request, true, &options.wait, &options.smoke).await
}

/// Clones a Machine without volumes, as `machine clone` does, and says nothing on standard output.
pub async fn one(
    context: &Context,
    app: &AppName,
    machine: &Machine,
    region: &str,
    wait: &WaitOption,
    smoke: &SmokeOption,
) -> Result<Machine> {
    let mut request = request(context, machine, own_config(machine, &[])?).await?;
    request.insert("region".into(), region.into());
    make::place(context, app, request, true, wait, smoke).await
}

/// The configuration without the first Machine's volumes, and with the volumes that were given.
pub fn own_config(machine: &Machine, volumes: &[MountSpec]) -> Result<Config> {
    let mut config = changes::value_of(&machine.config)?;
    config.remove("mounts");
    mounts::apply(volumes, &mut config)?;
    let held = |path: &str| {
        let given = config.get("mounts").and_then(Value::as_array);
        given.is_some_and(|given| given.iter().any(|mount| mount.get("path").and_then(Value::as_str) == Some(path)))
    };
    let missing: Vec<&str> =
        machine.config.mounts.iter().map(|mount| mount.path.as_str()).filter(|path| !held(path)).collect();
    if missing.is_empty() {
        return Ok(config);
    }
    let flags: Vec<String> = missing.iter().map(|path| format!("--volume VOLUME:{path}")).collect();
    let why = format!(
        "Machine {} holds a volume at {}, and a volume belongs to one Machine; nothing was created",
        machine.id,
        missing.join(", ")
    );
    Err(CliError::usage(why).hint(format!(
        "give the clone its own: `godwit machine clone {} {}`; `godwit volumes create` makes one",
        machine.id,
        flags.join(" ")
    )))
}

/// The clone runs the image that the first one runs, also where its tag means another by now.
async fn request(context: &Context, machine: &Machine, mut config: Config) -> Result<Config> {
    if let Some(newer) = changes::moved_tag(context, machine).await? {
        let (image, digest) = (&machine.config.image, &machine.image_ref.digest);
        context.output.say(format!(
            "It runs {}, as Machine {} does; {image} is {} now.",
            short_digest(digest),
            machine.id,
            short_digest(&newer)
        ));
        config.insert("image".into(), format!("{image}@{digest}").into());
    }
    let mut request = Config::new();
    request.insert("config".into(), config.into());
    if machine.skip_service_registration {
        context.output.say(format!("It is left out of the app's routes, as Machine {} is.", machine.id));
        request.insert("skip_service_registration".into(), true.into());
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::machine::show::sample;

    #[test]
    fn a_clone_has_the_configuration_and_never_the_volumes_of_the_first() {
        let mut machine = sample();
        machine.config.env.insert("K".into(), "v".into());
        assert_eq!(own_config(&machine, &[]).unwrap()["env"]["K"], "v");
        let mount = |volume: &str, path: &str| godwit_api::config::Mount {
            volume: volume.into(),
            path: path.into(),
            ..Default::default()
        };
        machine.config.mounts = vec![mount("vol_00000000000001", "/data"), mount("vol_00000000000002", "/logs")];
        let spec = |text: &str| text.parse::<MountSpec>().unwrap();
        let refused = own_config(&machine, &[spec("fresh:/data")]).unwrap_err();
        assert!(refused.message.contains("/logs") && !refused.message.contains("/data"), "{refused}");
        let config = own_config(&machine, &[spec("fresh:/data"), spec("other:/logs")]).unwrap();
        let text = Value::from(config).to_string();
        assert!(text.contains("fresh") && text.contains("other") && !text.contains("vol_0"), "{text}");
    }
}
