//! What a guest gets: fio on a raw loop over the source's copy, on the front end while it hydrates (the copier is paced so
//! that it is busy all the while), on it once whole, and on the raw loop over the clone's file after a restart.

use std::path::Path;
use std::process::Command;

use godwit_volume::host;
use godwit_volume::pace::Limits;

use crate::keeper::Keeper;
use crate::{Plan, Table};

const CASES: [(&str, &[&str]); 3] = [
    ("4k q1", &["--rw=randread", "--bs=4k", "--iodepth=1"]),
    ("4k q16", &["--rw=randread", "--bs=4k", "--iodepth=16"]),
    ("1M q4", &["--rw=read", "--bs=1M", "--iodepth=4"]),
];

pub fn run(plan: &Plan) {
    println!("\n== guest: reads of the front end and of raw loops, {} s each", plan.seconds);
    let source = plan.folder.join("source.raw");
    let mut table = Table::new("IO/s");
    for _ in 0..plan.rounds {
        // The copier has a little more to do than fio has time.
        let slow = plan.mib * 1024 * 1024 / 2 / (plan.seconds * CASES.len() as u64 + 2);
        let limits = Limits { floor_bytes_per_s: slow, cap_bytes_per_s: slow, ..Limits::default() };
        let raw = host::attach(&source).expect("a loop device");
        let keeper = Keeper::start(&plan.folder.join("clone"), &source, limits);
        let device = keeper.device();
        measure(&mut table, "raw", &raw, plan);
        measure(&mut table, "hydrating", &device, plan);
        keeper.set_limits(Limits::default());
        keeper.wait_whole();
        measure(&mut table, "whole", &device, plan);
        measure(&mut table, "raw", &raw, plan);
        let local = keeper.spec.local.clone();
        drop(keeper);
        let after = host::attach(&local).expect("a loop device");
        measure(&mut table, "raw after restart", &after, plan);
        measure(&mut table, "raw", &raw, plan);
        host::detach(&local).expect("detached");
        host::detach(&source).expect("detached");
        table.end_of_round();
    }
    table.medians();
    for (case, _) in CASES {
        table.ratio(&format!("hydrating {case}"), &format!("raw {case}"), 0.5);
        table.ratio(&format!("whole {case}"), &format!("raw {case}"), 0.6);
        table.ratio(&format!("raw after restart {case}"), &format!("raw {case}"), 0.97);
    }
}

fn measure(table: &mut Table, name: &str, device: &Path, plan: &Plan) {
    for (case, options) in CASES {
        let mut fio = Command::new("fio");
        fio.args([
            "--name=b",
            "--ioengine=libaio",
            "--direct=1",
            "--readonly",
            "--time_based",
            "--output-format=terse",
        ]);
        fio.args(options).arg(format!("--runtime={}", plan.seconds)).arg(format!("--filename={}", device.display()));
        let output = fio.current_dir(&plan.folder).output().expect("fio runs");
        let text = String::from_utf8_lossy(&output.stdout);
        // Terse version 3: the eighth field is the reads a second.
        let rate = text.lines().rev().find_map(|line| line.split(';').nth(7)?.parse::<f64>().ok());
        table.add(&format!("{name} {case}"), rate.unwrap_or_else(|| panic!("fio: {text}")));
    }
}
