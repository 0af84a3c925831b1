//! `godwit run ROLE --check`: what the role finds when it looks at its configuration and its machine, one line a look. It
//! starts nothing and changes nothing.

use std::process::ExitCode;

use godwit_base::check::{Check, Level};

use super::{Command, Options, read};
use crate::cli::output::Style;
use crate::error::Result;

/// What the looks found, if the command asks for them.
pub fn wanted(command: &Command, json: bool) -> Option<Result<ExitCode>> {
    let options = match command {
        Command::Control(options) => options,
        Command::Agent(options) => &options.role,
        Command::Door(options) | Command::Edge(options) => &options.role,
    };
    options.check.then(|| report(&looks(command, options)?, json))
}

fn looks(command: &Command, options: &Options) -> Result<Vec<Check>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let path = &options.config;
    let looked = match command {
        Command::Control(_) => {
            read::<godwit_control::Raw, godwit_control::Config>(path).map(|config| godwit_control::check(&config))
        }
        Command::Agent(_) => read::<godwit_agent::Raw, godwit_agent::Config>(path)
            .map(|config| runtime.block_on(godwit_agent::check(&config))),
        Command::Door(_) => read::<godwit_proxy::door::RawDoorConfig, godwit_proxy::door::DoorConfig>(path)
            .map(|config| godwit_proxy::check::door(&config)),
        Command::Edge(_) => read::<godwit_proxy::edge::RawEdgeConfig, godwit_proxy::edge::EdgeConfig>(path)
            .map(|config| runtime.block_on(godwit_proxy::check::edge(&config))),
    };
    let read = Check::ok("configuration", format!("{} is read", path.display()));
    Ok(match looked {
        Ok(looks) => [vec![read], looks].concat(),
        // A file that cannot be read leaves nothing more to look at.
        Err(error) => vec![Check::error("configuration", error.message, "docs/configuration.md lists every key")],
    })
}

fn report(looks: &[Check], json: bool) -> Result<ExitCode> {
    let failed = looks.iter().any(|check| check.level == Level::Error);
    if json {
        println!("{}", serde_json::to_string_pretty(looks)?);
    } else {
        let style = Style::for_stdout(crate::args::ColorChoice::Auto);
        let width = looks.iter().map(|check| check.check.len()).max().unwrap_or(0);
        for check in looks {
            let level = format!("{:7}", check.level.as_str());
            let level = if check.level == Level::Ok { style.faint(&level) } else { style.error(&level) };
            println!("{level}  {:width$}  {}", check.check, check.found);
            if let Some(hint) = &check.hint {
                println!("{:7}  {:width$}  hint: {hint}", "", "");
            }
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
