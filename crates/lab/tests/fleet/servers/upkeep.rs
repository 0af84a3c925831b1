//! What docs/operate.md says of keeping a fleet: TLS, logs, upgrades, backups. Its blocks are run as they stand.

use anyhow::{Result, ensure};
use serde_json::Value;

use super::bed::{Server, Servers, page_blocks, until};
use super::{CONTROL, HOSTS, answers};

/// The marks of docs/operate.md under which a block stands that is run here or in the parent; a page with another one has
/// something that nobody tries.
const MARKS: [&str; 14] = [
    "run on 192.0.2.10",
    "run on 192.0.2.21",
    "run on 192.0.2.22",
    "run on the workstation",
    "into control.toml",
    "over TLS on the workstation",
    "into /etc/logrotate.d/godwit",
    "backup on 192.0.2.10",
    "restore on 192.0.2.10",
    "restored on 192.0.2.10",
    "upgrade on 192.0.2.10",
    "upgrade on 192.0.2.22",
    "take-over on 192.0.2.10",
    "removal",
];

pub fn every_block_was_run() {
    let page = std::fs::read_to_string(super::bed::root().join("docs/operate.md")).expect("the page");
    let mut marks: Vec<&str> =
        page.lines().filter_map(|line| line.strip_prefix("<!-- ")?.strip_suffix(" -->")).collect();
    marks.dedup();
    for mark in &marks {
        assert!(MARKS.contains(mark), "nobody runs the block under {mark:?}");
    }
    // All other blocks are the installation of the packages, which every machine of the tests has.
    let fences = page.lines().filter(|line| line.starts_with("```")).count() / 2;
    let marked = page.lines().filter(|line| line.starts_with("<!-- ")).count();
    assert_eq!(fences, marked + 1, "a block without a mark is run by nobody");
}

fn until_gone(server: &Server, pid: &str) -> Result<()> {
    until("it has ended", || Ok(server.script(&format!("! kill -0 {pid} 2>/dev/null")).is_ok()))
}

fn until_control_answers(control: &Server) -> Result<()> {
    until("control answers", || Ok(control.cli(&["host", "list"])?.status.success()))
}

/// The page's lines and commands; then a renewed certificate, which a reload brings.
pub fn control_speaks_tls(servers: &Servers) -> Result<()> {
    let control = servers.server(CONTROL);
    let renew = |name: &str| -> Result<()> {
        let key = rcgen::KeyPair::generate()?;
        let names = vec!["192.0.2.10".to_owned(), "control.example.com".to_owned()];
        let own = rcgen::CertificateParams::new(names)?.self_signed(&key)?;
        std::fs::write(control.file("/etc/godwit/control.key"), key.serialize_pem())?;
        std::fs::write(control.file("/etc/godwit/control.pem"), own.pem())?;
        std::fs::write(control.file("/etc/godwit").join(name), own.pem())?;
        Ok(())
    };
    renew("ca.pem")?;
    let file = control.file("/etc/godwit/control.toml");
    let lines = page_blocks("into control.toml", "toml")?.concat();
    std::fs::write(&file, format!("{lines}{}", std::fs::read_to_string(&file)?))?;
    control.script(
        "cp /etc/godwit/ca.pem ~/ca.pem; echo '192.0.2.10 control.example.com' >>/etc/hosts
         godwit run control --check --config /etc/godwit/control.toml",
    )?;
    servers.typed(control, "systemctl restart godwit-control")?;
    until("the API over TLS", || Ok(servers.block("over TLS on the workstation", CONTROL).is_ok()))?;
    let ask = ["--api-url", "https://192.0.2.10:4443", "host", "list"];
    let trusting = |ca: &str| control.cli(&[&ask[..], &["--ca-file", ca]].concat());
    ensure!(trusting("/etc/godwit/ca.pem")?.status.success(), "by its address");
    control.script("godwit config unset ca-file")?;
    let refused = control.cli(&ask)?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(7) && said.contains("--ca-file"), "{said}");
    renew("ca-2.pem")?;
    servers.typed(control, "systemctl reload godwit-control")?;
    until("the new certificate", || Ok(trusting("/etc/godwit/ca-2.pem")?.status.success()))?;
    assert!(!trusting("/etc/godwit/ca.pem")?.status.success(), "the old one is served no more");
    // The plain address serves hosts and edges on.
    control.script("godwit config set api-url http://192.0.2.10:4280; godwit host list").map(drop)
}

/// By the real logrotate.
pub fn the_access_log_is_rotated(servers: &Servers) -> Result<()> {
    let control = servers.server(CONTROL);
    let rule = page_blocks("into /etc/logrotate.d/godwit", "")?.concat();
    control.script(&format!("mkdir -p /etc/logrotate.d; cat >/etc/logrotate.d/godwit <<'END'\n{rule}END"))?;
    answers(control)?;
    let log = control.file("/var/log/godwit/access.log");
    until("a line in the log", || Ok(std::fs::metadata(&log)?.len() > 0))?;
    servers.typed(control, "logrotate --force --state /run/logrotate /etc/logrotate.d/godwit")?;
    let old = control.file("/var/log/godwit/access.log.1");
    until("the edge writes a new file", || {
        answers(control)?;
        Ok(std::fs::metadata(&log).is_ok_and(|log| log.len() > 0))
    })?;
    // Whole lines on either side.
    for file in [old, log] {
        for line in std::fs::read_to_string(&file)?.lines() {
            serde_json::from_str::<Value>(line)?;
        }
    }
    Ok(())
}

/// Programs are replaced while they run, and roles restarted: the Machine's process stays.
pub fn everything_is_upgraded(servers: &Servers, machine: &str) -> Result<()> {
    let control = servers.server(CONTROL);
    let shown = || -> Result<Value> {
        Ok(serde_json::from_str(&control.cli_ok(&["machine", "status", machine, "-a", "hello", "--json"])?)?)
    };
    let before = shown()?;
    servers.block("upgrade on 192.0.2.10", CONTROL)?;
    until_control_answers(control)?;
    let block = page_blocks("upgrade on 192.0.2.22", "sh")?.concat();
    for host in HOSTS {
        servers.typed(servers.server(host), &block)?;
    }
    answers(control)?;
    until("both hosts are heard again", || {
        let hosts: Vec<Value> = serde_json::from_str(&control.cli_ok(&["host", "list", "--json"])?)?;
        Ok(hosts.iter().all(|host| host["state"] == "active"))
    })?;
    let after = shown()?;
    assert_eq!(after["state"], "started", "{after}");
    let starts = |machine: &Value| {
        machine["events"].as_array().map(|events| events.iter().filter(|event| event["type"] == "start").count())
    };
    assert_eq!(starts(&before), starts(&after), "no start came of it: {after}");
    Ok(())
}

/// A Machine that was made after the backup is a stray after the restore: one is adopted, with its volume, and runs on; another is
/// ended.
pub fn control_is_restored(servers: &Servers) -> Result<()> {
    let control = servers.server(CONTROL);
    servers.block("backup on 192.0.2.10", CONTROL)?;
    let later = control.cli_ok(&["machine", "run", "demo", "-a", "hello", "--quiet"])?;
    let later = later.trim();
    control.cli_ok(&["volumes", "create", "kept", "-a", "hello", "--size", "1"])?;
    let kept = ["run", "demo", "-a", "hello", "--name", "kept", "--volume", "kept:/kept", "--quiet"];
    let kept = control.cli_ok(&[&["machine"][..], &kept].concat())?;
    let kept = kept.trim();
    let since = |machine: &str| -> Result<Value> {
        let shown = control.cli_ok(&["machine", "status", machine, "-a", "hello", "--json"])?;
        Ok(serde_json::from_str::<Value>(&shown)?)
    };
    let before = since(kept)?;
    servers.block("restore on 192.0.2.10", CONTROL)?;
    until_control_answers(control)?;
    servers.block("restored on 192.0.2.10", CONTROL)?;
    let strays =
        || -> Result<Vec<Value>> { Ok(serde_json::from_str(&control.cli_ok(&["host", "strays", "--json"])?)?) };
    // Both Machines, and the volume.
    until("the strays are listed", || Ok(strays()?.len() == 3))?;
    let host_of = |id: &str| -> Result<String> {
        let strays = strays()?;
        let stray = strays.iter().find(|stray| stray["id"] == id);
        Ok(stray.and_then(|stray| stray["host_id"].as_str()).unwrap_or_default().to_owned())
    };
    control.cli_ok(&["host", "strays", "adopt", &host_of(kept)?, kept, "--app", "hello"])?;
    let after = since(kept)?;
    for member in ["name", "state", "instance_id", "private_ip", "config"] {
        assert_eq!(before[member], after[member], "{member}: {after}");
    }
    let starts = |machine: &Value| {
        machine["events"].as_array().map(|events| events.iter().filter(|event| event["type"] == "start").count())
    };
    assert_eq!(starts(&before), starts(&after), "it runs on: {after}");
    until("only the other is a stray", || Ok(strays()?.len() == 1))?;
    control.cli_ok(&["machine", "stop", kept, "-a", "hello"])?;
    control.cli_ok(&["machine", "destroy", kept, "-a", "hello", "--yes"])?;
    control.cli_ok(&["host", "strays", "end", &host_of(later)?, later, "--yes"])?;
    until("the stray has gone", || Ok(strays()?.is_empty()))?;
    answers(control)
}

/// Beside the one that systemd started, which goes when its connections have ended.
pub fn another_edge_takes_over(servers: &Servers) -> Result<()> {
    let control = servers.server(CONTROL);
    let pid = control.script("cat /run/godwit-edge.pid")?;
    let block = page_blocks("take-over on 192.0.2.10", "sh")?.concat();
    control.script(&format!("cat >/run/take-over <<'END'\n{block}END"))?;
    control.script("setsid sh -e /run/take-over </dev/null >/var/log/edge-2.log 2>&1 &")?;
    for _ in 0..50 {
        answers(control)?;
    }
    until_gone(control, pid.trim())?;
    answers(control)
}
