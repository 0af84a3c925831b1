//! Every pair of words that the two hosts may say, and what follows from it.

use godwit_api::migration::MoveRole;
use godwit_api::row::Placement;
use serde_json::json;

use super::*;

const EXPIRES_AT_MS: u64 = 10_000;

fn epoch(n: u64) -> Epoch {
    Epoch { generation: 1, n }
}

fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

fn lead() -> Placement {
    serde_json::from_value(json!({
        "machine": "00000000000001", "app": "shop", "host": "w2", "epoch": epoch(2),
        "instance_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "name": "m", "region": "fra", "network": "default",
        "private_ip": "fdaa::7", "image_digest": "sha256:aa", "image_name": "demo", "launch": true, "config": {}
    }))
    .unwrap()
}

fn row(phase: MigrationPhase) -> MigrationRow {
    serde_json::from_value(json!({
        "id": "mig_00000000000001", "app": "shop", "machine": "00000000000001", "volumes": [], "source": "w1",
        "target": "w2", "epoch": epoch(2), "ticket": { "body": "", "for_source": "", "for_target": "" },
        "requested_by": "me", "phase": phase, "started_at_ms": 1
    }))
    .unwrap()
}

fn ticket() -> Ticket {
    Ticket {
        migration: "mig_00000000000001".parse().unwrap(),
        source: host("w1"),
        source_url: String::new(),
        target: host("w2"),
        target_door: String::new(),
        lead: lead(),
        from_epoch: epoch(1),
        volumes: Vec::new(),
        drain_timeout_ms: 0,
        back: Default::default(),
        names_caller: false,
        rate_bytes_per_s: 0,
        precopy: false,
        start_first: false,
        expires_at_ms: EXPIRES_AT_MS,
    }
}

fn says(part: Option<MovePart>, held: Option<u64>) -> MachineFact {
    let mut fact: MachineFact = serde_json::from_value(json!({
        "machine": "00000000000001", "app": "shop", "host": "w1", "stamp": { "incarnation": "a", "seq": 1 },
        "epoch": epoch(held.unwrap_or(2)), "instance_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "state": "stopped",
        "updated_at_ms": 1, "held": held.is_some()
    }))
    .unwrap();
    fact.migration = part.map(|part| MigrationFact {
        id: "mig_00000000000001".parse().unwrap(),
        role: MoveRole::Source,
        part,
        step: None,
        reason: Some("why".into()),
        was_running: true,
        at_ms: BTreeMap::new(),
        precopy: None,
    });
    fact
}

struct Case {
    row: MigrationRow,
    at: (HostId, Epoch),
    source: Option<MachineFact>,
    target: Option<MachineFact>,
    now_ms: u64,
}

impl Case {
    fn at_source() -> Self {
        let source = Some(says(None, Some(1)));
        Self { row: row(MigrationPhase::Preparing), at: (host("w1"), epoch(1)), source, target: None, now_ms: 5 }
    }
    fn at_target() -> Self {
        let source = Some(says(Some(MovePart::HandedOff), None));
        Self { row: row(MigrationPhase::Starting), at: (host("w2"), epoch(2)), source, target: None, now_ms: 5 }
    }
    fn source(self, part: MovePart, held: Option<u64>) -> Self {
        Self { source: Some(says(Some(part), held)), ..self }
    }
    fn target(self, part: MovePart, held: Option<u64>) -> Self {
        Self { target: Some(says(Some(part), held)), ..self }
    }
    fn cancelled(mut self) -> Self {
        self.row.cancel_requested_at_ms = Some(2);
        self
    }
    fn next(&self) -> Step {
        self.sight(&ticket(), next)
    }
    fn sight<T>(&self, ticket: &Ticket, ask: impl FnOnce(&Sight) -> T) -> T {
        ask(&Sight {
            row: &self.row,
            ticket,
            lead: Some((&self.at.0, self.at.1)),
            source: self.source.as_ref(),
            target: self.target.as_ref(),
            volumes: Vec::new(),
            now_ms: self.now_ms,
        })
    }
}

fn ends(phase: MigrationPhase) -> Step {
    Step::End { phase, reason: "why".into() }
}

fn phase_of(step: Step) -> Option<MigrationPhase> {
    match step {
        Step::Enter { phase, .. } => Some(phase),
        _ => None,
    }
}

#[test]
fn until_the_source_has_let_go_the_rows_stay() {
    use MovePart::*;
    assert_eq!(Case::at_source().next(), Step::Wait);
    assert_eq!(Case::at_source().target(Preparing, None).next(), Step::Wait);
    assert_eq!(phase_of(Case::at_source().target(Asked, None).next()), Some(MigrationPhase::HandingOff));
    assert_eq!(phase_of(Case::at_source().source(Preparing, Some(1)).next()), Some(MigrationPhase::HandingOff));
    assert_eq!(Case::at_source().source(HandedOff, None).next(), Step::Follow);
    // The source is out of reach; the target has its word.
    assert_eq!(Case::at_source().target(HandedOff, None).next(), Step::Follow);
    assert_eq!(Case::at_source().target(Done, Some(2)).next(), Step::Follow);
}

#[test]
fn a_refusal_ends_it_where_it_is() {
    use MovePart::*;
    assert_eq!(Case::at_source().source(Refused, Some(1)).next(), ends(MigrationPhase::Failed));
    assert_eq!(Case::at_source().target(Refused, None).next(), ends(MigrationPhase::Failed));
    assert_eq!(Case::at_source().target(Refused, None).cancelled().next(), ends(MigrationPhase::Cancelled));
    // A target that gave up says nothing of what the source did: its own word counts.
    assert_eq!(Case::at_source().source(HandedOff, None).target(Refused, None).next(), Step::Follow);
    assert_eq!(Case::at_target().target(Refused, None).next(), Step::Wait);
}

#[test]
fn what_was_taken_back_goes_back_and_nothing_else_does() {
    use MovePart::*;
    let back = Step::GoBack { reason: "why".into() };
    assert_eq!(Case::at_target().target(TakenBack, None).next(), back);
    assert_eq!(Case::at_target().source(TakenBack, Some(3)).next(), back);
    assert_eq!(Case::at_source().source(TakenBack, Some(3)).next(), back);
    assert_eq!(Case::at_source().source(HandedOff, None).target(TakenBack, None).next(), back);
    // The source has told nothing of a handoff yet: its word is waited for.
    assert_eq!(Case::at_source().target(TakenBack, None).next(), Step::Wait);
    assert_eq!(Case::at_source().source(Refused, Some(1)).target(TakenBack, None).next(), ends(MigrationPhase::Failed));
}

#[test]
fn beyond_the_point_of_no_return_it_is_settled_once_it_is_as_it_was() {
    use MovePart::*;
    assert_eq!(Case::at_target().next(), Step::Wait);
    assert_eq!(Case::at_target().target(HandedOff, None).next(), Step::Wait);
    assert_eq!(Case::at_target().target(Done, Some(2)).next(), Step::Settle);
    let mut starting = Case::at_target().target(Attached, Some(2));
    starting.target.as_mut().unwrap().state = MachineState::Starting;
    assert_eq!(starting.next(), Step::Wait);
    starting.target.as_mut().unwrap().state = MachineState::Failed;
    assert_eq!(starting.next(), Step::Settle);
}

#[test]
fn a_ticket_that_nobody_used_is_called_off_at_the_source_like_a_wish_to_cancel() {
    assert_eq!(Case::at_source().cancelled().next(), Step::AskCancel);
    let late = Case { now_ms: EXPIRES_AT_MS + 1, ..Case::at_source() };
    assert_eq!(late.next(), Step::AskCancel);
    let mut told = Case::at_source().cancelled();
    let (phase, at) = (MigrationPhase::HandingOff, "w1".to_owned());
    note(&mut told.row, MigrationEvent { timestamp: 3, phase, at, detail: TOO_LATE.into() });
    assert_eq!(told.next(), Step::Wait);
    // After the handoff it expires no more.
    assert_eq!(Case { now_ms: EXPIRES_AT_MS + 1, ..Case::at_target() }.next(), Step::Wait);
}

#[test]
fn a_row_that_another_host_has_taken_ends_the_move() {
    let elsewhere = Case { at: (host("w3"), epoch(9)), ..Case::at_source() };
    assert!(matches!(elsewhere.next(), Step::End { phase: MigrationPhase::Failed, .. }));
    let over = Case { row: row(MigrationPhase::Completed), ..elsewhere };
    assert_eq!(over.next(), Step::Wait);
}

#[test]
fn downtime_counts_from_the_closed_door_to_the_running_process() {
    let mut case = Case::at_target().target(MovePart::Attached, Some(2));
    case.now_ms = 700;
    let told = |fact: &mut Option<MachineFact>, key: &str, ms| {
        fact.as_mut().unwrap().migration.as_mut().unwrap().at_ms.insert(key.into(), ms);
    };
    told(&mut case.source, "closing", 100);
    let down = |case: &Case, ticket: &Ticket| case.sight(ticket, |sight| progress(sight, &BTreeMap::new()).downtime_ms);
    assert_eq!(down(&case, &ticket()), Some(600), "until now, while it is down");
    told(&mut case.target, "running", 350);
    assert_eq!(down(&case, &ticket()), Some(250));
    // The source has forgotten it; the journal has not.
    note_door(&mut case.row, case.source.as_ref());
    case.source = None;
    assert_eq!(down(&case, &ticket()), Some(250));
    let mut stopped = ticket();
    stopped.lead.launch = false;
    assert_eq!(down(&case, &stopped), None, "what did not run was never down");
}

#[test]
fn the_journal_of_a_move_is_bounded_and_keeps_its_beginning() {
    let mut row = row(MigrationPhase::Preparing);
    for timestamp in 0..200 {
        let (phase, at) = (MigrationPhase::Preparing, "control".to_owned());
        note(&mut row, MigrationEvent { timestamp, phase, at, detail: "x".into() });
    }
    assert_eq!(row.events.len(), MIGRATION_EVENTS_KEPT);
    assert_eq!((row.events[0].timestamp, row.events.last().unwrap().timestamp), (0, 199));
}
