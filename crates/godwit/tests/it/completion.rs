//! Completions as shells ask for them: the scripts are sourced by real shells, before a real control.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cli::{godwit, home};
use crate::control::Fleet;

/// The time that a shell may wait is 1 s; this leaves room for a busy machine, and is far below any other timeout.
const PATIENCE: Duration = Duration::from_secs(15);

fn script(home: &Path, shell: &str) -> PathBuf {
    let path = home.join(format!("godwit.{shell}"));
    std::fs::write(&path, godwit(home, &["completions", shell]).stdout).expect("writable");
    path
}

/// A shell that finds our binary, and the fleet of `url`.
fn shell(name: &str, home: &Path, url: &str, token: &str) -> Command {
    let folder = Path::new(env!("CARGO_BIN_EXE_godwit")).parent().expect("a folder");
    let mut command = Command::new(name);
    command.env_clear().env("HOME", home).env("PATH", format!("{}:/usr/bin:/bin", folder.display()));
    command.env("GODWIT_API_URL", url).env("GODWIT_TOKEN", token).stdin(Stdio::null());
    command
}

/// What bash would put into the line, `|` being the cursor.
fn bash(home: &Path, url: &str, token: &str, line: &str) -> Vec<String> {
    let (before, after) = line.split_once('|').expect("a cursor");
    let code = "source \"$1\"; COMP_LINE=$2; COMP_POINT=$3; read -ra COMP_WORDS <<<\"$2\"; COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); \
        complete -p godwit >/dev/null || exit 9; _godwit godwit; for word in \"${COMPREPLY[@]}\"; do echo \"$word\"; done";
    let script = script(home, "bash");
    let mut command = shell("bash", home, url, token);
    command
        .args(["--norc", "-c", code, "bash"])
        .arg(script)
        .arg(format!("{before}{after}"))
        .arg(before.len().to_string());
    let output = command.output().expect("bash runs");
    assert!(output.status.success() && output.stderr.is_empty(), "{line}: {output:?}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    // Flags are offered where there is nothing else: they are no names.
    text.lines().filter(|answer| !answer.starts_with('-')).map(str::to_owned).collect()
}

#[test]
fn bash_offers_the_names_that_the_fleet_has() {
    let fleet = Fleet::start(2);
    for app in ["shop", "stores"] {
        fleet.ok(&["apps", "create", app]);
    }
    for (app, name) in [("shop", "web"), ("shop", "worker"), ("stores", "till")] {
        fleet.ok(&["machine", "run", "x-base", "-a", app, "-n", name]);
    }
    fleet.ok(&["volumes", "create", "data", "-a", "stores", "--detach"]);
    fleet.load("x-team/app:v1", "hello");
    let home = home();
    for name in ["prod", "test"] {
        assert!(godwit(home.path(), &["config", "add", name, "--api-url", "http://127.0.0.1:1"]).status.success());
    }
    let ask = |line: &str| bash(home.path(), &fleet.url, &fleet.token, line);
    let hosts: Vec<String> = fleet.agents.iter().map(|agent| agent.id.to_string()).collect();
    let id = fleet.json(&["machine", "status", "till", "-a", "stores"])["id"].as_str().expect("an id").to_owned();
    for (line, wanted) in [
        ("godwit apps show |", vec!["shop", "stores"]),
        ("godwit status -a st|", vec!["stores"]),
        ("godwit status --app=sh|", vec!["shop"]),
        ("godwit machine stop w| -a shop", vec!["web", "worker"]),
        ("godwit -j machine stop web wo| -a shop", vec!["worker"]),
        ("godwit machine cp web:/etc/hosts w| -a shop", vec!["web:", "worker:"]),
        ("godwit logs -a stores --machine |", vec!["till"]),
        ("godwit machine status | -a nothing", vec![]),
        ("godwit volumes show -a stores |", vec!["data"]),
        ("godwit machine run x-base -a stores -v |", vec!["data:"]),
        ("godwit image remove x-s|", vec!["x-srv"]),
        ("godwit machine run x-team/app:|", vec!["v1"]),
        ("godwit machine run x-base -a shop --region |", vec!["fra"]),
        ("godwit config use |", vec!["default", "prod", "test"]),
        ("godwit --context pr|", vec!["prod"]),
        ("godwit machine run x-base --restart o|", vec!["on-failure"]),
        ("godwit machine unc|", vec!["uncordon"]),
        ("godwit __|", vec![]),
        ("godwit dev-|", vec![]),
        ("godwit machine run x-base -- |", vec![]),
    ] {
        assert_eq!(ask(line), wanted, "{line}");
    }
    let mut found = ask("godwit host show |");
    found.sort();
    let mut wanted = hosts;
    wanted.sort();
    assert_eq!(found, wanted);
    // Without an app only an id names a Machine.
    assert!(ask("godwit machine status |").contains(&id));
    assert_eq!(
        ask(&format!("godwit machine status {}|", &id[..id.len() - 1])).iter().filter(|found| **found == id).count(),
        1
    );
}

#[test]
fn a_control_that_is_dead_or_silent_costs_no_shell_its_line() {
    let home = home();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", silent.local_addr().expect("bound"));
    for url in [url.as_str(), "http://127.0.0.1:1", "nonsense"] {
        let begun = Instant::now();
        assert_eq!(bash(home.path(), url, "t", "godwit apps show |"), Vec::<String>::new(), "{url}");
        assert!(begun.elapsed() < PATIENCE, "{url}: {:?}", begun.elapsed());
        // Commands need no fleet.
        assert_eq!(bash(home.path(), url, "t", "godwit volumes mig|"), ["migrate"]);
    }
}

/// Where zsh or fish is not installed, this proves nothing about it and says so.
#[test]
fn zsh_and_fish_read_their_scripts() {
    let home = home();
    for (name, check) in [("bash", &["-n"][..]), ("zsh", &["-n"]), ("fish", &["--no-execute"])] {
        let path = script(home.path(), name);
        match Command::new(name).args(check).arg(&path).stdin(Stdio::null()).status() {
            Ok(status) => assert!(status.success(), "{name}"),
            Err(error) => println!("{name} is not here: its script was not read ({error})"),
        }
        let text = std::fs::read_to_string(&path).expect("written");
        assert!(text.contains(&format!("godwit __complete {name}")), "{text}");
    }
}
