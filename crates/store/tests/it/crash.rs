//! A writer that is killed in the middle of its work has kept every promise that it made.

use godwit_store::{Range, Store, StoreExt};

use crate::bed::{Bed, open, read_to};
use crate::child::Process;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_write_survives_sigkill() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let database = dir.path().join("store.db");
    let mut acknowledged: Vec<(String, u64)> = Vec::new();
    for _ in 0..4 {
        let mut writer = Process::writer(&database);
        for _ in 0..400 {
            acknowledged.extend(writer.next_of("ack").map(parse));
        }
        writer.kill();
        // What it had still told before it died.
        while let Some(line) = writer.next_of("ack") {
            // The last line may be cut, which a missing revision shows; then it was never told.
            if line.split(' ').nth(1).is_some_and(|text| !text.is_empty()) {
                acknowledged.push(parse(line));
            }
        }
    }
    assert!(acknowledged.len() >= 1600);

    let store = open(database.clone());
    let listing = store.list("crash/").await.expect("listed");
    let revisions: std::collections::HashMap<_, _> =
        listing.rows.iter().map(|row| (row.key.as_str(), row.mod_revision)).collect();
    for (key, revision) in &acknowledged {
        assert_eq!(revisions.get(key.as_str()), Some(revision), "{key}");
    }
    let twins = store.list("twin/").await.expect("listed");
    assert_eq!(twins.rows.len(), listing.rows.len(), "half a transaction");

    let mut watch = store.watch("crash/".to_owned(), 1).await.expect("watched");
    let told = read_to(&mut watch, listing.revision).await;
    let told: Vec<u64> = told.iter().map(|event| event.mod_revision).collect();
    let expected: Vec<u64> = (1..=listing.revision).collect();
    assert_eq!(told, expected, "revisions have no gap");
    let next = store.put("after", "1").await.expect("put").revision;
    assert_eq!(next, listing.revision + 1);

    let conn = rusqlite::Connection::open(&database).expect("opens");
    let verdict: String = conn.query_row("pragma integrity_check", [], |row| row.get(0)).expect("checked");
    assert_eq!(verdict, "ok");
}

fn parse(line: String) -> (String, u64) {
    let (key, revision) = line.split_once(' ').expect("key and revision");
    (key.to_owned(), revision.parse().expect("a number"))
}

#[tokio::test]
async fn a_copy_of_the_files_taken_at_any_moment_opens() {
    let bed = Bed::direct();
    for n in 0..50 {
        bed.store.put("k", format!("{n}")).await.expect("put");
    }
    // As after a power cut: the main file without a checkpoint, the log as it stands.
    let copy = tempfile::tempdir().expect("a temporary folder");
    for name in ["store.db", "store.db-wal"] {
        std::fs::copy(bed.dir.path().join(name), copy.path().join(name)).expect("copied");
    }
    // A torn write at the log's end: its last commits are lost, all before them stand.
    let wal = std::fs::OpenOptions::new().write(true).open(copy.path().join("store.db-wal")).expect("opens");
    let length = wal.metadata().expect("known").len();
    wal.set_len(length - 100).expect("cut");
    let store = open(copy.path().join("store.db"));
    let reply = store.range(Range::exact("k")).await.expect("readable");
    assert_eq!(reply.revision, 49);
    assert_eq!(reply.rows[0].value, "48");
}
