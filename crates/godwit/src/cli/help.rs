//! `godwit help` and completions, both from the one definition of the command line.

use std::io::Write;

use clap::{Command, CommandFactory};

use crate::args::Arguments;
use crate::error::{CliError, Result};
use crate::{examples, exit};

pub fn print(topic: &[String]) -> Result<()> {
    if topic.len() == 1 && topic[0] == "exit-codes" {
        std::io::stdout().write_all(exit_codes().as_bytes())?;
        return Ok(());
    }
    let mut command = examples::definition();
    // Fills in what subcommands inherit, such as their full names and the global options.
    command.build();
    let mut found = &mut command;
    for word in topic {
        found = found.find_subcommand_mut(word).ok_or_else(|| {
            CliError::usage(format!("there is no command `{}`", topic.join(" "))).hint("`godwit help` lists them")
        })?;
    }
    found.print_long_help()?;
    Ok(())
}

/// The table as text, one code a line; `docs/cli.md` holds the same rows.
pub fn exit_codes() -> String {
    let mut text = String::from("CODE  NAME         MEANING\n");
    for (code, name, meaning) in exit::TABLE {
        text.push_str(&format!("{code:<4}  {name:<11}  {meaning}\n"));
    }
    text
}

pub fn completions(shell: clap_complete::Shell) {
    completions_into(shell, &mut std::io::stdout());
}

fn completions_into(shell: clap_complete::Shell, into: &mut dyn Write) {
    clap_complete::generate(shell, &mut visible(&Arguments::command()), "godwit", into);
}

/// The command without what is hidden, for scripts that know nothing of hiding. The parser wants names that live for
/// ever, and the process ends with the script: they are given away.
fn visible(command: &Command) -> Command {
    let kept = |name: &str| -> &'static str { name.to_owned().leak() };
    let shown = Command::new(kept(command.get_name()))
        .disable_help_subcommand(true)
        .visible_aliases(command.get_visible_aliases().map(kept).collect::<Vec<_>>())
        .args(command.get_arguments().filter(|argument| !argument.is_hide_set()).cloned())
        .subcommands(command.get_subcommands().filter(|command| !command.is_hide_set()).map(visible));
    let shown = if command.get_version().is_some() { shown.version(env!("CARGO_PKG_VERSION")) } else { shown };
    match command.get_about() {
        Some(about) => shown.about(about.clone()),
        None => shown,
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;
    use clap_complete::Shell;

    use super::*;

    /// Every name that is hidden somewhere, of commands and of long flags.
    fn hidden(command: &Command, names: &mut Vec<String>) {
        let flags = command.get_arguments().filter(|argument| argument.is_hide_set());
        names.extend(flags.filter_map(|argument| argument.get_long()).map(|long| format!("--{long}")));
        for inner in command.get_subcommands() {
            if inner.is_hide_set() {
                names.push(inner.get_name().to_owned());
            }
            hidden(inner, names);
        }
    }

    #[test]
    fn completions_offer_what_is_visible_and_nothing_that_is_hidden() {
        let mut names = Vec::new();
        hidden(&Arguments::command(), &mut names);
        for wanted in ["taste-updates", "volume-process", "dev-host", "--lab"] {
            assert!(names.iter().any(|name| name == wanted), "{wanted} is hidden no longer: {names:?}");
        }
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            completions_into(*shell, &mut script);
            let script = String::from_utf8(script).unwrap();
            for name in &names {
                // zsh and fish may write `--lab` as `-l lab`: the bare word is looked for as a word.
                let bare = name.trim_start_matches('-');
                let mut words = script.split(|c: char| !c.is_alphanumeric() && c != '-' && c != '_');
                assert!(!words.any(|word| word.trim_start_matches('-') == bare), "{shell} completes {name}");
            }
            for shown in ["machine", "machines", "clone", "scale", "use-dev", "precopy", "api-url", "version"] {
                assert!(script.contains(shown), "{shell} does not complete {shown}");
            }
        }
    }
}
