//! How a Machine that cannot run is told of: at the first failure, with its reason, and tried again only where that
//! may help.

use super::tests::{World, launched};
use super::*;
use crate::converge::tests::placement;
use crate::job::Fault;

#[test]
fn an_image_that_cannot_be_unpacked_fails_where_it_is_and_no_other_host_is_asked() {
    let mut world = World::new();
    world.place(1, false);
    world.fail(Outcome::Abort { fault: Fault::User, reason: "layer 2 is damaged".into(), exit: None });
    world.settle();
    let record = &world.life.record;
    assert_eq!((record.state, record.held, record.refused.as_deref()), (MachineState::Failed, true, None));
    let told = world.notes.last().and_then(|note| note.detail.clone()).and_then(|detail| detail.reason);
    assert_eq!(told.as_deref(), Some("layer 2 is damaged"));
    // The same row, pulled again and again, begins nothing.
    let again = world.place(1, false);
    assert!(matches!(&world.answers[&again], Answer::Accepted { .. }));
    assert!(world.life.is_quiet());
    world.check_at_rest();
    // A good image mends it.
    world.place(2, false);
    world.settle();
    assert_eq!((world.life.record.state, world.starts), (MachineState::Started, 1));
}

#[test]
fn what_this_host_cannot_do_is_a_refusal_that_stands() {
    let mut world = World::new();
    world.place(1, false);
    world.fail(Outcome::Abort { fault: Fault::System, reason: "the disk is full".into(), exit: None });
    assert_eq!(world.life.record.refused.as_deref(), Some("the disk is full"));
    let again = world.place(1, false);
    assert!(matches!(&world.answers[&again], Answer::Refused(Refusal::Placement(why)) if why == "the disk is full"));
    world.check_at_rest();
}

fn exits(world: &World) -> Vec<(MachineState, String)> {
    let exits = world.notes.iter().filter(|note| note.kind == "exit");
    exits.map(|note| (note.status, note.detail.clone().and_then(|detail| detail.reason).unwrap_or_default())).collect()
}

#[test]
fn a_program_that_is_not_there_fails_at_once_with_its_reason() {
    let mut world = World::new();
    world.place(1, false);
    world.progress();
    while world.pending.is_some_and(|(_, step)| step != Step::StartProcess) {
        world.progress();
    }
    let exit = Some(ExitEvent { exit_code: 127, ..ExitEvent::default() });
    world.fail(Outcome::Abort { fault: Fault::User, reason: "\"/no/such\" does not exist".into(), exit });
    world.settle();
    assert_eq!(exits(&world), [(MachineState::Failed, "\"/no/such\" does not exist".to_owned())]);
    assert_eq!((world.starts, world.life.record.restart_count), (0, 0), "not tried ten times");
    world.check_at_rest();
    // Its owner may try again.
    let start = world.ask(What::Start, Until::Ended);
    world.settle();
    assert!(matches!(world.answers[&start], Answer::Ended { .. }));
}

/// The new version's start, which ends so.
fn start_fails(world: &mut World, fault: Fault, reason: &str) {
    while world.pending.is_some_and(|(_, step)| step != Step::StartProcess) {
        world.progress();
    }
    world.fail(Outcome::Abort { fault, reason: reason.into(), exit: None });
    world.settle();
}

#[test]
fn an_update_that_can_never_start_gives_its_place_back_to_the_version_before() {
    let mut world = launched();
    let before = world.life.record.placement.clone();
    world.place(2, false);
    start_fails(&mut world, Fault::User, "user \"nobody-here\" is unknown");
    let record = &world.life.record;
    assert_eq!((record.state, record.running, &record.placement), (MachineState::Started, true, &before));
    assert_eq!(world.starts, 2, "the old version was started again");
    assert_eq!(record.refused_update_reason.as_deref(), Some("user \"nobody-here\" is unknown"));
    let told = world.notes.iter().rfind(|note| note.kind == "update").and_then(|note| note.detail.clone()).unwrap();
    assert_eq!(told.reason.unwrap(), "user \"nobody-here\" is unknown; the version before it stands");
    world.check_at_rest();
    // The same row is not tried again, and a good one is.
    let again = world.place(2, false);
    assert!(matches!(&world.answers[&again], Answer::Refused(Refusal::Placement(why)) if why.contains("nobody-here")));
    world.place(3, false);
    world.settle();
    assert_eq!((world.life.record.state, world.life.record.refused_update.as_ref()), (MachineState::Started, None));

    // What was stopped stays so.
    world.ask(What::Stop { signal: None, timeout_ms: None }, Until::Ended);
    world.settle();
    let (before, starts) = (world.life.record.placement.clone(), world.starts);
    world.place(4, false);
    start_fails(&mut world, Fault::User, "no such program");
    assert_eq!((world.life.record.state, world.starts), (MachineState::Stopped, starts));
    assert_eq!(world.life.record.placement, before);
    world.check_at_rest();
}

#[test]
fn an_update_whose_host_could_not_start_it_is_tried_again_as_it_is() {
    let mut world = launched();
    world.place(2, false);
    start_fails(&mut world, Fault::System, "no memory for its shim");
    assert_eq!(world.life.record.refused_update, None);
    world.pass_time();
    world.settle();
    let record = &world.life.record;
    assert_eq!(
        (record.state, record.placement.instance_id.clone()),
        (MachineState::Started, placement(1, 1, 2).instance_id)
    );
    world.check_at_rest();
}

#[test]
fn each_end_says_how_it_came_and_what_follows() {
    let mut world = launched();
    for _ in 0..3 {
        world.process_exits(3);
        world.settle();
    }
    let told = exits(&world).into_iter().map(|(_, why)| why).collect::<Vec<_>>();
    assert_eq!(
        told,
        [
            "restart 1 of 2 in 500ms: exited with code 3",
            "restart 2 of 2 in 1s: exited with code 3",
            "gave up after 2 restarts: exited with code 3"
        ]
    );
}

#[test]
fn a_step_that_must_be_tried_again_says_so_at_its_first_failure() {
    let mut world = World::new();
    world.place(1, false);
    for _ in 0..3 {
        world.fail(Outcome::Retry { reason: "the registry is away".into() });
        world.pass_time();
    }
    let told: Vec<_> = world.notes.iter().filter_map(|note| note.detail.as_ref()?.reason.clone()).collect();
    assert_eq!(told, ["the registry is away; it is tried again"]);
}

#[test]
fn a_step_that_waits_for_somebody_else_is_never_given_up_for_that_and_says_so_once() {
    let mut world = World::new();
    world.place(1, false);
    world.progress();
    while world.pending.is_some_and(|(_, step)| step != Step::StartProcess) {
        world.progress();
    }
    // More often than the step may fail.
    for _ in 0..20 {
        world.fail(Outcome::Wait { reason: "its volume is being copied".into() });
        world.pass_time();
    }
    world.settle();
    assert_eq!((world.life.record.state, world.starts), (MachineState::Started, 1));
    let told = world.notes.iter().filter_map(|note| note.detail.as_ref()?.reason.clone());
    assert_eq!(told.collect::<Vec<_>>(), ["its volume is being copied; it is tried again"]);
    world.check_at_rest();
}
