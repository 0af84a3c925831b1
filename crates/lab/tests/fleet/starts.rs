//! Starts that cannot succeed, on a fleet: told at the first failure, in seconds, by the command that waits; tried no
//! more often than helps; and remembered when the Machine is gone.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use godwit_api::machine::MachineState;
use godwit_lab::fleet::{Fleet, eventually};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use crate::support::{PATIENCE, run};

const BUSYBOX: &str = "/bin/busybox";
/// The commands' own bound is five minutes: what ends within this has not waited for it.
const SOON: Duration = Duration::from_secs(90);

fn append(tar: &mut tar::Builder<Vec<u8>>, name: &str, kind: EntryType, link: &str, bytes: &[u8]) {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(bytes.len() as u64);
    if link.is_empty() {
        tar.append_data(&mut header, name, bytes).unwrap();
    } else {
        tar.append_link(&mut header, name, link).unwrap();
    }
}

/// As `docker save` writes it: busybox, and whatever `more` adds to its layer.
fn image(folder: &Path, name: &str, user: &str, more: impl Fn(&mut tar::Builder<Vec<u8>>)) -> PathBuf {
    let mut layer = tar::Builder::new(Vec::new());
    for folder in ["bin/", "etc/", "tmp/"] {
        append(&mut layer, folder, EntryType::Directory, "", b"");
    }
    append(&mut layer, "bin/busybox", EntryType::Regular, "", &std::fs::read(BUSYBOX).expect("busybox-static"));
    for applet in ["sh", "sleep", "echo"] {
        append(&mut layer, &format!("bin/{applet}"), EntryType::Symlink, "busybox", b"");
    }
    more(&mut layer);
    let layer = layer.into_inner().unwrap();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "User": user, "Env": ["PATH=/bin"], "Cmd": ["sleep", "1000000"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", hex::encode(Sha256::digest(&layer)))] },
    });
    let manifest =
        json!([{ "Config": "config.json", "RepoTags": [format!("{name}:latest")], "Layers": ["layer.tar"] }]);
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in [
        ("manifest.json", manifest.to_string().into_bytes()),
        ("config.json", config.to_string().into_bytes()),
        ("layer.tar", layer),
    ] {
        append(&mut archive, name, EntryType::Regular, "", &bytes);
    }
    let path = folder.join(format!("{name}.tar"));
    std::fs::write(&path, archive.into_inner().unwrap()).unwrap();
    path
}

fn fleet() -> (Fleet, tempfile::TempDir) {
    let fleet = Fleet::start(3, &[]).expect("the dev fleet starts");
    let folder = tempfile::tempdir().unwrap();
    let good = image(folder.path(), "box", "", |_| {});
    // It loads, since nothing in its layers is wrong; no host can prepare it.
    let bad = image(folder.path(), "bad", "nobody-here", |_| {});
    for path in [good, bad] {
        fleet.cli_ok(&["image", "load", path.to_str().unwrap()]).expect("the image loads");
    }
    fleet.cli_ok(&["apps", "create", "web"]).expect("the app is made");
    (fleet, folder)
}

/// Fails with code 1, soon; what it said.
#[track_caller]
fn fails(fleet: &Fleet, arguments: &[&str], words: &[&str]) -> String {
    let began = Instant::now();
    let output = fleet.cli(arguments).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    assert!(began.elapsed() < SOON, "{arguments:?} took {:?}: {said}", began.elapsed());
    for word in words {
        assert!(said.contains(word), "{arguments:?} does not say {word:?}: {said}");
    }
    assert!(!said.contains("signal 0"), "{said}");
    said
}

fn json_of(fleet: &Fleet, arguments: &[&str]) -> Value {
    serde_json::from_str(&fleet.cli_ok(arguments).expect("it is answered")).expect("JSON")
}

#[test]
fn a_start_that_cannot_succeed_says_why_in_seconds() {
    let (fleet, _folder) = fleet();
    let run = |name: &str, image: &str, more: &[&str]| {
        let mut arguments = vec!["machine", "run", image, "-a", "web", "--name", name];
        arguments.extend(more);
        arguments.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let fails = |name: &str, image: &str, more: &[&str], words: &[&str]| {
        let arguments = run(name, image, more);
        fails(&fleet, &arguments.iter().map(String::as_str).collect::<Vec<_>>(), words)
    };
    fails("image", "bad", &[], &["nobody-here"]);
    fails("path", "box", &["--", "/no/such"], &["program \"/no/such\" does not exist"]);
    fails("name", "box", &["--", "nosuch"], &["program \"nosuch\" was not found in PATH"]);
    let crash = fails(
        "crash",
        "box",
        &["--", "sh", "-c", "echo the port is taken; exit 3"],
        &["the port is taken", "exited with code 3", "restart 1 of 10", "restart 2 of 10", "ended alike"],
    );
    assert!(!crash.contains("restart 5 of 10"), "it ended early: {crash}");
    fails(
        "second",
        "box",
        &["--smoke-time", "30s", "--", "sh", "-c", "echo up; sleep 1; exit 4"],
        &["up", "exited with code 4"],
    );
    // What does its work and ends has not failed.
    let done = run("job", "box", &["--", "sh", "-c", "echo done"]);
    fleet.cli_ok(&done.iter().map(String::as_str).collect::<Vec<_>>()).expect("a job that ends well");
    // One rule for host names: what control takes, a host can start.
    let config = json!({ "image": "box", "dns": { "hostname": "my_host" } }).to_string();
    fleet
        .cli_ok(&["machine", "run", "-a", "web", "--machine-config", &config])
        .expect("a host name with an underscore");
}

#[test]
fn an_image_that_no_host_can_run_is_placed_once() {
    let (fleet, _folder) = fleet();
    run(async {
        let bad = fleet.create_machine("web", json!({ "config": { "image": "bad" } })).await.unwrap();
        let failed = fleet.wait_state("web", bad.id.as_str(), &[MachineState::Failed], PATIENCE).await.unwrap();
        assert_eq!(failed.host_id, bad.host_id, "no other host was asked");
        // Others come and go meanwhile, and what control looks at with each change begins nothing anew.
        let good = fleet.create_machine("web", json!({ "config": { "image": "box" } })).await.unwrap();
        fleet.wait_state("web", good.id.as_str(), &[MachineState::Started], PATIENCE).await.unwrap();
        let still = fleet.machine("web", bad.id.as_str()).await.unwrap();
        assert_eq!((still.state, still.host_id, still.events), (failed.state, failed.host_id, failed.events));
    });
}

/// W4: what cannot be started at all is refused, and the version before it runs again.
#[test]
fn an_update_that_can_never_start_goes_back_to_the_version_before() {
    let (fleet, _folder) = fleet();
    run(async {
        let config = json!({ "image": "box", "env": { "WHICH": "first" } });
        let first = fleet.create_machine("web", json!({ "config": config })).await.unwrap();
        let id = first.id.as_str();
        fleet.wait_state("web", id, &[MachineState::Started], PATIENCE).await.unwrap();
        let updates: [(&[&str], &str); 3] = [
            (&["--image", "bad"], "nobody-here"),
            (&["--", "/no/such"], "program \"/no/such\" does not exist"),
            (&["--entrypoint", "nosuch"], "program \"nosuch\" was not found in PATH"),
        ];
        for (change, why) in updates {
            let mut arguments = vec!["--yes", "machine", "update", id, "-a", "web"];
            arguments.extend(change);
            fails(&fleet, &arguments, &[why, "version before it stands"]);
            let back = eventually("the version before it stands, and runs", PATIENCE, async || {
                let shown = fleet.machine("web", id).await?;
                let is_back = shown.instance_id == first.instance_id && shown.state == MachineState::Started;
                Ok(is_back.then_some(shown))
            });
            let back = back.await.unwrap();
            assert_eq!((back.config, &back.image_ref.digest), (first.config.clone(), &first.image_ref.digest));
            let reasons = back.events.iter().filter(|event| event.kind == "update");
            let reasons: Vec<_> = reasons.filter_map(|event| event.request.as_ref()?.reason.as_deref()).collect();
            assert!(reasons.first().is_some_and(|reason| reason.contains(why)), "{reasons:?}");
            let env = fleet.cli_ok(&["machine", "exec", id, "-a", "web", "--", "sh", "-c", "echo $WHICH"]).unwrap();
            assert_eq!(env.trim(), "first");
        }
        // What ends by itself has been started: it is its restart policy's matter, and no version comes back.
        let crash: [&str; 10] =
            ["--yes", "machine", "update", id, "-a", "web", "--", "sh", "-c", "echo the port is taken; exit 3"];
        fails(&fleet, &crash, &["the port is taken", "exited with code 3"]);
        assert_ne!(fleet.machine("web", id).await.unwrap().instance_id, first.instance_id);
        // And one that can be started takes the place.
        fleet.cli_ok(&["--yes", "machine", "update", id, "-a", "web", "--", "sleep", "1000000"]).unwrap();
    });
}

#[test]
fn the_exit_code_and_the_remarks_of_a_job_outlive_it() {
    let (fleet, _folder) = fleet();
    run(async {
        let config = json!({ "image": "box", "auto_destroy": true, "restart": { "policy": "no" },
                             "init": { "exec": ["sh", "-c", "echo working; exit 7"] } });
        let job = fleet.create_machine("web", json!({ "config": config })).await.unwrap();
        let id = job.id.as_str();
        fleet.wait_state("web", id, &[MachineState::Destroyed], PATIENCE).await.unwrap();
        let shown = fleet.machine("web", id).await.unwrap();
        let exits = shown.events.iter().filter_map(|event| event.request.as_ref()?.exit_event.as_ref());
        assert_eq!(exits.map(|exit| exit.exit_code).collect::<Vec<_>>(), [7]);
        let logs = fleet.cli_ok(&["logs", "-a", "web", "--machine", id]).unwrap();
        assert!(logs.contains("started") && logs.contains("exited with code 7"), "{logs}");

        let crashing = json!({ "image": "box", "restart": { "policy": "on-failure", "max_retries": 1 },
                               "init": { "exec": ["sh", "-c", "echo one; echo two; exit 3"] } });
        let crashing = fleet.create_machine("web", json!({ "config": crashing })).await.unwrap();
        let id = crashing.id.as_str();
        fleet.wait_state("web", id, &[MachineState::Stopped], PATIENCE).await.unwrap();
        let lines = json_of(&fleet, &["machine", "status", id, "-a", "web", "--json"]);
        let reasons: Vec<&str> = lines["events"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|event| event["request"]["reason"].as_str())
            .collect();
        assert_eq!(
            reasons,
            ["gave up after 1 restart: exited with code 3", "restart 1 of 1 in 500ms: exited with code 3"]
        );
        let logs = fleet.cli_ok(&["logs", "-a", "web", "--machine", id]).unwrap();
        let at = |words: &str| logs.find(words).unwrap_or_else(|| panic!("no {words:?} in {logs}"));
        assert!(at("one") < at("two") && at("two") < at("restart 1 of 1"), "{logs}");
        assert!(at("restart 1 of 1") < at("gave up after 1 restart"), "{logs}");
    });
}

#[test]
fn a_volume_can_be_used_when_it_is_told_and_deleted_when_its_machine_is_gone() {
    let (fleet, _folder) = fleet();
    run(async {
        let api = fleet.api().unwrap();
        for round in 0..30 {
            use godwit_api::endpoint::Empty;
            use godwit_api::endpoints::{VolumesCreate, VolumesDelete};
            use godwit_api::volume::CreateVolume;
            let wish = CreateVolume { name: "data".into(), ..CreateVolume::default() };
            let volume = api.call::<VolumesCreate>(&["web"], &Empty {}, &wish).await.expect("a volume");
            let config = json!({ "image": "box", "mounts": [{ "volume": volume.id, "path": "/data" }] });
            let machine = fleet.create_machine("web", json!({ "config": config })).await;
            let machine = machine.unwrap_or_else(|error| panic!("round {round}: {error}"));
            fleet.destroy_machine("web", machine.id.as_str()).await.expect("it is destroyed");
            let deleted = api.call::<VolumesDelete>(&["web", volume.id.as_str()], &Empty {}, &Empty {}).await;
            deleted.unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
    });
}
