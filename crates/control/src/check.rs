//! What control looks at before it starts: its addresses, its folders, its tokens. It changes nothing.

use std::path::Path;

use godwit_base::check::{self, Check};
use godwit_base::telemetry::chain;

use crate::config::Config;
use crate::tls::Files;

/// All that `godwit run control --check` looks at.
pub fn check(config: &Config) -> Vec<Check> {
    let mut found = vec![check::folder("data_dir", &config.data_dir), check::listen("listen", config.listen)];
    found.extend(config.listen_also.iter().map(|address| check::listen("listen_also", *address)));
    found.extend(config.listen_https.iter().map(|address| check::listen("listen_https", *address)));
    found.extend(config.tls.as_ref().map(certificate));
    found.push(token("admin_token_file", &config.admin_token_file));
    found.push(token("join_token_file", &config.join_token_file));
    if config.restored {
        found.push(Check::warning(
            "restored",
            "restored = true begins a new generation of epochs at every start",
            "take the line out after the first start that follows a restore",
        ));
    }
    if config.acme.is_some() && config.public_addresses.is_empty() {
        found.push(Check::warning(
            "public_addresses",
            "certificates can be requested, but users are not told where to point their host names",
            "set public_addresses to the edges' public addresses",
        ));
    }
    found
}

fn certificate(files: &Files) -> Check {
    match files.load() {
        Ok(_) => Check::ok("tls_certificate", format!("{} can be served", files.certificate.display())),
        Err(error) => Check::error("tls_certificate", chain(&error), "name a PEM file with the chain, and its own key"),
    }
}

/// It stands, or the first start writes it.
fn token(check: &str, path: &Path) -> Check {
    match std::fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => Check::ok(check, format!("{} holds a token", path.display())),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Check::error(
            check,
            format!("cannot read {}: {error}", path.display()),
            "let the user that runs control own it",
        ),
        _ => Check::ok(check, format!("{} will be written at the first start", path.display())),
    }
}
