//! Our own log: to standard error, one line an event, as text or JSON; `GODWIT_LOG` holds the filter.

use std::sync::atomic::{AtomicBool, Ordering};

use tracing_subscriber::EnvFilter;

/// Sets up the process's log once; later calls do nothing.
pub fn init(role: &'static str, json: bool) {
    let filter = EnvFilter::try_from_env("GODWIT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(true);
    // A line that cannot be written is lost: to complain of it on standard error would panic on the same full disk.
    let builder = builder.log_internal_errors(false);
    let result = if json { builder.json().try_init() } else { builder.with_ansi(false).try_init() };
    if result.is_ok() {
        tracing::info!(role, pid = std::process::id(), "log opened");
    }
}

/// A fault that lasts is told once, until it has passed: what is tried again each second would fill the log.
#[derive(Debug, Default)]
pub struct Spell(AtomicBool);

impl Spell {
    /// True at the first failure of a spell: tell it.
    pub fn begins(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }
    /// True if a spell ended with this success.
    pub fn ends(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}

/// An error and its sources in one line, for the one place where the chain is logged.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_fault_that_lasts_is_told_once() {
        let spell = super::Spell::default();
        assert!(!spell.ends() && spell.begins() && !spell.begins());
        assert!(spell.ends() && !spell.ends() && spell.begins());
    }
}
