//! Processes to be killed: the test binary itself, started again on one of the ignored tests below.

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;

use godwit_store::{Op, Store, StoreExt, Txn, router};

use crate::bed::open;

const DATABASE: &str = "GODWIT_STORE_TEST_DATABASE";
const LISTEN: &str = "GODWIT_STORE_TEST_LISTEN";

/// A child of ours, killed with -9 when it is dropped.
pub struct Process {
    child: Child,
    pub lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(test: &str, database: &Path, listen: &str) -> Process {
        let mut child = Command::new(std::env::current_exe().expect("our own binary"))
            .args(["--ignored", "--exact", test, "--nocapture"])
            .env(DATABASE, database)
            .env(LISTEN, listen)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("our own binary starts");
        let stdout = child.stdout.take().expect("piped");
        Process { child, lines: BufReader::new(stdout).lines() }
    }

    /// Writes until it is killed; each acknowledged put is a line `ack KEY REVISION`.
    pub fn writer(database: &Path) -> Process {
        Process::start("child::writes_until_killed", database, "")
    }

    /// Serves `database` on `listen`; returns the address once it listens.
    pub fn server(database: &Path, listen: &str) -> (Process, String) {
        let mut process = Process::start("child::serves_until_killed", database, listen);
        let address = process.next_of("listening").expect("it listens");
        (process, address)
    }

    /// The rest of the next line that begins with `word`.
    pub fn next_of(&mut self, word: &str) -> Option<String> {
        self.lines.by_ref().map_while(Result::ok).find_map(|line| {
            // The harness may have begun the line with the test's name.
            let (_, rest) = line.split_once(&format!("{word} "))?;
            Some(rest.to_owned())
        })
    }

    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("it was alive");
        self.child.wait().expect("ours to wait for");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "a child process of other tests"]
fn writes_until_killed() {
    let Some(database) = std::env::var_os(DATABASE) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let store = open(database.into());
        let start = store.list("").await.expect("listed").revision;
        let writers = (0..8).map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0.. {
                    let key = format!("crash/{start}/{writer}/{n}");
                    let twin = format!("twin/{start}/{writer}/{n}");
                    let ops = [Op::put(&key, vec![b'x'; 700]), Op::put(twin, "t")];
                    let reply = store.txn(Txn::of(ops)).await.expect("put");
                    println!("ack {key} {}", reply.revision);
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.expect("it writes until it is killed");
        }
    });
}

#[test]
#[ignore = "a child process of other tests"]
fn serves_until_killed() {
    let (Some(database), Ok(listen)) = (std::env::var_os(DATABASE), std::env::var(LISTEN)) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let store = open(database.into());
        let listener = tokio::net::TcpListener::bind(listen).await.expect("the port is free");
        let app = router(store, Arc::new(|_, _, _| Ok(())));
        println!("listening {}", listener.local_addr().expect("bound"));
        axum::serve(listener, app).await.expect("it serves until it is killed");
    });
}
