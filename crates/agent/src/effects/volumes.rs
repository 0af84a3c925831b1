//! The steps about volumes and moves. Each may run again at any time, after it was cut off at any instant, and comes to
//! a volume only under that volume's lock.

use std::path::PathBuf;
use std::time::Duration;

use godwit_api::Method;
use godwit_api::error::Status;
use godwit_api::ids::{Epoch, MachineId};
use godwit_api::machine::Acknowledged;
use godwit_api::row::Placement;
use godwit_api::ticket::{HandoffAnswer, HandoffAsk, Release, SignedTicket, TakeBackAnswer, Ticket};
use godwit_api::volume::{HydrationFact, PlacedVolume};
use godwit_base::backoff::Backoff;
use godwit_base::clock;
use godwit_base::http::client::{CallError, Client};
use godwit_base::telemetry::chain;
use godwit_driver::{VolumeFs as DriverFs, VolumeMount, volume};
use godwit_machine::record::Record;
use godwit_machine::{Fault, Hydration, JobKind, Outcome};
use godwit_volume::host::VolumeStatus;

use super::{Effects, within};
use crate::engine::{Input, Work};
use crate::organs::volumes::{Pair, VolumeFault};

/// A source holds a question open for a while.
const ASK_TIMEOUT: Duration = Duration::from_secs(30);
/// It is asked again so soon, then less often, for so long before the step counts as failed once.
const ASK_FIRST: Duration = Duration::from_millis(20);
const ASK_LONGEST: Duration = Duration::from_millis(500);
const ASK_ROUNDS: u32 = 60;
/// After a process has ended, the kernel unmounts what it had; slowly, when there is much to write.
const RELEASED_WITHIN: Duration = Duration::from_secs(30);
/// What else holds a volume's lock is short, but for a copy while its Machine is stopped, which is bounded.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// How often those who fill and those who serve are looked at.
const LOOK: Duration = Duration::from_millis(250);

/// A volume as a step comes to it.
struct Held {
    number: MachineId,
    placed: PlacedVolume,
    epoch: Epoch,
    hydration: Option<Hydration>,
}

impl Held {
    fn of(record: &Record) -> Option<Self> {
        Some(Self {
            number: record.placement.machine.clone(),
            placed: record.placement.volume.clone()?,
            epoch: record.epoch(),
            hydration: record.hydration.clone(),
        })
    }
}

pub(super) fn retry(error: &VolumeFault) -> Outcome {
    Outcome::Retry { reason: chain(error) }
}

fn abort(reason: String) -> Outcome {
    Outcome::Abort { fault: Fault::System, reason, exit: None }
}

/// The ticket that the job is about: it was verified when it was accepted.
pub(super) fn ticket_of(record: &Record) -> Result<(SignedTicket, Ticket), Outcome> {
    let signed = record.moving.as_ref().map(|moving| moving.signed.clone());
    let read = signed.ok_or_else(|| "it has none".to_owned()).and_then(|signed| {
        let ticket = signed.read().map_err(|error| error.to_string())?;
        Ok((signed, ticket))
    });
    read.map_err(|error| abort(format!("the move's ticket cannot be read: {error}")))
}

impl Effects {
    pub(super) async fn make_volume(&self, work: &Work) -> Outcome {
        let Some(placed) = &work.record.placement.volume else { return abort("it is not a volume".into()) };
        let _lock = self.shared.organs.volumes.lock(&work.machine).await;
        match self.shared.organs.volumes.create(&work.machine, placed).await {
            Ok(()) => Outcome::done(),
            Err(error) => retry(&error),
        }
    }

    pub(super) async fn remove_volume(&self, volume: &MachineId) -> Outcome {
        let _lock = self.shared.organs.volumes.lock(volume).await;
        match self.shared.organs.volumes.remove(volume).await {
            Ok(()) => Outcome::done(),
            Err(error) => retry(&error),
        }
    }

    /// What a step about a Machine or a volume comes to: those that it mounts, or itself; of one that arrives, as the
    /// ticket and the source's grant say.
    fn held(&self, work: &Work) -> Result<Vec<Held>, Outcome> {
        if work.job.kind.is_arrival() {
            let (signed, ticket) = ticket_of(&work.record)?;
            let grant = work.record.moving.as_ref().and_then(|moving| moving.grant.clone()).unwrap_or_default();
            let held = Hydration::of_move(&signed, &ticket, &grant).into_iter().filter_map(|(placement, hydration)| {
                let (number, epoch, placed) = (placement.machine, placement.epoch, placement.volume?);
                Some(Held { number, placed, epoch, hydration: Some(hydration) })
            });
            return Ok(held.collect());
        }
        if work.record.is_volume() {
            return Ok(Held::of(&work.record).into_iter().collect());
        }
        Ok(work.volumes.iter().filter_map(Held::of).collect())
    }

    pub(super) async fn attach_volumes(&self, work: &Work) -> Outcome {
        // Started ahead, and stopped at the source meanwhile by somebody else's wish.
        if work.job.kind.is_arrival() && !work.job.start && work.record.moving.is_some() {
            let killed = self.kill_process(work).await;
            if !matches!(killed, Outcome::Done { .. }) {
                return killed;
            }
        }
        match self.attach_all(work).await {
            Ok(_) => Outcome::done(),
            Err(outcome) => outcome,
        }
    }

    /// The devices, in the order of the mounts.
    async fn attach_all(&self, work: &Work) -> Result<Vec<PathBuf>, Outcome> {
        let mut devices = Vec::new();
        for held in self.held(work)? {
            let volumes = &self.shared.organs.volumes;
            let Ok(_lock) = tokio::time::timeout(LOCK_WAIT, volumes.lock(&held.number)).await else {
                let reason = format!("files are copied to or from volume {}, or a job is at it", held.placed.id);
                return Err(Outcome::Wait { reason });
            };
            // Taken back from another host, it may still be served to it: whoever writes is the only one.
            if held.hydration.is_none() {
                volumes.end_export(&held.number).await.map_err(|error| retry(&error))?;
            }
            let attached = volumes.attach(&held.number, &held.placed, held.epoch, held.hydration.as_ref()).await;
            devices.push(attached.map_err(|error| retry(&error))?);
        }
        Ok(devices)
    }

    /// For the driver: which device is where inside.
    pub(super) async fn mounts(&self, work: &Work, placement: &Placement) -> Result<Vec<VolumeMount>, Outcome> {
        if placement.config.mounts.is_empty() {
            return Ok(Vec::new());
        }
        let held = self.held(work)?;
        let devices = self.attach_all(work).await?;
        let mut mounts = Vec::new();
        for mount in &placement.config.mounts {
            let found = held.iter().zip(&devices).find(|(held, _)| held.placed.id.as_str() == mount.volume);
            let Some((held, device)) = found else {
                return Err(Outcome::Retry { reason: format!("volume {} is not on this host", mount.volume) });
            };
            let fstype = match held.placed.fstype {
                godwit_api::volume::VolumeFs::Ext4 => DriverFs::Ext4,
                godwit_api::volume::VolumeFs::Raw => DriverFs::Raw,
            };
            mounts.push(VolumeMount {
                device: device.clone(),
                guest_path: mount.path.clone(),
                fstype,
                read_only: false,
                uid: mount.uid,
                gid: mount.gid,
            });
        }
        Ok(mounts)
    }

    /// What is being filled goes on being filled, unless the volume itself goes.
    pub(super) async fn detach_volumes(&self, work: &Work) -> Outcome {
        let held = match self.held(work) {
            Ok(held) => held,
            Err(outcome) => return outcome,
        };
        let goes = work.record.is_volume() || work.job.kind.is_departure() || work.job.kind.is_arrival();
        for held in held {
            let volumes = &self.shared.organs.volumes;
            let _lock = volumes.lock(&held.number).await;
            if held.hydration.is_some() && work.job.kind == JobKind::VolumeDestroy {
                // Its source may be gone for good.
                if let Err(error) = volumes.poison(&held.number).await {
                    return retry(&error);
                }
            }
            match volumes.device(&held.number).await {
                Ok(Some(device)) if device.exists() => match volume::released(&device, RELEASED_WITHIN).await {
                    Ok(true) => {}
                    Ok(false) => {
                        return Outcome::Retry { reason: format!("volume {} is still mounted", held.placed.id) };
                    }
                    Err(error) => return Outcome::Retry { reason: chain(&error) },
                },
                Ok(_) => {}
                Err(error) => return retry(&error),
            }
            if !goes && held.hydration.is_some() {
                continue;
            }
            if let Err(error) = volumes.detach(&held.number).await {
                return retry(&error);
            }
        }
        Outcome::done()
    }

    /// All IO of what is still being filled fails: a process that waits for a source that is away can end.
    pub(super) async fn poison_volumes(&self, work: &Work) {
        for record in work.volumes.iter().filter(|record| record.hydration.is_some()) {
            let volume = &record.placement.machine;
            if let Err(error) = self.shared.organs.volumes.poison(volume).await {
                tracing::warn!(%volume, error = chain(&error), "cannot poison it");
            }
        }
    }

    pub(super) async fn make_replicas(&self, work: &Work) -> Outcome {
        let (_, ticket) = match ticket_of(&work.record) {
            Ok(ticket) => ticket,
            Err(outcome) => return outcome,
        };
        let volumes = &self.shared.organs.volumes;
        let mut pair: Option<Pair> = None;
        for carried in &ticket.volumes {
            let number = &carried.placement.machine;
            let Some(placed) = &carried.placement.volume else { continue };
            let _lock = volumes.lock(number).await;
            let drawn = match pair.take() {
                Some(pair) => Ok(pair),
                None => volumes.pair_of(number).await,
            };
            let made = match drawn {
                Ok(drawn) => volumes.make_replica(number, placed, &drawn).await.map(|()| pair = Some(drawn)),
                Err(error) => Err(error),
            };
            if let Err(error) = made {
                return retry(&error);
            }
        }
        Outcome::done()
    }

    pub(super) async fn remove_replicas(&self, work: &Work) -> Outcome {
        let (_, ticket) = match ticket_of(&work.record) {
            Ok(ticket) => ticket,
            Err(outcome) => return outcome,
        };
        for carried in &ticket.volumes {
            if let Outcome::Retry { reason } = self.remove_volume(&carried.placement.machine).await {
                return Outcome::Retry { reason };
            }
        }
        Outcome::done()
    }

    /// Speaks with the source in the name of a ticket.
    pub(super) fn at_source(source_url: &str, signed: &SignedTicket) -> Client {
        Client::tcp(source_url, Some(signed.caller.clone()).filter(|caller| !caller.is_empty()))
    }

    /// By which this host will read the volumes of a move; empty when it has none.
    pub(super) async fn client_certificate(&self, ticket: &Ticket) -> Result<String, VolumeFault> {
        match ticket.volumes.first() {
            None => Ok(String::new()),
            Some(carried) => Ok(self.shared.organs.volumes.pair_of(&carried.placement.machine).await?.certificate),
        }
    }

    /// Asked until the source has answered. What it answered is journaled there: a lost answer is asked for again.
    pub(super) async fn ask_handoff(&self, work: &Work) -> Outcome {
        let (signed, ticket) = match ticket_of(&work.record) {
            Ok(ticket) => ticket,
            Err(outcome) => return outcome,
        };
        let client_certificate = match self.client_certificate(&ticket).await {
            Ok(certificate) => certificate,
            Err(error) => return retry(&error),
        };
        let ask = HandoffAsk { ticket: signed.shown(), client_certificate };
        let client = Self::at_source(&ticket.source_url, &signed);
        let mut backoff = Backoff::new(ASK_FIRST, ASK_LONGEST);
        let mut last = String::new();
        for _ in 0..ASK_ROUNDS {
            let answer: Result<HandoffAnswer, CallError> =
                client.json(Method::Post, "/host/v1/moves/handoff", Some(&ask), ASK_TIMEOUT).await;
            match answer {
                Ok(HandoffAnswer::HandedOff { grant }) => return Outcome::Granted { grant },
                Ok(HandoffAnswer::Refused { reason }) => return abort(format!("{}: {reason}", ticket.source)),
                Ok(HandoffAnswer::Pending { step }) => {
                    last = format!("{} is at {step}", ticket.source);
                    continue;
                }
                Err(error) => last = chain(&error),
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
        Outcome::Retry { reason: format!("the source has not answered yet: {last}") }
    }

    pub(super) async fn hand_back(&self, work: &Work) -> Outcome {
        let (signed, ticket) = match ticket_of(&work.record) {
            Ok(ticket) => ticket,
            Err(outcome) => return outcome,
        };
        let client = Self::at_source(&ticket.source_url, &signed);
        let answer: Result<TakeBackAnswer, CallError> =
            client.json(Method::Post, "/host/v1/moves/take-back", Some(&signed.shown()), ASK_TIMEOUT).await;
        match answer {
            Ok(TakeBackAnswer::TakenBack | TakeBackAnswer::Never) => Outcome::done(),
            Err(error) => Outcome::Retry { reason: chain(&error) },
        }
    }

    /// The processes that will serve the volumes, before anything stops.
    pub(super) async fn prepare_export(&self, work: &Work) -> Outcome {
        let (_, ticket) = match ticket_of(&work.record) {
            Ok(ticket) => ticket,
            Err(outcome) => return outcome,
        };
        let client = work.record.moving.as_ref().map(|moving| moving.client_certificate.clone()).unwrap_or_default();
        for carried in &ticket.volumes {
            let Some(placed) = &carried.placement.volume else { continue };
            let number = &carried.placement.machine;
            let volumes = &self.shared.organs.volumes;
            let _lock = volumes.lock(number).await;
            let migration = ticket.migration.as_str();
            if let Err(error) = volumes.export(number, placed, carried.placement.epoch, migration, &client).await {
                return retry(&error);
            }
        }
        Outcome::done()
    }

    /// Serves until it is cut off: by the release, by a taking back, by the volume's end.
    pub(super) async fn serve_export(&self, work: &Work) -> Outcome {
        let record = &work.record;
        let (Some(placed), Some(lent)) = (&record.placement.volume, &record.lent) else {
            return abort("it is not lent to anybody".into());
        };
        loop {
            let exported = {
                let volumes = &self.shared.organs.volumes;
                let _lock = volumes.lock(&work.machine).await;
                let migration = lent.migration.as_str();
                volumes.export(&work.machine, placed, record.epoch(), migration, &lent.client_certificate).await
            };
            match exported {
                Ok(grant) => self.shared.exports.set(&work.machine, lent.migration.clone(), grant),
                Err(error) => tracing::warn!(volume = %placed.id, error = chain(&error), "it cannot be served"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub(super) async fn end_export(&self, work: &Work) -> Outcome {
        let own = work.record.is_volume().then(|| work.machine.clone());
        let numbers = own.into_iter().chain(work.volumes.iter().map(|record| record.placement.machine.clone()));
        for number in numbers {
            let _lock = self.shared.organs.volumes.lock(&number).await;
            self.shared.exports.end(&number);
            if let Err(error) = self.shared.organs.volumes.end_export(&number).await {
                return retry(&error);
            }
        }
        Outcome::done()
    }

    /// Until every block is here and was compared with the source's. Whatever serves the volume is started again if it
    /// died; how far it has come is told.
    pub(super) async fn await_whole(&self, work: &Work) -> Outcome {
        let Some(held) = Held::of(&work.record) else { return abort("it is not a volume".into()) };
        let Some(hydration) = &held.hydration else { return Outcome::done() };
        let volumes = &self.shared.organs.volumes;
        let _counted = volumes.count_filling();
        let mut told = volumes.limits(hydration.rate_bytes_per_s);
        loop {
            let limits = volumes.limits(hydration.rate_bytes_per_s);
            if limits != told {
                match volumes.set_limits(&held.number, limits).await {
                    Ok(()) => told = limits,
                    Err(error) => {
                        tracing::debug!(volume = %held.placed.id, error = chain(&error), "not told its share")
                    }
                }
            }
            let filled = {
                let _lock = self.shared.organs.volumes.lock(&held.number).await;
                self.shared.organs.volumes.fill(&held.number, &held.placed, held.epoch, hydration).await
            };
            match filled {
                Ok(status) => {
                    let whole = status.clone.as_ref().is_some_and(|clone| clone.complete && clone.verified);
                    let fact = hydration_fact(&status);
                    let allocated_bytes = self.shared.organs.volumes.allocated_bytes(&held.number).await;
                    let volume = held.number.clone();
                    self.shared.inputs.send(Input::Hydration { volume, fact, allocated_bytes }).await;
                    if whole {
                        return Outcome::done();
                    }
                }
                Err(error) => tracing::warn!(volume = %held.placed.id, error = chain(&error), "it is not being filled"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Looks at once how little of its volumes was here when its process had started.
    pub(super) async fn look_at_start(&self, work: &Work) {
        for record in work.volumes.iter().filter(|record| record.hydration.is_some()) {
            let volume = record.placement.machine.clone();
            let Ok(Some(status)) = self.shared.organs.volumes.look(&volume).await else { continue };
            let told = hydration_fact(&status);
            let copied = told.hydrated_bytes.saturating_mul(1000) / told.data_bytes.max(1);
            let fact = HydrationFact { map_permille_at_running: Some(copied), ..told };
            let allocated_bytes = self.shared.organs.volumes.allocated_bytes(&volume).await;
            self.shared.inputs.send(Input::Hydration { volume, fact, allocated_bytes }).await;
        }
    }

    /// A source that has forgotten it already, or is no more, has nothing to release.
    pub(super) async fn release_source(&self, work: &Work) -> Outcome {
        let (Some(hydration), Some(placed)) = (&work.record.hydration, &work.record.placement.volume) else {
            return Outcome::done();
        };
        let release = Release { ticket: hydration.signed.shown(), volume: placed.id.clone() };
        let client = Self::at_source(&hydration.source_url, &hydration.signed);
        let answer: Result<Acknowledged, CallError> =
            client.json(Method::Post, "/host/v1/moves/release", Some(&release), ASK_TIMEOUT).await;
        match answer {
            Ok(_) => {}
            Err(CallError::Answered(error)) if error.status == Status::NotFound => {}
            Err(error) => return Outcome::Retry { reason: chain(&error) },
        }
        match self.shared.organs.volumes.settle(&work.machine).await {
            Ok(()) => Outcome::done(),
            Err(error) => retry(&error),
        }
    }

    /// Kills, and does not wait for ever for a process that waits for a block.
    pub(super) async fn kill_stalled<T>(&self, work: &Work, kill: impl Future<Output = T>) -> T {
        tokio::pin!(kill);
        let filling = work.volumes.iter().any(|record| record.hydration.is_some());
        if filling {
            if let Some(done) = within(POISON_AFTER, &mut kill).await {
                return done;
            }
            tracing::warn!(machine = %work.machine, "it does not end, and its volumes are poisoned");
            self.poison_volumes(work).await;
        }
        kill.await
    }
}

/// A killed process that does not end within it waits for a volume whose source is away.
const POISON_AFTER: Duration = Duration::from_secs(3);

fn hydration_fact(status: &VolumeStatus) -> HydrationFact {
    let now_ms = clock::unix_ms();
    let Some(clone) = &status.clone else {
        return HydrationFact {
            stalled: Some("its server is being started again".into()),
            updated_at_ms: now_ms,
            ..HydrationFact::default()
        };
    };
    let stalled = clone.source_lost_ms.map(|ms| {
        let why = clone.source_error.as_deref().unwrap_or("no answer");
        format!("the source has been away for {:.1} s: {why}", ms as f64 / 1e3)
    });
    HydrationFact {
        migration: None,
        source: None,
        total_blocks: clone.blocks,
        done_blocks: clone.present_blocks,
        data_bytes: clone.source_data_bytes.unwrap_or_default(),
        // What was copied ahead counts once it was compared.
        hydrated_bytes: clone.hydrated_bytes + clone.found_bytes,
        wire_bytes: clone.wire_bytes,
        demand_fetches: clone.demand_fetches,
        mismatches: clone.mismatches,
        map_permille_at_running: None,
        first_read_ms: clone.first_read_ms.map(|ms| ms as f64),
        rate_bytes_per_s: clone.rate_bytes_per_s,
        verified: clone.verified,
        stalled,
        updated_at_ms: now_ms,
    }
}
