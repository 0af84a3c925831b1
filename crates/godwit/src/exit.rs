//! What the process's exit code tells: one table, from which help, documentation and `main` take it.

use std::process::ExitCode;

/// Why a command ended as it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Failed,
    Usage,
    NotFound,
    Conflict,
    Auth,
    TimedOut,
    Unreachable,
    Declined,
    /// `exec` could not run the command at all; other codes are the command's own.
    Exec,
    Interrupted,
}

/// Code, name, meaning; in the order of the codes.
pub const TABLE: [(u8, &str, &str); 11] = [
    (0, "ok", "success"),
    (1, "failed", "it was refused or failed; the message says why"),
    (
        2,
        "usage",
        "the command line is wrong, or a confirmation is needed and there is no terminal to ask on (add --yes)",
    ),
    (3, "not found", "the app, Machine, volume, migration, host or image does not exist"),
    (4, "conflict", "the current state does not allow it: a lease is held, a name is taken, a version is out of date"),
    (5, "auth", "the token is missing, wrong, or may not do this"),
    (6, "timed out", "the wait timed out; the operation itself continues"),
    (7, "unreachable", "control is unreachable or unavailable; try again"),
    (8, "declined", "you answered no"),
    (
        125,
        "exec",
        "`machine exec` could not run the command, or its output was cut; otherwise its exit code is the command's own",
    ),
    (130, "interrupted", "Ctrl-C; what was started continues"),
];

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Auth => 5,
            Self::TimedOut => 6,
            Self::Unreachable => 7,
            Self::Declined => 8,
            Self::Exec => 125,
            Self::Interrupted => 130,
        }
    }

    /// As the table calls it.
    pub fn name(self) -> &'static str {
        TABLE.iter().find(|(code, ..)| *code == self.code()).map_or("failed", |(_, name, _)| name)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}
