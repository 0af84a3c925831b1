//! `follow` and the remote's liveness: a reader that goes on through restarts, compaction and restored stores.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use godwit_store::{Error, Follow, Mirror, Op, RemoteStore, Store, StoreExt, Txn, Update, follow};

use crate::bed::{Bed, brief, next, open, within};
use crate::child::Process;

async fn catch_up(follow: &mut Follow, mirror: &mut Mirror, revision: u64) -> usize {
    let mut snapshots = 0;
    within("the follower catches up", async {
        while mirror.revision() < revision {
            let update = follow.next().await.expect("no error for somebody to act on");
            snapshots += usize::from(matches!(update, Update::Snapshot { .. }));
            mirror.apply(update);
        }
    })
    .await;
    snapshots
}

async fn rows(store: &dyn Store, prefix: &str) -> BTreeMap<String, u64> {
    let listing = store.list(prefix).await.expect("listed");
    let pairs = listing.rows.into_iter();
    pairs.map(|row| (row.key, row.mod_revision)).collect()
}

fn mirrored(mirror: &Mirror) -> BTreeMap<String, u64> {
    let pairs = mirror.rows();
    pairs.map(|(key, row)| (key.to_owned(), row.mod_revision)).collect()
}

async fn put(store: &dyn Store, key: &str) -> u64 {
    // A server that has just been restarted refuses for a moment.
    within("the put", async {
        loop {
            match store.put(key, "v").await {
                Ok(reply) => return reply.revision,
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_leaves_no_gap_in_a_watch() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let database = dir.path().join("store.db");
    let (mut server, address) = Process::server(&database, "127.0.0.1:0");
    let store = RemoteStore::new(format!("http://{address}"), "token");
    let mut watch = store.watch("w/".to_owned(), 1).await.expect("watched");
    put(&store, "w/before").await;
    let batch = next(&mut watch).await.expect("told");
    assert_eq!(brief(&batch.events), ["+w/before"]);

    server.kill();
    let error = loop {
        match next(&mut watch).await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Unavailable { .. }) && error.is_retryable());
    let down = store.put("w/lost", "v").await.expect_err("nobody listens");
    assert!(matches!(down, Error::Unavailable { .. }), "{down}");

    // Written while the watcher was away.
    let direct = open(database.clone());
    put(&*direct, "w/away").await;
    direct.close().await;
    let (_server, _) = Process::server(&database, &address);
    let mut again = store.watch("w/".to_owned(), batch.revision + 1).await;
    if again.is_err() {
        // A connection of the pool was still the dead server's.
        again = store.watch("w/".to_owned(), batch.revision + 1).await;
    }
    let mut again = again.expect("watched");
    put(&store, "w/after").await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(brief(&next(&mut again).await.expect("told").events));
    }
    assert_eq!(seen, ["+w/away", "+w/after"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_is_noticed() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (server, address) = Process::server(&dir.path().join("store.db"), "127.0.0.1:0");
    let store = RemoteStore::new(format!("http://{address}"), "token");
    let mut watch = store.watch(String::new(), 1).await.expect("watched");
    next(&mut watch).await.expect("progress");
    server.signal("-STOP");
    let error = loop {
        match next(&mut watch).await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    let blind = within("a new watch", store.watch(String::new(), 1)).await;
    assert!(blind.expect_err("still frozen").is_retryable());
    server.signal("-CONT");
    within("the server is back", async { while store.watch(String::new(), 1).await.is_err() {} }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_goes_on_through_a_restart() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let database = dir.path().join("store.db");
    let (mut server, address) = Process::server(&database, "127.0.0.1:0");
    let store: Arc<dyn Store> = Arc::new(RemoteStore::new(format!("http://{address}"), "t"));
    put(&*store, "f/a").await;
    let mut follow = follow(store.clone(), "f/");
    let mut mirror = Mirror::new();
    assert_eq!(follow.heard().age(), None);
    let head = put(&*store, "f/b").await;
    catch_up(&mut follow, &mut mirror, head).await;
    assert!(mirror.is_complete());
    assert!(follow.heard().age().is_some());

    server.kill();
    let direct = open(database.clone());
    direct.txn(Txn::of([Op::delete("f/a")])).await.expect("deleted");
    put(&*direct, "f/c").await;
    direct.close().await;
    let (mut server, _) = Process::server(&database, &address);
    let head = put(&*store, "f/d").await;
    let snapshots = catch_up(&mut follow, &mut mirror, head).await;
    assert_eq!(snapshots, 0, "the watch went on, nothing was listed again");
    assert_eq!(mirrored(&mirror), rows(&*store, "f/").await);

    server.kill();
    let direct = open(database.clone());
    direct.txn(Txn::of([Op::delete("f/b")])).await.expect("deleted");
    let head = put(&*direct, "f/e").await;
    direct.compact(head).await.expect("compacted");
    direct.close().await;
    let (_server, _) = Process::server(&database, &address);
    let head = put(&*store, "f/f").await;
    let snapshots = catch_up(&mut follow, &mut mirror, head).await;
    assert_eq!(snapshots, 1, "history was gone, so it was listed again");
    assert_eq!(mirrored(&mirror), rows(&*store, "f/").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_notices_a_restored_store() {
    let bed = Bed::remote().await;
    let store = bed.store.clone();
    put(&*store, "f/a").await;
    let mut follow = follow(store.clone(), "f/");
    let mut mirror = Mirror::new();
    catch_up(&mut follow, &mut mirror, 1).await;
    bed.sqlite.bump_generation().await.expect("drawn");
    let listed_again = within("a new snapshot", async {
        loop {
            let update = follow.next().await.expect("it goes on");
            if let Update::Snapshot { rows, .. } = update {
                return rows.len();
            }
        }
    })
    .await;
    assert_eq!(listed_again, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_reads_slowly_ends_up_right() {
    let bed = Bed::direct();
    let mut follow = follow(bed.store.clone(), "s/");
    let mut mirror = Mirror::new();
    let value = bytes::Bytes::from(vec![b'x'; 8_000]);
    let mut head = 0;
    for round in 0..60 {
        let ops = (0..120).map(|n| Op::put(format!("s/{n}"), value.clone()));
        let ops = ops.chain([Op::delete(format!("s/{}", 500 + round - 1))]);
        let ops = ops.chain([Op::put(format!("s/{}", 500 + round), "v")]);
        head = bed.store.txn(Txn::of(ops)).await.expect("put").revision;
    }
    catch_up(&mut follow, &mut mirror, head).await;
    assert_eq!(mirrored(&mirror), rows(&*bed.store, "s/").await);
}

#[tokio::test]
async fn a_follower_tells_what_waiting_cannot_mend() {
    let bed = Bed::direct();
    let mut follow = follow(bed.store.clone(), "no-slash");
    let error = within("an error", follow.next()).await.expect_err("a bad prefix");
    assert!(error.is_callers_fault());
}
