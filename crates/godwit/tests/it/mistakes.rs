//! Sixty slips of the pen before a real control: each ends with the code of docs/cli.md, says what is wrong and what to
//! do next, changes nothing, and says it as JSON where JSON was asked for.

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
    (&["machine", "run", "x-base", "-a", "shop", "--autostop"], 2, "serves no port", "--port"),
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
    (&["volumes", "show", "data"], 2, "no volume's id", "--app"),
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
    (&["machine", "status", "web"], 3, "no app has a Machine web", "--app"),
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
