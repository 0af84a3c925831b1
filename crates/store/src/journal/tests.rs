//! The journal as an agent sees it that was killed and starts again.

use super::*;

fn job(machine: &str, step: &str) -> Write {
    Write::Job(JobRow {
        machine: machine.into(),
        id: 7,
        kind: "create".into(),
        step: step.into(),
        attempt: 0,
        code_version: "0.1.0".into(),
        row: "{}".into(),
        updated_at_ms: 1,
    })
}

fn fact(seq: u64, value: Option<&str>) -> Write {
    Write::Fact { key: "facts/w1/machines/m".into(), seq, value: value.map(str::to_owned) }
}

fn batch(writes: impl IntoIterator<Item = Write>, durability: Durability) -> Batch {
    Batch { writes: writes.into_iter().collect(), durability }
}

#[test]
fn what_was_committed_is_there_after_a_new_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let mut journal = Journal::open(&path).unwrap();
    let machine = |row: &str| Write::Machine { id: "m".into(), row: row.into() };
    journal.commit(&batch([machine("1"), job("m", "fetch_image"), fact(1, Some("a"))], Durability::Disk)).unwrap();
    let outcome = Write::Outcome {
        machine: "m".into(),
        job: 7,
        kind: "create".into(),
        step: "fetch_image".into(),
        outcome: "done".into(),
        at_ms: 2,
    };
    let event = Write::Event { machine: "m".into(), row: "launch".into() };
    let next = [outcome, machine("2"), job("m", "unpack_image"), fact(2, Some("b")), event];
    journal.commit(&batch(next, Durability::Process)).unwrap();
    drop(journal);

    let loaded = Journal::open(&path).unwrap().load().unwrap();
    assert_eq!(loaded.machines, [MachineRow { id: "m".into(), row: "2".into(), events: vec!["launch".into()] }]);
    assert_eq!(loaded.jobs.len(), 1, "one active job a Machine");
    assert_eq!(loaded.jobs[0].step, "unpack_image");
    assert_eq!(loaded.outbox, [OutboxRow { key: "facts/w1/machines/m".into(), seq: 2, value: Some("b".into()) }]);
}

#[test]
fn a_batch_that_fails_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let mut journal = Journal::open(&path).unwrap();
    let breaker = Connection::open(&path).unwrap();
    breaker.execute_batch("CREATE TRIGGER no BEFORE INSERT ON outbox BEGIN SELECT RAISE(ABORT, 'no'); END").unwrap();
    let writes = [Write::Machine { id: "m".into(), row: "1".into() }, fact(1, Some("a"))];
    journal.commit(&batch(writes, Durability::Disk)).unwrap_err();
    assert_eq!(journal.load().unwrap(), Loaded::default());
}

#[test]
fn a_published_fact_goes_unless_a_newer_one_came() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(folder.path().join("journal.db")).unwrap();
    let published = |seq| Write::Published { key: "facts/w1/machines/m".into(), seq };
    journal.commit(&batch([fact(1, Some("a")), fact(2, None), published(1)], Durability::Process)).unwrap();
    assert_eq!(journal.load().unwrap().outbox.len(), 1);
    journal.commit(&batch([published(2)], Durability::Process)).unwrap();
    assert!(journal.load().unwrap().outbox.is_empty());
}

#[test]
fn a_machines_history_is_bounded_and_its_neighbours_is_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(folder.path().join("journal.db")).unwrap();
    let event = |machine: &str, n: u32| Write::Event { machine: machine.into(), row: n.to_string() };
    let machines = ["w1", "w10"].map(|id| Write::Machine { id: id.into(), row: "{}".into() });
    let events = (0..EVENTS_KEPT + 50).map(|n| event("w1", n)).chain([event("w10", 1)]);
    journal.commit(&batch(machines.into_iter().chain(events), Durability::Process)).unwrap();
    let loaded = journal.load().unwrap();
    assert_eq!(loaded.machines[0].events.len(), EVENTS_KEPT as usize);
    assert_eq!(loaded.machines[0].events.last().unwrap(), "149");
    journal.commit(&batch([Write::ForgetMachine { id: "w1".into() }], Durability::Disk)).unwrap();
    let loaded = journal.load().unwrap();
    assert_eq!(loaded.machines.len(), 1);
    assert_eq!(loaded.machines[0].events, ["1"]);
}

#[test]
fn a_journal_of_a_newer_program_and_a_stranger_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    drop(Journal::open(&path).unwrap());
    let conn = Connection::open(&path).unwrap();
    conn.pragma_update(None, "user_version", VERSION + 1).unwrap();
    drop(conn);
    let refused = Journal::open(&path).err().unwrap();
    assert!(refused.to_string().contains("newer program"), "{refused}");

    let other = folder.path().join("other.db");
    Connection::open(&other).unwrap().execute_batch("PRAGMA application_id = 5; CREATE TABLE x(y)").unwrap();
    assert!(matches!(Journal::open(&other), Err(Error::Format { .. })));
}
