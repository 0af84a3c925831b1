//! Any sequence of transactions, compactions and reopenings gives what a plain map gives.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use godwit_store::{Compare, Error, Op, Range, Relation, Row, Store, StoreExt, Txn};
use proptest::prelude::*;

use crate::bed::{Bed, open, read_to};

#[derive(Debug, Clone)]
enum Step {
    Txn(Txn),
    /// Of the head, in percent.
    Compact(u64),
    Reopen,
}

/// Every state that ever was, by revision.
#[derive(Default)]
struct Model {
    states: Vec<BTreeMap<String, Row>>,
    compacted: u64,
}

impl Model {
    fn head(&self) -> u64 {
        self.states.len() as u64 - 1
    }

    fn holds(&self, compare: &Compare) -> bool {
        let row = self.states[self.head() as usize].get(compare.key());
        let mod_revision = row.map_or(0, |row| row.mod_revision);
        match compare {
            Compare::Absent { .. } => row.is_none(),
            Compare::ModRevision { relation, revision, .. } => match relation {
                Relation::Equal => mod_revision == *revision,
                Relation::NotEqual => mod_revision != *revision,
                Relation::Less => mod_revision < *revision,
                Relation::Greater => mod_revision > *revision,
            },
            Compare::Version { equals, .. } => row.map_or(0, |row| row.version) == *equals,
            Compare::Value { equals, .. } => row.is_some_and(|row| row.value == *equals),
        }
    }

    /// `(succeeded, revision, gets)`
    fn txn(&mut self, txn: &Txn) -> (bool, u64, Vec<Option<Row>>) {
        let succeeded = txn.compares.iter().all(|compare| self.holds(compare));
        let before = self.states[self.head() as usize].clone();
        let mut after = before.clone();
        let revision = self.head() + 1;
        let mut gets = Vec::new();
        let branch = if succeeded { &txn.then } else { &txn.otherwise };
        let mut changed = false;
        for op in branch {
            match op {
                Op::Get { key } => gets.push(before.get(key).cloned()),
                Op::Delete { key } => changed |= after.remove(key).is_some(),
                Op::Put { key, value } => {
                    changed = true;
                    let old = before.get(key);
                    let row = Row {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision: old.map_or(revision, |row| row.create_revision),
                        mod_revision: revision,
                        version: old.map_or(1, |row| row.version + 1),
                    };
                    after.insert(key.clone(), row);
                }
            }
        }
        if changed {
            self.states.push(after);
        }
        (succeeded, self.head(), gets)
    }
}

fn key() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "d/a", "d/b", "d/b/c", "d/b0", "d0", "e/x"]).prop_map(str::to_owned)
}

fn value() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..4).prop_map(Bytes::from)
}

fn compare() -> impl Strategy<Value = Compare> {
    let relation = prop::sample::select(vec![Relation::Equal, Relation::NotEqual, Relation::Less, Relation::Greater]);
    prop_oneof![
        key().prop_map(Compare::absent),
        (key(), relation, 0..12u64).prop_map(|(key, relation, n)| Compare::mod_revision(key, relation, n)),
        (key(), 0..4u64).prop_map(|(key, version)| Compare::version(key, version)),
        (key(), value()).prop_map(|(key, value)| Compare::value(key, value)),
    ]
}

fn branch() -> impl Strategy<Value = Vec<Op>> {
    let op = (key(), value(), 0..4u8).prop_map(|(key, value, kind)| match kind {
        0 => Op::delete(key),
        1 => Op::get(key),
        _ => Op::put(key, value),
    });
    prop::collection::vec(op, 0..5).prop_map(|ops| {
        let mut named = std::collections::HashSet::new();
        let once = ops.into_iter().filter(|op| named.insert(op.key().to_owned()));
        once.collect()
    })
}

fn step() -> impl Strategy<Value = Step> {
    let txn = (prop::collection::vec(compare(), 0..2), branch(), branch())
        .prop_map(|(compares, then, otherwise)| Step::Txn(Txn { compares, then, otherwise }));
    prop_oneof![
        16 => txn,
        1 => (0..=100u64).prop_map(Step::Compact),
        1 => Just(Step::Reopen),
    ]
}

async fn check(steps: Vec<Step>, mut bed: Bed) {
    let mut model = Model { states: vec![BTreeMap::new()], compacted: 0 };
    let mut watch = bed.store.watch("d/".to_owned(), 1).await.expect("watched");
    let mut reopened = false;
    for step in steps {
        match step {
            Step::Txn(txn) => {
                let reply = bed.store.txn(txn.clone()).await.expect("applied");
                let expected = model.txn(&txn);
                assert_eq!((reply.succeeded, reply.revision, reply.gets), expected);
            }
            Step::Compact(percent) => {
                let revision = model.head() * percent / 100;
                bed.store.compact(revision).await.expect("compacted");
                model.compacted = model.compacted.max(revision);
            }
            Step::Reopen => {
                reopened = true;
                bed.sqlite.close().await;
                bed.sqlite = open(bed.path());
                bed.store = bed.sqlite.clone();
            }
        }
    }
    compare_states(&*bed.store, &model).await;
    if !reopened {
        // The live watch has told each change under its prefix, whatever was compacted meanwhile.
        let mut folded: BTreeMap<String, Bytes> = BTreeMap::new();
        for event in read_to(&mut watch, model.head()).await {
            match event.value {
                Some(value) => folded.insert(event.key, value),
                None => folded.remove(&event.key),
            };
        }
        let last = &model.states[model.head() as usize];
        let expected = last.range("d/".to_owned().."d0".to_owned());
        let expected = expected.map(|(key, row)| (key.clone(), row.value.clone()));
        assert_eq!(folded, expected.collect());
    }
}

async fn compare_states(store: &dyn Store, model: &Model) {
    for revision in 0..=model.head() {
        let past = store.range(Range::prefix("d/").at_revision(revision)).await;
        if revision < model.compacted {
            let at = model.compacted;
            assert!(matches!(past, Err(Error::Compacted { at: told }) if told == at));
            continue;
        }
        let expected = model.states[revision as usize].range("d/".to_owned().."d0".to_owned());
        let expected: Vec<Row> = expected.map(|(_, row)| row.clone()).collect();
        assert_eq!(past.expect("kept").rows, expected, "at {revision}");
    }
    let now: Vec<Row> = model.states[model.head() as usize].values().cloned().collect();
    let listing = store.list("").await.expect("listed");
    assert_eq!((listing.rows, listing.revision), (now, model.head()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn sqlite_behaves_like_a_map_with_a_memory(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(check(steps, Bed::direct()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_counters_lose_no_increment() {
    const TASKS: u64 = 16;
    const INCREMENTS: u64 = 20;
    let bed = Bed::remote().await;
    let store: Arc<dyn Store> = bed.store.clone();
    let tasks = (0..TASKS).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut done = 0;
            while done < INCREMENTS {
                let now = store.get_json::<u64>("counter").await.expect("readable");
                let (count, seen) = now.map_or((0, 0), |row| (row.value, row.mod_revision));
                let op = godwit_store::put_json("counter", &(count + 1)).expect("a number");
                let txn = Txn::of([op]).when(Compare::unchanged("counter", seen));
                done += u64::from(store.txn(txn).await.expect("answered").succeeded);
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("no panic");
    }
    let total = store.get_json::<u64>("counter").await.expect("readable");
    assert_eq!(total.expect("there").value, TASKS * INCREMENTS);
}
