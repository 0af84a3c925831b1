//! What happens to Machines on a host: created, started, stopped, updated, destroyed, restarted by policy, refused,
//! found again.

use godwit_api::config::RestartPolicy;
use godwit_api::host::PlaceReply;
use godwit_api::machine::MachineState;
use godwit_api::row::Placement;
use godwit_driver::fake::Knobs;

use crate::control::{Control, story};
use crate::host::Host;

#[tokio::test]
async fn a_placed_machine_runs_and_the_fleet_is_told() {
    let control = Control::start().await;
    let host = Host::started(&control).await;
    let placement = host.placement(1, 1);
    let fact = host.launched(&placement).await;
    assert_eq!(story(&fact), ["launch created", "start started"]);
    assert!(fact.started_at_ms.is_some() && fact.stamp.seq > 0);
    host.until("the host tells what it uses", async || {
        let told = control.host_fact(&placement.host).await?;
        (told.used.memory_mb == 128 && told.machines == 1 && told.applied_revision > 0).then_some(())
    })
    .await;

    host.call_stop(&placement).await.unwrap();
    let fact = host.told(&placement, MachineState::Stopped).await;
    let exit = fact.last_exit.unwrap();
    assert!(exit.requested_stop && !exit.restarting, "{exit:?}");
    host.until("a stopped Machine takes disk only", async || {
        let used = control.host_fact(&placement.host).await?.used;
        (used.memory_mb == 0 && used.disk_mb > 0).then_some(())
    })
    .await;
    let answer = host.call_start(&placement).await.unwrap();
    assert_eq!(answer.previous_state, "stopped");
    host.told(&placement, MachineState::Started).await;
    let again = host.call_start(&placement).await.unwrap();
    assert_eq!(again.previous_state, "started", "a start of what runs is fine");
    host.call_restart(&placement, false).await.unwrap();
    host.call_restart(&placement, true).await.unwrap();
    assert_eq!(host.driver.starts(placement.machine.as_str()), 4);
}

#[tokio::test]
async fn three_retries_make_four_starts() {
    let control = Control::start().await;
    let host = Host::started(&control).await;
    let mut placement = host.placement(1, 1);
    placement.config.restart.max_retries = Some(3);
    let knobs = Knobs { exits_after_ms: Some(1), exit_code: 1, ..Knobs::default() };
    host.driver.set(placement.machine.as_str(), knobs);
    control.put(&placement).await;
    let fact = host.told(&placement, MachineState::Stopped).await;
    assert_eq!(host.driver.starts(placement.machine.as_str()), 4);
    assert_eq!((fact.restart_count, fact.last_exit.unwrap().exit_code), (3, 1));
}

#[tokio::test]
async fn a_process_that_cannot_be_executed_says_so_and_is_not_tried_for_ever() {
    let control = Control::start().await;
    let host = Host::started(&control).await;
    let placement = host.placement(1, 1);
    let knobs = Knobs { start_fails: Some((127, "no such program".into())), ..Knobs::default() };
    host.driver.set(placement.machine.as_str(), knobs);
    control.put(&placement).await;
    let fact = host.told(&placement, MachineState::Failed).await;
    assert_eq!(fact.last_exit.as_ref().unwrap().exit_code, 127);
    assert!(fact.held && fact.refused.is_none(), "the host holds it; only its program does not run");
    let told: Vec<_> = fact.events.iter().filter_map(|event| event.request.as_ref()?.reason.as_deref()).collect();
    assert_eq!(told, ["no such program"], "once, with its reason: no pause makes it appear");
}

#[tokio::test]
async fn a_machine_that_destroys_itself_is_not_made_again() {
    let control = Control::start().await;
    let host = Host::started(&control).await;
    let mut placement = host.placement(1, 1);
    placement.config.auto_destroy = true;
    host.driver.set(placement.machine.as_str(), Knobs { exits_after_ms: Some(1), ..Knobs::default() });
    control.put(&placement).await;
    host.told(&placement, MachineState::Destroyed).await;
    // Its row is still there: another one is placed after it, so its pull has been judged again.
    host.launched(&host.placement(2, 1)).await;
    assert_eq!(host.driver.starts(placement.machine.as_str()), 1);
    control.delete_row(&placement.host, &placement.machine).await;
    host.until("the fact goes with the row", async || {
        control.fact(&placement.host, &placement.machine).await.is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_the_host_cannot_hold_is_refused_and_the_refusal_is_journaled() {
    let control = Control::start().await;
    let mut host = Host::started(&control).await;
    let mut large = host.placement(1, 1);
    large.config.guest.memory_mb = 4096;
    let reply = host.call_place(&large).await.unwrap();
    assert!(matches!(&reply, PlaceReply::Refused { reason } if reason.contains("memory")), "{reply:?}");
    host.restart().await;
    let again = host.call_place(&large).await.unwrap();
    assert_eq!(again, reply, "it stands by what it said");
    let mut better = host.placement(1, 1);
    better.epoch.n = 2;
    let fact = host.launched(&better).await;
    assert!(fact.refused.is_none());
}

#[tokio::test]
async fn a_fault_of_the_image_is_its_owners_and_ends_in_failed_on_this_host() {
    let control = Control::start().await;
    let mut host = Host::started(&control).await;
    let mut missing = host.placement(2, 1);
    missing.image_digest = format!("sha256:{}", "0".repeat(64));
    control.put(&missing).await;
    let fact = host.told(&missing, MachineState::Failed).await;
    assert!(fact.held && fact.refused.is_none(), "no other host is asked: {fact:?}");
    let told: Vec<_> = fact.events.iter().filter_map(|event| event.request.as_ref()?.reason.as_deref()).collect();
    assert!(matches!(told.as_slice(), [why] if why.contains("manifest")), "{told:?}");

    host.restart().await;
    // Its row is pulled again with the other's, and begins nothing.
    host.launched(&host.placement(3, 1)).await;
    let fact = control.fact(&missing.host, &missing.machine).await.unwrap();
    assert_eq!((fact.state, fact.events.len()), (MachineState::Failed, 2), "{fact:?}");
    host.launched(&host.placement(2, 2)).await;
}

#[tokio::test]
async fn an_update_swaps_the_version_and_one_without_its_image_changes_nothing() {
    let control = Control::start().await;
    let host = Host::started(&control).await;
    let first = host.placement(1, 1);
    host.launched(&first).await;
    let mut bad = host.placement(1, 2);
    bad.image_digest = format!("sha256:{}", "0".repeat(64));
    control.put(&bad).await;
    host.until("the update is given up", async || {
        let fact = control.fact(&first.host, &first.machine).await?;
        let given_up = fact.events.iter().any(|event| event.kind == "update" && event.status == "started");
        let refused = fact.refused_update.as_ref().filter(|refused| refused.instance_id == bad.instance_id);
        let says_why = refused.is_some_and(|refused| refused.reason.contains("manifest"));
        let stands = fact.state == MachineState::Started && fact.instance_id == first.instance_id;
        (given_up && says_why && stands).then_some(())
    })
    .await;
    assert_eq!(host.driver.starts(first.machine.as_str()), 1, "the old version never stopped");

    let second = host.placement(1, 3);
    control.put(&second).await;
    host.told(&second, MachineState::Started).await;
    assert_eq!(host.driver.starts(first.machine.as_str()), 2);

    let mut labelled = second.clone();
    labelled.config.metadata.insert("k".into(), "v".into());
    host.call_place(&labelled).await.unwrap();
    let journal = host.journal();
    assert!(journal.machines[0].row.contains("\"k\":\"v\""), "metadata is swapped");
    assert_eq!(host.driver.starts(first.machine.as_str()), 2, "without a stop");
}

#[tokio::test]
async fn tombstones_are_acknowledged_also_for_what_was_never_here() {
    let control = Control::start().await;
    let host = Host::started(&control).await;
    let first = host.placement(1, 1);
    host.launched(&first).await;
    for n in [1, 7] {
        let tombstone = Placement { destroy: true, force: n == 7, ..host.placement(n, 1) };
        control.put(&tombstone).await;
        host.told(&tombstone, MachineState::Destroyed).await;
        control.delete_row(&tombstone.host, &tombstone.machine).await;
        host.until("the host forgets it", async || {
            control.fact(&tombstone.host, &tombstone.machine).await.is_none().then_some(())
        })
        .await;
    }
    assert!(host.journal().machines.is_empty());
    assert_eq!(std::fs::read_dir(host.dir.join("machines")).map(Iterator::count).unwrap_or(0), 0);
}

#[tokio::test]
async fn a_row_that_is_missing_destroys_nothing() {
    let control = Control::start().await;
    let host = Host::started(&control).await;
    let (kept, witness) = (host.placement(1, 1), host.placement(2, 1));
    host.launched(&kept).await;
    control.delete_row(&kept.host, &kept.machine).await;
    host.launched(&witness).await;
    assert_eq!(control.fact(&kept.host, &kept.machine).await.unwrap().state, MachineState::Started);
    let request = http::Request::new(godwit_base::http::client::empty());
    let metrics = host.client.send("/metrics", request, crate::host::DEADLINE).await.unwrap();
    let text = http_body_util::BodyExt::collect(metrics.into_body()).await.unwrap().to_bytes();
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("godwit_agent_unplaced_machines 1"), "{text}");
}

#[tokio::test]
async fn a_new_agent_finds_its_machines_and_leaves_them_alone() {
    let control = Control::start().await;
    let mut host = Host::started(&control).await;
    let (runs, ends) = (host.placement(1, 1), host.placement(2, 1));
    host.launched(&runs).await;
    let before = host.launched(&ends).await;
    host.stop().await;
    let folder = host.dir.join("machines");
    let file = |placement: &Placement| folder.join(placement.machine.as_str()).join("run/fake.json");
    let untouched = std::fs::read(file(&runs)).unwrap();
    // The second one fails while nobody looks.
    let text = std::fs::read_to_string(file(&ends)).unwrap();
    let mut fake: serde_json::Value = serde_json::from_str(&text).unwrap();
    let run = fake["handle"]["instance"].clone();
    fake["exit"] = serde_json::json!({
        "instance": run, "exit_code": 3, "signal": null, "oom_killed": false, "exited_at_ms": 1
    });
    std::fs::write(file(&ends), fake.to_string()).unwrap();
    host.start().await;
    host.until("its end is noticed and answered by the policy", async || {
        let fact = control.fact(&ends.host, &ends.machine).await?;
        let seen = fact.last_exit.as_ref().is_some_and(|exit| exit.exit_code == 3);
        (seen && fact.state == MachineState::Started && fact.stamp.seq > before.stamp.seq).then_some(())
    })
    .await;
    assert_eq!(std::fs::read(file(&runs)).unwrap(), untouched);
    assert_eq!(host.driver.starts(runs.machine.as_str()), 1);
}

#[tokio::test]
async fn after_a_reboot_what_ran_runs_again() {
    let control = Control::start().await;
    let mut host = Host::started(&control).await;
    let (runs, stands) = (host.placement(1, 1), host.placement(2, 1));
    let mut runs = runs;
    runs.config.restart.policy = RestartPolicy::No;
    host.launched(&runs).await;
    host.launched(&stands).await;
    host.call_stop(&stands).await.unwrap();
    host.told(&stands, MachineState::Stopped).await;
    host.stop().await;
    let file = host.machine_dir(&runs.machine).join("run/fake.json");
    let mut fake: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let run = fake["handle"]["instance"].clone();
    fake["exit"] = serde_json::json!({
        "instance": run, "exit_code": null, "signal": null, "oom_killed": false, "exited_at_ms": 1,
        "lost": "host_rebooted"
    });
    std::fs::write(&file, fake.to_string()).unwrap();
    host.reboot("boot-2");
    host.start().await;
    host.until("it runs again, whatever its restart policy", async || {
        (host.driver.starts(runs.machine.as_str()) == 2).then_some(())
    })
    .await;
    host.told(&runs, MachineState::Started).await;
    host.restart().await;
    host.launched(&host.placement(3, 1)).await;
    assert_eq!(host.driver.starts(runs.machine.as_str()), 2, "one reboot, one start");
    assert_eq!(host.driver.starts(stands.machine.as_str()), 1);
}

#[tokio::test]
async fn a_wiped_folder_is_a_new_host() {
    let control = Control::start().await;
    let mut host = Host::started(&control).await;
    let before = host.id().unwrap();
    host.restart().await;
    assert_eq!(host.id().unwrap(), before, "the identity is kept");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(host.dir.join("identity.json")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    host.stop().await;
    std::fs::remove_dir_all(&host.dir).unwrap();
    host.start().await;
    assert_ne!(host.id().unwrap(), before);
    host.launched(&host.placement(1, 1)).await;
}

#[tokio::test]
async fn images_that_no_machine_uses_are_collected_and_others_are_kept() {
    let control = Control::start().await;
    let mut host = Host::new(&control).await;
    host.extra = "[images]\ncollect_interval = '100ms'\ncollect_grace = '0s'\n";
    host.start().await;
    let (kept, first) = (host.placement(1, 1), host.placement(2, 1));
    let other = |placement: &Placement| Placement { image_digest: control.other_digest.clone(), ..placement.clone() };
    host.launched(&other(&kept)).await;
    host.launched(&first).await;
    let blob = |digest: &str| host.dir.join("images/blobs/sha256").join(digest.trim_start_matches("sha256:"));
    assert!(blob(&control.image_digest).exists() && blob(&control.other_digest).exists());
    let second = other(&host.placement(2, 2));
    control.put(&second).await;
    host.told(&second, MachineState::Started).await;
    host.until("the old image is collected", async || (!blob(&control.image_digest).exists()).then_some(())).await;
    assert!(blob(&control.other_digest).exists(), "never one in use");
}
