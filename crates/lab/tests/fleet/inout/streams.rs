//! `machine exec` moves bytes: all of them, both ways, or it says that it did not.

use std::io::{Read, Write};
use std::process::Stdio;

use godwit_lab::fleet::kill;
use sha2::{Digest, Sha256};

use super::bed::{Bed, ended, said, until};
use crate::support::run;

/// Random bytes that go in and come out again.
const BYTES: usize = 300 << 20;
const PIECE_BYTES: usize = 1 << 20;

#[test]
fn a_command_moves_300_mib_of_random_bytes_both_ways_unharmed() {
    run(async {
        let bed = Bed::new().await;
        let mut child = bed
            .exec(&["-i"], &["cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command line runs");
        let mut input = child.stdin.take().expect("its input");
        let sending = std::thread::spawn(move || {
            let mut random = std::fs::File::open("/dev/urandom").expect("random bytes");
            let (mut hash, mut piece) = (Sha256::new(), vec![0; PIECE_BYTES]);
            for _ in 0..BYTES / PIECE_BYTES {
                random.read_exact(&mut piece).expect("random bytes");
                hash.update(&piece);
                input.write_all(&piece).expect("the command reads");
            }
            hash.finalize()
        });
        let mut output = child.stdout.take().expect("its output");
        let (mut hash, mut piece, mut bytes) = (Sha256::new(), vec![0; PIECE_BYTES], 0);
        loop {
            let read = output.read(&mut piece).expect("its output is read");
            if read == 0 {
                break;
            }
            hash.update(&piece[..read]);
            bytes += read;
        }
        let sent = sending.join().expect("all was sent");
        assert!(ended(&mut child, "the command").success());
        assert_eq!((bytes, hash.finalize() == sent), (BYTES, true));
    });
}

#[test]
fn exit_codes_streams_and_ends_of_commands_are_the_commands_own() {
    run(async {
        let bed = Bed::new().await;
        // Every kind of exit, without 256 starts.
        for code in [0, 1, 2, 7, 64, 124, 125, 126, 127, 128, 130, 200, 255] {
            let output = bed.exec(&[], &["sh", "-c", &format!("exit {code}")]).output().expect("it runs");
            assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        }
        let output = bed.exec(&[], &["sh", "-c", "kill -9 $$"]).output().expect("it runs");
        assert_eq!(output.status.code(), Some(137), "a signal counts as 128 and its number: {}", said(&output));
        let output = bed.exec(&[], &["/no/such"]).output().expect("it runs");
        assert_eq!(output.status.code(), Some(127));
        assert!(said(&output).contains("\"/no/such\" does not exist"), "{}", said(&output));

        // Both streams, whole, at once; what is no UTF-8 stays what it is.
        let line = "head -c 5000000 /bin/busybox; (cat /bin/busybox; cat /bin/busybox) >&2";
        let output = bed.exec(&[], &["sh", "-c", line]).output().expect("it runs");
        let busybox: Vec<u8> = bed.exec(&[], &["cat", "/bin/busybox"]).output().expect("it runs").stdout;
        assert!(busybox.starts_with(b"\x7fELF"));
        assert!(output.stdout == busybox[..busybox.len().min(5_000_000)] && output.stderr == busybox.repeat(2));
        let lines = bed.sh("seq 1 300000");
        assert!(lines.lines().map(|line| line.parse().ok()).eq((1..=300_000).map(Some)), "W8");

        // Without -i there is no input, and -i ends where ours does.
        assert_eq!(bed.sh("cat; echo end"), "end\n");
        // A command that does not want all of it ends as it would anywhere.
        let mut child = bed.exec(&["-i"], &["head", "-c", "5"]);
        let output = child.stdin(std::fs::File::open("/dev/zero").expect("zeros")).output().expect("it runs");
        assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 5), "{}", said(&output));
        let mut child =
            bed.exec(&["-i"], &["cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it runs");
        child.stdin.take().expect("its input").write_all(b"a\0\xff").expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"a\0\xff"[..]));

        let output =
            bed.exec(&["-e", "A=b c", "--user", "app"], &["sh", "-c", "echo $A; id -u"]).output().expect("it runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "b c\n100\n");
        let output = bed.exec(&["--user", "ghost"], &["true"]).output().expect("it runs");
        assert_eq!(output.status.code(), Some(125));
        assert!(said(&output).contains("\"ghost\" is unknown"), "{}", said(&output));
    });
}

#[test]
fn one_answer_in_json_says_when_it_was_cut_and_keeps_bytes_in_base64() {
    run(async {
        let bed = Bed::new().await;
        let cut = bed.exec(&["--json"], &["head", "-c", "3000000", "/dev/zero"]).output().expect("it runs");
        assert_eq!(cut.status.code(), Some(125), "cut output is never success");
        let answer: serde_json::Value = serde_json::from_slice(&cut.stdout).expect("JSON");
        assert_eq!(answer["truncated"], true, "D15");
        let bytes = bed.exec(&["--json"], &["printf", "\\377\\001"]).output().expect("it runs");
        let answer: serde_json::Value = serde_json::from_slice(&bytes.stdout).expect("JSON");
        assert_eq!((answer["stdout_base64"].as_str(), answer.get("truncated")), (Some("/wE="), None));
    });
}

#[test]
fn a_client_that_goes_takes_its_command_along_and_a_slow_one_holds_it_up() {
    run(async {
        let bed = Bed::new().await;
        // A command that reads nothing, and a client that has more to send than there is room for.
        let mut child = bed
            .exec(&["-i"], &["sleep", "77777"])
            .stdin(std::fs::File::open("/dev/zero").expect("zeros"))
            .stdout(Stdio::null())
            .spawn()
            .expect("it runs");
        until("the command runs", || !bed.pids_of("sleep 77777").is_empty());
        child.kill().expect("the client dies");
        child.wait().expect("it is dead");
        until("its command is gone", || bed.pids_of("sleep 77777").is_empty());

        // One that nobody reads stops at what fits into the buffers, and goes on when it is read.
        let line = "i=0; while [ $i -lt 40 ]; do head -c 1048576 /dev/zero; i=$((i+1)); echo $i > /tmp/passed; done";
        let mut slow = bed.exec(&[], &["sh", "-c", line]).stdout(Stdio::piped()).spawn().expect("it runs");
        let passed = || bed.sh("cat /tmp/passed 2>/dev/null || echo 0").trim().parse::<u32>().unwrap_or(0);
        let mut before = u32::MAX;
        until("it waits for its reader", || {
            std::thread::sleep(std::time::Duration::from_millis(500));
            let now = passed();
            let still = now == before && now > 0;
            before = now;
            still
        });
        assert!(before < 30, "{before} MiB lie in buffers");
        let mut bytes = Vec::new();
        slow.stdout.take().expect("its output").read_to_end(&mut bytes).expect("it is read");
        assert!(ended(&mut slow, "the command").success());
        assert_eq!(bytes.len(), 40 << 20);
    });
}

#[test]
fn output_that_was_cut_by_an_agent_s_end_is_no_success() {
    run(async {
        let bed = Bed::new().await;
        let child = bed
            .exec(&[], &["sh", "-c", "echo begun; sleep 88888"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        until("the command runs", || !bed.pids_of("sleep 88888").is_empty());
        kill(bed.fleet.dev().expect("dev.json").hosts[0].agent_pid, libc::SIGKILL);
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(125), "{}", said(&output));
        assert!(said(&output).contains("the session was cut"), "{}", said(&output));
        until("its command is gone", || bed.pids_of("sleep 88888").is_empty());
    });
}

#[test]
fn more_commands_than_may_run_at_once_are_told_so() {
    run(async {
        let bed = Bed::new().await;
        let mut running: Vec<_> = (0..32)
            .map(|_| bed.exec(&[], &["sleep", "66666"]).stderr(Stdio::null()).spawn().expect("it runs"))
            .collect();
        until("they run", || bed.pids_of("sleep 66666").len() == 32);
        let output = bed.exec(&[], &["true"]).output().expect("it runs");
        assert_eq!(output.status.code(), Some(125));
        let text = said(&output);
        assert!(text.contains("32 commands and copies run in this Machine already"), "{text}");
        assert!(!text.contains("could not start the Machine"), "{text}");
        for child in &mut running {
            child.kill().expect("it dies");
            child.wait().expect("it is dead");
        }
        until("their commands are gone", || bed.pids_of("sleep 66666").is_empty());
        bed.sh("true");
    });
}
