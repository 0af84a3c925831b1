//! What a person reads whose command line does not parse: the parser's words, a hint of ours where it has none, and JSON
//! where JSON was asked for.

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::error::CliError;
use crate::exit::Exit;

/// Prints help, version or the error, and answers the exit code.
pub fn report(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A closed pipe (`| head`) is no failure of ours.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    let hint = hint(error, &words);
    if wants_json(&words) {
        eprintln!("{}", CliError { exit: Exit::Usage, message: message(error), hint }.to_json());
    } else {
        let _ = error.print();
        if let Some(hint) = hint {
            eprintln!("\n  hint: {hint}");
        }
    }
    Exit::Usage.into()
}

/// A flag that no Machine takes is most likely one of the command that it is to run.
fn hint(error: &clap::Error, words: &[String]) -> Option<String> {
    let makes = words.iter().any(|word| matches!(word.as_str(), "machine" | "machines" | "m"))
        && words.iter().any(|word| matches!(word.as_str(), "run" | "create" | "update"));
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else { return None };
    (makes && error.kind() == ErrorKind::UnknownArgument && flag.starts_with('-')).then(|| {
        format!(
            "if {flag} belongs to the command that the Machine runs, put the command after `--`: \
             godwit machine run IMAGE [flags] -- COMMAND {flag}"
        )
    })
}

fn wants_json(words: &[String]) -> bool {
    // A cluster such as `-qj` counts; what stands after `--` is somebody else's.
    words.iter().take_while(|word| *word != "--").any(|word| {
        let cluster = word.strip_prefix('-').filter(|rest| !rest.starts_with('-') && !rest.is_empty());
        word == "--json"
            || cluster
                .is_some_and(|rest| rest.len() < 4 && rest.chars().all(|c| "jqy".contains(c)) && rest.contains('j'))
    })
}

/// The parser's first sentence, without its colours and its usage.
fn message(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    text.split("\n\n").next().unwrap_or(text).split_whitespace().collect::<Vec<_>>().join(" ")
}
