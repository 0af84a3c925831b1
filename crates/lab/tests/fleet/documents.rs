//! README and docs are run word for word: every block marked `sh`, page by page, by bash, in namespaces of its own where
//! the default ports and /tmp are free. Four commands are not taken literally: `make` is asked whether it knows its targets
//! (everything is built by now), `godwit dev` runs in the background, as the pages say, `godwit machine shell` gets a
//! terminal and a person who leaves at once, and `godwit proxy` runs until PostgreSQL's own client has found the server
//! behind it. docs/operate.md is for servers: `crate::servers` runs it.

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
    elif [ "$1" = proxy ]; then
        command godwit "$@" & local forward=$! answered=1
        for _ in $(seq 100); do
            if /usr/lib/postgresql/*/bin/pg_isready -h 127.0.0.1 -p "${2%:*}"; then answered=0; break; fi
            sleep 0.1
        done
        kill $forward; wait $forward || true
        return $answered
    elif [ "$1 ${2:-}" = "machine shell" ]; then
        printf 'exit 0\n' | script -qec "godwit $*" /dev/null
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

/// What stands on cli.md's examples: a database and a web server that a reader has.
const SHOP: &str = r#"
godwit dev --data /tmp/fleet --hosts 1
godwit config use-dev /tmp/fleet
godwit image load target/images/postgres.tar target/images/nginx.tar
godwit apps create shop
godwit volumes create db -a shop --size 1
godwit machine run postgres -a shop --name db1 --volume db:/data --env PGDATA=/data/pg --vm-memory 512
godwit machine run nginx -a shop --name web1
godwit machine exec db1 -a shop -- psql -U postgres -c 'create database shop'
mkdir /tmp/reader; ln -s "$PWD/target" /tmp/reader/target; cd /tmp/reader
mkdir site; echo '<h1>Welcome</h1>' > site/index.html
"#;

/// Runs a page, after what its reader has already and before what looks at the outcome; answers what it printed.
fn walk(page: &str, before: &str, after: &str) -> String {
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
        .args([
            "unshare",
            "--net",
            "--mount",
            "bash",
            "-c",
            &format!("{PRELUDE}\n{before}\n{}\n{after}", blocks.join("\n")),
        ])
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
    let story = walk("README.md", "", "");
    assert!(story.contains("Welcome to nginx!"), "{story}");
}

#[test]
fn the_first_hour_works_as_written() {
    let story = walk("docs/first-hour.md", "", "");
    assert!(story.contains("Welcome to nginx!"), "{story}");
    assert!(story.contains(r#"{"visits":1,"notes":["hello"]}"#), "{story}");
    assert!(story.contains("(1 row)"), "psql over exec: {story}");
    // What stands before "Look around" is the walk itself; `export PATH` is no command of it.
    let text = std::fs::read_to_string(root().join("docs/first-hour.md")).expect("the page");
    let (walk, _) = text.split_once("## Look around").expect("its end");
    assert!(commands(&blocks(walk)) - 1 <= 15, "the walk has {} commands", commands(&blocks(walk)) - 1);
}

#[test]
fn the_command_lines_page_works_as_written() {
    let after = "godwit machine exec web1 -a shop -- cat /usr/share/nginx/html/index.html; gzip -dc data.tar.gz | tar -t; cat shop.sql";
    let story = walk("docs/cli.md", SHOP, after);
    for part in ["<h1>Welcome</h1>", "data/pg/PG_VERSION", "PostgreSQL database dump complete", "accepting connections"]
    {
        assert!(story.contains(part), "{part}: {story}");
    }
}

#[test]
fn the_page_for_contributors_works_as_written() {
    walk("CONTRIBUTING.md", "", "");
}

/// Every page with a block that a reader may copy is run by a test.
#[test]
fn no_page_is_left_out() {
    let run = ["CONTRIBUTING.md", "README.md", "docs/cli.md", "docs/first-hour.md", "docs/operate.md"];
    let mut pages = Vec::new();
    for folder in ["", "docs", "docs/decisions"] {
        for entry in std::fs::read_dir(root().join(folder)).expect("a folder").map(|entry| entry.expect("an entry")) {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let text = std::fs::read_to_string(&path).expect("a page");
                if text.lines().any(|line| line.starts_with("```sh") || line.starts_with("```bash")) {
                    pages.push(path.strip_prefix(root()).expect("below").display().to_string());
                }
            }
        }
    }
    pages.sort();
    assert_eq!(pages, run.map(str::to_owned));
}
