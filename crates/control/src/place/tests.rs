//! Placement against a plain model: what may be chosen, what is chosen, and what is said when nothing is.

use godwit_api::fact::Resources;
use godwit_api::{AppName, HostId, MachineId};
use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
struct Model {
    region: u8,
    cordoned: bool,
    lost: bool,
    memory_mb: u64,
    used_mb: u64,
    of_app: u8,
}

fn host(number: usize) -> HostId {
    HostId::parse(&format!("h{number}")).unwrap()
}
fn app() -> AppName {
    AppName::parse("app").unwrap()
}
fn memory(memory_mb: u64) -> Resources {
    Resources { cpu_millis: 1, memory_mb, disk_mb: 1 }
}

fn model() -> impl Strategy<Value = Model> {
    (0..3u8, any::<bool>(), any::<bool>(), 256..4096u64, 0..4096u64, 0..4u8).prop_map(
        |(region, cordoned, lost, memory_mb, used_mb, of_app)| Model {
            region,
            cordoned,
            lost,
            memory_mb,
            used_mb: used_mb.min(memory_mb),
            of_app,
        },
    )
}

fn snapshot(models: &[Model]) -> Snapshot {
    let mut snapshot = Snapshot::new();
    let mut machine = 0;
    for (number, model) in models.iter().enumerate() {
        let id = host(number);
        snapshot.host(&id, &HostEntry { region: format!("r{}", model.region), cordoned: model.cordoned });
        snapshot.lost(&id, model.lost);
        let capacity = Resources { cpu_millis: 64_000, memory_mb: model.memory_mb, disk_mb: 1_000_000 };
        snapshot.report(&id, capacity, memory(model.used_mb), 100);
        for _ in 0..model.of_app {
            machine += 1;
            // Already applied: within what the host reports as used.
            snapshot.placed(&id, &MachineId::from_bits(machine), &app(), memory(1), 50);
        }
    }
    snapshot
}

fn takes(model: &Model, region: Option<u8>, need_mb: u64) -> bool {
    region.is_none_or(|region| region == model.region)
        && !model.cordoned
        && !model.lost
        && need_mb <= model.memory_mb - model.used_mb
}

proptest! {
    #[test]
    fn the_choice_is_allowed_and_the_most_spread(
        models in proptest::collection::vec(model(), 0..12),
        region in proptest::option::of(0..3u8),
        need_mb in 1..3000u64,
        refused in 0..12usize,
        tie: u64,
    ) {
        let snapshot = snapshot(&models);
        let name = region.map(|region| format!("r{region}"));
        let refused_id = [host(refused)];
        let app = app();
        let request = Request {
            app: &app, region: name.as_deref(), need: memory(need_mb), running: memory(need_mb), cpus: 1,
            only: None, refused: &refused_id, tie,
        };
        let allowed: Vec<usize> = (0..models.len())
            .filter(|number| *number != refused && takes(&models[*number], region, need_mb))
            .collect();
        match snapshot.place(&request) {
            Ok(chosen) => {
                let chosen = (0..models.len()).find(|number| host(*number) == chosen).unwrap();
                prop_assert!(allowed.contains(&chosen));
                let fewest = allowed.iter().map(|number| models[*number].of_app).min().unwrap();
                prop_assert_eq!(models[chosen].of_app, fewest);
            }
            Err(why) => {
                prop_assert!(allowed.is_empty());
                prop_assert_eq!(why.hosts as usize, models.len());
                let sum = why.other_region + why.cordoned + why.lost + why.silent + why.refused + why.too_small + why.full;
                prop_assert_eq!(sum, why.hosts);
            }
        }
    }

    /// However many are placed before a host reports again, no host is given more than it has.
    #[test]
    fn placements_that_hosts_have_not_applied_yet_count(
        models in proptest::collection::vec(model(), 1..6),
        needs in proptest::collection::vec(1..1500u64, 1..40),
    ) {
        let mut snapshot = snapshot(&models);
        let mut given = vec![0; models.len()];
        let app = app();
        for (number, need_mb) in needs.iter().enumerate() {
            let request = Request {
                app: &app, region: None, need: memory(*need_mb), running: memory(*need_mb), cpus: 1, only: None, refused: &[], tie: 7,
            };
            if let Ok(chosen) = snapshot.place(&request) {
                snapshot.placed(&chosen, &MachineId::from_bits(1000 + number as u64), &app, memory(*need_mb), 101 + number as u64);
                given[(0..models.len()).find(|number| host(*number) == chosen).unwrap()] += need_mb;
            }
        }
        for (model, given) in models.iter().zip(given) {
            prop_assert!(given <= model.memory_mb - model.used_mb);
        }
    }
}

#[test]
fn a_reservation_that_is_given_back_leaves_no_trace() {
    let models = [Model { region: 0, cordoned: false, lost: false, memory_mb: 1000, used_mb: 0, of_app: 0 }];
    let mut snapshot = snapshot(&models);
    let (app, machine) = (app(), MachineId::from_bits(9));
    snapshot.placed(&host(0), &machine, &app, memory(1000), RESERVED);
    assert!(!snapshot.has_room(&host(0), memory(1)));
    snapshot.unplaced(&host(0), &machine);
    assert!(snapshot.has_room(&host(0), memory(1000)));
    assert!(snapshot.spread.is_empty());
}

#[test]
fn a_reason_names_what_excluded_the_hosts() {
    let base = Model { region: 0, cordoned: false, lost: false, memory_mb: 512, used_mb: 512, of_app: 0 };
    let models = [base.clone(), Model { cordoned: true, ..base.clone() }, Model { region: 1, ..base }];
    let snapshot = snapshot(&models);
    let app = app();
    let mut request = Request {
        app: &app,
        region: Some("r0"),
        need: memory(256),
        running: memory(256),
        cpus: 1,
        only: None,
        refused: &[],
        tie: 0,
    };
    let why = snapshot.place(&request).unwrap_err();
    assert_eq!(why.to_string(), "no host can take the Machine: of 3 hosts 1 in another region, 1 cordoned, 1 full");
    assert!(!why.never_fits());
    request.region = Some("nowhere");
    assert!(snapshot.place(&request).unwrap_err().no_region());
    assert!(!snapshot.fits_anywhere(memory(4096), 1) && !snapshot.fits_anywhere(memory(1), 128));
    assert!(snapshot.fits_anywhere(memory(512), 1));
}
