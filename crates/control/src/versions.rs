//! The versions of a Machine that are no longer wanted, and putting one of them back when the host that runs it would
//! not take a newer one. One way for whoever learns of it: the update's own call, or the reconciler.

use godwit_api::row::{MachineRow, OlderVersion, VERSIONS_KEPT};
use godwit_api::{ApiError, InstanceId, keys};
use godwit_base::clock;
use godwit_store::{Compare, Op, Txn};

use crate::control::Control;
use crate::mounts;
use crate::placing::{claim_ports, release_ports};
use crate::rows::json;
use crate::subject::machine_placement;
use crate::validate::raw_ports;
use crate::world::{Known, World};

/// Remembers the present version of `row` before it is changed.
pub(crate) fn remember(row: &mut MachineRow) {
    row.versions.insert(0, (row.instance_id.clone(), row.config.clone()));
    row.versions.truncate(VERSIONS_KEPT);
    let older = OlderVersion {
        instance_id: row.instance_id.clone(),
        name: row.name.clone(),
        image_ref: row.image_ref.clone(),
        skip_service_registration: row.skip_service_registration,
    };
    row.older.insert(0, older);
    row.older.truncate(VERSIONS_KEPT);
}

/// The row as it was at an older version; `None` when that is not known any more.
fn at_version(row: &MachineRow, version: &InstanceId) -> Option<MachineRow> {
    let at = row.versions.iter().position(|(older, _)| older == version)?;
    let older = row.older.iter().position(|older| older.instance_id == *version)?;
    let mut back = row.clone();
    let OlderVersion { instance_id, name, image_ref, skip_service_registration } = row.older.get(older)?.clone();
    back.config = row.versions.get(at)?.1.clone();
    back.versions.drain(..=at);
    back.older.drain(..=older);
    back.updated_at_ms = clock::unix_ms();
    Some(MachineRow { instance_id, name, image_ref, skip_service_registration, ..back })
}

impl Control {
    /// Writes `version` back in place of the present one, with all that hangs on it. False when that is not known any
    /// more, or somebody has changed the Machine meanwhile.
    pub(crate) async fn put_back(&self, new: &Known<MachineRow>, version: &InstanceId) -> Result<bool, ApiError> {
        let txn = {
            let world = self.world();
            match back_txn(&world, new, version)? {
                Some(txn) => txn,
                None => return Ok(false),
            }
        };
        Ok(self.commit(txn).await?.succeeded)
    }
}

fn back_txn(world: &World, new: &Known<MachineRow>, version: &InstanceId) -> Result<Option<Txn>, ApiError> {
    let Some(placement) = world.placement(&new.host, &new.id).filter(|placement| !placement.destroy) else {
        return Ok(None);
    };
    if placement.instance_id != new.instance_id || new.moving.is_some() || new.destroyed_at_ms.is_some() {
        return Ok(None);
    }
    let Some(back) = at_version(new, version) else { return Ok(None) };
    let (machine_key, placement_key) = (keys::machine(&new.app, &new.id), keys::placement(&new.host, &new.id));
    let mut txn = Txn::of([
        json(machine_key.clone(), &back)?,
        world.placement_op(&machine_placement(&back, &placement.network, placement.launch))?,
    ])
    .when(Compare::unchanged(machine_key, new.revision))
    .when(Compare::unchanged(placement_key, placement.revision));
    let (old_ports, new_ports) = (raw_ports(&back.config), raw_ports(&new.config));
    claim_ports(world, &back.app, &old_ports, &mut txn)?;
    let given_back: Vec<u16> = new_ports.into_iter().filter(|port| !old_ports.contains(port)).collect();
    release_ports(world, new, &given_back, &mut txn);
    let claim = mounts::claim(world, &back.app, &back.config.mounts, &back.id, None)?;
    claim.write(&back.id, &mut txn)?;
    mounts::release(world, new, &back.config, &mut txn)?;
    if back.name != new.name {
        txn.then.push(Op::delete(keys::machine_name(&new.app, &new.name)));
        txn.then.push(json(keys::machine_name(&back.app, &back.name), &back.id)?);
    }
    Ok(Some(txn))
}
