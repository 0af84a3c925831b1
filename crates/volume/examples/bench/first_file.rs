//! From the start of a keeper to the first file read of an ext4 that is not here yet, with the copier standing still and
//! with it at full rate.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use godwit_volume::pace::Limits;

use crate::keeper::{Keeper, clear};
use crate::{Plan, Table};

const FILES: usize = 200;
/// One file that gives the copier something to do.
const LARGE: &str = "large";

pub fn run(plan: &Plan) {
    println!("\n== first file: from a keeper's start to the first file read, and to {FILES} more");
    let image = plan.folder.join("ext4.raw");
    make(plan, &image);
    let mut table = Table::new("ms");
    for _ in 0..plan.rounds {
        one(plan, &image, &mut table, "copier off", Limits { cap_bytes_per_s: 0, ..Limits::default() });
        one(plan, &image, &mut table, "copier on", Limits::default());
        table.end_of_round();
    }
    table.medians();
    let first = table.median("copier off first");
    println!(
        "  first file un-hydrated: {first:.0} ms (goal <= 100: {})",
        if first <= 100.0 { "met" } else { "MISSED" }
    );
    table.ratio("copier on first", "copier off first", -1.5);
}

fn one(plan: &Plan, image: &Path, table: &mut Table, name: &str, limits: Limits) {
    let at = plan.folder.join("ext4");
    std::fs::create_dir_all(&at).expect("a folder");
    let clone = plan.folder.join("clone");
    clear(&clone);
    nix::unistd::sync();
    let began = Instant::now();
    let keeper = Keeper::start(&clone, image, limits);
    let device = keeper.device();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some(&device), &at, Some("ext4"), flags, None::<&str>).expect("mounts");
    let read = |index: usize| assert_eq!(std::fs::read(at.join(format!("f{index}"))).expect("a file").len(), 16384);
    read(FILES / 2);
    table.add(&format!("{name} first"), began.elapsed().as_secs_f64() * 1000.0);
    (0..FILES).for_each(read);
    table.add(&format!("{name} {FILES} files"), began.elapsed().as_secs_f64() * 1000.0);
    nix::mount::umount(&at).expect("unmounts");
}

fn make(plan: &Plan, image: &Path) {
    let content = plan.folder.join("content");
    std::fs::create_dir_all(&content).expect("a folder");
    let mut noise = blake3::Hasher::new().update(b"files").finalize_xof();
    let mut bytes = vec![0; 16384];
    for index in 0..FILES {
        noise.fill(&mut bytes);
        std::fs::write(content.join(format!("f{index}")), &bytes).expect("written");
    }
    let mut bytes = vec![0; (plan.mib / 2) as usize * 1024 * 1024];
    noise.fill(&mut bytes);
    std::fs::write(content.join(LARGE), &bytes).expect("written");
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-d"]).arg(&content).arg(image).arg(format!("{}M", plan.mib + 256));
    assert!(mkfs.status().expect("mkfs.ext4 runs").success());
    std::fs::remove_dir_all(content).expect("cleared");
    std::fs::File::open(image).and_then(|file| file.sync_all()).expect("synced");
}
