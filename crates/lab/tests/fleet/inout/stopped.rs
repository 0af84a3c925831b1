//! `machine cp` with a Machine that is stopped: its volumes are reached, and nothing else; a start waits for the copy.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Output, Stdio};

use godwit_api::machine::MachineState;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::bed::{APP, Bed, ended, said, until};
use crate::support::{PATIENCE, run};

/// More than all buffers on the way together.
const LARGE_BYTES: usize = 48 << 20;

impl Bed {
    /// A Machine with a volume at /data, which sleeps.
    async fn with_volume(&self) -> String {
        let made = self.does(&["volumes", "create", "data", "--size", "1", "--json"]);
        let volume = serde_json::from_str::<Value>(&made).expect("JSON")["id"].clone();
        let config = json!({
            "image": "busybox",
            "init": { "cmd": ["sleep", "100000"] },
            "guest": { "cpu_kind": "shared", "cpus": 1, "memory_mb": 128 },
            "mounts": [{ "volume": volume, "path": "/data" }],
        });
        let machine = self.fleet.create_machine(APP, json!({ "config": config })).await.expect("the Machine");
        let id = machine.id.as_str().to_owned();
        self.fleet.wait_state(APP, &id, &[MachineState::Started], PATIENCE).await.expect("it starts");
        id
    }

    fn cp(&self, from: &str, to: &str) -> Output {
        self.godwit(&["machine", "cp", from, to]).output().expect("it runs")
    }

    fn does(&self, arguments: &[&str]) -> String {
        let output = self.godwit(arguments).output().expect("it runs");
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn inside(&self, machine: &str, line: &str) -> String {
        self.does(&["machine", "exec", machine, "--", "sh", "-c", line])
    }

    fn refused(&self, output: &Output, why: &str) {
        assert!(!output.status.success() && said(output).contains(why), "not {why:?}: {}", said(output));
    }

    /// Loop devices of this fleet's volumes.
    fn devices(&self) -> usize {
        let ours = fs::canonicalize(self.fleet.dir()).expect("the fleet's folder");
        let loops = fs::read_dir("/sys/block").expect("/sys/block").flatten();
        let files = loops.filter_map(|one| fs::read_to_string(one.path().join("loop/backing_file")).ok());
        files.filter(|file| Path::new(file.trim()).starts_with(&ours)).count()
    }
}

fn random(bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut content)).expect("random bytes");
    content
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn the_volumes_of_a_stopped_machine_are_copied_both_ways_and_nothing_else_is_in_reach() {
    run(async {
        let bed = Bed::new().await;
        let machine = bed.with_volume().await;
        let at = |path: &str| format!("{machine}:{path}");
        bed.inside(&machine, "mkdir /data/deep && printf 'x\\377' > /data/deep/f && chmod 640 /data/deep/f");
        // What its user may leave there to be led out by.
        bed.inside(&machine, "ln -s / /data/root; ln -s ../../../etc/hostname /data/name; ln -s /data/deep /data/own");
        bed.does(&["machine", "stop", &machine]);
        let folder = tempfile::tempdir().expect("a folder");
        let here = folder.path();

        // In, with hashes, modes and links.
        let large = random(LARGE_BYTES);
        let site = here.join("site");
        fs::create_dir(&site).expect("a folder");
        fs::write(site.join("large"), &large).expect("a file");
        fs::write(site.join("run"), "run\n").expect("a file");
        fs::set_permissions(site.join("run"), fs::Permissions::from_mode(0o751)).expect("its mode");
        symlink("run", site.join("link")).expect("a link");
        let output = bed.cp(text(&site), &at("/data/deep"));
        assert!(output.status.success(), "{}", said(&output));
        // Out again.
        let output = bed.cp(&at("/data/deep/."), text(&here.join("back")));
        assert!(output.status.success(), "{}", said(&output));
        assert!(fs::read(here.join("back/site/large")).expect("it is there") == large, "the bytes are the same");
        assert_eq!(fs::read(here.join("back/f")).expect("it is there"), b"x\xff");
        assert_eq!(fs::metadata(here.join("back/f")).expect("it is there").mode() & 0o7777, 0o640);
        // Links inside are followed inside, and lead nowhere else.
        let output = bed.cp(&at("/data/own/f"), text(&here.join("own")));
        assert!(output.status.success(), "{}", said(&output));
        for path in ["/data/name/.", "/data/root/etc/passwd", "/data/root/proc/self/environ"] {
            bed.refused(&bed.cp(&at(path), text(&here.join("out"))), "does not exist in the Machine");
        }
        fs::write(here.join("planted"), "x").expect("a file");
        bed.refused(&bed.cp(text(&here.join("planted")), &at("/data/root/planted")), "Read-only file system");
        for path in ["/etc/passwd", "/", "/data/../etc", "/database"] {
            bed.refused(
                &bed.cp(&at(path), text(&here.join("out"))),
                "only its volumes can be copied to and from (/data)",
            );
        }
        bed.refused(&bed.cp(&at("/data/none"), text(&here.join("out"))), "/data/none does not exist in the Machine");
        let output = bed.godwit(&["machine", "exec", &machine, "--", "true"]).output().expect("it runs");
        bed.refused(&output, "is not running; start it first");

        // Nothing of it stays on the host, and the Machine finds what came.
        until("nothing is attached any more", || bed.devices() == 0);
        bed.does(&["machine", "start", &machine]);
        let sum = hex::encode(Sha256::digest(&large));
        assert!(bed.inside(&machine, "sha256sum /data/deep/site/large").starts_with(&sum));
        assert_eq!(
            bed.inside(&machine, "stat -c '%a %u' /data/deep/site/run; cat /data/deep/site/link"),
            "751 0\nrun\n"
        );
        // One without volumes is out of reach, as before.
        bed.does(&["machine", "stop", &bed.machine]);
        let output = bed.cp(&format!("{}:/bin/sh", bed.machine), text(&here.join("out")));
        bed.refused(&output, "is not running; start it first");
    });
}

#[test]
fn a_start_waits_for_a_copy_and_a_copy_that_is_cut_keeps_nobody_waiting() {
    run(async {
        let bed = Bed::new().await;
        let machine = bed.with_volume().await;
        bed.does(&["machine", "stop", &machine]);
        let target = format!("{machine}:/data");
        let copying = |stdin: Stdio| {
            let mut command = bed.godwit(&["machine", "cp", "-", &target]);
            command.stdin(stdin).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it runs")
        };
        let archive = |name: &str, content: &[u8]| {
            let mut archive = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(1);
            archive.append_data(&mut header, name, content).expect("an entry");
            archive.into_inner().expect("an archive")
        };
        // A copy that has begun and whose client dawdles.
        let content = random(LARGE_BYTES);
        let bytes = archive("slow", &content);
        let mut copy = copying(Stdio::piped());
        let mut stdin = copy.stdin.take().expect("its input");
        let (first, rest) = bytes.split_at(LARGE_BYTES / 2);
        if let Err(error) = stdin.write_all(first) {
            panic!("{error}: {}", said(&copy.wait_with_output().expect("it ended")));
        }
        // More than fits on the way has been taken: it is under way.
        let mut start = bed.godwit(&["machine", "start", &machine]).stdout(Stdio::null()).spawn().expect("it runs");
        until("the start says what it waits for", || {
            bed.does(&["machine", "status", &machine]).contains("files are copied to or from volume")
        });
        assert!(start.try_wait().expect("it can be looked at").is_none(), "it waits");
        stdin.write_all(rest).expect("it reads");
        drop(stdin);
        assert!(ended(&mut copy, "the copy").success());
        assert!(ended(&mut start, "the start").success());
        let sum = hex::encode(Sha256::digest(&content));
        assert!(bed.inside(&machine, "sha256sum /data/slow").starts_with(&sum), "all of it was there at the start");

        // Its client is killed: the next start finds the volume free.
        bed.does(&["machine", "stop", &machine]);
        let mut copy = copying(Stdio::piped());
        let mut stdin = copy.stdin.take().expect("its input");
        if let Err(error) = stdin.write_all(&archive("cut", &content)[..LARGE_BYTES / 2]) {
            panic!("{error}: {}", said(&copy.wait_with_output().expect("it ended")));
        }
        copy.kill().expect("it is killed");
        copy.wait().expect("it ended");
        bed.does(&["machine", "start", &machine]);
        assert!(bed.inside(&machine, "ls /data").contains("slow"));
    });
}
