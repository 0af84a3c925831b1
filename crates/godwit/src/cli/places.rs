//! Where an app is reached: its URLs and the public ports of its Machines, as `run` and `status` end with them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use godwit_api::AppName;
use godwit_api::config::Port;
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::AppsShow;
use godwit_api::machine::Machine;

use super::context::{Context, LOOK_INTERVAL};

/// For edges to report a raw port that is new.
const PORTS_TIMEOUT: Duration = Duration::from_secs(3);

/// The lines for a person; nothing with `--json` or `--quiet`. What the command was for is done: that these cannot be
/// had is no failure of it.
pub async fn print(context: &Context, app: &AppName, machines: &[&Machine]) {
    if context.output.json || context.output.quiet {
        return;
    }
    let Ok(app) = context.client.call::<AppsShow>(&[app.as_str()], &Empty {}, &Empty {}).await else { return };
    let lines = lines(&app.urls, machines);
    if !lines.is_empty() {
        eprintln!();
    }
    lines.iter().for_each(|line| context.output.say(line));
}

/// A warning for each public raw port of the Machine that is not open. Edges open it while the Machine is being made, and
/// are waited for a little.
pub async fn warn_of_closed_ports(context: &Context, app: &AppName, machine: &Machine) {
    let services = machine.config.services.iter().flat_map(|service| &service.ports);
    let raw = services.filter(|port| !port.is_http()).filter_map(Port::range);
    let raw: Vec<u16> = raw.flat_map(|(first, last)| first..=last).collect();
    if raw.is_empty() {
        return;
    }
    let deadline = Instant::now() + PORTS_TIMEOUT;
    loop {
        let Ok(shown) = context.client.call::<AppsShow>(&[app.as_str()], &Empty {}, &Empty {}).await else { return };
        let of = |port: &u16| shown.raw_ports.iter().find(|known| known.port == *port);
        let is_known = |port: &&u16| of(port).is_some_and(|of| !of.open_at.is_empty() || !of.closed_at.is_empty());
        let unknown: Vec<String> = raw.iter().filter(|port| !is_known(port)).map(u16::to_string).collect();
        if !unknown.is_empty() && Instant::now() < deadline {
            tokio::time::sleep(LOOK_INTERVAL).await;
            continue;
        }
        for closed in raw.iter().filter_map(of) {
            for at in &closed.closed_at {
                context.output.warn(format!("port {} is not open at edge {}: {}", closed.port, at.edge, at.why));
            }
        }
        if !unknown.is_empty() {
            let ports = unknown.join(", ");
            context.output.warn(format!(
                "no edge has reported port {ports} as open yet; `godwit status -a {app}` shows what edges report"
            ));
        }
        return;
    }
}

fn lines(urls: &[String], machines: &[&Machine]) -> Vec<String> {
    // Several Machines mostly serve the same ports: each is told once.
    let mut ports: BTreeMap<(u16, u16), (Port, u16)> = BTreeMap::new();
    for service in machines.iter().flat_map(|machine| &machine.config.services) {
        for port in &service.ports {
            if let Some(range) = port.range() {
                ports.entry(range).or_insert((port.clone(), service.internal_port));
            }
        }
    }
    if machines.is_empty() {
        return Vec::new();
    }
    if ports.is_empty() {
        return vec!["No port is published: add one with --port 80:8080/tcp:http".to_owned()];
    }
    let host = urls.first().and_then(|url| url.split("://").nth(1)).and_then(|rest| rest.split([':', '/']).next());
    let mut lines = Vec::new();
    for ((first, last), (port, inside)) in &ports {
        let wanted = if port.is_tls() { "https://" } else { "http://" };
        let url = urls.iter().filter(|url| url.starts_with(wanted));
        if port.is_http() {
            let shown: Vec<String> = url.map(|url| format!("{url}/")).collect();
            if shown.is_empty() {
                lines.push(format!("  HTTP at port {first} of the edge, for the app's host names → port {inside}"));
            }
            lines.extend(shown.into_iter().map(|url| format!("  {url} → port {inside}")));
        } else {
            let range = if first == last { first.to_string() } else { format!("{first}-{last}") };
            let host = host.unwrap_or("the edge");
            lines.push(format!(
                "  {host} port {range}, raw {} → port {inside}",
                if port.is_tls() { "TLS" } else { "TCP" }
            ));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_ports_are_told_once_each() {
        let mut machine: Machine = serde_json::from_value(serde_json::json!({
            "id": "0000000000000a", "name": "web", "state": "started", "region": "fra",
            "image_ref": { "registry": "", "repository": "", "tag": "", "digest": "" },
            "instance_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "private_ip": "", "created_at": "", "updated_at": "",
            "config": { "services": [
                { "internal_port": 8080, "ports": [{ "port": 80, "handlers": ["http"] }, { "port": 443, "handlers": ["tls", "http"] }] },
                { "internal_port": 5432, "ports": [{ "port": 5432 }] },
            ] },
            "events": [], "checks": [], "host_status": "ok", "host_id": "w1", "cordoned": false,
        }))
        .unwrap();
        let urls = ["http://shop.localhost:8080".to_owned(), "https://shop.localhost:8443".to_owned()];
        let told = lines(&urls, &[&machine, &machine]);
        assert_eq!(
            told,
            [
                "  http://shop.localhost:8080/ → port 8080",
                "  https://shop.localhost:8443/ → port 8080",
                "  shop.localhost port 5432, raw TCP → port 5432",
            ]
        );
        assert!(lines(&[], &[&machine])[0].contains("port 80 of the edge"));
        machine.config.services.clear();
        assert!(lines(&urls, &[&machine])[0].contains("--port"));
        assert!(lines(&urls, &[]).is_empty());
    }
}
