//! Sixty slips of the pen before a real control: each ends with the code of docs/cli.md, says what is wrong and what to
//! do next, changes nothing, and says it as JSON where JSON was asked for.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::cli::{godwit, home, stderr, stdout};
use crate::control::Fleet;

/// What is typed, the exit code, what the message says, what the hint says.
type Row<'a> = (&'a [&'a str], i32, &'a str, &'a str);

/// What the command line itself knows to be wrong: code 2.
const WRITTEN_WRONG: &[Row] = &[
    (&["machin", "list"], 2, "unrecognized subcommand", ""),
    (&["machine", "lst"], 2, "unrecognized subcommand", ""),
    (&["apps", "create"], 2, "required", ""),
    (&["apps", "create", "Not_A_Name"], 2, "is not an app name", ""),
    (&["apps", "show", "Not_A_Name"], 2, "is not an app name", ""),
    (&["apps", "list", "extra"], 2, "unexpected argument", ""),
    (&["machine", "list"], 2, "no app was given", "--app"),
    (&["status"], 2, "no app was given", "--app"),
    (&["volumes", "list"], 2, "no app was given", "--app"),
    (&["machine", "list", "-a", "shop", "--all"], 2, "cannot be used with", ""),
    (&["machine", "list", "-a", "shop", "--metadata", "plain"], 2, "NAME=VALUE", ""),
    (&["machine", "run", "-a", "shop"], 2, "required", ""),
    (&["machine", "run", "x-base", "sleep", "9", "-a", "shop"], 2, "unexpected `sleep 9`", "-- sleep 9"),
    (&["machine", "run", "x-base", "-a", "shop", "--appendonly"], 2, "unexpected argument", "after `--`"),
    (&["machine", "run", "x-base", "-a", "shop", "--port", "99999"], 2, "is not a port", ""),
    (&["machine", "run", "x-base", "-a", "shop", "--port", "80/udp"], 2, "only tcp", ""),
    (&["machine", "run", "x-base", "-a", "shop", "--vm-memory", "much"], 2, "1gb", ""),
    (&["machine", "run", "x-base", "-a", "shop", "--vm-size", "huge"], 2, "shared-cpu-1x", ""),
    (&["machine", "run", "x-base", "-a", "shop", "--restart", "maybe"], 2, "on-failure", ""),
    (&["machine", "run", "x-base", "-a", "shop", "--autostop", "maybe"], 2, "off or stop", ""),
    (&["machine", "run", "x-base", "-a", "shop", "--autostop"], 2, "publishes no port", "--port"),
    (&["machine", "run", "x-base", "-a", "shop", "-e", "NOBODY_SETS_THIS"], 2, "is not set here", ""),
    (&["machine", "run", "x-base", "-a", "shop", "--env-file", "/does/not/exist"], 2, "cannot be read", ""),
    (&["machine", "run", "x-base", "-a", "shop", "--file-local", "/f=/does/not/exist"], 2, "cannot read", ""),
    (&["machine", "run", "x-base", "-a", "shop", "--entrypoint", "a 'b"], 2, "a quote is not closed", "as a shell"),
    (&["machine", "run", "x-base", "-a", "shop", "--check", "http:x"], 2, "http:8080:/healthz", ""),
    (&["machine", "run", "x-base", "-a", "shop", "--machine-config", "{bad"], 2, "not JSON", ""),
    (
        &["machine", "run", "x-base", "-a", "shop", "--machine-config", "{\"env\":1}", "-e", "A=1"],
        2,
        "`env` is not",
        "",
    ),
    (&["machine", "run", "x-base", "-a", "shop", "-v", "data"], 2, "VOLUME:/PATH", ""),
    (&["machine", "run", "x-base", "-a", "shop", "-v", "data:/d,ro"], 2, "uid=N", ""),
    (&["machine", "run", "x-base", "-a", "shop", "-v", "a:/d", "-v", "b:/d"], 2, "two volumes", ""),
    (&["machine", "wait", "web", "-a", "shop", "--wait-timeout", "soon"], 2, "90s", ""),
    (&["volumes", "create", "data", "-a", "shop", "--size", "0"], 2, "whole gigabytes", ""),
    (&["volumes", "show", "data"], 2, "not a volume's id", "--app"),
    (&["migration", "show", "mig_1"], 2, "14 digits", ""),
    (&["host", "show", "Not_A_Host"], 2, "is not a host id", ""),
    (&["--api-url", "ftp://x", "apps", "list"], 2, "ftp://x", ""),
    (&["apps", "destroy", "shop"], 2, "add --yes", "Destroy app shop with 1 Machine"),
    (&["machine", "update", "web", "-a", "shop", "-e", "A=2"], 2, "add --yes", "Update Machine"),
];

/// What only the fleet knows: 1 refused, 3 not there, 4 does not fit, 5 not allowed, 7 not reached.
const REFUSED: &[Row] = &[
    (&["apps", "show", "shpo"], 3, "shpo", "did you mean shop"),
    (&["status", "-a", "shpo"], 3, "shpo", "did you mean shop"),
    (&["apps", "destroy", "shpo", "--yes"], 3, "shpo", "did you mean shop"),
    (&["apps", "show", "zzz"], 3, "zzz", "godwit apps list"),
    (&["machine", "list", "-a", "shpo"], 3, "shpo", "did you mean shop"),
    (&["machine", "status", "wbe", "-a", "shop"], 3, "no Machine wbe", "did you mean web"),
    (&["machine", "stop", "wbe", "-a", "shop"], 3, "no Machine wbe", "did you mean web"),
    (&["machine", "status", "00000000000000", "-a", "shop"], 3, "no Machine", "godwit machine list"),
    (&["machine", "status", "web"], 3, "there is no Machine web", "--app"),
    (&["machine", "list", "--host", "w1"], 3, "no host w1", "did you mean w1-"),
    (&["machine", "run", "x-bsae", "-a", "shop"], 3, "x-bsae", "did you mean x-base"),
    (&["host", "show", "w1"], 3, "w1", "did you mean w1-"),
    (&["host", "cordon", "w1"], 3, "w1", "did you mean w1-"),
    (&["volumes", "show", "dtaa", "-a", "stores"], 3, "dtaa", "did you mean data"),
    (&["volumes", "show", "vol_00000000000009", "-a", "shop"], 3, "no volume", "godwit volumes list"),
    (&["machine", "run", "x-base", "-a", "stores", "-v", "dtaa:/d"], 3, "dtaa", "did you mean data"),
    (&["migration", "show", "mig_00000000000001"], 3, "mig_00000000000001", "migration list"),
    (&["machine", "update", "web", "-a", "shop", "--yes", "--rm-port", "81"], 3, "--rm-port 81", "80"),
    (&["apps", "create", "shop"], 4, "shop is taken", ""),
    (&["machine", "run", "x-base", "-a", "shop", "-n", "web"], 4, "is taken", ""),
    (&["machine", "destroy", "web", "-a", "shop", "--yes"], 4, "is started", "--force"),
    (&["apps", "destroy", "stores", "--yes"], 4, "data, 1 GB", "--with-volumes"),
    (
        &["machine", "run", "x-base", "-a", "shop", "--machine-config", "{\"schedule\":\"daily\"}"],
        1,
        "config.schedule",
        "",
    ),
    (&["machine", "run", "x-base", "-a", "shop", "--vm-memory", "900gb"], 1, "larger than any host", ""),
    (&["machine", "run", "x-base", "-a", "shop", "--kill-signal", "SIGNOPE"], 1, "SIGNOPE", ""),
    (&["machine", "run", "x-base", "-a", "shop", "-e", "A=B", "-r", "mars"], 1, "mars", ""),
    (&["machine", "run", "x-base", "-a", "shop", "--host", "w1"], 3, "no host w1", "did you mean w1"),
    (&["machine", "create", "x-base", "-a", "shop", "--host", "mars"], 3, "no host mars", "godwit host list"),
    (&["machine", "clone", "web", "-a", "shop", "--host", "w1"], 3, "no host w1", "did you mean w1"),
    (&["machine", "migrate", "web", "-a", "shop", "--to", "w1"], 3, "no host w1", "did you mean w1"),
    (&["--token", "gwo_wrong", "apps", "list"], 5, "", "config show"),
    (&["machine", "wait", "web", "-a", "shop", "--state", "stopped", "--wait-timeout", "1s"], 6, "not stopped", ""),
    (
        &["--api-url", "http://127.0.0.1:1", "machine", "exec", "0000000000000a", "-a", "shop", "--", "true"],
        125,
        "",
        "",
    ),
    (&["--api-url", "http://127.0.0.1:1", "apps", "list"], 7, "cannot reach", "godwit dev"),
];

#[test]
fn sixty_mistakes_end_with_their_code_and_say_what_is_wrong() {
    assert!(WRITTEN_WRONG.len() + REFUSED.len() >= 60, "sixty are kept");
    let fleet = Fleet::start(1);
    for app in ["shop", "stores"] {
        fleet.ok(&["apps", "create", app]);
    }
    fleet.ok(&["machine", "run", "x-base", "-a", "shop", "-n", "web", "--port", "80:8080/tcp:http"]);
    fleet.ok(&["volumes", "create", "data", "-a", "stores", "--detach"]);
    let before = fleet.json(&["machine", "list", "--all"]);
    for (arguments, code, message, hint) in WRITTEN_WRONG.iter().chain(REFUSED) {
        let output = fleet.run(arguments);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(*code), "{arguments:?}: {text}");
        assert!(text.contains(message), "{arguments:?} should say {message:?}: {text}");
        let told = text.split_once("hint: ").map_or("", |(_, hint)| hint);
        assert!(hint.is_empty() || told.contains(hint), "{arguments:?} should advise {hint:?}: {text}");
        assert!(output.stdout.is_empty(), "{arguments:?}: errors go to standard error: {}", stdout(&output));

        let output = fleet.run(&[&["--json"], *arguments].concat());
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(*code), "--json {arguments:?}: {text}");
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {line}")))
            .collect();
        let error = lines.last().expect("an error is told");
        assert_eq!(error["code"], *code, "{arguments:?}: {error}");
        assert!(error["error"].as_str().is_some_and(|text| text.contains(message)), "{arguments:?}: {error}");
        assert!(error["kind"].is_string(), "{error}");
    }
    let after = fleet.json(&["machine", "list", "--all"]);
    let ids = |list: &Value| -> Vec<String> {
        let all = list.as_array().cloned().unwrap_or_default();
        all.iter().map(|machine| format!("{} {}", machine["id"], machine["instance_id"])).collect()
    };
    assert_eq!(ids(&after), ids(&before), "a mistake changes nothing");
}

#[test]
fn unknown_commands_are_guessed() {
    let home = home();
    for (arguments, guess) in
        [(&["machin"][..], "machine"), (&["machine", "stat"], "start"), (&["volumes", "crate"], "create")]
    {
        let output = godwit(home.path(), arguments);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(&format!("'{guess}'")), "{arguments:?}: {}", stderr(&output));
    }
}

/// What needs a terminal or a signal: an answer of no, and Ctrl-C.
const BESIDES: [i32; 2] = [8, 130];

#[test]
fn every_documented_exit_code_has_a_row() {
    let text = stdout(&godwit(home().path(), &["help", "exit-codes"]));
    let documented: BTreeSet<i32> =
        text.lines().skip(1).filter_map(|line| line.split(' ').next()?.parse().ok()).collect();
    let rows = WRITTEN_WRONG.iter().chain(REFUSED).map(|(_, code, ..)| *code);
    let met: BTreeSet<i32> = rows.chain(BESIDES).chain([0]).collect();
    assert_eq!(met, documented);
}

#[test]
fn an_answer_of_no_and_ctrl_c_change_nothing_and_have_codes_of_their_own() {
    let fleet = Fleet::start(1);
    fleet.ok(&["apps", "create", "shop"]);
    fleet.ok(&["machine", "run", "x-base", "-a", "shop", "-n", "web"]);
    let command = |program: &str| {
        let mut command = Command::new(program);
        command.env("GODWIT_API_URL", &fleet.url).env("GODWIT_TOKEN", &fleet.token).env("HOME", "/nonexistent");
        command
    };
    // On a terminal of its own: without one nobody is asked.
    let line = format!("{} apps destroy shop", env!("CARGO_BIN_EXE_godwit"));
    let mut asked = command("script");
    asked.args(["-qec", &line, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut asked = asked.spawn().expect("script runs");
    asked.stdin.take().expect("a pipe").write_all(b"n\n").expect("it is asked");
    let answer = asked.wait_with_output().expect("it ends");
    assert_eq!(answer.status.code(), Some(BESIDES[0]), "{}", stdout(&answer));
    assert!(stdout(&answer).contains("Cancelled; nothing was changed."), "{}", stdout(&answer));
    assert_eq!(fleet.json(&["machine", "list", "-a", "shop"]).as_array().map(Vec::len), Some(1));

    // A signal that comes before it listens ends it by itself: once it must have listened.
    fleet.until("it ends by Ctrl-C with its own code", |_| {
        let mut waiting = command(env!("CARGO_BIN_EXE_godwit"));
        waiting.args(["machine", "wait", "web", "-a", "shop", "--state", "stopped"]).stderr(Stdio::piped());
        let mut waiting = waiting.spawn().expect("godwit runs");
        let mut told = BufReader::new(waiting.stderr.take().expect("a pipe"));
        let mut first = String::new();
        told.read_line(&mut first).expect("it says what it waits for");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(waiting.id()).expect("a process id"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it runs");
        (waiting.wait().expect("a child").code() == Some(BESIDES[1])).then_some(())
    });
    assert_eq!(fleet.json(&["machine", "status", "web", "-a", "shop"])["state"], "started");
}
