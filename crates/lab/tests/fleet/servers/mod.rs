//! docs/operate.md on three bare servers, word for word: its blocks, its example files, its units' commands, its firewall.
//! Then an app answers through the edge and moves between the hosts, and a host is cleaned.

mod bed;
mod upkeep;

use std::os::unix::fs::PermissionsExt;

use anyhow::Result;
use serde_json::Value;

use crate::support::demo_image;
use bed::{Server, Servers, page_blocks, until};

const CONTROL: &str = "192.0.2.10";
const HOSTS: [&str; 2] = ["192.0.2.21", "192.0.2.22"];

#[test]
fn three_bare_servers_run_an_app_by_the_words_of_the_page() {
    let servers = Servers::start(&[CONTROL, HOSTS[0], HOSTS[1]]).expect("three bare servers");
    the_page_is_followed(&servers).expect("the page works as written");
    let control = servers.server(CONTROL);
    closed_folders(&servers);
    let machine = an_app_answers(control).expect("an app answers through the edge");
    let target = it_moves(control, &machine).expect("it moves, through the firewall");
    a_wrong_start_says_what_to_do(&servers).expect("mistakes are named");
    a_port_that_is_taken_is_told(control).expect("who asked for a port hears that it is not open");
    upkeep::control_speaks_tls(&servers).expect("the API over TLS");
    upkeep::the_access_log_is_rotated(&servers).expect("the access log is rotated");
    upkeep::everything_is_upgraded(&servers, &machine).expect("an upgrade as the page says");
    upkeep::control_is_restored(&servers).expect("control from its backup");
    upkeep::another_edge_takes_over(&servers).expect("an edge that loses no connection");
    upkeep::every_block_was_run();
    a_host_is_cleaned(&servers, &target).expect("nothing is left of the platform");
}

fn the_page_is_followed(servers: &Servers) -> Result<()> {
    firewall(servers.server(CONTROL), "control-and-edge.nft")?;
    // The second block begins when the first start has written the tokens.
    servers.blocks(CONTROL, CONTROL, |server, number| {
        until("control's tokens", || Ok(number == 0 || server.file("/var/lib/godwit/control/join-token").exists()))
    })?;
    let log = std::fs::read_to_string(servers.server(CONTROL).file("/var/log/godwit-control.log"))?;
    for token in ["/var/lib/godwit/control/admin-token", "/var/lib/godwit/control/join-token"] {
        assert!(log.contains(token), "control's log names {token}:\n{log}");
    }
    for host in HOSTS {
        firewall(servers.server(host), "host.nft")?;
        servers.blocks(host, host, |_, _| Ok(()))?;
    }
    let control = servers.server(CONTROL);
    servers.blocks("the workstation", CONTROL, |server, _| {
        until("control's API", || Ok(server.script("bash -c 'exec 3<>/dev/tcp/192.0.2.10/4280'").is_ok()))
    })?;
    until("both hosts are there", || {
        let hosts: Vec<Value> = serde_json::from_str(&control.cli_ok(&["host", "list", "--json"])?)?;
        Ok(hosts.len() == 2 && hosts.iter().all(|host| host["state"] == "active"))
    })
}

fn firewall(server: &Server, file: &str) -> Result<()> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples/firewall").join(file);
    // Twice: a person changes the file and loads it again.
    server.script(&format!("nft -f {0}; nft -f {0}", path.display())).map(drop)
}

fn closed_folders(servers: &Servers) {
    let folders = [
        (CONTROL, "/var/lib/godwit/control"),
        (CONTROL, "/var/lib/godwit/edge"),
        (CONTROL, "/etc/godwit/certificates"),
        (HOSTS[0], "/var/lib/godwit/agent"),
        (HOSTS[0], "/var/lib/godwit/agent/machines"),
        (HOSTS[0], "/var/lib/godwit/door"),
    ];
    for (server, folder) in folders {
        let path = servers.server(server).file(folder);
        let mode = std::fs::metadata(&path).unwrap_or_else(|error| panic!("{folder}: {error}")).permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{folder} of {server}");
    }
}

fn an_app_answers(control: &Server) -> Result<String> {
    let image = demo_image();
    control.cli_ok(&["image", "load", image.to_str().expect("UTF-8"), "--name", "demo"])?;
    control.cli_ok(&["apps", "create", "hello"])?;
    control.cli_ok(&["volumes", "create", "data", "-a", "hello", "--size", "1"])?;
    let options = ["-a", "hello", "--volume", "data:/data", "--port", "80:8080/tcp:http"];
    control.cli_ok(&[&["machine", "run", "demo"][..], &options].concat())?;
    answers(control)?;
    let machines: Vec<Value> = serde_json::from_str(&control.cli_ok(&["machine", "list", "-a", "hello", "--json"])?)?;
    Ok(machines[0]["id"].as_str().expect("an id").to_owned())
}

/// Through the edge's port 80, by the name under its suffix.
fn answers(control: &Server) -> Result<()> {
    let ask = "curl -sS -m 20 -o /dev/null -w '%{http_code}' -H 'Host: hello.apps.example.com' http://192.0.2.10/";
    until("the app answers", || Ok(control.script(ask)? == "200"))
}

/// The address of the host that it moved to.
fn it_moves(control: &Server, machine: &str) -> Result<String> {
    let host = || -> Result<String> {
        let shown: Value =
            serde_json::from_str(&control.cli_ok(&["machine", "status", machine, "-a", "hello", "--json"])?)?;
        Ok(shown["host_id"].as_str().expect("a host").to_owned())
    };
    let before = host()?;
    control.cli_ok(&["machine", "migrate", machine, "-a", "hello"])?;
    until("it is on the other host", || Ok(host()? != before))?;
    answers(control)?;
    Ok(if host()?.starts_with("worker-1") { HOSTS[0] } else { HOSTS[1] }.to_owned())
}

fn a_wrong_start_says_what_to_do(servers: &Servers) -> Result<()> {
    let control = servers.server(CONTROL);
    let refused = |arguments: &[&str], parts: &[&str]| -> Result<()> {
        let output = control.cli(arguments)?;
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!output.status.success(), "{arguments:?} {said}");
        for part in parts {
            assert!(said.contains(part), "{arguments:?} says {part:?}:\n{said}");
        }
        Ok(())
    };
    refused(&["run", "edge", "--config", "/etc/godwit/edge.toml"], &["another edge is running (pid", "--take-over"])?;
    control.script(
        "cd /etc/godwit; sed 's/^listen =/lissen =/' control.toml >wrong.toml
         sed 's,/edge/,/edge-2/,; s,join-token,no-token,; s/:80\"/:81\"/; s/:443\"/:444\"/; s/4284/4294/' edge.toml >edge-2.toml",
    )?;
    let wrong = "line 3: unknown key `lissen`; did you mean `listen`?";
    refused(&["run", "control", "--config", "/etc/godwit/wrong.toml"], &["wrong.toml", wrong])?;
    refused(&["run", "control", "--check", "--config", "/etc/godwit/wrong.toml"], &["error", wrong])?;
    let missing = ["/etc/godwit/no-token does not exist", "copy it there from control's server"];
    refused(&["run", "edge", "--config", "/etc/godwit/edge-2.toml"], &missing)?;
    refused(&["run", "edge", "--check", "--config", "/etc/godwit/edge-2.toml"], &missing)?;
    control.script("echo gwj_of_another_fleet >/etc/godwit/no-token")?;
    refused(&["run", "edge", "--config", "/etc/godwit/edge-2.toml"], &["refused to admit", "/etc/godwit/no-token"])?;
    // An agent's machine: every missing thing at once. This server has all but the shim, which is looked for elsewhere.
    control.script("sed 's/192.0.2.21/192.0.2.10/' /dev/stdin >/etc/godwit/agent.toml <<'END'\n\
                    data_dir = '/var/lib/godwit/agent'\nlisten = '192.0.2.21:4281'\nadvertise_url = 'http://192.0.2.21:4281'\n\
                    door_addr = '192.0.2.21:4282'\ncontrol_url = 'http://192.0.2.10:4280'\nname = 'w'\nregion = 'fra'\n\
                    [capacity]\ncpus = 1\nmemory_mb = 64\ndisk_mb = 64\n[driver]\nshim = '/no/such/shim'\nEND\n")?;
    refused(&["run", "agent", "--config", "/etc/godwit/agent.toml"], &["not ready to run Machines", "/no/such/shim"])?;
    let looked = control.cli(&["run", "agent", "--check", "--json", "--config", "/etc/godwit/agent.toml"])?;
    let looks: Vec<Value> = serde_json::from_slice(&looked.stdout)?;
    let of = |check: &str| looks.iter().find(|look| look["check"] == check).map(|look| look["level"].clone());
    assert_eq!(
        (of("driver.shim"), of("nft"), of("control_url")),
        (Some("error".into()), Some("ok".into()), Some("ok".into()))
    );
    Ok(())
}

/// Something else of the edge's server listens there; then it goes.
fn a_port_that_is_taken_is_told(control: &Server) -> Result<()> {
    let other = control.listen("0.0.0.0:5555")?;
    let run = control.cli(&["machine", "run", "demo", "-a", "hello", "--port", "5555:8080/tcp"])?;
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.success() && said.contains("warning: port 5555 is not open at edge edge-1-"), "{said}");
    let warned = || -> Result<bool> {
        let output = control.cli(&["status", "-a", "hello"])?;
        Ok(String::from_utf8_lossy(&output.stderr).contains("warning: port 5555 is not open at edge edge-1-"))
    };
    until("status warns", warned)?;
    drop(other);
    until("the warning goes with its cause", || Ok(!warned()?))?;
    // What the edge itself listens on is refused beforehand, and so are the system's ports.
    let refused = |port: &str, part: &str| -> Result<()> {
        let output = control.cli(&["machine", "run", "demo", "-a", "hello", "--port", port])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(part), "{port}: {said}");
        Ok(())
    };
    refused("4284:8080/tcp", "itself listens on it")?;
    refused("4280:8080/tcp", "control itself listens on it")?;
    refused("22:8080/tcp", "raw_ports in control's configuration")
}

/// Agent and door; keepers of volumes are other processes of the same program.
const GONE: &str = "for role in agent door; do ! kill -0 $(cat /run/godwit-$role.pid) 2>/dev/null || exit 1; done";

/// One host is left as it was found.
fn a_host_is_cleaned(servers: &Servers, address: &str) -> Result<()> {
    let host = servers.server(address);
    let clean = ["run", "agent", "--clean", "--yes", "--config", "/etc/godwit/agent.toml"];
    let output = host.cli(&clean)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("stop it and its door first"), "{said}");
    // As a person does it: on a terminal, where it asks.
    let block = page_blocks("removal", "sh")?.concat();
    host.script(&format!("cat >/run/removal <<'END'\n{block}END"))?;
    servers.typed(host, "printf 'y\\n' | script -qec 'sh -e /run/removal' /dev/null")?;
    until("agent and door have ended", || Ok(host.script(GONE).is_ok()))?;
    host.script("! test -e /var/lib/godwit/agent")?;
    host.script("! pgrep -x godwit-shim && ! pgrep -x godwit")?;
    host.script("! grep -q godwit/agent /proc/self/mountinfo")?;
    host.script("! nft list tables | grep -q 'godwit_host'")?;
    host.script("! ip -o link | grep -q ': gw'")?;
    let loops = host.script("cat /sys/block/loop*/loop/backing_file 2>/dev/null || true")?;
    let volumes = host.file("/var/lib/godwit/agent/volumes");
    for shown in loops.lines() {
        assert!(
            !shown.starts_with(volumes.to_str().expect("UTF-8")) && !shown.starts_with("/var/lib/godwit/agent"),
            "{shown}"
        );
    }
    // Once more: there is nothing to remove, and that is no error.
    host.cli_ok(&clean).map(drop)
}
