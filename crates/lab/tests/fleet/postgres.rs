//! A real database moves while somebody commits to it: every commit that its client saw is there afterwards, and the
//! database finds nothing wrong with itself.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use godwit_api::machine::MachineState;
use godwit_lab::fleet::{Fleet, eventually, free_port};
use serde_json::{Value, json};

use crate::support::run;

const MOVES: usize = 5;
/// A move is done when its blocks are copied and checked; machines of two cores are slow at it while they test.
const MOVE_PATIENCE: Duration = Duration::from_secs(120);
/// Commits between two moves, so that each has some to lose.
const COMMITS_BETWEEN: u64 = 20;

#[test]
fn a_database_moves_five_times_and_keeps_every_commit() {
    run(async {
        let fleet = Fleet::start(3, &[]).expect("the dev fleet starts");
        let image = postgres_image();
        fleet.cli_ok(&["image", "load", image.to_str().expect("UTF-8"), "--name", "postgres"]).expect("it loads");
        fleet.create_app("db").await.expect("the app");
        let volume = fleet.cli_ok(&["volumes", "create", "data", "-a", "db", "--size", "1"]).expect("a volume");
        let port = free_port().expect("a port");
        let config = json!({
            "image": "postgres",
            "guest": { "cpu_kind": "shared", "cpus": 1, "memory_mb": 256 },
            "mounts": [{ "volume": volume.trim(), "path": "/data" }],
            "services": [{ "protocol": "tcp", "internal_port": 5432, "ports": [{ "port": port }] }],
            "stop_config": { "timeout": "30s" },
        });
        let machine = fleet.create_machine("db", json!({ "config": config })).await.expect("the Machine");
        let id = machine.id.as_str().to_owned();
        let started = [MachineState::Started];
        fleet.wait_state("db", &id, &started, MOVE_PATIENCE).await.expect("it starts");
        eventually("the database answers", MOVE_PATIENCE, async || Ok(sql(port, "select 1").ok())).await.expect("up");
        sql(port, "create table ledger (n bigint primary key)").expect("a table");

        let ledger = fleet.dir().join("commits");
        let loader = Loader::start(port, &ledger);
        for number in 1..=MOVES {
            loader.more(COMMITS_BETWEEN).await;
            moved(&fleet, &id).await.unwrap_or_else(|error| panic!("move {number}: {error:#}\n{}", fleet.log_tail()));
        }
        loader.more(COMMITS_BETWEEN).await;
        let (seen, reconnects) = loader.stop();

        let kept = sql(port, "select n from ledger").expect("the ledger");
        let kept: BTreeSet<u64> = kept.lines().filter_map(|line| line.trim().parse().ok()).collect();
        let missing: Vec<&u64> = seen.difference(&kept).collect();
        println!("{} commits seen over {MOVES} moves, {reconnects} connections, {} missing", seen.len(), missing.len());
        assert!(missing.is_empty(), "commits that were seen are gone: {missing:?}");
        assert!(seen.len() as u64 >= COMMITS_BETWEEN * (MOVES as u64 + 1));
        let port = port.to_string();
        let checked = Command::new(postgres_bin().join("pg_amcheck"))
            .args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "--install-missing", "--all"])
            .output()
            .expect("pg_amcheck runs");
        assert!(checked.status.success(), "pg_amcheck: {}", String::from_utf8_lossy(&checked.stdout));
    });
}

async fn moved(fleet: &Fleet, machine: &str) -> anyhow::Result<()> {
    let begun = fleet.cli_ok(&["machine", "migrate", machine, "-a", "db", "--detach"])?;
    let id = begun.trim().to_owned();
    let ended = eventually("the move ends", MOVE_PATIENCE, async || {
        let shown: Value = serde_json::from_str(&fleet.cli_ok(&["migration", "show", &id, "--json"])?)?;
        let over = matches!(shown["phase"].as_str(), Some("completed" | "failed" | "cancelled"));
        Ok(over.then_some(shown))
    })
    .await?;
    anyhow::ensure!(ended["phase"] == "completed" && ended["progress"]["verified"] == true, "{ended:#}");
    println!("moved: down for {} ms", ended["progress"]["downtime_ms"]);
    Ok(())
}

/// This machine's PostgreSQL as an image; made once.
pub fn postgres_image() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the workspace").to_owned();
    let image = root.join("target/demo/postgres.tar");
    if !image.exists() {
        let made = Command::new(root.join("scripts/postgres-image")).output().expect("scripts/postgres-image runs");
        assert!(made.status.success(), "postgres-image: {}", String::from_utf8_lossy(&made.stderr));
    }
    image
}

fn postgres_bin() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL: scripts/setup test installs it");
    let mut versions: Vec<PathBuf> = versions.flatten().map(|entry| entry.path().join("bin")).collect();
    versions.sort();
    versions.pop().expect("a version of PostgreSQL")
}

fn psql(port: u16) -> Command {
    let mut command = Command::new(postgres_bin().join("psql"));
    let port = port.to_string();
    command.args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
    // A connection that the old host held must not be waited for.
    command.env("PGCONNECT_TIMEOUT", "10");
    command
}

fn sql(port: u16, text: &str) -> anyhow::Result<String> {
    let output = psql(port).args(["-c", text]).output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Commits one row after the other, and writes down, synced, each that the database said was committed.
struct Loader {
    stopping: Arc<AtomicBool>,
    seen: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<(BTreeSet<u64>, u64)>,
}

impl Loader {
    fn start(port: u16, ledger: &Path) -> Self {
        let (stopping, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let ledger = std::fs::File::create(ledger).expect("the ledger's file");
        let (stop, count) = (stopping.clone(), seen.clone());
        let thread = std::thread::spawn(move || load(port, ledger, &stop, &count));
        Self { stopping, seen, thread }
    }

    async fn more(&self, commits: u64) {
        let until = self.seen.load(Ordering::SeqCst) + commits;
        let seen = async || Ok((self.seen.load(Ordering::SeqCst) >= until).then_some(()));
        eventually("commits go on", MOVE_PATIENCE, seen).await.expect("the loader commits");
    }

    fn stop(self) -> (BTreeSet<u64>, u64) {
        self.stopping.store(true, Ordering::SeqCst);
        self.thread.join().expect("the loader")
    }
}

fn load(port: u16, mut ledger: std::fs::File, stopping: &AtomicBool, count: &AtomicU64) -> (BTreeSet<u64>, u64) {
    let (mut seen, mut next, mut connections) = (BTreeSet::new(), 0, 0);
    while !stopping.load(Ordering::SeqCst) {
        connections += 1;
        let session = psql(port).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut session = session.expect("psql runs");
        let mut ask = session.stdin.take().expect("its input");
        let mut lines = BufReader::new(session.stdout.take().expect("its output")).lines();
        while !stopping.load(Ordering::SeqCst) {
            next += 1;
            // Each number is tried once: what came of one that broke off is not known, and nothing is claimed of it.
            let said = writeln!(ask, "insert into ledger values ({next});\n\\echo committed {next}");
            let heard = said.ok().and_then(|()| lines.next()).and_then(Result::ok);
            if heard != Some(format!("committed {next}")) {
                break;
            }
            writeln!(ledger, "{next}").and_then(|()| ledger.sync_data()).expect("the ledger is written");
            seen.insert(next);
            count.fetch_add(1, Ordering::SeqCst);
        }
        drop(ask);
        let _ = session.kill();
        session.wait().expect("psql ends");
        // The database is on its way: a moment, so that the next connection does not find it still starting.
        std::thread::sleep(Duration::from_millis(20));
    }
    (seen, connections)
}
