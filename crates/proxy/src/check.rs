//! What an edge and a door look at before they start: their addresses, their folders, control or the agent. It changes
//! nothing.

use godwit_base::check::{self, Check};
use godwit_base::http::client::Client;

use crate::door::DoorConfig;
use crate::edge::EdgeConfig;

/// All that `godwit run edge --check` looks at.
pub async fn edge(config: &EdgeConfig) -> Vec<Check> {
    let mut found = Vec::new();
    found.extend(config.listen_http.iter().map(|address| check::listen("listen_http", *address)));
    found.extend(config.listen_https.iter().map(|address| check::listen("listen_https", *address)));
    found.push(check::listen("listen_admin", config.listen_admin));
    found.push(check::folder("snapshot_dir", &config.snapshot_dir));
    found.extend(config.certificates_dir.iter().map(|folder| check::folder("certificates_dir", folder)));
    let token = config.join_token.as_deref();
    found.push(check::identity(&config.identity_file, token, config.join_token_file.as_deref()));
    found.push(check::control(&config.control_url, Client::tcp(&config.control_url, None)).await);
    found.push(names(config));
    found
}

/// All that `godwit run door --check` looks at.
pub fn door(config: &DoorConfig) -> Vec<Check> {
    let socket = config.agent_socket.display();
    let agent = match config.agent_socket.exists() {
        true => Check::ok("agent_socket", format!("{socket} is there")),
        false => Check::warning(
            "agent_socket",
            format!("{socket} is not there yet; the door waits for it"),
            "start this host's agent, and let its door_socket name the same path",
        ),
    };
    vec![
        check::listen("listen", config.listen),
        check::listen("listen_admin", config.listen_admin),
        check::folder("data_dir", &config.data_dir),
        agent,
    ]
}

fn names(config: &EdgeConfig) -> Check {
    match config.suffixes.first() {
        Some(suffix) => Check::ok("suffixes", format!("apps are reached as APP.{suffix}")),
        None => Check::warning(
            "suffixes",
            "no suffix is set: apps are reached only by the host names that they were given",
            "set suffixes = [\"apps.example.com\"], and a DNS wildcard *.apps.example.com that leads to this edge",
        ),
    }
}
