//! What `godwit scale` decides: which Machines are of one kind, which is cloned, which go. It asks nobody and changes
//! nothing.

use std::collections::BTreeMap;

use godwit_api::machine::{Machine, MachineState};
use serde::Serialize;

use super::machine::changes;
use super::machine::show::{image_of, size_of};
use crate::error::Result;

/// More at once is a slip of the finger.
pub const COUNT_MAX: u16 = 500;

/// Machines of one region, image and size.
#[derive(Serialize, Debug, PartialEq, Eq)]
pub struct Group {
    pub region: String,
    pub image: String,
    pub size: String,
    pub count: usize,
    pub started: usize,
}

/// A configuration without what every Machine has of its own: the ids of its volumes.
pub fn kind(machine: &Machine) -> Result<serde_json::Map<String, serde_json::Value>> {
    let mut config = machine.config.clone();
    for mount in &mut config.mounts {
        (mount.volume, mount.name, mount.size_gb) = (String::new(), String::new(), 0);
    }
    // What an image is called is no part of what it is: the digests are compared.
    config.image = String::new();
    changes::value_of(&config)
}

/// The first two that differ.
pub fn unlike(machines: &[Machine]) -> Option<(&Machine, &Machine)> {
    let (first, rest) = machines.split_first()?;
    let alike = |other: &Machine| {
        let kinds = (kind(first).ok(), kind(other).ok());
        kinds.0.is_some() && kinds.0 == kinds.1 && first.image_ref.digest == other.image_ref.digest
    };
    rest.iter().find(|other| !alike(other)).map(|other| (first, other))
}

/// The Machine to clone: one that runs rather than one that does not, then one of the region.
pub fn model<'a>(machines: &'a [Machine], region: Option<&str>) -> Option<&'a Machine> {
    machines.iter().min_by_key(|machine| {
        (machine.state != MachineState::Started, region.is_some_and(|region| region != machine.region))
    })
}

/// Those that go: the stopped first, then the newest; without `with_volumes` none that holds one. If too few may go,
/// their number.
pub fn leaving<'a>(machines: &[&'a Machine], number: usize, with_volumes: bool) -> Result<Vec<&'a Machine>, usize> {
    let mut may: Vec<&Machine> =
        machines.iter().copied().filter(|machine| with_volumes || machine.config.mounts.is_empty()).collect();
    if may.len() < number {
        return Err(may.len());
    }
    let at_rest = [MachineState::Created, MachineState::Stopped, MachineState::Failed];
    // RFC 3339 in UTC sorts as text.
    may.sort_by(|a, b| {
        let rests = |machine: &Machine| at_rest.contains(&machine.state);
        rests(b).cmp(&rests(a)).then_with(|| b.created_at.cmp(&a.created_at)).then_with(|| b.id.cmp(&a.id))
    });
    may.truncate(number);
    Ok(may)
}

pub fn groups(machines: &[Machine]) -> Vec<Group> {
    let mut groups: BTreeMap<(String, String, String), (usize, usize)> = BTreeMap::new();
    for machine in machines {
        let group = groups.entry((machine.region.clone(), image_of(machine), size_of(machine))).or_default();
        group.0 += 1;
        group.1 += usize::from(machine.state == MachineState::Started);
    }
    let group = |((region, image, size), (count, started))| Group { region, image, size, count, started };
    groups.into_iter().map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::machine::show::sample;
    use godwit_api::config::Mount;

    fn machine(id: &str, state: MachineState, day: u8, volume: Option<&str>) -> Machine {
        let mut machine = Machine { name: id.into(), state, ..sample() };
        machine.id = godwit_api::MachineId::parse(&format!("{id:0>14}")).expect("an id");
        machine.created_at = format!("2026-01-{day:02}T00:00:00Z");
        let mount = |volume: &str| Mount { volume: volume.into(), path: "/data".into(), ..Mount::default() };
        machine.config.mounts = volume.map(mount).into_iter().collect();
        machine
    }

    #[test]
    fn the_stopped_go_first_then_the_newest_and_volumes_are_spared_unless_told() {
        use MachineState::{Started, Stopped};
        let all = [
            machine("1", Started, 1, None),
            machine("2", Started, 4, None),
            machine("3", Stopped, 2, None),
            machine("4", Started, 3, None),
            machine("5", Stopped, 9, Some("vol_00000000000001")),
        ];
        let all: Vec<&Machine> = all.iter().collect();
        let names = |number, with_volumes| {
            leaving(&all, number, with_volumes)
                .map(|going| going.iter().map(|machine| machine.name.clone()).collect::<Vec<_>>())
        };
        assert_eq!(names(3, false).unwrap(), ["3", "2", "4"]);
        assert_eq!(names(2, true).unwrap(), ["5", "3"]);
        assert_eq!(names(5, false), Err(4), "one holds a volume");
        assert_eq!(names(5, true).unwrap().len(), 5);
    }

    #[test]
    fn machines_are_of_one_kind_whatever_their_names_and_volumes() {
        use MachineState::{Started, Stopped};
        let mut all = vec![
            machine("1", Stopped, 1, Some("vol_00000000000001")),
            machine("2", Started, 2, Some("vol_00000000000002")),
        ];
        assert!(unlike(&all).is_none() && unlike(&[]).is_none());
        assert_eq!(model(&all, None).unwrap().name, "2", "one that runs");
        assert_eq!(groups(&all).iter().map(|group| (group.count, group.started)).collect::<Vec<_>>(), [(2, 1)]);
        all[1].config.env.insert("K".into(), "v".into());
        assert!(unlike(&all).is_some());
        all[1].config.env.clear();
        all[1].image_ref.digest = "sha256:2".into();
        assert!(unlike(&all).is_some(), "another image under the same name");
    }
}
