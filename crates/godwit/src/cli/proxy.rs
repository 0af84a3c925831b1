//! `godwit proxy`: a local port whose connections go to a port of a Machine, bytes untouched.

use std::sync::Arc;
use std::time::Duration;

use godwit_api::endpoints::MACHINE_CONNECT;
use godwit_api::{AppName, MachineId};
use godwit_base::http::client::Client;
use godwit_base::http::upgrade::relay;
use http::HeaderMap;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::context::{AppOption, Context};
use crate::error::{CliError, Result};
use crate::exit::Exit;

/// Connections at once; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 128;
/// Beyond what the host gives the Machine to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// Forward a local port to a port of a running Machine
///
/// Connections reach what listens inside the Machine on 127.0.0.1, ::1, 0.0.0.0 or [::], also when no service is
/// configured. It runs until Ctrl-C.
#[derive(clap::Args)]
pub struct Options {
    /// [ADDRESS:]LOCAL[:REMOTE]: the local port (0 takes a free one) and the Machine's, if it is another
    #[arg(value_name = "PORTS", value_parser = ports)]
    ports: Ports,
    /// The id, or the name together with --app
    #[arg(value_name = "MACHINE")]
    machine: String,
    #[command(flatten)]
    app: AppOption,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Ports {
    address: String,
    local: u16,
    remote: u16,
}

fn ports(text: &str) -> Result<Ports, String> {
    let wrong = || format!("{text:?} is not LOCAL, LOCAL:REMOTE or ADDRESS:LOCAL:REMOTE, such as 5433:5432");
    let port = |text: &str| text.parse::<u16>().map_err(|_| wrong());
    let (rest, remote) = match text.rsplit_once(':') {
        Some((rest, remote)) => (rest, Some(port(remote)?)),
        None => (text, None),
    };
    let (address, local) = match rest.rsplit_once(':') {
        Some((address, local)) => (address.trim_start_matches('[').trim_end_matches(']').to_owned(), port(local)?),
        None => ("127.0.0.1".to_owned(), port(rest)?),
    };
    let remote = remote.unwrap_or(local);
    if remote == 0 {
        return Err(wrong());
    }
    Ok(Ports { address, local, remote })
}

pub async fn run(options: &Options, context: &Context) -> Result<()> {
    let (app, machine) = context.machine(&options.app, &options.machine).await?;
    let Ports { address, local, remote } = &options.ports;
    let listener = TcpListener::bind((address.as_str(), *local)).await.map_err(|error| {
        CliError::failed(format!("cannot listen on {address}:{local}: {error}"))
            .hint(format!("take another local port: `godwit proxy PORT:{remote} {}`", options.machine))
    })?;
    let at = listener.local_addr()?;
    if context.output.json {
        context
            .output
            .json(&serde_json::json!({ "address": at.to_string(), "machine": machine.id, "port": remote }))?;
    } else {
        context.output.say(format!("Forwarding {at} to port {remote} of Machine {}; Ctrl-C ends it", machine.id));
    }
    let to = Target { client: context.client.clone(), path: path_of(&app, &machine.id, *remote) };
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = async {
            let slot = slots.clone().acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            accepted = accepted => accepted,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                context.output.warn(format!("a connection was not accepted: {error}"));
                // Out of descriptors is the usual reason: going on at once would spin.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (to, output) = (to.clone(), context.output);
        tokio::spawn(async move {
            let _slot = slot;
            if let Err(error) = to.carry(stream).await {
                output.warn(error.to_string());
            }
        });
    }
}

fn path_of(app: &AppName, machine: &MachineId, port: u16) -> String {
    let path = MACHINE_CONNECT.replace("{app_name}", app.as_str()).replace("{machine_id}", machine.as_str());
    format!("{path}?port={port}")
}

#[derive(Clone)]
struct Target {
    client: Client,
    path: String,
}

impl Target {
    /// One connection. It is closed when the Machine is not reached.
    async fn carry(&self, stream: TcpStream) -> Result<()> {
        let _ = stream.set_nodelay(true);
        let inside = self.client.upgrade(&self.path, "tcp", &HeaderMap::new(), CONNECT_TIMEOUT).await?;
        let relayed = relay(stream, inside).await;
        relayed.map_err(|error| CliError::new(Exit::Unreachable, format!("a connection broke: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_people_write_them() {
        let is = |text, address: &str, local, remote| {
            assert_eq!(ports(text), Ok(Ports { address: address.into(), local, remote }), "{text}");
        };
        is("5432", "127.0.0.1", 5432, 5432);
        is("0:80", "127.0.0.1", 0, 80);
        is("5433:5432", "127.0.0.1", 5433, 5432);
        is("0.0.0.0:5433:5432", "0.0.0.0", 5433, 5432);
        is("[::1]:5433:5432", "::1", 5433, 5432);
        for wrong in ["", "x", "1:0", "0", "70000", "1:x"] {
            assert!(ports(wrong).is_err(), "{wrong}");
        }
    }
}
