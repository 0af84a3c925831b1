//! Machines as the command line asks for them, before a control that judges: what a flag means, what a document holds,
//! and that neither is changed or lost on the way.

use serde_json::{Value, json};

use crate::cli::{stderr, stdout};
use crate::control::Fleet;

/// Makes a Machine and answers its configuration.
fn made(fleet: &Fleet, arguments: &[&str]) -> Value {
    fleet.json(&[&["machine", "run", "-a", "shop", "--smoke-time", "0s"], arguments].concat())["config"].take()
}

#[test]
fn a_flag_with_an_optional_value_means_what_is_written_and_never_the_command() {
    let fleet = Fleet::start(1);
    fleet.ok(&["apps", "create", "shop"]);
    let port = ["x-srv", "--port", "80:8080/tcp:http"];
    for (flags, autostart, autostop) in [
        (&["--autostop", "stop", "--vm-memory", "512"][..], Value::Null, json!(true)),
        (&["--autostop=stop", "--vm-memory", "512"], Value::Null, json!(true)),
        (&["--autostop", "--vm-memory", "512"], Value::Null, json!(true)),
        (&["--autostop", "off", "--vm-memory", "512"], Value::Null, json!(false)),
        (&["--autostart", "false", "--vm-memory", "512"], json!(false), Value::Null),
        (&["--autostart", "--autostop", "--vm-memory", "512"], json!(true), json!(true)),
        (&["--vm-memory", "512", "--autostop"], Value::Null, json!(true)),
    ] {
        let config = made(&fleet, &[&port[..], flags].concat());
        let service = &config["services"][0];
        assert_eq!((&service["autostart"], &service["autostop"]), (&autostart, &autostop), "{flags:?}");
        assert_eq!(config["guest"]["memory_mb"], 512, "{flags:?}: the flags behind it count");
        assert!(config["init"]["cmd"].is_null(), "{flags:?}: it is not a command: {config}");
    }
    let with_command = made(&fleet, &["x-srv", "--port", "5432", "--autostop", "--", "sleep", "-v", "--port", "1"]);
    assert_eq!(with_command["init"]["cmd"], json!(["sleep", "-v", "--port", "1"]));
    for (arguments, words) in [
        (&["x-srv", "--port", "80", "--autostop", "maybe"][..], "use off or stop"),
        (&["--port", "80", "--autostop", "x-srv"], "write it before the flags"),
        (&["--port", "80", "--autostart", "x-srv"], "write it before the flags"),
        (&["x-srv", "sleep", "1000"], "godwit machine run x-srv [flags] -- sleep 1000"),
        (&["x-srv", "--rm", "true"], "unexpected `true` after the image x-srv"),
        (&["x-srv", "redis-server", "--appendonly", "yes"], "put the command after `--`"),
        (&["x-srv", "sh", "-c", "echo a"], "put the command after `--`"),
    ] {
        let refused = fleet.run(&[&["machine", "run", "-a", "shop"], arguments].concat());
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {}", stderr(&refused));
        assert!(stderr(&refused).contains(words), "{arguments:?} should say {words:?}: {}", stderr(&refused));
    }
    assert_eq!(
        fleet.json(&["machine", "list", "-a", "shop"]).as_array().map(Vec::len),
        Some(8),
        "nothing else was made"
    );
}

/// Real configurations that were dropped without a word once: the file, the code, and what must be said or made.
#[test]
fn a_document_is_sent_as_written_and_judged_by_the_api() {
    let fleet = Fleet::start(1);
    fleet.ok(&["apps", "create", "shop"]);
    let folder = tempfile::tempdir().expect("a folder");
    let base = r#""image":"x-base","init":{"cmd":["/bin/sleep","1000"]}"#;
    let rows: [(&str, String, i32, &str); 12] = [
        ("containers.json", r#"{"containers":[{"name":"a","image":"x-base"},{"name":"b","image":"x-srv","depends_on":[{"name":"a","condition":"healthy"}]}]}"#.into(), 1, "config.containers"),
        ("nulls.json", format!(r#"{{{base},"env":null,"metadata":null,"services":null,"checks":null,"mounts":null,"guest":{{"cpu_kind":"shared","cpus":1,"memory_mb":256}}}}"#), 0, ""),
        ("nulls2.json", format!(r#"{{{base},"env":null}}"#), 0, ""),
        ("sched.json", format!(r#"{{{base},"schedule":"hourly","restart":{{"policy":"always","max_retries":3}}}}"#), 1, "config.schedule"),
        ("statics.json", format!(r#"{{{base},"statics":[{{"guest_path":"/p","url_prefix":"/s"}}]}}"#), 1, "config.statics"),
        ("rootfs.json", format!(r#"{{{base},"rootfs":{{"persist":"always"}}}}"#), 1, "config.rootfs.persist"),
        ("size.json", format!(r#"{{{base},"size":"shared-cpu-2x"}}"#), 0, ""),
        ("suspend.json", r#"{"image":"x-srv","services":[{"protocol":"tcp","internal_port":8080,"autostop":"suspend","ports":[{"port":80,"handlers":["http"],"force_https":true},{"port":443,"handlers":["http","tls"]}]}]}"#.into(), 1, "config.services[0].autostop"),
        ("typo.json", format!(r#"{{{base},"enviroment":{{"A":"1"}},"service":[{{"internal_port":8080}}]}}"#), 0, "config.enviroment, config.service"),
        ("wrapped.json", r#"{"config":{"image":"x-srv","guest":{"cpu_kind":"shared","cpus":1,"memory_mb":1024}}}"#.into(), 0, ""),
        ("fly.toml", "app = 'old'\n[build]\nimage = 'x-srv'\n[http_service]\ninternal_port = 8080\n[[vm]]\nsize = 'shared-cpu-2x'\n".into(), 0, "`app = \"old\"` is ignored"),
        ("release.toml", "app = 'old'\n[deploy]\nrelease_command = 'x'\n[http_service]\ninternal_port = 8080\n".into(), 2, "not understood: deploy"),
    ];
    for (name, text, code, words) in &rows {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("writable");
        let machine = name.split('.').next().expect("a name");
        let arguments =
            ["machine", "run", "-a", "shop", "-n", machine, "--machine-config", path.to_str().expect("UTF-8")];
        let output = fleet.run(&arguments);
        assert_eq!(output.status.code(), Some(*code), "{name}: {}", stderr(&output));
        assert!(stderr(&output).contains(words), "{name} should say {words:?}: {}", stderr(&output));
    }
    let config = |name: &str| fleet.json(&["machine", "status", "-a", "shop", name])["config"].take();
    assert_eq!(config("nulls")["init"]["cmd"], json!(["/bin/sleep", "1000"]));
    assert_eq!(config("size")["guest"], json!({ "cpu_kind": "shared", "cpus": 2, "memory_mb": 512 }));
    assert_eq!(config("wrapped")["guest"]["memory_mb"], 1024);
    let from_fly = config("fly");
    assert_eq!((&from_fly["image"], &from_fly["guest"]["cpus"]), (&json!("x-srv"), &json!(2)));
    assert_eq!(from_fly["services"][0]["ports"][1]["handlers"], json!(["http", "tls"]));
    let machines = fleet.json(&["machine", "list", "-a", "shop"]);
    let made = rows.iter().filter(|(_, _, code, _)| *code == 0).count();
    assert_eq!(machines.as_array().map(Vec::len), Some(made), "what was refused made nothing");
}

#[test]
fn commands_and_entrypoints_are_split_as_a_shell_does() {
    let fleet = Fleet::start(1);
    fleet.ok(&["apps", "create", "shop"]);
    let config = made(&fleet, &["x-base", "-n", "one", "--entrypoint", "/bin/sh -c 'echo a  b'"]);
    assert_eq!(config["init"]["entrypoint"], json!(["/bin/sh", "-c", "echo a  b"]));
    fleet.ok(&["machine", "update", "one", "-a", "shop", "-C", "serve \"a b\" c\\ d", "--yes"]);
    let config = fleet.json(&["machine", "status", "one", "-a", "shop"])["config"].take();
    assert_eq!(config["init"]["cmd"], json!(["serve", "a b", "c d"]));
    let open = fleet.run(&["machine", "run", "x-base", "-a", "shop", "--entrypoint", "echo 'open"]);
    assert_eq!(open.status.code(), Some(2));
    assert!(stderr(&open).contains("a quote is not closed"), "{}", stderr(&open));
}

#[test]
fn an_update_takes_away_what_is_named_and_shows_before_and_after() {
    let fleet = Fleet::start(1);
    fleet.ok(&["apps", "create", "shop"]);
    let flags = [
        "x-base",
        "-n",
        "one",
        "-e",
        "A=1",
        "-e",
        "B=2",
        "--port",
        "80:8080/tcp:http",
        "--port",
        "5432",
        "--file-literal",
        "/etc/a=x",
        "--metadata",
        "m=1",
        "--check",
        "up=http:8080:/healthz,interval=15s",
    ];
    let config = made(&fleet, &flags);
    assert_eq!(config["checks"]["up"]["interval"], "15s", "{config}");
    let update = |flags: &[&str]| {
        let output = fleet.ok(&[&["machine", "update", "one", "-a", "shop", "--yes"], flags].concat());
        (fleet.json(&["machine", "status", "one", "-a", "shop"])["config"].take(), stderr(&output))
    };
    let (config, told) = update(&[
        "--unset-env",
        "A",
        "--rm-port",
        "5432",
        "--rm-file",
        "/etc/a",
        "--rm-metadata",
        "m",
        "--rm-check",
        "up",
        "--vm-memory",
        "512",
    ]);
    assert_eq!(config["env"], json!({ "B": "2" }));
    assert_eq!(config["services"].as_array().map(Vec::len), Some(1));
    assert!(config["files"].is_null() && config["metadata"].is_null() && config["checks"].is_null(), "{config}");
    for line in ["- env.A: \"1\"", "guest.memory_mb: 256 → 512", "- metadata.m: \"1\""] {
        assert!(told.contains(line), "{line}: {told}");
    }
    let (config, _) = update(&["--port", "443:8080/tcp:tls:http", "--port", "80:9090/tcp:http"]);
    assert_eq!(config["services"][0]["ports"][0]["port"], 443, "a port is added to its service: {config}");
    assert_eq!(config["services"][1]["internal_port"], 9090, "one that leads elsewhere leaves it: {config}");
    let nothing = fleet.run(&["machine", "update", "one", "-a", "shop", "--yes", "--unset-env", "BB"]);
    assert_eq!(nothing.status.code(), Some(3));
    assert!(stderr(&nothing).contains("did you mean B?"), "{}", stderr(&nothing));
}

#[test]
fn an_update_takes_the_image_that_its_tag_means_now_and_a_restart_says_that_there_is_one() {
    let fleet = Fleet::start(1);
    fleet.ok(&["apps", "create", "shop"]);
    made(&fleet, &["x-base", "-n", "one"]);
    let digest = || fleet.json(&["machine", "status", "one", "-a", "shop"])["image_ref"]["digest"].take();
    let before = digest();
    let same = fleet.ok(&["machine", "update", "one", "-a", "shop", "--yes"]);
    assert!(stderr(&same).contains("Nothing to change"), "{}", stderr(&same));
    fleet.load("x-base", "another");
    let restarted = fleet.ok(&["machine", "restart", "one", "-a", "shop"]);
    assert!(stderr(&restarted).contains("switches to the newer image"), "{}", stderr(&restarted));
    assert_eq!(digest(), before, "a restart runs what ran");
    let updated = fleet.ok(&["machine", "update", "one", "-a", "shop", "--yes"]);
    let short = |digest: &Value| digest.as_str().map(|text| text[7..19].to_owned()).expect("a digest");
    let after = digest();
    assert_ne!(after, before);
    let line = format!("image: sha256:{}… → {}…", short(&before), short(&after));
    assert!(stderr(&updated).contains(&line), "{line}: {}", stderr(&updated));
    let quiet = fleet.ok(&["machine", "restart", "one", "-a", "shop"]);
    assert!(!stderr(&quiet).contains("newer"), "{}", stderr(&quiet));
    assert_eq!(stdout(&quiet), "");
}
