//! README and docs are run word for word: every block marked `sh`, page by page, by bash, in namespaces of its own where
//! the default ports and /tmp are free. Two commands are not taken literally: `make` is asked whether it knows its targets
//! (everything is built by now), and `godwit dev` runs in the background, as the pages say.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use godwit_lab::fleet::binary;

use crate::programs::sample_images;

/// A page that takes longer hangs.
const PAGE_TIMEOUT_S: u32 = 300;

/// Stands before the blocks of a page. `godwit dev` is waited for until it is ready, and ended with the page.
const PRELUDE: &str = r#"
set -euo pipefail
mount --make-rprivate /
mount --bind "$OWN" /tmp
export HOME=/tmp
ip link set lo up
trap 'if [ -n "${FLEET:-}" ]; then kill "$FLEET" 2>/dev/null; wait "$FLEET" || true; command godwit dev --clean "$DATA" --yes; fi' EXIT
make() { command make --no-print-directory -n "$@" >/dev/null; }
curl() { command curl -sS --fail-with-body "$@"; }
godwit() {
    if [ "$1" = dev ] && [ "$2" = --clean ]; then
        kill "$FLEET"; wait "$FLEET" || true; FLEET=
        command godwit "$@" --yes
    elif [ "$1" = dev ]; then
        DATA=$3
        command godwit "$@" >/tmp/dev.log 2>&1 & FLEET=$!
        for _ in $(seq 600); do [ -e "$DATA/dev.json" ] && return; kill -0 "$FLEET" || break; sleep 0.1; done
        cat /tmp/dev.log; return 1
    else
        command godwit "$@"
    fi
}
export PS4='$ '
set -x
"#;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the workspace").to_owned()
}

/// The blocks of a page that are marked `sh`, in order.
fn blocks(page: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<String> = None;
    for line in page.lines() {
        match &mut open {
            None if line.trim_end() == "```sh" => open = Some(String::new()),
            None => {}
            Some(block) if line.trim_end() == "```" => {
                blocks.push(std::mem::take(block));
                open = None;
            }
            Some(block) => {
                block.push_str(line);
                block.push('\n');
            }
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

/// Commands of a page: lines of its blocks that are no comment, continued ones counted once.
fn commands(blocks: &[String]) -> usize {
    let mut count = 0;
    let mut continued = false;
    for line in blocks.iter().flat_map(|block| block.lines()) {
        let line = line.trim();
        if !continued && !line.is_empty() && !line.starts_with('#') {
            count += 1;
        }
        continued = line.ends_with('\\');
    }
    count
}

/// Runs a page; answers what it printed.
fn walk(page: &str) -> String {
    sample_images();
    let text = std::fs::read_to_string(root().join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
    let blocks = blocks(&text);
    assert!(!blocks.is_empty(), "{page} has no block to run");
    let own = tempfile::Builder::new().prefix("godwit-lab-").tempdir().expect("a folder");
    let program = binary("godwit").expect("godwit is built");
    let folder = program.parent().expect("a folder");
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    let output = Command::new("timeout")
        .args(["--kill-after=20", &PAGE_TIMEOUT_S.to_string()])
        .args(["unshare", "--net", "--mount", "bash", "-c", &format!("{PRELUDE}\n{}", blocks.join("\n"))])
        .current_dir(root())
        .env_clear()
        .env("PATH", path)
        .env("OWN", own.path())
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .expect("bash starts");
    let story = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{page} does not work as written ({}):\n{story}", output.status);
    println!("{page}: {} commands", commands(&blocks));
    story
}

#[test]
fn the_readme_works_as_written() {
    let story = walk("README.md");
    assert!(story.contains("Welcome to nginx!"), "{story}");
}

#[test]
fn the_first_hour_works_as_written() {
    let story = walk("docs/first-hour.md");
    assert!(story.contains("Welcome to nginx!"), "{story}");
    assert!(story.contains(r#"{"visits":1,"notes":["hello"]}"#), "{story}");
    assert!(story.contains("(1 row)"), "psql over exec: {story}");
    // What stands before "Look around" is the walk itself; `export PATH` is no command of it.
    let text = std::fs::read_to_string(root().join("docs/first-hour.md")).expect("the page");
    let (walk, _) = text.split_once("## Look around").expect("its end");
    assert!(commands(&blocks(walk)) - 1 <= 15, "the walk has {} commands", commands(&blocks(walk)) - 1);
}
