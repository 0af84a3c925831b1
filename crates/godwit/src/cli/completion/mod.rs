//! `godwit completions`: what a shell offers while a command line is written. The scripts are short and never change with
//! the commands: they ask the hidden `godwit __complete`, which knows the command line's one definition and asks the fleet
//! for names. Silent on every error, for nothing may be written into a line that somebody is writing.

mod line;
mod names;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::sync::Arc;

use clap::{Arg, ArgMatches, Command, CommandFactory};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, complete};

use crate::args::Arguments;
use line::{FILES, Line, Shell};
use names::Kind;

/// Prints the script of a shell.
pub fn print(shell: clap_complete::Shell) {
    // A closed pipe is no failure of ours.
    let _ = script(shell, &mut std::io::stdout());
}

fn script(shell: clap_complete::Shell, into: &mut dyn Write) -> std::io::Result<()> {
    use clap_complete::Shell;
    match shell {
        Shell::Bash => into.write_all(include_bytes!("godwit.bash")),
        Shell::Zsh => into.write_all(include_bytes!("godwit.zsh")),
        Shell::Fish => into.write_all(include_bytes!("godwit.fish")),
        // For the others the library's script, which knows the commands and no names.
        _ => {
            clap_complete::generate(shell, &mut visible(&Arguments::command()), "godwit", into);
            Ok(())
        }
    }
}

/// `godwit __complete SHELL …`: the answers, one a line.
pub fn answer(arguments: &[String]) {
    let Some((shell, line)) = asked(arguments) else { return };
    let mut text = String::new();
    for (value, about) in answers(&line) {
        text.push_str(&if value == FILES { value } else { line.answer(shell, &value, &about) });
        text.push('\n');
    }
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn asked(arguments: &[String]) -> Option<(Shell, Line)> {
    let (shell, rest) = arguments.split_first()?;
    Some(match shell.as_str() {
        "bash" => (Shell::Bash, Line::of_bash(rest)?),
        "zsh" => (Shell::Zsh, Line::of_words(rest)?),
        "fish" => (Shell::Fish, Line::of_words(rest)?),
        _ => return None,
    })
}

/// What may stand in the place of the current word, with a line about it.
fn answers(line: &Line) -> Vec<(String, String)> {
    // What is there already tells which fleet and which app are meant; it is not whole, and that is no error.
    let known = visible(&Arguments::command()).ignore_errors(true).try_get_matches_from(line.others());
    let Ok(known) = known else { return Vec::new() };
    let mut command = naming(visible(&Arguments::command()), &Arc::new(innermost(&known).clone()));
    let words = line.words.iter().map(OsString::from).collect();
    let Ok(mut found) = complete(&mut command, words, line.at, None) else { return Vec::new() };
    if line.current().is_empty() && found.iter().any(|answer| !is_flag(answer)) {
        // Flags are offered to who begins one, or where there is nothing else.
        found.retain(|answer| !is_flag(answer));
    }
    let text = |text: &OsStr| text.to_string_lossy().into_owned();
    if found.iter().any(|answer| text(answer.get_value()).ends_with(FILES)) {
        return vec![(FILES.to_owned(), String::new())];
    }
    let about = |answer: &CompletionCandidate| {
        let help = answer.get_help().map(ToString::to_string).unwrap_or_default();
        help.lines().next().unwrap_or_default().to_owned()
    };
    found.iter().map(|answer| (text(answer.get_value()), about(answer))).collect()
}

fn is_flag(answer: &CompletionCandidate) -> bool {
    answer.get_value().to_string_lossy().starts_with('-')
}

fn innermost(matches: &ArgMatches) -> &ArgMatches {
    matches.subcommand().map_or(matches, |(_, inner)| innermost(inner))
}

/// The command with arguments that know which names they take.
fn naming(command: Command, known: &Arc<ArgMatches>) -> Command {
    command.mut_args(|argument| with_names(argument, known)).mut_subcommands(|inner| naming(inner, known))
}

fn with_names(argument: Arg, known: &Arc<ArgMatches>) -> Arg {
    let Some([value_name]) = argument.get_value_names() else { return argument };
    let value_name = value_name.to_string();
    if let Some(kind) = Kind::of(&value_name) {
        let known = known.clone();
        return argument.add(ArgValueCompleter::new(move |current: &OsStr| {
            let found = names::find(kind, &current.to_string_lossy(), &known);
            let found = found
                .into_iter()
                .map(|(name, about)| CompletionCandidate::new(name).help((!about.is_empty()).then(|| about.into())));
            found.collect()
        }));
    }
    // `off|stop` names all its values.
    let closed =
        value_name.contains('|') && value_name.chars().all(|c| c.is_ascii_lowercase() || "|-0123456789".contains(c));
    if !closed {
        return argument;
    }
    argument.add(ArgValueCompleter::new(move |current: &OsStr| {
        let fits = |value: &&str| value.starts_with(&*current.to_string_lossy());
        value_name.split('|').filter(fits).map(CompletionCandidate::new).collect()
    }))
}

/// The command without what is hidden, which nobody is to be offered. The parser wants names that live for ever, and the
/// process ends with the answer: they are given away.
fn visible(command: &Command) -> Command {
    let kept = |name: &str| -> &'static str { name.to_owned().leak() };
    let shown = Command::new(kept(command.get_name()))
        .disable_help_subcommand(true)
        // Each is offered by one name; the others are known all the same.
        .aliases(command.get_all_aliases().map(kept).collect::<Vec<_>>())
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

    fn values(words: &[&str]) -> Vec<String> {
        let words: Vec<String> =
            [(words.len() - 1).to_string()].into_iter().chain(words.iter().map(ToString::to_string)).collect();
        answers(&Line::of_words(&words).unwrap()).into_iter().map(|(value, _)| value).collect()
    }

    /// Every command line up to a word that is not begun, and up to a flag.
    fn walk(command: &Command, path: &[&str], offered: &mut Vec<String>) {
        for begun in ["", "-", "--", "_", "d", "t", "v"] {
            offered.extend(values(&[path, &[begun]].concat()));
        }
        for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
            walk(inner, &[path, &[inner.get_name()]].concat(), offered);
        }
    }

    #[test]
    fn completions_offer_what_is_visible_and_nothing_that_is_hidden() {
        let mut names = Vec::new();
        hidden(&Arguments::command(), &mut names);
        for wanted in ["taste-updates", "volume-process", "dev-host", "__complete", "--lab"] {
            assert!(names.iter().any(|name| name == wanted), "{wanted} is hidden no longer: {names:?}");
        }
        let mut offered = Vec::new();
        // Names are asked of nobody here: the walk takes only commands and flags that need none.
        let definition = Arguments::command();
        for group in ["", "config", "run", "dev", "help", "completions"] {
            let (path, command) = match group {
                "" => (vec!["godwit"], None),
                _ => (vec!["godwit", group], definition.find_subcommand(group)),
            };
            match command {
                Some(command) => walk(command, &path, &mut offered),
                None => {
                    ["", "_", "d", "t", "v", "--"].iter().for_each(|begun| offered.extend(values(&["godwit", begun])))
                }
            }
        }
        for name in &names {
            assert!(!offered.contains(name), "{name} is offered");
        }
        for shown in ["machine", "volumes", "use-dev", "--hosts", "--api-url", "--version", "control", "bash"] {
            assert!(offered.iter().any(|name| name == shown), "{shown} is not offered: {offered:?}");
        }
        for shell in [clap_complete::Shell::Elvish, clap_complete::Shell::PowerShell] {
            let mut text = Vec::new();
            script(shell, &mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            for name in &names {
                let bare = name.trim_start_matches('-');
                let mut words = text.split(|c: char| !c.is_alphanumeric() && c != '-' && c != '_');
                assert!(!words.any(|word| word.trim_start_matches('-') == bare), "{shell} completes {name}");
            }
        }
        assert_eq!(clap_complete::Shell::value_variants().len(), 5, "every shell has a script above or of ours");
    }

    #[test]
    fn values_that_a_flag_names_are_offered_and_flags_only_to_who_begins_one() {
        assert_eq!(values(&["godwit", "machine", "run", "--restart", ""]), ["no", "on-failure", "always"]);
        assert_eq!(values(&["godwit", "machine", "run", "--autostop=s"]), ["--autostop=stop"]);
        assert_eq!(values(&["godwit", "image", "load", "x"]), [FILES]);
        assert_eq!(values(&["godwit", "machine", "run", "--env-file=x"]), [FILES]);
        assert_eq!(values(&["godwit", "machine", "cp", "./x"]), [FILES]);
        assert!(values(&["godwit", "config", ""]).iter().all(|value| !value.starts_with('-')));
        assert!(values(&["godwit", "status", "--a"]).contains(&"--app".to_owned()));
    }
}
