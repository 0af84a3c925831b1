//! No circle of files within a crate: what stands on another file is not stood upon by it. Reads `use` declarations and
//! paths as text; the root of a crate, which declares and re-exports its files, counts for none of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{read, root, rust_files, without_tests};

/// A file by its place in the crate: `control/src/world/moves.rs` is `["world", "moves"]`.
pub type Module = Vec<String>;
pub type Uses = BTreeMap<Module, BTreeSet<Module>>;

/// Circles that are known and wait to be opened; each leaves this list with its circle.
const KNOWN: [&str; 11] = [
    "agent: checks effects owner",
    "agent: config error organs/volumes",
    "api: row ticket",
    "godwit: args cli dev roles",
    "godwit: cli/machine/document cli/machine/fly_toml cli/machine/mounts cli/machine/ports cli/machine/spec",
    "godwit: dev/clean dev/fleet",
    "godwit: dev/host dev/inside",
    "oci: store store/collect store/lease store/names unpack",
    "proxy: door/machines door/upstream",
    "proxy: door/serve door/tunnel",
    "proxy: edge/attempt edge/body edge/find edge/record edge/serve edge/upload edge/wake",
];

pub fn module(file: &Path, src: &Path) -> Module {
    let relative = file.strip_prefix(src).expect("below src").with_extension("");
    let mut parts: Module = relative.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
        parts.pop();
    }
    parts
}

/// Without comments: a path in a text is no import.
pub fn code(text: &str) -> String {
    let kept = without_tests(text);
    let lines = kept.lines().map(|line| line.split("//").next().unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n")
}

/// Each path of a `use` tree: `a::{b, c::{d}}` is `a::b` and `a::c::d`.
fn flatten(tree: &str, found: &mut Vec<String>) {
    let Some((before, rest)) = tree.split_once('{') else {
        found.push(tree.split(" as ").next().unwrap_or(tree).replace(char::is_whitespace, ""));
        return;
    };
    let inner = rest.rsplit_once('}').map_or(rest, |(inner, _)| inner);
    let (mut depth, mut start) = (0, 0);
    let mut parts = Vec::new();
    for (at, letter) in inner.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inner[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inner[start..]);
    for part in parts.into_iter().map(str::trim).filter(|part| !part.is_empty()) {
        flatten(&format!("{}{part}", before.trim()), found);
    }
}

fn paths(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("use ") {
        let begins = code[..at].chars().next_back().is_none_or(|before| before.is_whitespace());
        if let (true, Some(end)) = (begins, code[at..].find(';')) {
            flatten(&code[at + 4..at + end], &mut found);
        }
    }
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            let whole = code[..at].chars().next_back().is_none_or(|before| !before.is_alphanumeric() && before != '_');
            if whole && !code[..at].ends_with("::") {
                let end = code[at..].find(|letter: char| !letter.is_alphanumeric() && letter != '_' && letter != ':');
                found.push(code[at..end.map_or(code.len(), |end| at + end)].trim_end_matches(':').to_owned());
            }
        }
    }
    found
}

/// The file that a path of `from` leads to: the longest beginning of it that is one.
fn target(path: &str, from: &Module, files: &BTreeSet<Module>) -> Option<Module> {
    let mut parts = path.split("::").peekable();
    let mut base = match parts.next()? {
        "crate" => Vec::new(),
        "self" => from.clone(),
        "super" => {
            let mut base = from.clone();
            base.pop();
            while parts.peek() == Some(&"super") {
                parts.next();
                base.pop();
            }
            base
        }
        _ => return None,
    };
    let least = base.len();
    base.extend(parts.map(str::to_owned));
    (least..=base.len()).rev().map(|length| base[..length].to_vec()).find(|module| files.contains(module))
}

pub fn uses(src: &Path) -> Uses {
    let mut files = Vec::new();
    rust_files(src, &mut files);
    files.retain(|file| !file.file_name().is_some_and(|name| name.to_string_lossy().ends_with("tests.rs")));
    let modules: BTreeSet<Module> = files.iter().map(|file| module(file, src)).collect();
    let mut uses = Uses::new();
    for file in &files {
        let from = module(file, src);
        let to = paths(&code(&read(file))).into_iter().filter_map(|path| target(&path, &from, &modules));
        let to = to.filter(|to| !to.is_empty() && *to != from).collect();
        uses.insert(from, to);
    }
    uses
}

pub fn reachable<'a>(from: &'a Module, uses: &'a Uses) -> BTreeSet<&'a Module> {
    let (mut seen, mut left) = (BTreeSet::new(), vec![from]);
    while let Some(module) = left.pop() {
        left.extend(uses.get(module).into_iter().flatten().filter(|next| seen.insert(*next)));
    }
    seen
}

/// Groups of files that all stand on one another.
fn circles(uses: &Uses) -> BTreeSet<Vec<String>> {
    let reach: BTreeMap<&Module, BTreeSet<&Module>> = uses.keys().map(|from| (from, reachable(from, uses))).collect();
    let mut circles = BTreeSet::new();
    for (from, ends) in &reach {
        if ends.contains(from) {
            let round = ends.iter().filter(|end| reach.get(**end).is_some_and(|back| back.contains(from)));
            circles.insert(round.map(|module| module.join("/")).collect());
        }
    }
    circles
}

#[test]
fn no_crate_has_a_circle_of_files() {
    let mut found = BTreeSet::new();
    let mut files = 0;
    for entry in std::fs::read_dir(root().join("crates")).expect("crates") {
        let folder = entry.expect("an entry").path();
        let uses = uses(&folder.join("src"));
        files += uses.len();
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        found.extend(circles(&uses).into_iter().map(|files| format!("{name}: {}", files.join(" "))));
    }
    assert!(files > 300, "the walk finds the tree: {files}");
    let known: BTreeSet<String> = KNOWN.into_iter().map(str::to_owned).collect();
    let new: Vec<_> = found.difference(&known).collect();
    assert!(new.is_empty(), "these files stand on one another in a circle:\n{new:#?}");
    let gone: Vec<_> = known.difference(&found).collect();
    assert!(gone.is_empty(), "these circles are open now: take them off the list\n{gone:#?}");
}

#[test]
fn a_circle_is_found_and_a_line_is_not() {
    let files = |list: &[(&str, &str)]| -> Uses {
        let names: BTreeSet<Module> =
            list.iter().map(|(name, _)| name.split('/').map(str::to_owned).collect()).collect();
        let of = |(name, text): &(&str, &str)| {
            let from: Module = name.split('/').map(str::to_owned).collect();
            let to = paths(&code(text)).into_iter().filter_map(|path| target(&path, &from, &names));
            (from.clone(), to.filter(|to| !to.is_empty() && *to != from).collect())
        };
        list.iter().map(of).collect()
    };
    let line = files(&[
        ("a", "use crate::{b::B, c::{C, D as E}};"),
        ("b", "use super::c::C;"),
        ("c", "// crate::a\nfn c() {}"),
    ]);
    assert!(circles(&line).is_empty(), "{line:?}");
    let three = files(&[
        ("a", "use crate::b::B;"),
        ("b", "fn f() { crate::c::call() }"),
        ("c", "use super::a::A;"),
        ("d", "use crate::a::A;"),
    ]);
    assert_eq!(circles(&three), BTreeSet::from([vec!["a".to_owned(), "b".to_owned(), "c".to_owned()]]));
    let parent = files(&[("a", "use self::b::B;"), ("a/b", "use super::Thing;")]);
    assert_eq!(circles(&parent), BTreeSet::from([vec!["a".to_owned(), "a/b".to_owned()]]));
}
