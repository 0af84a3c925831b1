//! `godwit config`: which fleet this command line talks to, and where each setting comes from.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Deserialize;

use super::contexts::{self, whole_path, written};
use super::output::{Output, Style};
use super::settings::{DEFAULT_CONTEXT, Fleet, Origin, Settings, UserFile, check_url, user_file_path};
use crate::args::Global;
use crate::error::{CliError, Result};

#[derive(Subcommand)]
pub enum Command {
    /// Show the settings and where each one comes from
    Show {
        /// Show the token as well
        #[arg(long)]
        reveal: bool,
    },
    /// Set one of: api-url, token, ca-file, app
    Set { name: Name, value: String },
    /// Remove one of these settings
    Unset { name: Name },
    /// Add a context: another fleet, given by --api-url, --token and --ca-file
    Add {
        /// The name: 1 to 63 characters of a-z, A-Z, 0-9, '-', '_' and '.'
        #[arg(value_name = "NAME")]
        context: String,
    },
    /// Switch to a context; `default` is the one without a name
    Use {
        /// The name of the context
        #[arg(value_name = "CONTEXT")]
        context: String,
    },
    /// List the contexts
    #[command(visible_alias = "ls")]
    List,
    /// Remove a context
    #[command(visible_alias = "rm")]
    Remove {
        /// The name of the context
        #[arg(value_name = "CONTEXT")]
        context: String,
    },
    /// Switch to a dev fleet, in the default context
    UseDev {
        /// The --data folder of `godwit dev`
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Print the path of the settings file
    Path,
}

#[derive(clap::ValueEnum, Clone, Copy)]
pub enum Name {
    ApiUrl,
    Token,
    CaFile,
    App,
}

pub fn run(command: Command, global: &Global) -> Result<()> {
    let output =
        Output { json: global.json, quiet: global.quiet, wide: global.wide, style: Style::for_stdout(global.color) };
    match command {
        Command::Show { reveal } => show(global, output, reveal),
        Command::Set { name, value } => change(output, global, |fleet| {
            match name {
                Name::ApiUrl => {
                    check_url(&value)?;
                    fleet.api_url = Some(value);
                }
                Name::Token => fleet.token = Some(value),
                Name::CaFile => fleet.ca_file = Some(whole_path(&value)?),
                Name::App => fleet.app = Some(value),
            }
            Ok(())
        }),
        Command::Unset { name } => change(output, global, |fleet| {
            match name {
                Name::ApiUrl => fleet.api_url = None,
                Name::Token => fleet.token = None,
                Name::CaFile => fleet.ca_file = None,
                Name::App => fleet.app = None,
            }
            Ok(())
        }),
        Command::Add { context } => contexts::add(output, global, &context),
        Command::Use { context } => contexts::choose(output, global, &context),
        Command::List => contexts::list(output, global),
        Command::Remove { context } => contexts::remove(output, &context),
        Command::UseDev { dir } => use_dev(output, global, &dir),
        Command::Path => {
            println!("{}", user_file_path()?.display());
            Ok(())
        }
    }
}

/// Changes the context that is meant, and no other.
fn change(output: Output, global: &Global, change: impl FnOnce(&mut Fleet) -> Result<()>) -> Result<()> {
    let mut file = UserFile::read()?;
    let (context, _) = file.chosen(global);
    let mut fleet = file.fleet(&context)?;
    change(&mut fleet)?;
    file.set_fleet(&context, fleet);
    written(output, &file)
}

fn show(global: &Global, output: Output, reveal: bool) -> Result<()> {
    let settings = Settings::load(global)?;
    let token = settings.token.map(|(token, origin)| (if reveal { token } else { hidden(&token) }, origin));
    if output.json {
        let value = |setting: &Option<(String, Origin)>| {
            setting.as_ref().map(|(value, origin)| serde_json::json!({ "value": value, "origin": origin.as_str() }))
        };
        return output.json(&serde_json::json!({
            "context": value(&Some(settings.context)),
            "api_url": value(&Some(settings.api_url)),
            "token": value(&token),
            "ca_file": value(&settings.ca_file),
            "app": value(&settings.app),
        }));
    }
    let text = |setting: Option<(String, Origin)>| {
        setting.map_or_else(|| "(not set)".to_owned(), |(value, origin)| format!("{value}  ({})", origin.as_str()))
    };
    let (ca_file, app) = (text(settings.ca_file), text(settings.app));
    output.facts(&[
        ("context", text(Some(settings.context))),
        ("api-url", text(Some(settings.api_url))),
        ("token", text(token)),
        ("ca-file", ca_file),
        ("app", app),
    ]);
    Ok(())
}

/// Enough to tell two tokens apart, too little to use one.
fn hidden(token: &str) -> String {
    let head: String = token.chars().take(6).collect();
    format!("{head}...")
}

#[derive(Deserialize)]
struct DevFile {
    api_url: String,
    token: String,
}

fn use_dev(output: Output, global: &Global, dir: &Path) -> Result<()> {
    if global.context.as_deref().is_some_and(|name| !name.is_empty() && name != DEFAULT_CONTEXT) {
        return Err(CliError::usage("a dev fleet is used as the default context, and another is named")
            .hint("leave --context out, or unset GODWIT_CONTEXT"));
    }
    let path = dir.join("dev.json");
    let bytes = godwit_base::durable::read(&path)?.ok_or_else(|| {
        CliError::not_found(format!("{} does not exist", path.display()))
            .hint(format!("is the fleet ready? `godwit dev --data {}` starts it", dir.display()))
    })?;
    let dev: DevFile = serde_json::from_slice(&bytes)?;
    let before = UserFile::read()?;
    if let Some(context) = &before.context {
        output
            .say(format!("Context {context} is no longer in use; `godwit config use {context}` switches back to it."));
    }
    let file = UserFile { api_url: Some(dev.api_url), token: Some(dev.token), context: None, ..before };
    written(output, &file)
}
