//! Files that decide name no clock, no chance and no IO, and stand on no file of their crate that does.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::circles::{code, module, reachable, uses};
use super::{all_rust_files, read, root, rust_files};

/// Files that decide and never act; so does every other one that says of itself "Pure" in its head.
const PURE: [&str; 3] = ["crates/api/src", "crates/machine/src", "crates/proxy/src/h1/conn"];

/// What a pure file may not name outside its tests.
const IMPURE: [&str; 14] = [
    "tokio",
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::process",
    "std::thread",
    "std::env::var",
    "std::env::args",
    "Instant",
    "SystemTime",
    "getrandom::",
    "rand::",
    "unix_ms()",
    "random_u64",
];

/// Pure files whose imports lead to files that act; each leaves this list when they do no more.
const KNOWN: [&str; 2] = ["crates/godwit/src/cli/machine/fly_toml.rs", "crates/godwit/src/cli/migration/words.rs"];

/// "Pure." or "Pure: …" in the lines that open a file.
fn says_so(text: &str) -> bool {
    let head = text.lines().take_while(|line| line.starts_with("//!"));
    head.flat_map(|line| line.split_whitespace()).any(|word| ["Pure.", "Pure:", "Pure;", "Pure,"].contains(&word))
}

fn pure_files() -> BTreeSet<PathBuf> {
    let mut files: BTreeSet<PathBuf> = all_rust_files().into_iter().filter(|file| says_so(&read(file))).collect();
    for place in PURE {
        let path = root().join(place);
        assert!(path.exists(), "{place} is listed as pure and is gone");
        let mut below = Vec::new();
        rust_files(&path, &mut below);
        files.extend(below);
    }
    files.retain(|file| !file.file_name().is_some_and(|name| name.to_string_lossy().ends_with("tests.rs")));
    files
}

/// The words of one file that a pure one may not have, with their lines.
fn impure_words(text: &str) -> Vec<(usize, &'static str)> {
    let code = code(text);
    let of = |(number, line): (usize, &str)| {
        let words = IMPURE.into_iter().filter(|word| line.contains(word)).collect::<Vec<_>>();
        words.into_iter().map(move |word| (number + 1, word)).collect::<Vec<_>>()
    };
    code.lines().enumerate().flat_map(of).collect()
}

#[test]
fn pure_files_name_no_clock_no_chance_and_no_io() {
    let mut wrong = Vec::new();
    let files = pure_files();
    for file in &files {
        for (number, word) in impure_words(&read(file)) {
            wrong.push(format!("{}:{number}: {word}", file.display()));
        }
    }
    assert!(files.len() > 60, "pure files are found: {}", files.len());
    assert!(wrong.is_empty(), "a pure file decides and never acts:\n{}", wrong.join("\n"));
}

/// Only a type may be meant, but then it stands in the wrong room.
#[test]
fn pure_files_stand_on_none_that_acts() {
    let mut wrong = Vec::new();
    let mut files = pure_files();
    files.retain(|file| !KNOWN.contains(&shown(file).as_str()));
    for entry in std::fs::read_dir(root().join("crates")).expect("crates") {
        let src: PathBuf = entry.expect("an entry").path().join("src");
        let uses = uses(&src);
        let mut all = Vec::new();
        rust_files(&src, &mut all);
        let file_of = |wanted: &Vec<String>| all.iter().find(|file| module(file, &src) == *wanted);
        for file in files.iter().filter(|file| file.starts_with(&src)) {
            for below in reachable(&module(file, &src), &uses) {
                let Some(path) = file_of(below) else { continue };
                if let Some((_, word)) = impure_words(&read(path)).first() {
                    wrong.push(format!("{} stands on {} ({word})", shown(file), shown(path)));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "a pure file stands on pure files:\n{}", wrong.join("\n"));
}

fn shown(file: &Path) -> String {
    file.strip_prefix(root()).unwrap_or(file).display().to_string()
}

#[test]
fn a_file_that_says_pure_is_held_to_it() {
    assert!(says_so("//! Names. Pure: bits are drawn\n//! elsewhere.\nfn f() {}"));
    assert!(!says_so("//! Purely for show.\nfn f() {}"));
    assert_eq!(
        impure_words(
            "use tokio::net;\n// std::fs\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\nfn f() { Instant::now() }"
        ),
        [(1, "tokio"), (7, "Instant")]
    );
}
