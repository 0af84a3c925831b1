//! `godwit config add`, `use`, `list`, `remove`: several fleets by name, in the one file of settings.

use serde_json::json;

use super::output::Output;
use super::settings::{DEFAULT_CONTEXT, Fleet, UserFile, check_url};
use crate::args::Global;
use crate::error::{CliError, Result};
use crate::exit::Exit;

const NAME_BYTES_MAX: usize = 63;

/// Its settings are the global options, so a token can come by the environment and need not stand in a command line.
pub fn add(output: Output, global: &Global, name: &str) -> Result<()> {
    let mut file = UserFile::read()?;
    let fleet = added(&mut file, global, name)?;
    output.say(format!("Context {name}: {}.", described(&fleet)));
    written(output, &file)?;
    output.say(format!("  hint: `godwit config use {name}` switches to it, `--context {name}` uses it once"));
    Ok(())
}

fn added(file: &mut UserFile, global: &Global, name: &str) -> Result<Fleet> {
    check_name(file, name)?;
    let given = |value: &Option<String>| value.clone().filter(|text| !text.is_empty());
    let api_url = given(&global.api_url).ok_or_else(|| {
        CliError::usage("where is the fleet's API?")
            .hint(format!("godwit config add {name} --api-url https://HOST:PORT --token TOKEN"))
    })?;
    check_url(&api_url)?;
    let ca_file = given(&global.ca_file).map(|path| whole_path(&path)).transpose()?;
    let fleet = Fleet { api_url: Some(api_url), token: given(&global.token), ca_file, app: None };
    file.set_fleet(name, fleet.clone());
    Ok(fleet)
}

pub fn choose(output: Output, global: &Global, name: &str) -> Result<()> {
    let mut file = UserFile::read()?;
    let fleet = used(&mut file, name)?;
    written(output, &file)?;
    output.say(format!("Context {name} is in use: {}.", described(&fleet)));
    for (set, variable) in [
        (global.context.as_deref().is_some_and(|other| other != name), "GODWIT_CONTEXT"),
        (global.api_url.is_some(), "GODWIT_API_URL"),
        (global.token.is_some(), "GODWIT_TOKEN"),
        (global.ca_file.is_some(), "GODWIT_CA_FILE"),
    ] {
        if set && std::env::var_os(variable).is_some_and(|value| !value.is_empty()) {
            output.warn(format!("{variable} is set and overrides this context"));
        }
    }
    Ok(())
}

fn used(file: &mut UserFile, name: &str) -> Result<Fleet> {
    let fleet = file.fleet(name)?;
    file.context = (name != DEFAULT_CONTEXT).then(|| name.to_owned());
    Ok(fleet)
}

pub fn list(output: Output, global: &Global) -> Result<()> {
    let file = UserFile::read()?;
    let (chosen, _) = file.chosen(global);
    let mut contexts = Vec::new();
    for name in file.names() {
        let fleet = file.fleet(&name)?;
        contexts.push((name == chosen, name, fleet));
    }
    if output.json {
        let row = |(used, name, fleet): &(bool, String, Fleet)| {
            json!({
                "name": name, "in_use": used, "api_url": fleet.api_url, "has_token": fleet.token.is_some(),
                "ca_file": fleet.ca_file, "app": fleet.app,
            })
        };
        return output.json(&contexts.iter().map(row).collect::<Vec<_>>());
    }
    if output.quiet {
        contexts.iter().for_each(|(_, name, _)| println!("{name}"));
        return Ok(());
    }
    let dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let rows = contexts.into_iter().map(|(used, name, fleet)| {
        let (used, token) = (if used { "*" } else { "" }, if fleet.token.is_some() { "yes" } else { "-" });
        vec![used.to_owned(), name, dash(fleet.api_url), token.to_owned(), dash(fleet.app)]
    });
    output.table(&["", "NAME", "API-URL", "TOKEN", "APP"], rows.collect());
    Ok(())
}

pub fn remove(output: Output, name: &str) -> Result<()> {
    let mut file = UserFile::read()?;
    if removed(&mut file, name)? {
        output.say("It was in use; the default context is now.");
    }
    written(output, &file)
}

/// Whether it was in use.
fn removed(file: &mut UserFile, name: &str) -> Result<bool> {
    if name == DEFAULT_CONTEXT {
        return Err(CliError::usage("the default context is the plain settings, and stays")
            .hint("`godwit config unset api-url` and the like forget them"));
    }
    file.fleet(name)?;
    file.contexts.remove(name);
    let was_used = file.context.as_deref() == Some(name);
    if was_used {
        file.context = None;
    }
    Ok(was_used)
}

fn check_name(file: &UserFile, name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(fits) {
        return Err(CliError::usage(format!("{name:?} is not a valid context name"))
            .hint("1 to 63 of a-z, A-Z, 0-9, '-', '_' and '.'"));
    }
    if name == DEFAULT_CONTEXT || file.contexts.contains_key(name) {
        return Err(CliError::new(Exit::Conflict, format!("there is a context {name:?} already")).hint(format!(
            "`godwit config set api-url URL --context {name}` changes it; `godwit config remove` forgets one"
        )));
    }
    Ok(())
}

fn described(fleet: &Fleet) -> String {
    let token = if fleet.token.is_some() { "with a token" } else { "without a token" };
    let url = fleet.api_url.as_deref().unwrap_or("no address is set");
    match &fleet.ca_file {
        Some(file) => format!("{url}, {token}, trusted by {file}"),
        None => format!("{url}, {token}"),
    }
}

pub fn written(output: Output, file: &UserFile) -> Result<()> {
    let path = file.write()?;
    output.say(format!("Written to {}.", path.display()));
    Ok(())
}

/// Wherever a command is run from later. It must be readable now.
pub fn whole_path(file: &str) -> Result<String> {
    let path = std::fs::canonicalize(file).map_err(|error| CliError::usage(format!("cannot read {file}: {error}")))?;
    Ok(path.display().to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Arguments;

    fn global(api_url: &str, token: &str) -> Global {
        let arguments = Arguments::try_parse_from(["godwit", "--api-url", api_url, "--token", token, "status"]);
        // The environment of who runs the tests is no part of them.
        Global { ca_file: None, context: None, ..arguments.expect("it parses").global }
    }

    #[test]
    fn contexts_come_are_used_and_go_and_the_plain_settings_stay() {
        let mut file =
            UserFile { api_url: Some("http://dev:1".into()), token: Some("dev".into()), ..UserFile::default() };
        let prod = added(&mut file, &global("https://prod:2", "p"), "prod").unwrap();
        assert_eq!((prod.api_url.as_deref(), prod.token.as_deref()), (Some("https://prod:2"), Some("p")));
        assert_eq!(file.chosen(&global("", "")).0, "default", "adding one does not use it");
        used(&mut file, "prod").unwrap();
        assert_eq!(file.chosen(&global("", "")).0, "prod");
        assert_eq!(file.fleet("prod").unwrap(), prod);
        let taken = added(&mut file, &global("https://other:3", ""), "prod").unwrap_err();
        assert_eq!((taken.exit, file.fleet("prod").unwrap()), (Exit::Conflict, prod));
        for (url, name) in [("", "test"), ("prod:2", "test"), ("http://a:1", "a b"), ("http://a:1", "default")] {
            assert!(added(&mut file, &global(url, ""), name).is_err(), "{url:?} {name:?}");
        }
        assert_eq!(used(&mut file, "prdo").unwrap_err().exit, Exit::NotFound);
        assert!(removed(&mut file, "default").is_err() && removed(&mut file, "test").is_err());
        assert!(removed(&mut file, "prod").unwrap(), "it was in use");
        assert_eq!((file.names(), file.context.clone()), (vec!["default".to_owned()], None));
        assert_eq!(file.fleet("default").unwrap().token.as_deref(), Some("dev"));
    }
}
