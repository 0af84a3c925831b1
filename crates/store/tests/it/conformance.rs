//! Reads and transactions: the same promises from every backend.

use bytes::Bytes;
use godwit_store::limits::{MAX_TXN_BYTES, MAX_TXN_OPS, MAX_VALUE_BYTES};
use godwit_store::{Compare, Error, Op, Options, Range, Relation, SqliteStore, Store, StoreExt, Txn, put_json};

use crate::bed::{Bed, open, until};

/// Each case as a test of its own on each backend.
macro_rules! on_each_backend {
    ($($case:ident),* $(,)?) => {
        mod direct {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() { super::$case($crate::bed::Bed::direct()).await })*
        }
        mod remote {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() { super::$case($crate::bed::Bed::remote().await).await })*
        }
    };
}
pub(crate) use on_each_backend;

on_each_backend!(
    a_row_carries_its_history,
    a_transaction_has_one_revision,
    what_changes_nothing_uses_no_revision,
    a_failed_compare_changes_nothing_and_runs_the_other_branch,
    every_compare_means_what_it_says,
    only_one_of_many_creators_wins,
    a_delete_is_exact,
    limits_refuse_clearly_and_change_nothing,
    pages_stand_at_one_revision,
    the_past_can_be_read_until_it_is_compacted,
    compaction_keeps_every_row_that_stands,
    json_goes_in_and_comes_out,
);

async fn revision(store: &dyn Store) -> u64 {
    store.range(Range::prefix("")).await.expect("readable").revision
}

async fn keys(store: &dyn Store, prefix: &str) -> Vec<String> {
    let listing = store.list(prefix).await.expect("listed");
    listing.rows.into_iter().map(|row| row.key).collect()
}

async fn a_row_carries_its_history(bed: Bed) {
    let store = &*bed.store;
    assert_eq!(store.get("a/b").await.expect("readable"), None);
    let first = store.put("a/b", "1").await.expect("put").revision;
    store.put("a/c", "x").await.expect("put");
    let second = store.put("a/b", "2").await.expect("put").revision;
    assert_eq!((first, second), (1, 3));
    let row = store.get("a/b").await.expect("readable").expect("there");
    assert_eq!(row.value, "2");
    assert_eq!((row.create_revision, row.mod_revision, row.version), (1, 3, 2));

    let txn = Txn::of([Op::delete("a/b")]);
    store.txn(txn).await.expect("deleted");
    assert_eq!(store.get("a/b").await.expect("readable"), None);
    store.put("a/b", Bytes::new()).await.expect("put");
    let row = store.get("a/b").await.expect("readable").expect("there");
    assert_eq!(row.value, "");
    assert_eq!((row.create_revision, row.mod_revision, row.version), (5, 5, 1));
}

async fn a_transaction_has_one_revision(bed: Bed) {
    let store = &*bed.store;
    store.put("old", "1").await.expect("put");
    let many = (0..MAX_TXN_OPS as u32 - 2).map(|n| Op::put(format!("m/{n:03}"), "v"));
    let txn = Txn::of(many.chain([Op::delete("old"), Op::get("none")]));
    let reply = store.txn(txn).await.expect("applied");
    assert!(reply.succeeded);
    assert_eq!((reply.revision, reply.gets), (2, vec![None]));
    let listing = store.list("m/").await.expect("listed");
    assert_eq!(listing.rows.len(), MAX_TXN_OPS - 2);
    assert!(listing.rows.iter().all(|row| row.mod_revision == 2));
    assert_eq!(listing.revision, 2);
}

async fn what_changes_nothing_uses_no_revision(bed: Bed) {
    let store = &*bed.store;
    store.put("a", "1").await.expect("put");
    for ops in [vec![], vec![Op::get("a")], vec![Op::delete("absent")]] {
        let reply = store.txn(Txn::of(ops)).await.expect("applied");
        assert!(reply.succeeded);
        assert_eq!(reply.revision, 1);
    }
}

async fn a_failed_compare_changes_nothing_and_runs_the_other_branch(bed: Bed) {
    let store = &*bed.store;
    store.put("plan", "1").await.expect("put");
    let stale = Txn::of([Op::put("placement", "x"), Op::delete("plan")])
        .when(Compare::exists("plan"))
        .when(Compare::unchanged("plan", 7))
        .or_else(Op::get("plan"));
    let reply = store.txn(stale.clone()).await.expect("answered");
    assert!(!reply.succeeded);
    assert_eq!(reply.revision, 1);
    let seen = reply.gets[0].as_ref().expect("the plan is there");
    assert_eq!((seen.value.as_ref(), seen.mod_revision), (&b"1"[..], 1));
    assert_eq!(keys(store, "").await, ["plan"]);

    let with_writes = stale.or_else(Op::put("refused", "1"));
    let reply = store.txn(with_writes).await.expect("answered");
    assert!(!reply.succeeded);
    assert_eq!(reply.revision, 2);
    assert_eq!(keys(store, "").await, ["plan", "refused"]);
}

async fn every_compare_means_what_it_says(bed: Bed) {
    use Relation::{Equal, Greater, Less, NotEqual};
    let store = &*bed.store;
    store.put("k", "1").await.expect("put");
    store.put("k", "2").await.expect("put");
    let table = [
        (Compare::absent("k"), false),
        (Compare::absent("none"), true),
        (Compare::exists("k"), true),
        (Compare::exists("none"), false),
        (Compare::unchanged("k", 2), true),
        (Compare::unchanged("k", 1), false),
        (Compare::unchanged("none", 0), true),
        (Compare::mod_revision("k", Equal, 2), true),
        (Compare::mod_revision("k", NotEqual, 2), false),
        (Compare::mod_revision("k", Less, 3), true),
        (Compare::mod_revision("k", Less, 2), false),
        (Compare::mod_revision("k", Greater, 1), true),
        (Compare::mod_revision("k", Greater, 2), false),
        (Compare::version("k", 2), true),
        (Compare::version("k", 1), false),
        (Compare::version("none", 0), true),
        (Compare::value("k", "2"), true),
        (Compare::value("k", "1"), false),
        (Compare::value("none", ""), false),
    ];
    for (compare, holds) in table {
        let reply = store.txn(Txn::default().when(compare.clone())).await;
        assert_eq!(reply.expect("answered").succeeded, holds, "{compare:?}");
    }
}

async fn only_one_of_many_creators_wins(bed: Bed) {
    let contenders = (0..32).map(|n| {
        let store = bed.store.clone();
        tokio::spawn(async move {
            let value = format!("{n}");
            let txn = Txn::of([Op::put("name", value.clone())]).when(Compare::absent("name"));
            let reply = store.txn(txn).await.expect("answered");
            reply.succeeded.then_some(value)
        })
    });
    let mut winners = Vec::new();
    for contender in contenders.collect::<Vec<_>>() {
        winners.extend(contender.await.expect("no panic"));
    }
    let row = bed.store.get("name").await.expect("readable");
    assert_eq!(winners.len(), 1);
    assert_eq!(row.expect("there").value, winners[0]);
}

async fn a_delete_is_exact(bed: Bed) {
    let store = &*bed.store;
    for key in ["hosts/w1", "hosts/w10", "hosts/w1/a", "hosts/w"] {
        store.put(key, "v").await.expect("put");
    }
    let txn = Txn::of([Op::delete("hosts/w1")]);
    store.txn(txn).await.expect("deleted");
    assert_eq!(keys(store, "hosts/").await, ["hosts/w", "hosts/w1/a", "hosts/w10"]);
    assert_eq!(keys(store, "hosts/w1/").await, ["hosts/w1/a"]);
    let slash = store.txn(Txn::of([Op::delete("hosts/")])).await;
    assert!(matches!(slash, Err(Error::InvalidKey { .. })));
    assert_eq!(keys(store, "hosts/").await.len(), 3);
}

async fn limits_refuse_clearly_and_change_nothing(bed: Bed) {
    let store = &*bed.store;
    let puts = |count: usize, size: usize| {
        let value = Bytes::from(vec![b'x'; size]);
        Txn::of((0..count).map(move |n| Op::put(format!("k/{n}"), value.clone())))
    };
    let too_many_compares =
        (0..=MAX_TXN_OPS).fold(Txn::default(), |txn, n| txn.when(Compare::absent(format!("k/{n}"))));
    let refused = [
        puts(MAX_TXN_OPS + 1, 1),
        too_many_compares,
        puts(1, MAX_VALUE_BYTES + 1),
        puts(2, MAX_TXN_BYTES / 2),
        Txn::of([Op::put("a//b", "v")]),
        Txn::of([Op::put("ä", "v")]),
        Txn::of([Op::put("k".repeat(600), "v")]),
        Txn::of([Op::put("a", "v"), Op::get("a")]),
        Txn::default().or_else(Op::put("", "v")),
    ];
    for txn in refused {
        let error = store.txn(txn).await.expect_err("over a limit");
        assert!(error.is_callers_fault(), "{error}");
        assert!(!error.is_retryable(), "{error}");
    }
    let unsegmented = store.range(Range::prefix("hosts/w1")).await;
    assert!(matches!(unsegmented, Err(Error::InvalidKey { .. })));
    let unsegmented = store.watch("hosts/w1".to_owned(), 1).await;
    assert!(matches!(unsegmented, Err(Error::InvalidKey { .. })));
    let foreign_page = store.range(Range::prefix("a/").after("b/c")).await;
    assert!(matches!(foreign_page, Err(Error::InvalidRequest { .. })));
    assert_eq!(revision(store).await, 0);

    store.txn(puts(1, MAX_VALUE_BYTES)).await.expect("at the limit");
    let full = puts(MAX_TXN_OPS, MAX_TXN_BYTES / MAX_TXN_OPS - 64 - 5);
    store.txn(full).await.expect("at the limit");
    assert_eq!(revision(store).await, 2);
}

async fn pages_stand_at_one_revision(bed: Bed) {
    let store = &*bed.store;
    for n in 0..25 {
        store.put(&format!("p/{n:02}"), "old").await.expect("put");
    }
    let first = store.range(Range::prefix("p/").limit(10)).await.expect("a page");
    assert!(first.more);
    assert_eq!((first.revision, first.rows.len()), (25, 10));
    store.put("p/07", "new").await.expect("put");
    store.put("p/12", "new").await.expect("put");
    let gone = Txn::of([Op::delete("p/20"), Op::put("p/99", "new")]);
    store.txn(gone).await.expect("applied");

    let mut seen = first.rows.clone();
    let mut more = true;
    while more {
        let last = &seen.last().expect("a row").key;
        let page = Range::prefix("p/").limit(10).at_revision(25).after(last);
        let page = store.range(page).await.expect("a page");
        assert_eq!(page.revision, 25);
        seen.extend(page.rows);
        more = page.more;
    }
    let keys: Vec<String> = seen.iter().map(|row| row.key.clone()).collect();
    let expected: Vec<String> = (0..25).map(|n| format!("p/{n:02}")).collect();
    assert_eq!(keys, expected);
    assert!(seen.iter().all(|row| row.value == "old"));

    let big = Bytes::from(vec![b'x'; MAX_VALUE_BYTES]);
    for n in 0..6 {
        store.put(&format!("big/{n}"), big.clone()).await.expect("put");
    }
    let page = store.range(Range::prefix("big/")).await.expect("a page");
    assert!(page.more, "a page is bounded in bytes too");
    assert_eq!(store.list("big/").await.expect("listed").rows.len(), 6);
}

async fn the_past_can_be_read_until_it_is_compacted(bed: Bed) {
    let store = &*bed.store;
    store.put("a/x", "1").await.expect("put");
    store.put("a/y", "1").await.expect("put");
    store.put("a/x", "2").await.expect("put");
    store.txn(Txn::of([Op::delete("a/y")])).await.expect("deleted");
    let at = async |revision: u64| -> Result<Vec<String>, Error> {
        let reply = store.range(Range::prefix("a/").at_revision(revision)).await?;
        assert_eq!(reply.revision, revision);
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let rows = reply.rows.iter();
        Ok(rows.map(|row| format!("{}={}", row.key, text(&row.value))).collect())
    };
    assert_eq!(at(1).await.expect("kept"), ["a/x=1"]);
    assert_eq!(at(2).await.expect("kept"), ["a/x=1", "a/y=1"]);
    assert_eq!(at(3).await.expect("kept"), ["a/x=2", "a/y=1"]);
    assert_eq!(at(4).await.expect("kept"), ["a/x=2"]);
    let exact = store.range(Range::exact("a/y").at_revision(3)).await.expect("kept");
    assert_eq!((exact.rows.len(), exact.rows[0].mod_revision), (1, 2));
    let future = at(5).await;
    assert!(matches!(future, Err(Error::FutureRevision { asked: 5, current: 4 })));

    store.compact(3).await.expect("compacted");
    for revision in [1, 2] {
        assert!(matches!(at(revision).await, Err(Error::Compacted { at: 3 })));
    }
    until("swept", || bed.log_rows() == 3).await;
    assert_eq!(at(3).await.expect("kept"), ["a/x=2", "a/y=1"]);
    assert_eq!(at(4).await.expect("kept"), ["a/x=2"]);
    store.compact(2).await.expect("an older compaction is no error");
    let future = store.compact(9).await;
    assert!(matches!(future, Err(Error::FutureRevision { .. })));
}

async fn compaction_keeps_every_row_that_stands(bed: Bed) {
    let store = &*bed.store;
    for round in 0..10 {
        let ops = (0..100).map(|n| Op::put(format!("r/{n:03}"), format!("{round}")));
        store.txn(Txn::of(ops)).await.expect("put");
    }
    let ops = (0..50).map(|n| Op::delete(format!("r/{n:03}")));
    let head = store.txn(Txn::of(ops)).await.expect("deleted").revision;
    let before = store.list("r/").await.expect("listed");
    assert_eq!(bed.log_rows(), 1050);
    store.compact(head / 2).await.expect("compacted");
    store.compact(head).await.expect("compacted");
    until("swept", || bed.log_rows() == 50).await;
    assert_eq!(store.list("r/").await.expect("listed"), before);
    assert_eq!(before.rows.len(), 50);
    let next = store.put("r/new", "1").await.expect("put").revision;
    assert_eq!(next, head + 1);
}

async fn json_goes_in_and_comes_out(bed: Bed) {
    let store = &*bed.store;
    let op = put_json("spec", &vec!["a", "b"]).expect("plain data");
    let revision = store.txn(Txn::of([op])).await.expect("put").revision;
    let read = store.get_json::<Vec<String>>("spec").await.expect("readable");
    let read = read.expect("there");
    assert_eq!((read.value.len(), read.mod_revision), (2, revision));
    let wrong = store.get_json::<u64>("spec").await.expect_err("not a number");
    assert!(matches!(&wrong, Error::Json { key, .. } if key == "spec"));
}

#[tokio::test]
async fn a_store_opened_again_goes_on_where_it_stopped() {
    let bed = Bed::direct();
    let generation = bed.store.identity().await.expect("told").generation;
    assert_eq!(generation.len(), 16);
    bed.store.put("a", "1").await.expect("put");
    bed.store.put("b", "1").await.expect("put");
    let deleted = Txn::of([Op::delete("b")]);
    bed.store.txn(deleted).await.expect("deleted");
    // The log's newest row is a deletion, which compaction removes: the revision must not fall back with it.
    bed.store.compact(3).await.expect("compacted");
    until("swept", || bed.log_rows() == 1).await;
    bed.sqlite.close().await;
    let closed = bed.store.put("a", "2").await.expect_err("closed");
    assert!(matches!(closed, Error::Closed) && closed.is_retryable());

    let again = open(bed.path());
    assert_eq!(revision(&*again).await, 3);
    assert_eq!(keys(&*again, "").await, ["a"]);
    assert_eq!(again.put("c", "1").await.expect("put").revision, 4);
    let same = again.identity().await.expect("told").generation;
    assert_eq!(same, generation);
    again.bump_generation().await.expect("drawn");
    let new = again.identity().await.expect("told").generation;
    assert_ne!(new, generation);
}

#[tokio::test]
async fn a_second_opener_and_a_foreign_file_are_refused() {
    let bed = Bed::direct();
    let second = SqliteStore::open(bed.path(), Options::default());
    assert!(matches!(second, Err(Error::InUse { .. })));

    for (name, header) in [("marked.db", "pragma application_id = 77"), ("plain.db", "")] {
        let foreign = bed.dir.path().join(name);
        let conn = rusqlite::Connection::open(&foreign).expect("made");
        let tables = format!("{header}; create table t (x)");
        conn.execute_batch(&tables).expect("made");
        let opened = SqliteStore::open(&foreign, Options::default());
        assert!(matches!(opened, Err(Error::Format { .. })), "{name}");
        let count = "select count(*) from sqlite_schema";
        let tables = conn.query_row(count, [], |row| row.get::<_, i64>(0));
        assert_eq!(tables, Ok(1), "left as it was");
    }
    let text = bed.dir.path().join("text.db");
    std::fs::write(&text, "no database at all, but long enough to look at".repeat(50)).expect("written");
    assert!(SqliteStore::open(&text, Options::default()).is_err());
}

#[tokio::test]
async fn history_is_bounded_without_anyone_asking() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let options = Options { keep_revisions: 100, ..Options::default() };
    let store = SqliteStore::open(dir.path().join("store.db"), options).expect("opened");
    for n in 0..250 {
        store.put("hot", format!("{n}")).await.expect("put");
    }
    let old = store.range(Range::exact("hot").at_revision(10)).await;
    assert!(matches!(old, Err(Error::Compacted { at: 100.. })));
    let recent = store.range(Range::exact("hot").at_revision(200)).await;
    assert_eq!(recent.expect("kept").rows[0].mod_revision, 200);
}
