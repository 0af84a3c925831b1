//! `godwit help`, from the one definition of the command line.

use std::io::Write;

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
