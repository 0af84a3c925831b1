//! Moves that go wrong: refused, called off, handed back, told late, lost by a restored store. Each ends with the rows
//! where the one holder is, and no epoch is promised twice.

use std::collections::BTreeSet;

use godwit_api::ids::{AppName, Epoch};
use godwit_api::machine::MachineState;
use godwit_api::migration::{MovePart, MoveRole};
use godwit_api::row::{GenerationRow, MachineRow};
use godwit_api::ticket::CancelAnswer;
use godwit_api::{HostId, keys};
use godwit_store::{StoreExt, Txn, put_json};
use serde_json::json;

use crate::bed::{Bed, config, until};
use crate::moves::{Begun, begin, machine_row, machine_with_volume, placed, volume_row};
use crate::volumes::{mounting, ready_volume};

/// The source refuses to hand off, and goes on.
fn refuse(begun: &Begun, bed: &Bed, reason: &str) {
    begun.source(bed).becomes(begun.ticket.lead.machine.as_str(), |held| {
        held.plays(&begun.ticket, MoveRole::Source, MovePart::Refused, &[]);
        held.migration.as_mut().unwrap().reason = Some(reason.into());
    });
}

/// The source has it again, two epochs on.
fn take_back(begun: &Begun, bed: &Bed) {
    for placement in begun.placements() {
        begun.source(bed).becomes(placement.machine.as_str(), |held| {
            (held.held, held.epoch, held.lent_to) = (true, placement.epoch.next(), None);
            held.state = if placement.launch { MachineState::Started } else { MachineState::Stopped };
            held.plays(&begun.ticket, MoveRole::Source, MovePart::TakenBack, &[]);
        });
    }
}

fn target_says(begun: &Begun, bed: &Bed, part: MovePart, reason: &str) {
    begun.target(bed).receives(&begun.ticket.lead, |held| {
        (held.state, held.refused) = (MachineState::Failed, Some(reason.into()));
        held.plays(&begun.ticket, MoveRole::Target, part, &[]);
        held.migration.as_mut().unwrap().reason = Some(reason.into());
    });
}

/// Nothing is marked, no ticket stands, and the Machine can be changed again.
async fn is_free(bed: &Bed, machine: &str, volume: &str) {
    assert_eq!(machine_row(bed, machine).await.moving, None);
    assert_eq!(volume_row(bed, volume).await.moving, None);
    for agent in &bed.agents {
        assert!(agent.tickets().await.is_empty());
    }
    let body = json!({ "config": mounting(volume, "/data") });
    bed.api.post(&format!("/apps/web/machines/{machine}"), body).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_refuses_keeps_it_and_no_epoch_is_promised_twice() {
    let bed = Bed::with_hosts(2).await;
    let (machine, volume, from) = machine_with_volume(&bed).await;
    let path = format!("/apps/web/machines/{machine}");
    let mut epochs: BTreeSet<Epoch> = BTreeSet::from([machine_row(&bed, &machine).await.epoch]);
    for _ in 0..3 {
        let begun = begin(&bed, &path, json!({})).await;
        assert!(epochs.insert(begun.ticket.lead.epoch) && epochs.insert(begun.ticket.lead.epoch.next()), "{epochs:?}");
        begun.accept(&bed);
        refuse(&begun, &bed, "a job is running");
        let failed = begun.until(&bed, "failed").await;
        assert_eq!((&failed["reason"], &failed["cancel_requested"]), (&json!("a job is running"), &json!(false)));
        let row = machine_row(&bed, &machine).await;
        assert_eq!((row.host.as_str(), row.epoch), (bed.agents[from].id.as_str(), begun.ticket.from_epoch));
        assert_eq!((placed(&bed, &machine).await.len(), placed(&bed, &volume).await.len()), (1, 1));
    }
    is_free(&bed, &machine, &volume).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_without_room_ends_the_move_before_it_begins() {
    let bed = Bed::with_hosts(2).await;
    let (machine, volume, from) = machine_with_volume(&bed).await;
    let begun = begin(&bed, &format!("/apps/web/machines/{machine}"), json!({})).await;
    target_says(&begun, &bed, MovePart::Refused, "not enough disk");
    assert_eq!(begun.until(&bed, "failed").await["reason"], "not enough disk");
    assert_eq!(bed.api.machine("web", &machine).await.state, MachineState::Started);
    assert_eq!(machine_row(&bed, &machine).await.host.as_str(), bed.agents[from].id);
    is_free(&bed, &machine, &volume).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_back_returns_two_epochs_on_whether_the_rows_had_followed_or_not() {
    for had_followed in [true, false] {
        let bed = Bed::with_hosts(2).await;
        let (machine, volume, from) = machine_with_volume(&bed).await;
        let begun = begin(&bed, &format!("/apps/web/machines/{machine}"), json!({})).await;
        begun.accept(&bed);
        if had_followed {
            begun.hand_off(&bed);
            begun.until(&bed, "starting").await;
            // The target says so first; the source's word is on its way.
            target_says(&begun, &bed, MovePart::TakenBack, "cannot attach");
        } else {
            begun.hand_off(&bed);
        }
        take_back(&begun, &bed);
        begun.until(&bed, "failed").await;
        let (row, back) = (machine_row(&bed, &machine).await, begun.ticket.lead.epoch.next());
        assert_eq!((row.host.as_str(), row.epoch), (bed.agents[from].id.as_str(), back));
        let held = volume_row(&bed, &volume).await;
        assert_eq!((held.host, held.epoch), (row.host, begun.ticket.volumes[0].placement.epoch.next()));
        assert_eq!(placed(&bed, &machine).await, [(from, back)]);
        assert_eq!(placed(&bed, &volume).await.len(), 1);
        assert_eq!(bed.api.machine("web", &machine).await.state, MachineState::Started);
        is_free(&bed, &machine, &volume).await;
        let again = begin(&bed, &format!("/apps/web/machines/{machine}"), json!({})).await;
        assert!(again.ticket.lead.epoch > back && again.ticket.from_epoch == back);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_is_asked_of_the_source_until_it_answers() {
    let bed = Bed::with_hosts(2).await;
    let (machine, volume, from) = machine_with_volume(&bed).await;
    let begun = begin(&bed, &format!("/apps/web/machines/{machine}"), json!({})).await;
    begun.accept(&bed);
    // The source breaks every connection: its answers are lost.
    let asked = bed.api.post(&format!("/migrations/{}/cancel", begun.id), json!({})).await.expect(202);
    assert_eq!(asked["cancel_requested"], true);
    let cancels = || begun.source(&bed).journal().calls.iter().filter(|call| *call == "cancel").count();
    until("it is asked again", || async { (cancels() >= 2).then_some(()) }).await;
    bed.api.post(&format!("/migrations/{}/cancel", begun.id), json!({})).await.expect(202);
    begun.source(&bed).turn(|knobs| knobs.cancel = Some(CancelAnswer::Cancelled));
    let ended = begun.until(&bed, "cancelled").await;
    assert!(ended["ended_at"].is_string() && ended["reason"].as_str().unwrap().contains("cancelled"), "{ended}");
    assert_eq!(machine_row(&bed, &machine).await.host.as_str(), bed.agents[from].id);
    is_free(&bed, &machine, &volume).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_lost_the_race_says_so_and_the_move_goes_on() {
    let bed = Bed::with_hosts(2).await;
    let (machine, _, from) = machine_with_volume(&bed).await;
    let begun = begin(&bed, &format!("/apps/web/machines/{machine}"), json!({})).await;
    begun.accept(&bed);
    // The source has let go already, and control has not heard of it.
    begun.source(&bed).turn(|knobs| knobs.cancel = Some(CancelAnswer::TooLate));
    bed.api.post(&format!("/migrations/{}/cancel", begun.id), json!({})).await.expect(202);
    until("the journal says that it was too late", || async {
        let migration = bed.api.get(&format!("/migrations/{}", begun.id)).await.expect(200);
        let events = migration["events"].as_array().unwrap().clone();
        events.iter().any(|event| event["detail"].as_str().unwrap().contains("too late")).then_some(())
    })
    .await;
    let asked = begun.source(&bed).journal().calls.iter().filter(|call| *call == "cancel").count();
    begun.hand_off(&bed);
    begun.attach(&bed);
    begun.until(&bed, "hydrating").await;
    bed.api.post(&format!("/migrations/{}/cancel", begun.id), json!({})).await.refused(409, "handed off");
    begun.fill(&bed);
    begun.until(&bed, "completed").await;
    assert_eq!(machine_row(&bed, &machine).await.host.as_str(), bed.agents[1 - from].id);
    let after = begun.source(&bed).journal().calls.iter().filter(|call| *call == "cancel").count();
    assert_eq!(asked, after, "it is not asked again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handoff_that_only_the_target_can_tell_of_moves_the_rows() {
    let bed = Bed::with_hosts(2).await;
    let (machine, _, from) = machine_with_volume(&bed).await;
    let begun = begin(&bed, &format!("/apps/web/machines/{machine}"), json!({})).await;
    begun.source(&bed).turn(|knobs| knobs.away = true);
    begun.hand_off(&bed);
    begun.attach(&bed);
    begun.until(&bed, "hydrating").await;
    assert_eq!(machine_row(&bed, &machine).await.host.as_str(), bed.agents[1 - from].id);
    assert_eq!(bed.api.machine("web", &machine).await.state, MachineState::Started);
    // Filled, as far as the target says: the source has not let go, as far as is known.
    begun.fill(&bed);
    begun.source(&bed).turn(|knobs| knobs.away = false);
    begun.until(&bed, "completed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn control_killed_in_the_middle_goes_on_by_what_the_hosts_tell() {
    let mut bed = Bed::with_hosts(2).await;
    let (machine, volume, from) = machine_with_volume(&bed).await;
    let begun = begin(&bed, &format!("/apps/web/machines/{machine}"), json!({})).await;
    begun.accept(&bed);
    begun.until(&bed, "handing_off").await;
    bed.kill();
    // All of it happens without control.
    begun.hand_off(&bed);
    begun.attach(&bed);
    bed.start_again(|_| {});
    begun.until(&bed, "hydrating").await;
    bed.kill();
    begun.fill(&bed);
    bed.start_again(|_| {});
    let done = begun.until(&bed, "completed").await;
    assert_eq!(done["progress"]["downtime_ms"], 250);
    assert_eq!(placed(&bed, &machine).await, [(1 - from, begun.ticket.lead.epoch)]);
    is_free(&bed, &machine, &volume).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_want_to_move_it_at_once_one_does() {
    let bed = Bed::with_hosts(3).await;
    let (machine, _, _) = machine_with_volume(&bed).await;
    let other = bed.api.new_machine("web", config()).await;
    bed.api.until("web", &other, MachineState::Started).await;
    let mut wishes = Vec::new();
    for number in 0..8 {
        let id = if number < 6 { &machine } else { &other };
        let (api, path) = (bed.api.clone(), format!("/apps/web/machines/{id}/migrate"));
        wishes.push(tokio::spawn(async move { (number < 6, api.post(&path, json!({})).await.code) }));
    }
    let mut codes = Vec::new();
    for wish in wishes {
        codes.push(wish.await.unwrap());
    }
    for of_first in [true, false] {
        let of = codes.iter().filter(|(first, _)| *first == of_first).map(|(_, code)| *code).collect::<Vec<_>>();
        assert_eq!(of.iter().filter(|code| **code == 202).count(), 1, "{codes:?}");
        assert!(of.iter().all(|code| [202, 409].contains(code)), "{codes:?}");
    }
    assert_eq!(bed.api.get("/migrations").await.expect(200).as_array().unwrap().len(), 2);
}

/// Rows as they are now, so that they can be put back.
async fn row_bytes(bed: &Bed, prefixes: &[&str]) -> Vec<(String, Vec<u8>)> {
    let store = bed.running.control.as_ref().unwrap().store().clone();
    let mut rows = Vec::new();
    for prefix in prefixes {
        rows.extend(store.list(prefix).await.unwrap().rows.into_iter().map(|row| (row.key, row.value.to_vec())));
    }
    rows
}

const DESIRE: [&str; 5] = ["machines/", "volumes/", "placements/", "migrations/", "tickets/"];

/// As a store that was put back from an older copy: control's own rows are as they were, what hosts tell comes anew.
async fn put_back(bed: &mut Bed, old: Vec<(String, Vec<u8>)>) {
    let lost = row_bytes(bed, &DESIRE).await;
    let store = bed.running.control.as_ref().unwrap().store().clone();
    let gone = lost.into_iter().filter(|(key, _)| !old.iter().any(|(kept, _)| kept == key));
    let deletes = gone.map(|(key, _)| godwit_store::Op::delete(key));
    let puts = old.iter().map(|(key, value)| godwit_store::Op::put(key.clone(), value.clone()));
    assert!(store.txn(Txn::of(deletes.chain(puts))).await.unwrap().succeeded);
    drop(store);
    bed.restart(|raw| raw.restored = true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_store_learns_of_a_move_that_it_has_lost() {
    // Put back to before the move, to its middle, and to a middle before a second move back that is lost whole.
    for (in_the_middle, and_back) in [(false, false), (true, false), (true, true)] {
        let mut bed = Bed::with_hosts(2).await;
        let (machine, volume, from) = machine_with_volume(&bed).await;
        let path = format!("/apps/web/machines/{machine}");
        let before = row_bytes(&bed, &DESIRE).await;
        let begun = begin(&bed, &path, json!({})).await;
        begun.accept(&bed);
        begun.until(&bed, "handing_off").await;
        let middle = row_bytes(&bed, &DESIRE).await;
        begun.hand_off(&bed);
        begun.attach(&bed);
        begun.until(&bed, "hydrating").await;
        begun.fill(&bed);
        begun.until(&bed, "completed").await;
        let (mut at, mut epoch) = (1 - from, begun.ticket.lead.epoch);
        if and_back {
            let back = begin(&bed, &path, json!({})).await;
            back.accept(&bed);
            back.hand_off(&bed);
            back.attach(&bed);
            back.until(&bed, "hydrating").await;
            back.fill(&bed);
            back.until(&bed, "completed").await;
            (at, epoch) = (from, back.ticket.lead.epoch);
        }
        put_back(&mut bed, if in_the_middle { middle } else { before }).await;
        let host = bed.agents[at].id.clone();
        until("the row is where the Machine is held", || async {
            let (row, held) = (machine_row(&bed, &machine).await, volume_row(&bed, &volume).await);
            (row.host.as_str() == host && row.epoch == epoch && held.host == row.host).then_some(())
        })
        .await;
        until("nothing of the lost move is live", || async {
            let live = bed.api.get("/migrations").await.expect(200);
            let row = machine_row(&bed, &machine).await;
            (live == json!([]) && row.moving.is_none()).then_some(())
        })
        .await;
        assert_eq!(bed.api.until("web", &machine, MachineState::Started).await.host_id, host);
        // What comes next outranks all that was.
        let next = begin(&bed, &path, json!({})).await;
        assert!(next.ticket.from_epoch == epoch && next.ticket.lead.epoch > epoch.next());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_is_never_moved_down_to_a_host_that_holds_less() {
    let bed = Bed::with_hosts(2).await;
    let (machine, volume, from) = machine_with_volume(&bed).await;
    let begun = begin(&bed, &format!("/apps/web/machines/{machine}"), json!({})).await;
    begun.accept(&bed);
    begun.hand_off(&bed);
    begun.attach(&bed);
    begun.until(&bed, "hydrating").await;
    begun.fill(&bed);
    begun.until(&bed, "completed").await;
    // A host that woke up from an old copy of its own.
    bed.agents[from].receives(&begun.ticket.lead, |held| {
        (held.held, held.epoch, held.state) = (true, begun.ticket.from_epoch, MachineState::Stopped);
    });
    // Something that is looked at after it has shown its effect.
    let (other, _) = ready_volume(&bed, "web", json!({ "name": "other" })).await;
    bed.api.delete(&format!("/apps/web/volumes/{other}")).await.expect(200);
    assert_eq!(machine_row(&bed, &machine).await.host.as_str(), bed.agents[1 - from].id);
    assert_eq!(volume_row(&bed, &volume).await.host.as_str(), bed.agents[1 - from].id);
}

/// An epoch of an older generation does not free the numbers that this one has promised.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_were_promised_after_a_restore_are_not_promised_again() {
    let mut bed = Bed::with_hosts(2).await;
    let (machine, _, _) = machine_with_volume(&bed).await;
    bed.restart(|raw| raw.restored = true);
    let store = bed.running.control.as_ref().unwrap().store().clone();
    let generation = store.get_json::<GenerationRow>(keys::GENERATION).await.unwrap().unwrap().value.generation;
    let path = format!("/apps/web/machines/{machine}");
    let mut seen = BTreeSet::new();
    for _ in 0..2 {
        until("both hosts are heard of again", || async {
            let plan = bed.api.post(&format!("{path}/migrate"), json!({ "dry_run": true })).await;
            (plan.code == 202).then_some(())
        })
        .await;
        let begun = begin(&bed, &path, json!({})).await;
        assert_eq!(begun.ticket.lead.epoch.generation, generation);
        assert!(seen.insert(begun.ticket.lead.epoch) && seen.insert(begun.ticket.lead.epoch.next()), "{seen:?}");
        begun.accept(&bed);
        refuse(&begun, &bed, "not now");
        begun.until(&bed, "failed").await;
    }
    let key = keys::machine(&AppName::parse("web").unwrap(), &machine.parse().unwrap());
    let row = store.get_json::<MachineRow>(&key).await.unwrap().unwrap().value;
    assert!(row.epoch.generation < generation, "it never moved");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_was_not_told_is_told_again() {
    let bed = Bed::with_hosts(2).await;
    let (machine, _, from) = machine_with_volume(&bed).await;
    let target: HostId = bed.agents[1 - from].id.parse().unwrap();
    let begun = begin(&bed, &format!("/apps/web/machines/{machine}"), json!({})).await;
    let pulls = || bed.agents[1 - from].journal().calls.iter().filter(|call| *call == "pull").count();
    until("the target is told more than once", || async { (pulls() >= 2).then_some(()) }).await;
    assert_eq!(begun.ticket.target, target);
    let store = bed.running.control.as_ref().unwrap().store().clone();
    // Nobody but control writes what is desired; a stray row of a ticket changes nothing.
    let key = keys::ticket(&target, &"mig_00000000000000".parse().unwrap());
    store.txn(Txn::of([put_json(key, &json!({})).unwrap()])).await.unwrap();
    assert_eq!(begun.until(&bed, "preparing").await["is_stalled"], false);
}
