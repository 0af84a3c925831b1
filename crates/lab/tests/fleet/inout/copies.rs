//! `machine cp` and `godwit proxy`: files and connections.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;

use super::bed::{Bed, said};
use crate::support::run;

impl Bed {
    fn copies(&self, from: &str, to: &str) {
        let output = self.godwit(&["machine", "cp", from, to]).output().expect("it runs");
        assert!(output.status.success(), "cp {from} {to}: {}", said(&output));
    }

    fn refuses(&self, from: &str, to: &str, why: &str) {
        let output = self.godwit(&["machine", "cp", from, to]).output().expect("it runs");
        assert!(!output.status.success() && said(&output).contains(why), "cp {from} {to}: {}", said(&output));
    }

    fn at(&self, path: &str) -> String {
        format!("{}:{path}", self.machine)
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn files_and_folders_are_copied_both_ways_by_the_rules_of_docker_cp() {
    run(async {
        let bed = Bed::new().await;
        let folder = tempfile::tempdir().expect("a folder");
        let here = folder.path();
        let site = here.join("site");
        fs::create_dir_all(site.join("deep/er")).expect("folders");
        fs::write(site.join("index"), b"\0\xff\n").expect("a file");
        fs::write(site.join("deep/er/run"), "run\n").expect("a file");
        fs::set_permissions(site.join("deep/er/run"), fs::Permissions::from_mode(0o751)).expect("its mode");
        symlink("../index", site.join("deep/link")).expect("a link");

        // Into a folder that exists: under its own name; a name that is free: under that.
        bed.copies(text(&site), &bed.at("/data"));
        assert_eq!(bed.sh("stat -c '%a %u' /data/site/deep/er/run; cat /data/site/deep/link | wc -c"), "751 0\n3\n");
        bed.copies(text(&site), &bed.at("/data/other"));
        assert_eq!(bed.sh("cat /data/other/deep/er/run"), "run\n");
        // What is in it, into a folder that exists and into one that does not.
        let content = format!("{}/.", text(&site));
        bed.sh("mkdir /data/third");
        bed.copies(&content, &bed.at("/data/third"));
        bed.copies(&content, &bed.at("/data/fourth"));
        assert_eq!(bed.sh("cat /data/third/deep/er/run /data/fourth/deep/er/run"), "run\nrun\n");
        bed.refuses(text(&site), &bed.at("/data/none/"), "is not a folder in the Machine");
        // A file takes the place of a file, and never that of a folder.
        bed.copies(text(&site.join("deep/er/run")), &bed.at("/data/third/index"));
        assert_eq!(bed.sh("cat /data/third/index"), "run\n");
    });
}

#[test]
fn what_is_copied_out_is_what_is_inside_and_nothing_leads_out_of_the_root() {
    run(async {
        let bed = Bed::new().await;
        let folder = tempfile::tempdir().expect("a folder");
        let here = folder.path();
        bed.sh("mkdir -p /data/a/b && printf 'x\\377' > /data/a/b/f && chmod 640 /data/a/b/f && ln -s b/f /data/a/l");
        bed.copies(&bed.at("/data/a"), text(here));
        let file = here.join("a/b/f");
        assert_eq!(fs::read(&file).expect("it is there"), b"x\xff");
        assert_eq!(fs::metadata(&file).expect("it is there").mode() & 0o7777, 0o640);
        assert_eq!(fs::read_link(here.join("a/l")).expect("a link"), Path::new("b/f"));
        bed.copies(&bed.at("/data/a/b/f"), text(&here.join("new-name")));
        assert_eq!(fs::read(here.join("new-name")).expect("it is there"), b"x\xff");
        bed.copies(&bed.at("/data/a/."), text(&here.join("content")));
        assert!(here.join("content/b/f").exists() && !here.join("content/a").exists());

        // Links inside lead to places inside, whatever they say.
        fs::write(here.join("victim"), "untouched").expect("a file");
        bed.sh(&format!("mkdir -p '/data{0}' && ln -s '{0}/victim' /data/way && ln -s / /data/root", here.display()));
        bed.refuses(&bed.at("/data/way/."), text(&here.join("stolen")), "does not exist in the Machine");
        fs::write(here.join("evil"), "evil").expect("a file");
        bed.copies(text(&here.join("evil")), &bed.at("/data/root/../../../../tmp/landed"));
        assert_eq!(bed.sh("cat /tmp/landed"), "evil");
        bed.copies(text(&here.join("evil")), &bed.at("/data/way"));
        assert_eq!(fs::read_to_string(here.join("victim")).expect("it is there"), "untouched");

        bed.refuses(&bed.at("/no/such"), text(here), "/no/such does not exist in the Machine");
        bed.refuses(text(&here.join("evil")), &bed.at("/no/such/file"), "does not exist in the Machine");
        bed.refuses("a", "b", "one side must be in a Machine");
    });
}

#[test]
fn a_tar_archive_streams_through_and_a_large_file_arrives_whole() {
    run(async {
        let bed = Bed::new().await;
        let folder = tempfile::tempdir().expect("a folder");
        let big = folder.path().join("big");
        let mut random = Vec::new();
        fs::File::open("/dev/urandom").expect("random").take(40 << 20).read_to_end(&mut random).expect("random");
        fs::write(&big, &random).expect("a file");
        bed.copies(text(&big), &bed.at("/data/big"));
        bed.copies(&bed.at("/data/big"), text(&folder.path().join("back")));
        assert!(fs::read(folder.path().join("back")).expect("it is there") == random);

        let output = bed.godwit(&["machine", "cp", &bed.at("/etc/passwd"), "-"]).output().expect("it runs");
        assert!(output.status.success(), "{}", said(&output));
        let mut child =
            bed.godwit(&["machine", "cp", "-", &bed.at("/tmp")]).stdin(Stdio::piped()).spawn().expect("it runs");
        child.stdin.take().expect("its input").write_all(&output.stdout).expect("it reads");
        assert!(child.wait().expect("it ends").success());
        assert_eq!(bed.sh("cat /tmp/passwd"), bed.sh("cat /etc/passwd"));
    });
}

#[test]
fn a_forwarded_port_carries_bytes_untouched_and_each_half_ends_by_itself() {
    run(async {
        let bed = Bed::new().await;
        // It answers only when its client has said all: the half-close must arrive, and must not end the answer.
        let mut server = bed
            .exec(
                &[],
                &["sh", "-c", "while true; do nc -l -p 7000 -e sh -c 'cat > /tmp/got; cat /tmp/got'; sleep 0.1; done"],
            )
            .stderr(Stdio::null())
            .spawn()
            .expect("it runs");
        let mut proxy =
            bed.godwit(&["proxy", "0:7000", &bed.machine, "--json"]).stdout(Stdio::piped()).spawn().expect("it runs");
        let mut shown = String::new();
        let mut lines = BufReader::new(proxy.stdout.take().expect("its output"));
        while !shown.trim_end().ends_with('}') {
            assert!(lines.read_line(&mut shown).expect("it says where it listens") > 0, "{shown}");
        }
        let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
        let address = shown["address"].as_str().expect("its address").to_owned();
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 31 % 251) as u8).collect();
        let mut back = Vec::new();
        // Between two connections nc listens again: until then nothing does.
        super::bed::until("the bytes come back", || {
            let Ok(mut stream) = TcpStream::connect(&address) else { return false };
            back.clear();
            stream.write_all(&sent).is_ok()
                && stream.shutdown(Shutdown::Write).is_ok()
                && stream.read_to_end(&mut back).is_ok()
                && !back.is_empty()
        });
        assert!(back == sent, "{} of {} bytes", back.len(), sent.len());
        for child in [&mut proxy, &mut server] {
            child.kill().expect("it dies");
            child.wait().expect("it is dead");
        }
    });
}
