//! What of a Machine and of the host others see: the door's entry, the fact, the checks that look after it. It must
//! not decide what happens to a Machine.

use std::collections::BTreeSet;

use godwit_api::config::MachineConfig;
use godwit_api::door::{Closing, DoorMachine, MovingTo};
use godwit_api::fact::{FactStamp, HostFact, MachineFact, RefusedUpdate};
use godwit_api::ids::MachineId;
use godwit_api::keys;
use godwit_api::machine::CheckStatus;
use godwit_api::migration::{MigrationFact, MoveRole};
use godwit_api::volume::{HydrationFact, PlacedVolume, VolumeFact};
use godwit_machine::Step;
use godwit_store::journal::Write;

use super::rows::json;
use super::{Command, Engine, NamedCheck, Output, Seen, Slot, Watched};
use crate::facts::Fact;

impl Engine {
    /// Shows door, host API and fleet a Machine as it is now. `durable`: the fact is journaled until it has arrived;
    /// what can be drawn up again at any time (checks) need not be.
    pub(super) fn show(&mut self, machine: &MachineId, durable: bool, out: &mut Output) {
        let seq = self.next_seq();
        let Some(slot) = self.slots.get(machine) else { return };
        let fact = self.fact(slot, seq);
        let key = keys::machine_fact(&self.settings.host, machine);
        let value = Some(json(&fact));
        if durable {
            out.batch.push(Write::Fact { key: key.clone(), seq, value: value.clone() });
        }
        out.facts.push(Fact { key, seq, value });
        let record = &slot.life.record;
        let past = record.is_destroyed() || (!record.held && slot.life.job.is_none() && !record.is_handed_off());
        out.seen.push(match past || record.is_volume() {
            true => Seen::Past { fact: Box::new(fact) },
            false => Seen::Machine { door: Box::new(self.door_machine(slot)), fact: Box::new(fact) },
        });
    }

    pub(super) fn show_all(&mut self, out: &mut Output) {
        let machines: Vec<MachineId> = self.slots.keys().cloned().collect();
        for machine in machines {
            self.show(&machine, false, out);
        }
    }

    fn fact(&self, slot: &Slot, seq: u64) -> MachineFact {
        let record = &slot.life.record;
        MachineFact {
            machine: record.placement.machine.clone(),
            app: record.placement.app.clone(),
            host: self.settings.host.clone(),
            stamp: self.stamp(seq),
            epoch: record.epoch(),
            proof: record.placement.proof.clone(),
            instance_id: record.placement.instance_id.clone(),
            state: record.state,
            updated_at_ms: record.updated_at_ms,
            started_at_ms: record.started_at_ms,
            restart_count: record.restart_count,
            last_exit: record.last_exit.clone(),
            events: slot.events.iter().cloned().collect(),
            checks: slot.checks.values().cloned().collect(),
            unreachable: slot.reach.closed.iter().map(|one| one.why.clone()).collect(),
            closed_ports: slot.reach.closed.clone(),
            refused: record.refused.clone(),
            refused_update: record.refused_update.as_ref().map(|(_, instance_id)| RefusedUpdate {
                instance_id: instance_id.clone(),
                reason: record.refused_update_reason.clone().unwrap_or_default(),
            }),
            held: record.held,
            migration: record.moving.as_ref().map(|moving| MigrationFact {
                id: moving.migration.clone(),
                role: moving.role,
                part: moving.part,
                step: slot.life.job.as_ref().map(|job| job.step.as_str().to_owned()),
                reason: moving.reason.clone(),
                was_running: moving.was_running,
                at_ms: moving.at_ms.clone(),
                precopy: slot.precopy.clone().filter(|_| moving.role == MoveRole::Target),
            }),
            volume: record.placement.volume.as_ref().map(|volume| self.volume_fact(slot, volume)),
        }
    }

    fn volume_fact(&self, slot: &Slot, volume: &PlacedVolume) -> VolumeFact {
        let record = &slot.life.record;
        let hydration = record.hydration.as_ref().map(|hydration| HydrationFact {
            migration: Some(hydration.migration.clone()),
            source: Some(hydration.source.clone()),
            ..slot.hydration.clone().unwrap_or_default()
        });
        VolumeFact {
            id: volume.id.clone(),
            size_bytes: volume.size_bytes,
            allocated_bytes: slot.allocated_bytes,
            hydration,
            hydrated: slot.hydration.clone().filter(|fact| fact.verified),
            lent_to: record.lent.as_ref().map(|lent| lent.to.clone()),
        }
    }

    fn stamp(&self, seq: u64) -> FactStamp {
        FactStamp { incarnation: self.settings.incarnation.clone(), seq }
    }

    fn door_machine(&self, slot: &Slot) -> DoorMachine {
        let placement = &slot.life.record.placement;
        let closing = slot.life.closing();
        // Until its door closes it serves as ever.
        let departs = slot
            .life
            .job
            .as_ref()
            .is_some_and(|job| job.kind.is_departure() && job.is_forward() && job.step != Step::PrepareExport);
        let leaves = departs || slot.life.record.is_handed_off();
        let leaving = slot.life.record.moving.as_ref().filter(|_| leaves);
        DoorMachine {
            machine: placement.machine.clone(),
            app: placement.app.clone(),
            epoch: placement.epoch,
            state: slot.life.record.state,
            private_ip: placement.private_ip,
            // Known to the network alone.
            private_ip4: None,
            services: placement.config.services.clone(),
            closing: closing.map(|token| Closing {
                drain_timeout_ms: leaving.map_or(self.settings.drain_timeout_ms, |moving| moving.drain_timeout_ms),
                token,
            }),
            moving: leaving.map(|moving| MovingTo {
                host: moving.target.clone(),
                door_addr: moving.target_door.clone(),
                epoch: moving.epoch,
            }),
        }
    }

    pub(super) fn tell_host(&mut self, now_ms: u64, out: &mut Output) {
        let seq = self.next_seq();
        let fact = HostFact {
            host: self.settings.host.clone(),
            stamp: self.stamp(seq),
            boot_id: self.settings.boot_id.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            capacity: self.settings.capacity,
            used: self.used(),
            measured: self.measured,
            applied_revision: self.applied_revision,
            machines: self.slots.values().map(|slot| &slot.life.record).filter(|r| r.held && !r.is_volume()).count()
                as u64,
            drivers: self.settings.drivers.clone(),
            published_at_ms: now_ms,
        };
        out.facts.push(Fact { key: keys::host_fact(&self.settings.host), seq, value: Some(json(&fact)) });
    }

    /// Begins and ends the looking after a Machine's health as its run and its configuration come and go.
    pub(super) fn look_after(&mut self, machine: &MachineId, out: &mut Output) {
        let Some(slot) = self.slots.get_mut(machine) else { return };
        let record = &slot.life.record;
        let wanted = match &record.run {
            Some(run) if record.running && !slot.life.is_adopting() => {
                let (checks, ports) = (named_checks(&record.placement.config), tcp_ports(&record.placement.config));
                let private_ip = record.placement.private_ip;
                let any = !checks.is_empty() || !ports.is_empty();
                any.then(|| Watched { run: run.clone(), private_ip, checks, ports })
            }
            _ => None,
        };
        if wanted == slot.checked {
            return;
        }
        slot.checks.clear();
        slot.reach.closed.clear();
        let machine = machine.clone();
        out.commands.push(match &wanted {
            None => Command::EndChecks { machine },
            Some(watched) => Command::Check {
                machine,
                watched: Box::new(watched.clone()),
                opened: slot.reach.opened(&record.placement.instance_id),
            },
        });
        slot.checked = wanted;
    }

    pub(super) fn checked(&mut self, machine: &MachineId, run: &str, status: CheckStatus, out: &mut Output) {
        let Some(slot) = self.slots.get_mut(machine) else { return };
        let known = slot
            .checked
            .as_ref()
            .is_some_and(|watched| watched.run == run && watched.checks.iter().any(|check| check.name == status.name));
        if !known {
            return;
        }
        let before = slot.checks.insert(status.name.clone(), status.clone());
        if before.is_none_or(|before| before.status != status.status) {
            self.show(machine, false, out);
        }
    }
}

/// The ports that a configuration's services forward TCP to.
fn tcp_ports(config: &MachineConfig) -> BTreeSet<u16> {
    let tcp = config.services.iter().filter(|service| service.protocol != "udp");
    tcp.map(|service| service.internal_port).collect()
}

/// All checks of a configuration under the names that clients of the platform know: its own under their own, those of
/// services as `servicecheck-00-http-8080`. A check without a port is its service's.
fn named_checks(config: &MachineConfig) -> Vec<NamedCheck> {
    let own = config.checks.iter().map(|(name, check)| NamedCheck { name: name.clone(), check: check.clone() });
    let of_services = config.services.iter().flat_map(|service| service.checks.iter().map(move |c| (service, c)));
    let of_services = of_services.enumerate().map(|(number, (service, check))| {
        let port = check.port.unwrap_or(service.internal_port);
        let kind = check.kind.as_deref().unwrap_or("tcp");
        NamedCheck {
            name: format!("servicecheck-{number:02}-{kind}-{port}"),
            check: godwit_api::config::Check { port: Some(port), ..check.clone() },
        }
    });
    own.chain(of_services).collect()
}
