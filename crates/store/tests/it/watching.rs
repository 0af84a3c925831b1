//! Watches: everything once, in order, from any revision that is still there.

use std::sync::Arc;

use bytes::Bytes;
use godwit_store::{Error, Event, Op, Store, StoreExt, Txn};

use crate::bed::{Bed, brief, next, read_to, until, within};
use crate::conformance::on_each_backend;

on_each_backend!(
    a_watch_tells_the_past_then_the_present,
    a_watch_sees_its_segments_only,
    a_watch_opened_under_load_misses_nothing,
    an_idle_watch_tells_the_revision,
    a_watch_from_compacted_history_says_so,
    a_watch_from_the_future_says_so,
    a_transaction_is_never_split,
    a_slow_watcher_lags_and_can_go_on,
);

async fn a_watch_tells_the_past_then_the_present(bed: Bed) {
    let store = &*bed.store;
    store.put("w/a", "1").await.expect("put");
    store.put("w/b", "1").await.expect("put");
    store.txn(Txn::of([Op::delete("w/a")])).await.expect("deleted");
    let mut all = store.watch("w/".to_owned(), 1).await.expect("watched");
    assert_eq!(brief(&read_to(&mut all, 3).await), ["+w/a", "+w/b", "-w/a"]);
    let mut late = store.watch("w/".to_owned(), 3).await.expect("watched");
    assert_eq!(brief(&read_to(&mut late, 3).await), ["-w/a"]);
    let mut future = store.watch("w/".to_owned(), 4).await.expect("watched");

    store.put("w/c", "1").await.expect("put");
    for watch in [&mut all, &mut late, &mut future] {
        let events = read_to(watch, 4).await;
        let expected = Event { key: "w/c".to_owned(), value: Some("1".into()), mod_revision: 4 };
        assert_eq!(events, [expected]);
    }
}

async fn a_watch_sees_its_segments_only(bed: Bed) {
    let store = &*bed.store;
    let open = async |prefix: &str| store.watch(prefix.to_owned(), 1).await.expect("watched");
    let mut live = [open("hosts/w1/").await, open("hosts/").await, open("").await];
    let keys = ["hosts/w1/a", "hosts/w10/a", "hosts/w1", "routes/x"];
    for key in keys {
        store.put(key, "v").await.expect("put");
    }
    let mut past = [open("hosts/w1/").await, open("hosts/").await, open("").await];
    for watches in [&mut live, &mut past] {
        let [one, hosts, all] = watches;
        assert_eq!(brief(&read_to(one, 4).await), ["+hosts/w1/a"]);
        let seen = brief(&read_to(hosts, 4).await);
        assert_eq!(seen, ["+hosts/w1/a", "+hosts/w10/a", "+hosts/w1"]);
        assert_eq!(read_to(all, 4).await.len(), 4);
    }
}

async fn a_watch_opened_under_load_misses_nothing(bed: Bed) {
    const WRITERS: u64 = 8;
    const PUTS: u64 = 250;
    let writers = (0..WRITERS).map(|writer| {
        let store = bed.store.clone();
        tokio::spawn(async move {
            for n in 0..PUTS {
                let key = format!("load/{writer}/{}", n % 10);
                store.put(&key, format!("{n}")).await.expect("put");
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    let watchers = (0..6).map(|n| {
        let store = bed.store.clone();
        tokio::spawn(async move {
            let from = 1 + n * 20;
            let known = async {
                while store.list("load/").await.expect("listed").revision + 1 < from {
                    tokio::task::yield_now().await;
                }
            };
            within("the writers get there", known).await;
            let mut watch = store.watch("load/".to_owned(), from).await.expect("watched");
            (from, read_to(&mut watch, WRITERS * PUTS).await)
        })
    });
    for watcher in watchers.collect::<Vec<_>>() {
        let (from, events) = watcher.await.expect("no panic");
        let told: Vec<u64> = events.iter().map(|event| event.mod_revision).collect();
        let expected: Vec<u64> = (from..=WRITERS * PUTS).collect();
        assert_eq!(told, expected, "each revision once, in order");
    }
    for writer in writers {
        writer.await.expect("no panic");
    }
}

async fn an_idle_watch_tells_the_revision(bed: Bed) {
    let store = &*bed.store;
    let mut watch = store.watch("quiet/".to_owned(), 1).await.expect("watched");
    store.put("elsewhere", "v").await.expect("put");
    assert_eq!(read_to(&mut watch, 1).await, []);
    let again = next(&mut watch).await.expect("it goes on");
    assert_eq!((again.revision, again.events.len()), (1, 0));
    store.put("quiet/a", "v").await.expect("put");
    assert_eq!(brief(&read_to(&mut watch, 2).await), ["+quiet/a"]);
}

async fn a_watch_from_compacted_history_says_so(bed: Bed) {
    let store = &*bed.store;
    for n in 0..5 {
        store.put("a", format!("{n}")).await.expect("put");
    }
    store.compact(3).await.expect("compacted");
    let old = store.watch(String::new(), 3).await;
    assert!(matches!(old, Err(Error::Compacted { at: 3 })));
    let mut watch = store.watch(String::new(), 4).await.expect("watched");
    assert_eq!(read_to(&mut watch, 5).await.len(), 2);
    store.compact(5).await.expect("compacted");
    store.put("b", "1").await.expect("put");
    assert_eq!(brief(&read_to(&mut watch, 6).await), ["+b"]);
}

async fn a_watch_from_the_future_says_so(bed: Bed) {
    bed.store.put("a", "1").await.expect("put");
    let watch = bed.store.watch(String::new(), 3).await;
    let error = watch.expect_err("never reached");
    assert!(matches!(error, Error::FutureRevision { asked: 3, current: 1 }));
    assert!(error.needs_listing());
}

async fn a_transaction_is_never_split(bed: Bed) {
    let store = &*bed.store;
    let value = Bytes::from(vec![b'x'; 11_000]);
    let mut live = store.watch(String::new(), 1).await.expect("watched");
    for _ in 0..6 {
        let ops = (0..128).map(|n| Op::put(format!("t/{n}"), value.clone()));
        store.txn(Txn::of(ops)).await.expect("put");
    }
    let mut past = store.watch(String::new(), 1).await.expect("watched");
    for watch in [&mut live, &mut past] {
        let mut told = 0;
        while told < 6 {
            let batch = next(watch).await.expect("it goes on");
            let whole = (batch.revision - told) * 128;
            assert_eq!(batch.events.len() as u64, whole);
            told = batch.revision;
        }
    }
}

async fn a_slow_watcher_lags_and_can_go_on(bed: Bed) {
    let store = &*bed.store;
    let value = Bytes::from(vec![b'x'; 8_000]);
    let mut slow = store.watch("s/".to_owned(), 1).await.expect("watched");
    let quick = bed.sqlite.watch("s/".to_owned(), 1).await;
    let mut quick = quick.expect("watched");
    // More than a watcher's queue and a socket's buffers hold, while `slow` reads nothing.
    let mut head = 0;
    for _ in 0..55 {
        let ops = (0..128).map(|n| Op::put(format!("s/{n}"), value.clone()));
        head = store.txn(Txn::of(ops)).await.expect("put").revision;
        assert_eq!(read_to(&mut quick, head).await.len(), 128);
    }
    let mut seen: Vec<u64> = Vec::new();
    let lagged = loop {
        match next(&mut slow).await {
            Ok(batch) => seen.extend(batch.events.iter().map(|event| event.mod_revision)),
            Err(error) => break error,
        }
    };
    assert!(matches!(lagged, Error::Lagged { .. }), "{lagged}");
    assert!(lagged.is_retryable());
    assert!(slow.next().await.expect("ended").is_none());

    let from = seen.last().map_or(1, |last| last + 1);
    assert!(from <= head, "nothing was missed, so nothing was tested");
    let mut again = store.watch("s/".to_owned(), from).await.expect("watched");
    seen.extend(read_to(&mut again, head).await.iter().map(|event| event.mod_revision));
    let expected: Vec<u64> = (1..=head).flat_map(|revision| [revision; 128]).collect();
    assert!(seen == expected, "a gap or a repetition around the lag");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_a_store_ends_its_watches() {
    let bed = Bed::direct();
    let mut watch = bed.store.watch(String::new(), 1).await.expect("watched");
    bed.sqlite.close().await;
    let error = loop {
        match next(&mut watch).await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Closed) && error.is_retryable());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_last_handle_frees_the_file() {
    let bed = Bed::direct();
    let path = bed.path();
    let Bed { dir, sqlite, store, .. } = bed;
    let mut watch = store.watch(String::new(), 1).await.expect("watched");
    drop((sqlite, store));
    let reopened = || godwit_store::SqliteStore::open(&path, Default::default()).ok();
    let mut again = None;
    until("the lock is free", || {
        again = reopened();
        again.is_some()
    })
    .await;
    let again: Arc<dyn Store> = Arc::new(again.expect("just seen"));
    again.put("a", "1").await.expect("put");
    // The old watch must not mistake the file's new owner for its own writer.
    let ended = within("the old watch ends", async {
        loop {
            if let Err(error) = watch.next().await {
                break error;
            }
        }
    })
    .await;
    assert!(matches!(ended, Error::Closed));
    drop(dir);
}
