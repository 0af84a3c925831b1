//! What a placement, or all placements of a host at one revision, ask of what the host holds. A plan is values; it is
//! carried out elsewhere. The same judgement serves a row that was pulled and a row that was sent.

use std::collections::{BTreeMap, BTreeSet};

use godwit_api::ids::MachineId;
use godwit_api::row::Placement;

use crate::record::Record;

/// What one placement means for a Machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is new here, or comes back at a higher epoch.
    Create,
    /// Another configuration: stop, swap, start.
    Update,
    /// The same configuration in other words (metadata, services, a higher epoch): swapped without a stop.
    Adjust,
    Destroy,
    /// It is so already.
    Same,
    /// This host has said no at this epoch, and stands by it.
    Refused {
        reason: String,
    },
    /// An older epoch than the one that is held.
    Stale,
}

pub fn judge(record: Option<&Record>, placement: &Placement) -> Verdict {
    let Some(record) = record else {
        return if placement.destroy { Verdict::Destroy } else { Verdict::Create };
    };
    let held = &record.placement;
    if placement.epoch < held.epoch {
        return Verdict::Stale;
    }
    // What is lent may be destroyed: then nobody will ask for it any more.
    let ends_loan = placement.destroy && record.lent.is_some();
    if record.is_handed_off() && placement.epoch == held.epoch && !ends_loan {
        return Verdict::Stale;
    }
    if record.is_arriving() && placement.epoch == held.epoch && !placement.destroy {
        return Verdict::Same;
    }
    if record.is_destroyed() {
        return match (placement.destroy, placement.epoch > held.epoch) {
            (true, _) => Verdict::Same,
            // A Machine that was destroyed here lives on elsewhere and comes back under a new epoch.
            (false, true) => Verdict::Create,
            (false, false) => Verdict::Stale,
        };
    }
    if placement.destroy {
        return Verdict::Destroy;
    }
    let this = (placement.epoch, placement.instance_id.clone());
    if let Some(reason) = &record.refused {
        let same = (held.epoch, held.instance_id.clone()) == this;
        return if same { Verdict::Refused { reason: reason.clone() } } else { Verdict::Create };
    }
    if !record.held {
        return Verdict::Create;
    }
    if record.refused_update.as_ref() == Some(&this) {
        let why = record.refused_update_reason.clone();
        let reason = why.unwrap_or_else(|| "this configuration could not be applied here".into());
        return Verdict::Refused { reason };
    }
    if placement.instance_id != held.instance_id {
        return Verdict::Update;
    }
    // `launch` and `force` say how to get there; they are no part of what is held.
    let wanted = Placement { launch: held.launch, force: held.force, ..placement.clone() };
    if wanted == *held { Verdict::Same } else { Verdict::Adjust }
}

/// What a pull of all placements leads to. Machines appear in the order of their ids.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Rows to act on.
    pub place: Vec<Placement>,
    /// Machines whose row is gone and of which nothing is left but the memory: forget them, and take back the fact.
    pub forget: Vec<MachineId>,
    /// Machines that are held although no row asks for them: told, and left alone.
    pub unplaced: Vec<MachineId>,
}

/// `busy`: Machines about which a job is running. They are judged again by the next pull.
pub fn plan(
    rows: &BTreeMap<MachineId, Placement>,
    held: &BTreeMap<MachineId, Record>,
    busy: &BTreeSet<MachineId>,
) -> Plan {
    let mut plan = Plan::default();
    for (id, placement) in rows {
        match judge(held.get(id), placement) {
            Verdict::Create | Verdict::Update | Verdict::Adjust | Verdict::Destroy => {
                plan.place.push(placement.clone())
            }
            Verdict::Same | Verdict::Refused { .. } | Verdict::Stale => {}
        }
    }
    for (id, record) in held.iter().filter(|(id, _)| !rows.contains_key(*id)) {
        let refused = record.refused.is_some() && !record.running;
        let nothing_left = record.is_destroyed() || refused || (record.is_handed_off() && record.lent.is_none());
        match (nothing_left, busy.contains(id)) {
            (true, false) => plan.forget.push(id.clone()),
            (true, true) => {}
            // Its row comes with the handoff.
            (false, _) if record.is_arriving() || record.lent.is_some() => {}
            (false, _) => plan.unplaced.push(id.clone()),
        }
    }
    plan
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use godwit_api::config::MachineConfig;
    use godwit_api::ids::{AppName, Epoch, HostId, InstanceId};
    use godwit_api::machine::MachineState;

    pub(crate) fn placement(n: u64, epoch: u64, version: u64) -> Placement {
        Placement {
            machine: MachineId::from_bits(n),
            app: AppName::parse("app").unwrap(),
            host: HostId::parse("w1").unwrap(),
            epoch: Epoch { generation: 1, n: epoch },
            instance_id: InstanceId::from_parts(version, 0),
            name: "m".into(),
            region: "fra".into(),
            network: "default".into(),
            private_ip: "fdaa::1".parse().unwrap(),
            image_digest: "sha256:00".into(),
            image_name: "demo:latest".into(),
            config: MachineConfig { image: "demo".into(), ..MachineConfig::default() },
            launch: true,
            destroy: false,
            force: false,
            proof: String::new(),
            volume: None,
        }
    }

    fn held(placement: Placement) -> Record {
        Record { held: true, state: MachineState::Stopped, ..Record::blank(placement, 0) }
    }

    #[test]
    fn each_row_is_judged_by_epoch_version_and_what_is_held() {
        let base = placement(1, 5, 1);
        let record = held(base.clone());
        let judged = |placement: &Placement| judge(Some(&record), placement);
        assert_eq!(judge(None, &base), Verdict::Create);
        assert_eq!(judged(&base), Verdict::Same);
        assert_eq!(judged(&placement(1, 4, 9)), Verdict::Stale);
        assert_eq!(judged(&placement(1, 5, 2)), Verdict::Update);
        assert_eq!(judged(&placement(1, 6, 1)), Verdict::Adjust);
        assert_eq!(judged(&Placement { launch: false, ..base.clone() }), Verdict::Same);
        let mut labelled = base.clone();
        labelled.config.metadata.insert("k".into(), "v".into());
        assert_eq!(judged(&labelled), Verdict::Adjust);
        let tombstone = Placement { destroy: true, ..base.clone() };
        assert_eq!(judged(&tombstone), Verdict::Destroy);
        assert_eq!(judge(None, &tombstone), Verdict::Destroy);
        let destroyed = Record { state: MachineState::Destroyed, ..record.clone() };
        assert_eq!(judge(Some(&destroyed), &tombstone), Verdict::Same);
        assert_eq!(judge(Some(&destroyed), &base), Verdict::Stale);
        assert_eq!(judge(Some(&destroyed), &placement(1, 6, 1)), Verdict::Create);
    }

    #[test]
    fn a_refusal_stands_for_its_epoch_and_version() {
        let base = placement(1, 5, 1);
        let refused = Record { refused: Some("full".into()), ..Record::blank(base.clone(), 0) };
        assert_eq!(judge(Some(&refused), &base), Verdict::Refused { reason: "full".into() });
        assert_eq!(judge(Some(&refused), &placement(1, 6, 1)), Verdict::Create);
        let update = placement(1, 5, 2);
        let stays = Record { refused_update: Some((update.epoch, update.instance_id.clone())), ..held(base) };
        assert!(matches!(judge(Some(&stays), &update), Verdict::Refused { .. }));
    }

    #[test]
    fn a_missing_row_destroys_nothing() {
        let (kept, gone, no) = (placement(1, 1, 1), placement(2, 1, 1), placement(3, 1, 1));
        let records = BTreeMap::from([
            (kept.machine.clone(), held(kept.clone())),
            (gone.machine.clone(), Record { state: MachineState::Destroyed, ..held(gone.clone()) }),
            (no.machine.clone(), Record { refused: Some("no".into()), ..Record::blank(no.clone(), 0) }),
        ]);
        let plan = super::plan(&BTreeMap::new(), &records, &BTreeSet::new());
        assert_eq!(plan.unplaced, [kept.machine]);
        assert_eq!(plan.forget, [gone.machine, no.machine]);
        assert!(plan.place.is_empty());
    }
}
