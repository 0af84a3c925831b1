//! One host, one Machine of busybox, and the command line as a child of the test.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use godwit_api::machine::MachineState;
use godwit_lab::fleet::{Fleet, binary};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::support::PATIENCE;

pub const APP: &str = "box";
/// What the tests call in the Machine.
const PROGRAMS: [&str; 22] = [
    "sh",
    "cat",
    "sleep",
    "seq",
    "stty",
    "tty",
    "true",
    "kill",
    "echo",
    "ls",
    "mkdir",
    "ln",
    "printf",
    "wc",
    "sha256sum",
    "head",
    "nc",
    "id",
    "stat",
    "rm",
    "chmod",
    "top",
];

pub struct Bed {
    pub fleet: Fleet,
    pub machine: String,
    /// The pid namespace of its host.
    host: PathBuf,
}

impl Bed {
    /// A Machine that sleeps.
    pub async fn new() -> Self {
        let fleet = Fleet::start(1, &[]).expect("the dev fleet starts");
        let image = fleet.dir().join("busybox.tar");
        write_image(&image);
        fleet.cli_ok(&["image", "load", image.to_str().expect("UTF-8"), "--name", "busybox"]).expect("it loads");
        fleet.create_app(APP).await.expect("the app");
        let machine = Self::start(&fleet, &["sleep", "100000"]).await;
        let agent = fleet.dev().expect("dev.json").hosts[0].agent_pid;
        let host = std::fs::read_link(format!("/proc/{agent}/ns/pid")).expect("its namespace");
        Self { fleet, machine, host }
    }

    pub async fn start(fleet: &Fleet, command: &[&str]) -> String {
        let config = json!({
            "image": "busybox",
            "init": { "cmd": command },
            "guest": { "cpu_kind": "shared", "cpus": 1, "memory_mb": 128 },
            "restart": { "policy": "no" },
        });
        let machine = fleet.create_machine(APP, json!({ "config": config })).await.expect("the Machine is created");
        let id = machine.id.as_str().to_owned();
        fleet.wait_state(APP, &id, &[MachineState::Started], PATIENCE).await.expect("it starts");
        id
    }

    /// The command line against this fleet, not started yet.
    pub fn godwit(&self, arguments: &[&str]) -> Command {
        let dev = self.fleet.dev().expect("dev.json");
        let mut command = Command::new(binary("godwit").expect("it is built"));
        command.args(arguments).env("GODWIT_API_URL", dev.api_url).env("GODWIT_TOKEN", dev.token);
        command.env("GODWIT_APP", APP).env("NO_COLOR", "1").stdin(Stdio::null());
        command
    }

    /// `machine exec` of a command.
    pub fn exec(&self, options: &[&str], words: &[&str]) -> Command {
        let arguments = [&["machine", "exec"][..], options, &[&self.machine, "--"], words].concat();
        self.godwit(&arguments)
    }

    /// A shell line inside that must succeed; its output.
    pub fn sh(&self, line: &str) -> String {
        let output = self.exec(&[], &["sh", "-c", line]).output().expect("the command line runs");
        assert!(output.status.success(), "{line}: {}", said(&output));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Host pids of processes in the Machine whose command line holds `words`.
    pub fn pids_of(&self, words: &str) -> Vec<i32> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let inside = std::fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|ns| ns != self.host);
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            // Not the command line of the test's own children, which name the same words behind `--`.
            if inside && command.contains(words) && !command.contains("machine exec") {
                found.push(pid);
            }
        }
        found
    }
}

pub fn said(output: &Output) -> String {
    format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr))
}

/// Waits for a child with a deadline.
pub fn ended(child: &mut Child, what: &str) -> std::process::ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("it can be waited for") {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("{what} did not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Looks until it holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come to hold");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Busybox and a link a program, in the form of `docker save`.
fn write_image(path: &Path) {
    let layer = layer();
    let digest = hex::encode(Sha256::digest(&layer));
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": ["sh"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": ["busybox:latest"], "Layers": ["layer.tar"] }]);
    let mut tar = tar::Builder::new(std::fs::File::create(path).expect("the image's file"));
    for (name, bytes) in [
        ("config.json", config.to_string().into_bytes()),
        ("layer.tar", layer),
        ("manifest.json", manifest.to_string().into_bytes()),
    ] {
        append(&mut tar, name, 0o644, &bytes);
    }
    tar.finish().expect("the image is written");
}

fn layer() -> Vec<u8> {
    let busybox = std::env::var_os("PATH")
        .and_then(|path| std::env::split_paths(&path).map(|folder| folder.join("busybox")).find(|file| file.exists()))
        .unwrap_or_else(|| PathBuf::from("/bin/busybox"));
    let busybox = std::fs::read(busybox).expect("busybox: scripts/setup test installs it");
    let mut tar = tar::Builder::new(Vec::new());
    for folder in ["bin/", "etc/", "tmp/", "data/"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(if folder == "tmp/" { 0o1777 } else { 0o755 });
        header.set_size(0);
        tar.append_data(&mut header, folder, std::io::empty()).expect("a folder");
    }
    append(&mut tar, "bin/busybox", 0o755, &busybox);
    append(&mut tar, "etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\napp:x:100:101::/tmp:/bin/sh\n");
    append(&mut tar, "etc/group", 0o644, b"root:x:0:\napp:x:101:\n");
    for program in PROGRAMS {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, format!("bin/{program}"), "busybox").expect("a link");
    }
    tar.into_inner().expect("the layer")
}

fn append<W: Write>(tar: &mut tar::Builder<W>, name: &str, mode: u32, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, name, bytes).expect("a file");
}
