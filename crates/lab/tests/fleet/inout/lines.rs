//! Logs: the lines of a Machine in its order, whole as far as its files reach; and what `top` shows.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Instant;

use godwit_api::host::{LogLine, PLATFORM_STREAM};

use super::bed::{APP, Bed, said, until};
use crate::support::run;

/// Lines of a Machine that writes as fast as it can: not more than its host keeps, so that none may be missing, however
/// slow a busy machine makes the reader.
const LINES: u64 = 4_000_000;
/// The newest of them, read afterwards: over several files.
const READ_AFTERWARDS: u64 = 600_000;

#[test]
fn four_million_lines_of_a_machine_arrive_whole_and_in_order_and_are_read_afterwards() {
    run(async {
        let bed = Bed::new().await;
        let writer = format!("while [ ! -e /tmp/go ]; do sleep 0.1; done; seq 1 {LINES}; sleep 100000");
        let id = Bed::start(&bed.fleet, &["sh", "-c", &writer]).await;
        let mut follower = bed
            .godwit(&["logs", "-a", APP, "--machine", &id, "--follow", "--tail", "0", "--json"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let started = bed.godwit(&["machine", "exec", &id, "--", "sh", "-c", ": > /tmp/go"]).output().expect("it runs");
        assert!(started.status.success(), "{}", said(&started));
        let (mut next, begun) = (1, Instant::now());
        for line in BufReader::new(follower.stdout.take().expect("its output")).lines() {
            let line = line.expect("a line");
            let told: LogLine = serde_json::from_str(&line).expect("JSON");
            if told.stream == PLATFORM_STREAM {
                assert!(!told.message.contains("missing"), "after line {next}: {line}");
                continue;
            }
            assert_eq!(told.message.parse(), Ok(next), "{line}");
            next += 1;
            if next > LINES {
                break;
            }
        }
        println!("{LINES} lines followed in {:.1} s", begun.elapsed().as_secs_f64());
        follower.kill().expect("it dies");
        follower.wait().expect("it is dead");
        assert_eq!(next, LINES + 1, "the follower saw the last line");

        let wanted = READ_AFTERWARDS.to_string();
        let output = bed.godwit(&["logs", "-a", APP, "--machine", &id, "--tail", &wanted]).output().expect("it runs");
        assert!(output.status.success(), "{}", said(&output));
        let numbers: Vec<u64> = String::from_utf8(output.stdout)
            .expect("UTF-8")
            .lines()
            .filter(|line| !is_remark(line))
            .map(|line| line.rsplit(' ').next().expect("a word").parse().expect("a number"))
            .collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "a gap or a wrong order");
        // A few of those that were asked for are the platform's remarks.
        let few = READ_AFTERWARDS - 100..=READ_AFTERWARDS;
        assert!(numbers.last() == Some(&LINES) && few.contains(&(numbers.len() as u64)), "{} lines", numbers.len());
    });
}

#[test]
fn a_traceback_stands_as_it_was_written_and_top_shows_what_runs() {
    run(async {
        let bed = Bed::new().await;
        let id =
            Bed::start(&bed.fleet, &["sh", "-c", "for n in $(seq 1 200); do echo frame $n >&2; done; sleep 100000"])
                .await;
        let read = || {
            let output =
                bed.godwit(&["logs", "-a", APP, "--machine", &id, "--tail", "1000"]).output().expect("it runs");
            let text = String::from_utf8(output.stdout).expect("UTF-8");
            let written = text.lines().filter(|line| !is_remark(line));
            written.map(|line| line.rsplit(' ').next().expect("a word").to_owned()).collect::<Vec<_>>()
        };
        until("all frames are there", || read().len() == 200);
        assert_eq!(read(), (1..=200).map(|n: u32| n.to_string()).collect::<Vec<_>>());

        let output = bed.godwit(&["machine", "top", &id]).output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("COMMAND") && text.contains("sleep 100000"), "{text}");
        let output = bed.godwit(&["machine", "top", &id, "--json"]).output().expect("it runs");
        let shown: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).expect("JSON");
        assert!(shown.iter().any(|process| process["command"] == "sleep 100000"), "{shown:?}");
    });
}

/// `TIME MACHINE* TEXT`: the platform's own.
fn is_remark(line: &str) -> bool {
    line.split(' ').nth(1).is_some_and(|machine| machine.ends_with('*'))
}
