//! The command line without a fleet: help, settings, mistakes, exit codes.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs `godwit` with a home of its own and nothing of ours in its environment.
pub fn godwit(home: &Path, arguments: &[&str]) -> Output {
    godwit_with(home, arguments, &[])
}

pub fn godwit_with(home: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_godwit"))
        .args(arguments)
        .env_clear()
        .env("HOME", home)
        .env("PATH", "/usr/bin:/bin")
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("godwit runs")
}

pub fn home() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// Nobody listens there: the port was free a moment ago and is above those that the kernel hands out by itself.
const NOWHERE: &str = "http://127.0.0.1:1";

#[test]
fn every_command_has_help_that_says_what_it_does() {
    let home = home();
    let mut pending: Vec<Vec<String>> = vec![Vec::new()];
    let mut seen = 0;
    while let Some(path) = pending.pop() {
        let mut arguments = vec!["help".to_owned()];
        arguments.extend(path.iter().cloned());
        let output = godwit(home.path(), &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let text = stdout(&output);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        assert!(text.contains("Usage: godwit"), "{arguments:?}: {text}");
        assert!(!text.starts_with("Usage"), "{arguments:?} begins with what it does: {text}");
        assert!(path.is_empty() || text.contains("--json"), "{arguments:?} takes the global options");
        seen += 1;
        let Some((_, commands)) = text.split_once("\nCommands:\n") else { continue };
        for line in commands.lines().take_while(|line| line.starts_with("  ")) {
            // A name stands two blanks in; what goes on from the line above stands further in.
            let Some(name) = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')) else { continue };
            let name = name.split_whitespace().next().expect("a name");
            if name != "help" {
                pending.push([path.clone(), vec![name.to_owned()]].concat());
            }
        }
    }
    assert!(seen > 35, "the walk finds the commands: {seen}");
    for group in ["apps", "machine", "volumes", "migration", "image", "host", "config", "run"] {
        assert_eq!(godwit(home.path(), &[group]).status.code(), Some(2), "{group} alone is not a command");
    }
}

#[test]
fn the_table_of_exit_codes_is_the_documented_one() {
    let output = godwit(home().path(), &["help", "exit-codes"]);
    let page = include_str!("../../../../docs/cli.md");
    let mut rows = 0;
    for line in stdout(&output).lines().skip(1) {
        let (code, rest) = line.split_once("  ").expect("two columns");
        let (name, meaning) = rest.trim_start().split_once("  ").expect("three columns");
        let row = format!("| {} | {} | {} |", code.trim(), name.trim(), meaning.trim());
        assert!(page.contains(&row), "docs/cli.md lacks: {row}");
        rows += 1;
    }
    assert_eq!(rows, 11);
}

/// What is typed, the exit code, and what the message must say.
#[test]
fn mistakes_are_told_plainly_and_by_their_exit_code() {
    let home = home();
    let cases: &[(&[&str], i32, &str)] = &[
        (&["nonsense"], 2, "unrecognized subcommand"),
        (&["help", "nonsense"], 2, "there is no command"),
        (&["apps", "create", "Not_A_Name"], 2, "is not an app name"),
        (&["apps", "list"], 7, "cannot reach"),
        (&["machine", "list"], 2, "no app was given"),
        (&["machine", "list", "-a", "x", "--metadata", "plain"], 2, "NAME=VALUE"),
        (&["machine", "destroy"], 2, "required"),
        (&["machine", "run", "-a", "x"], 2, "required"),
        (&["machine", "run", "img", "-a", "x", "--port", "99999"], 2, "is not a port"),
        (&["machine", "run", "img", "-a", "x", "--port", "80/udp"], 2, "only tcp"),
        (&["machine", "run", "img", "-a", "x", "--vm-memory", "much"], 2, "1gb"),
        (&["machine", "run", "img", "-a", "x", "--vm-size", "huge"], 2, "shared-cpu-1x"),
        (&["machine", "run", "img", "-a", "x", "--env", "plain"], 2, "NAME=VALUE"),
        (&["machine", "run", "img", "-a", "x", "--restart", "maybe"], 2, "on-failure"),
        (&["machine", "run", "img", "-a", "x", "--autostart=false"], 2, "publishes no port"),
        (&["machine", "run", "img", "-a", "x", "--machine-config", "{bad"], 2, "not a valid Machine configuration"),
        (&["machine", "run", "img", "-a", "x", "--file-local", "/f=/does/not/exist"], 2, "cannot read"),
        (&["machine", "run", "img", "-a", "x", "--machine-config", "/does/not/exist.toml"], 2, "cannot read"),
        (&["machine", "run", "img", "-a", "x", "--volume", "data"], 2, "VOLUME:/PATH"),
        (&["machine", "run", "img", "-a", "x", "-v", "a:/d", "-v", "b:/d"], 2, "two volumes"),
        (&["machine", "migrate"], 2, "required"),
        (&["machine", "migrate", "m", "--rate", "fast"], 2, "100MiB/s"),
        (&["machine", "migrate", "m", "--to", "w2", "--region", "fra"], 2, "cannot be used with"),
        (&["machine", "migrate", "m", "--wait", "--detach"], 2, "cannot be used with"),
        (&["machine", "migrate", "m", "--drain-timeout", "soon"], 2, "90s"),
        (&["volumes", "create", "data", "-a", "x", "--size", "0"], 2, "whole gigabytes"),
        (&["volumes", "create", "data", "-a", "x", "--fstype", "xfs"], 2, "ext4 or raw"),
        (&["volumes", "list"], 2, "no app was given"),
        (&["volumes", "show", "data"], 2, "only within --app"),
        (&["volume", "delete", "vol_00000000000001", "-a", "x"], 7, "cannot reach"),
        (&["migration", "show", "mig_1"], 2, "14 digits"),
        (&["migrations", "watch", "mig_00000000000001"], 7, "cannot reach"),
        (&["machine", "wait", "m", "--wait-timeout", "soon"], 2, "90s"),
        (&["machine", "exec", "00000000000000"], 2, "required"),
        (&["machine", "exec", "00000000000000", "true"], 125, "cannot reach"),
        (&["host", "show", "Not_A_Host"], 2, "is not a host id"),
        (&["image", "load", "/does/not/exist"], 3, "cannot read"),
        (&["image", "load", "/"], 1, "not an OCI layout"),
        (&["config", "use-dev", "/does/not/exist"], 3, "does not exist"),
        (&["config", "set", "api-url", "ftp://x"], 2, "http://HOST:PORT"),
        (&["--api-url", "https://127.0.0.1:1", "apps", "list"], 7, "cannot reach"),
        (&["run", "control", "--config", "/does/not/exist"], 1, "cannot read"),
        (&["dev"], 2, "--data"),
        (&["dev", "--data", "/tmp/x", "--clean", "/tmp/x"], 2, "cannot be used with"),
        (&["dev", "--data", "/tmp/x", "--hosts", "0"], 2, "--hosts"),
        (&["dev", "--data", "/tmp/x", "--capacity", "ram=1"], 2, "memory_mb"),
    ];
    for (arguments, code, words) in cases {
        let output = godwit_with(home.path(), arguments, &[("GODWIT_API_URL", NOWHERE)]);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(*code), "{arguments:?}: {text}");
        assert!(text.contains(words), "{arguments:?} should say {words:?}: {text}");
        assert!(output.stdout.is_empty(), "{arguments:?}: errors go to standard error");
        assert!(!text.contains('\u{1b}'), "{arguments:?}: no colour where no terminal is");
    }
}

#[test]
fn settings_come_from_flag_then_environment_then_file_then_default() {
    let home = home();
    let shown = |arguments: &[&str], environment: &[(&str, &str)]| -> serde_json::Value {
        let output = godwit_with(home.path(), &[&["config", "show", "--json"], arguments].concat(), environment);
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_str(&stdout(&output)).expect("JSON")
    };
    let start = shown(&[], &[]);
    assert_eq!(
        (&start["api_url"]["value"], &start["api_url"]["origin"]),
        (&"http://127.0.0.1:4280".into(), &"default".into())
    );
    assert!(start["token"].is_null());

    for (name, value) in [("api-url", "http://127.0.0.1:1111"), ("token", "gwo_secretsecret"), ("app", "mine")] {
        assert!(godwit(home.path(), &["config", "set", name, value]).status.success());
    }
    let file = home.path().join(".config/godwit/config.toml");
    let mode = std::fs::metadata(&file).expect("written").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it holds a token");
    let from_file = shown(&[], &[]);
    assert_eq!(from_file["api_url"]["value"], "http://127.0.0.1:1111");
    assert_eq!(from_file["app"]["value"], "mine");
    let token = from_file["token"]["value"].as_str().expect("a token");
    assert!(!token.contains("secretsecret"), "a token is not shown by chance: {token}");
    assert_eq!(shown(&["--reveal"], &[])["token"]["value"], "gwo_secretsecret");

    let environment = [("GODWIT_API_URL", "http://127.0.0.1:2222"), ("GODWIT_APP", "other")];
    let from_environment = shown(&[], &environment);
    assert_eq!(from_environment["api_url"]["value"], "http://127.0.0.1:2222");
    assert_eq!(from_environment["app"]["value"], "other");
    let from_flag = shown(&["--api-url", "http://127.0.0.1:3333"], &environment);
    assert_eq!(from_flag["api_url"]["value"], "http://127.0.0.1:3333");

    assert!(godwit(home.path(), &["config", "unset", "token"]).status.success());
    assert!(shown(&[], &[])["token"].is_null());
    std::fs::write(&file, "colour = 'red'\n").expect("writable");
    let damaged = godwit(home.path(), &["config", "show"]);
    assert_eq!(damaged.status.code(), Some(2));
    assert!(stderr(&damaged).contains("colour"), "{}", stderr(&damaged));
}

#[test]
fn colour_is_used_when_asked_for() {
    let home = home();
    let colored = godwit(home.path(), &["--color", "always", "apps", "create", "Not_A_Name"]);
    assert!(stderr(&colored).contains("\u{1b}[1;31mError:"), "{}", stderr(&colored));
    let plain =
        godwit_with(home.path(), &["apps", "create", "Not_A_Name"], &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]);
    assert!(!stderr(&plain).contains('\u{1b}'));
}
