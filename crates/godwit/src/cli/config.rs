//! `godwit config`: which fleet this command line talks to, and where each setting comes from.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Deserialize;

use super::output::{Output, Style};
use super::settings::{Origin, Settings, UserFile, check_url, user_file_path};
use crate::args::Global;
use crate::error::{CliError, Result};

#[derive(Subcommand)]
pub enum Command {
    /// Show the settings and where each comes from
    Show {
        /// Show the token too
        #[arg(long)]
        reveal: bool,
    },
    /// Set one of: api-url, token, ca-file, app
    Set { name: Name, value: String },
    /// Forget one of them
    Unset { name: Name },
    /// Use the dev fleet in a folder
    UseDev {
        /// The --data folder of `godwit dev`
        dir: PathBuf,
    },
    /// Print where the settings are kept
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
        Command::Set { name, value } => {
            let mut file = UserFile::read()?;
            match name {
                Name::ApiUrl => {
                    check_url(&value)?;
                    file.api_url = Some(value);
                }
                Name::Token => file.token = Some(value),
                Name::CaFile => file.ca_file = Some(whole_path(&value)?),
                Name::App => file.app = Some(value),
            }
            written(output, &file)
        }
        Command::Unset { name } => {
            let mut file = UserFile::read()?;
            match name {
                Name::ApiUrl => file.api_url = None,
                Name::Token => file.token = None,
                Name::CaFile => file.ca_file = None,
                Name::App => file.app = None,
            }
            written(output, &file)
        }
        Command::UseDev { dir } => use_dev(output, &dir),
        Command::Path => {
            println!("{}", user_file_path()?.display());
            Ok(())
        }
    }
}

fn written(output: Output, file: &UserFile) -> Result<()> {
    let path = file.write()?;
    output.say(format!("Written to {}.", path.display()));
    Ok(())
}

fn show(global: &Global, output: Output, reveal: bool) -> Result<()> {
    let settings = Settings::load(global)?;
    let token = settings.token.map(|(token, origin)| (if reveal { token } else { hidden(&token) }, origin));
    if output.json {
        let value = |setting: &Option<(String, Origin)>| {
            setting.as_ref().map(|(value, origin)| serde_json::json!({ "value": value, "origin": origin.as_str() }))
        };
        return output.json(&serde_json::json!({
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
        ("api-url", text(Some(settings.api_url))),
        ("token", text(token)),
        ("ca-file", ca_file),
        ("app", app),
    ]);
    Ok(())
}

/// Wherever a command is run from later. It must be readable now.
fn whole_path(file: &str) -> Result<String> {
    let path = std::fs::canonicalize(file).map_err(|error| CliError::usage(format!("cannot read {file}: {error}")))?;
    Ok(path.display().to_string())
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

fn use_dev(output: Output, dir: &Path) -> Result<()> {
    let path = dir.join("dev.json");
    let bytes = godwit_base::durable::read(&path)?.ok_or_else(|| {
        CliError::not_found(format!("{} does not exist", path.display()))
            .hint(format!("is the fleet ready? `godwit dev --data {}` starts it", dir.display()))
    })?;
    let dev: DevFile = serde_json::from_slice(&bytes)?;
    let file = UserFile { api_url: Some(dev.api_url), token: Some(dev.token), ..UserFile::read()? };
    written(output, &file)
}
