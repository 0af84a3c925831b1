//! Volumes against their peers, interleaved in one run on one disk: `bench FOLDER MIB ROUNDS [SECONDS]`. Half of the
//! image is holes. Needs root, nbdkit, nbdcopy, fio and mkfs.ext4. Prints every round, then medians and ratios with
//! their goals: how fast a clone is whole, verified and synced (`copy`); what a guest gets of a hydrating and a whole
//! clone and of the raw loop after it (`guest`); how long the first file takes to read (`first_file`).

mod copy;
mod first_file;
mod floor;
mod guest;
mod keeper;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use godwit_api::ids::Epoch;

const EPOCH: Epoch = Epoch { generation: 1, n: 1 };

/// What every part is told.
pub struct Plan {
    pub folder: PathBuf,
    pub mib: u64,
    pub rounds: usize,
    /// Of each fio run.
    pub seconds: u64,
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    // The keepers that it starts are this program too.
    if arguments.first().is_some_and(|role| ["keeper", "serve"].iter().any(|known| role == known)) {
        let program = std::env::current_exe().expect("this program");
        return godwit_volume::roles::run(&arguments, || Command::new(&program));
    }
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    let (folder, mib, rounds, seconds) = match words[..] {
        [folder, mib, rounds] => (folder, mib, rounds, "3"),
        [folder, mib, rounds, seconds] => (folder, mib, rounds, seconds),
        _ => panic!("usage: bench FOLDER MIB ROUNDS [SECONDS]"),
    };
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let folder = std::fs::canonicalize(folder).expect("a folder").join("volume-bench");
    std::fs::create_dir_all(&folder).expect("a folder");
    let plan = Plan { folder, mib: number(mib), rounds: number(rounds) as usize, seconds: number(seconds) };
    copy::run(&plan);
    guest::run(&plan);
    first_file::run(&plan);
    std::fs::remove_dir_all(&plan.folder).expect("cleared");
    ExitCode::SUCCESS
}

/// Figures of several rounds, by name.
pub struct Table {
    names: Vec<String>,
    rows: Vec<Vec<f64>>,
    unit: &'static str,
}

impl Table {
    pub fn new(unit: &'static str) -> Self {
        Self { names: Vec::new(), rows: Vec::new(), unit }
    }
    pub fn add(&mut self, name: &str, value: f64) {
        print!("{name} {value:.0}  ");
        let at = self.names.iter().position(|known| known == name).unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.rows.push(Vec::new());
            self.names.len() - 1
        });
        self.rows[at].push(value);
    }
    pub fn end_of_round(&self) {
        println!("{}", self.unit);
    }
    pub fn median(&self, name: &str) -> f64 {
        let at = self.names.iter().position(|known| known == name).expect("a name that was measured");
        let mut row = self.rows[at].clone();
        row.sort_by(f64::total_cmp);
        row[row.len() / 2]
    }
    pub fn medians(&self) {
        for name in &self.names {
            println!("  median {name:<28} {:>10.1} {}", self.median(name), self.unit);
        }
    }
    /// `ours` over `theirs`; the goal is `at least` that, or at most if it is below zero.
    pub fn ratio(&self, ours: &str, theirs: &str, goal: f64) {
        let ratio = self.median(ours) / self.median(theirs);
        let (met, word) = if goal > 0.0 { (ratio >= goal, ">=") } else { (ratio <= -goal, "<=") };
        let verdict = if met { "met" } else { "MISSED" };
        println!("  {ours} / {theirs} = {ratio:.2}x (goal {word} {:.2}x: {verdict})", goal.abs());
    }
}
