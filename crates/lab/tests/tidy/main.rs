//! The house keeps its order: floors, pure files, file heads, fresh API description, and a verification page that
//! names tests which exist. Reads the tree as text; must not start anything but `cargo metadata`.

mod circles;
mod configuration;
mod purity;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which floor a crate lives on. An import goes down, never sideways.
const FLOORS: [(&str, u8); 15] = [
    ("godwit-api", 0),
    ("godwit-machine", 1),
    ("godwit-base", 1),
    ("godwit-store", 1),
    ("godwit-driver", 2),
    ("godwit-net", 2),
    ("godwit-oci", 2),
    ("godwit-volume", 2),
    ("godwit-control", 3),
    ("godwit-agent", 3),
    ("godwit-proxy", 3),
    ("godwit", 4),
    ("godwit-shim", 4),
    ("godwit-lab", 5),
    ("godwit-demo-app", 5),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the workspace is two folders up").to_owned()
}

fn rust_files(below: &Path, found: &mut Vec<PathBuf>) {
    if below.is_file() {
        found.push(below.to_owned());
        return;
    }
    for entry in std::fs::read_dir(below).unwrap_or_else(|error| panic!("{}: {error}", below.display())) {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target" && name != "fuzz") {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn all_rust_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    rust_files(&root().join("crates"), &mut found);
    assert!(found.len() > 50, "the walk finds the tree");
    found
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The file without what only tests see: each item behind `#[cfg(test)]`, wherever in the file it stands. Its lines are
/// emptied, so that the others keep their numbers. An item that is no single line ends at the brace that stands as far in.
fn without_tests(text: &str) -> String {
    let indentation = |line: &str| line.len() - line.trim_start().len();
    let mut kept = String::new();
    let mut hidden: Option<usize> = None;
    let mut begins = false;
    for line in text.lines() {
        let code = line.trim();
        if let Some(depth) = hidden {
            if indentation(line) == depth && code.starts_with('}') {
                hidden = None;
            }
        } else if code == "#[cfg(test)]" {
            begins = true;
        } else if begins {
            begins = code.starts_with("#[");
            if !begins && !code.ends_with(';') && !code.ends_with('}') {
                hidden = Some(indentation(line));
            }
        } else {
            kept.push_str(line);
        }
        kept.push('\n');
    }
    kept
}

#[test]
fn what_only_tests_see_is_left_out_wherever_it_stands() {
    let text =
        "a\n#[cfg(test)]\nmod tests;\nb\n#[cfg(test)]\nimpl X {\n    fn f() {\n    }\n}\nc\n#[cfg(test)]\nmod t {\n}\n";
    let kept: Vec<_> = without_tests(text).lines().map(str::to_owned).collect();
    assert_eq!(kept, ["a", "", "", "b", "", "", "", "", "", "c", "", "", ""]);
}

#[test]
fn imports_go_down_and_never_sideways() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let floors: BTreeMap<&str, u8> = FLOORS.into_iter().collect();
    let packages = metadata["packages"].as_array().expect("packages");
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for package in packages {
        let name = package["name"].as_str().expect("a name");
        let Some(floor) = floors.get(name) else {
            wrong.push(format!("{name} stands on no floor: add it to FLOORS and to ARCHITECTURE.md"));
            continue;
        };
        seen.insert(name);
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let target = dependency["name"].as_str().expect("a name");
            // What a test uses may stand higher than the crate under test; `normal` is null in the metadata.
            if !dependency["kind"].is_null() {
                continue;
            }
            if let Some(below) = floors.get(target)
                && below >= floor
            {
                wrong.push(format!("{name} (F{floor}) imports {target} (F{below})"));
            }
        }
    }
    assert_eq!(seen.len(), FLOORS.len(), "a crate of FLOORS is gone: {seen:?}");
    assert!(wrong.is_empty(), "imports go down only:\n{}", wrong.join("\n"));
}

#[test]
fn every_file_opens_with_what_it_owns() {
    let headless: Vec<_> = all_rust_files()
        .into_iter()
        .filter(|file| !read(file).trim_start().starts_with("//!"))
        .map(|file| file.display().to_string())
        .collect();
    assert!(headless.is_empty(), "these files do not open with //!:\n{}", headless.join("\n"));
}

#[test]
fn no_file_is_a_god_file() {
    let large: Vec<_> = all_rust_files()
        .into_iter()
        .filter_map(|file| {
            let lines = read(&file).lines().count();
            (lines > 800).then(|| format!("{} has {lines} lines", file.display()))
        })
        .collect();
    assert!(large.is_empty(), "past 800 lines there is a second concept:\n{}", large.join("\n"));
}

#[test]
fn the_api_description_is_fresh() {
    let written = read(&root().join("openapi/godwit.json"));
    let mut made = serde_json::to_string_pretty(&godwit_api::openapi::document()).expect("JSON");
    made.push('\n');
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(root().join("openapi/godwit.json"), &made).expect("openapi/ is writable");
        return;
    }
    assert!(written == made, "openapi/godwit.json is stale: UPDATE=1 cargo test -p godwit-lab --test tidy");
}

/// Every `###` heading of the page is a part of an issue; the list below it names tests as `crate::path::name`.
#[test]
fn the_verification_page_names_tests_that_exist() {
    let page = read(&root().join("docs/verification.md"));
    let mut tests: BTreeMap<String, String> = BTreeMap::new();
    for file in all_rust_files() {
        let relative = file.strip_prefix(root()).expect("below the root");
        let krate = relative.components().nth(1).expect("crates/X").as_os_str().to_string_lossy().into_owned();
        tests.entry(krate).or_default().push_str(&read(&file));
    }
    let mut wrong = Vec::new();
    let mut heading: Option<(String, usize)> = None;
    let mut headings = 0;
    let close = |heading: &mut Option<(String, usize)>, wrong: &mut Vec<String>| {
        if let Some((title, 0)) = heading.take() {
            wrong.push(format!("no test is named under: {title}"));
        }
    };
    for line in page.lines() {
        if let Some(title) = line.strip_prefix("### ") {
            close(&mut heading, &mut wrong);
            heading = Some((title.to_owned(), 0));
            headings += 1;
        } else if line.starts_with("## ") {
            close(&mut heading, &mut wrong);
        } else if line.starts_with("- ") {
            for name in line.split('`').skip(1).step_by(2).filter(|name| name.contains("::")) {
                let (krate, path) = name.split_once("::").expect("contains ::");
                let function = path.rsplit("::").next().expect("a last part");
                let exists = tests.get(krate).is_some_and(|text| text.contains(&format!("fn {function}(")));
                if exists {
                    if let Some((_, count)) = &mut heading {
                        *count += 1;
                    }
                } else {
                    wrong.push(format!("{name} is named and does not exist"));
                }
            }
        }
    }
    close(&mut heading, &mut wrong);
    assert!(headings > 10, "the page maps the parts of the issues");
    assert!(wrong.is_empty(), "docs/verification.md:\n{}", wrong.join("\n"));
}

/// Deletes in the store go by exact key. The type says so; this keeps the type from growing a prefix form.
#[test]
fn no_delete_takes_a_prefix() {
    let mut wrong = Vec::new();
    for file in all_rust_files() {
        if file.starts_with(root().join("crates/lab/tests")) {
            continue;
        }
        for (number, line) in read(&file).lines().enumerate() {
            let code = line.split("//").next().unwrap_or(line);
            if code.contains("DeletePrefix") || code.contains("delete_prefix") || code.contains("delete_range") {
                wrong.push(format!("{}:{}", file.display(), number + 1));
            }
            let sql = code.to_ascii_lowercase();
            if sql.contains("delete from")
                && (sql.contains(" like ") || sql.contains(" glob ") || sql.contains("substr"))
            {
                wrong.push(format!("{}:{}", file.display(), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "nothing is matched by prefix to be deleted:\n{}", wrong.join("\n"));
}

/// Words that stand for work left undone have a line in docs/known-gaps.md, or are not there at all.
#[test]
fn nothing_is_left_open_in_code() {
    let words =
        ["TO".to_owned() + "DO", "FIX".to_owned() + "ME", "unimple".to_owned() + "mented!(", "to".to_owned() + "do!("];
    let mut wrong = Vec::new();
    for file in all_rust_files() {
        for (number, line) in read(&file).lines().enumerate() {
            if words.iter().any(|word| line.contains(word.as_str())) {
                wrong.push(format!("{}:{}", file.display(), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "left open:\n{}", wrong.join("\n"));
}

/// What README tells people to copy is what the roles accept.
#[test]
fn the_example_configurations_are_accepted() {
    fn accept<Raw, Config>(name: &str)
    where
        Raw: serde::de::DeserializeOwned,
        Config: TryFrom<Raw>,
        Config::Error: std::fmt::Debug,
    {
        let raw: Raw = godwit_base::config::read(&root().join("docs/examples").join(name))
            .unwrap_or_else(|error| panic!("{}", godwit_base::telemetry::chain(&error)));
        Config::try_from(raw).unwrap_or_else(|error| panic!("{name}: {error:?}"));
    }
    accept::<godwit_control::Raw, godwit_control::Config>("control.toml");
    accept::<godwit_agent::Raw, godwit_agent::Config>("agent.toml");
    accept::<godwit_proxy::door::RawDoorConfig, godwit_proxy::door::DoorConfig>("door.toml");
    accept::<godwit_proxy::edge::RawEdgeConfig, godwit_proxy::edge::EdgeConfig>("edge.toml");
}

/// The units that docs/operate.md tells people to copy are what systemd understands. Without systemd here there is nobody
/// who could say.
#[test]
fn the_example_units_are_what_systemd_understands() {
    let folder = root().join("docs/examples/systemd");
    let mut units: Vec<PathBuf> =
        std::fs::read_dir(&folder).expect("the units").map(|entry| entry.expect("an entry").path()).collect();
    units.sort();
    assert_eq!(units.len(), 4, "{units:?}");
    for unit in &units {
        let name = unit.file_stem().expect("a name").to_string_lossy().into_owned();
        let role = name.strip_prefix("godwit-").expect("godwit-ROLE");
        let start = format!("ExecStart=/usr/local/bin/godwit run {role} --config /etc/godwit/{role}.toml\n");
        assert!(read(unit).contains(&start), "{name} starts its role with its file");
    }
    let Ok(output) = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&units).output() else { return };
    let said = String::from_utf8_lossy(&output.stderr);
    // The program is not installed where tests run; everything else is a mistake.
    let wrong: Vec<&str> = said
        .lines()
        .filter(|line| units.iter().any(|unit| line.contains(unit.file_name().and_then(|n| n.to_str()).unwrap_or(""))))
        .filter(|line| !line.contains("/usr/local/bin/godwit is not executable"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
