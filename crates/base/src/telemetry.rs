//! Our own log: to standard error, one line an event, as text or JSON; `GODWIT_LOG` holds the filter.

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
