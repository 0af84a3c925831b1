//! What a move does before anything stops, so that less is left for the time in which nobody serves: the target copies
//! what the volumes hold by then, if that was asked for, and starts what will show them. Neither is needed: whatever
//! fails here is said in the log, and the move goes on without it. Whether it goes at all is asked later.

use std::time::{Duration, Instant};

use godwit_api::Method;
use godwit_api::ids::MachineId;
use godwit_api::migration::PrecopyFact;
use godwit_api::row::Placement;
use godwit_api::ticket::{ExportGrant, Grant, HandoffAsk, PREPARED_FOR, PrepareAnswer, SignedTicket, Ticket};
use godwit_api::volume::PlacedVolume;
use godwit_base::backoff::Backoff;
use godwit_base::dial::dial;
use godwit_base::http::client::CallError;
use godwit_base::telemetry::chain;
use godwit_machine::{Hydration, Outcome};
use godwit_volume::precopy::PrecopyStatus;

use super::volumes::{retry, ticket_of};
use super::{Effects, within};
use crate::engine::{Input, Work};
use crate::organs::volumes::VolumeFault;
use crate::view::View;

/// A source starts a process for each volume before it answers.
const ASK_TIMEOUT: Duration = Duration::from_secs(30);
const ASK_FIRST: Duration = Duration::from_millis(100);
const ASK_LONGEST: Duration = Duration::from_secs(1);
const ASK_ROUNDS: u32 = 4;
/// Well before what was prepared is taken down.
const RENEW: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(100);
/// For a program that was started ahead.
const LISTENS_WITHIN: Duration = Duration::from_secs(20);
/// How often a source looks for what nobody asked for any more.
const SWEEP: Duration = Duration::from_secs(5);

/// A volume that is being copied.
struct Copying<'a> {
    number: &'a MachineId,
    placed: &'a PlacedVolume,
    /// `None`: it was found under way after a restart of this agent.
    child: Option<tokio::process::Child>,
    last: Option<PrecopyStatus>,
    ended: bool,
}

impl Effects {
    pub(super) async fn copy_ahead(&self, work: &Work) -> Outcome {
        let (signed, ticket) = match ticket_of(&work.record) {
            Ok(ticket) => ticket,
            Err(outcome) => return outcome,
        };
        if !ticket.precopy || ticket.volumes.is_empty() {
            return Outcome::done();
        }
        if let Err(reason) = self.copy_all(work, &signed, &ticket).await {
            tracing::warn!(machine = %work.machine, reason, "the move goes on without what was not copied ahead");
        }
        // Whatever came of it: nobody but the volume's own keeper writes to its file from here on.
        for carried in &ticket.volumes {
            let number = &carried.placement.machine;
            let _lock = self.shared.organs.volumes.lock(number).await;
            if let Err(error) = self.shared.organs.volumes.end_copy_ahead(number).await {
                return retry(&error);
            }
        }
        Outcome::done()
    }

    async fn copy_all(&self, work: &Work, signed: &SignedTicket, ticket: &Ticket) -> Result<(), String> {
        let volumes = &self.shared.organs.volumes;
        let exports = self.prepared(signed, ticket).await?;
        let _counted = volumes.count_filling();
        let mut copies = Vec::new();
        for carried in &ticket.volumes {
            let (number, Some(placed)) = (&carried.placement.machine, &carried.placement.volume) else { continue };
            let Some(export) = exports.iter().find(|export| export.volume == placed.id) else { continue };
            let _lock = volumes.lock(number).await;
            let limits = volumes.limits(ticket.rate_bytes_per_s);
            let child = volumes.copy_ahead(number, placed, export, limits).await.map_err(|error| chain(&error))?;
            copies.push(Copying { number, placed, child, last: None, ended: false });
        }
        let mut asked = Instant::now();
        while copies.iter().any(|copy| !copy.ended) {
            tokio::time::sleep(LOOK).await;
            for copy in copies.iter_mut().filter(|copy| !copy.ended) {
                self.look_at(copy).await?;
            }
            self.tell_copies(work, &copies).await;
            if asked.elapsed() >= RENEW {
                asked = Instant::now();
                match self.ask_to_prepare(signed, ticket).await {
                    Ok(PrepareAnswer::Prepared { exports: now }) if now == exports => {}
                    Ok(PrepareAnswer::Prepared { .. }) => return Err("the source serves the volumes anew".into()),
                    Ok(PrepareAnswer::Refused { reason }) => return Err(reason),
                    // The copying itself gives up on a source that stays away.
                    Err(error) => tracing::debug!(error = chain(&error), "the source does not answer"),
                }
            }
        }
        Ok(())
    }

    async fn look_at(&self, copy: &mut Copying<'_>) -> Result<(), String> {
        let ended = match &mut copy.child {
            Some(child) => child.try_wait().ok().flatten(),
            None => None,
        };
        let status = self.shared.organs.volumes.ahead(copy.number).await.map_err(|error| chain(&error))?;
        // One that was just started does not answer yet; one without a child has ended when it is silent.
        copy.ended = ended.is_some() || (copy.child.is_none() && status.is_none());
        let volumes = &self.shared.organs.volumes;
        // The last look may be older than what was copied last.
        let result =
            if copy.ended { volumes.copied_ahead(copy.number).await.map_err(|error| chain(&error))? } else { None };
        copy.last = result.or(status).or(copy.last.take());
        match ended {
            Some(status) if !status.success() => Err(format!("copying {} ended with {status}", copy.placed.id)),
            _ => Ok(()),
        }
    }

    async fn tell_copies(&self, work: &Work, copies: &[Copying<'_>]) {
        let mut fact = PrecopyFact::default();
        for copy in copies {
            fact.size_bytes += copy.placed.size_bytes;
            if let Some(last) = &copy.last {
                fact.pass = fact.pass.max(u64::from(last.pass));
                fact.seen_bytes += if copy.ended { copy.placed.size_bytes } else { last.seen_bytes };
                fact.copied_bytes += last.copied_bytes;
                fact.wire_bytes += last.wire_bytes;
            }
        }
        self.shared.inputs.send(Input::Precopy { machine: work.machine.clone(), fact }).await;
    }

    /// The keepers, with their devices, before the source is asked to stop. What never ran is not waited for, and needs
    /// none ahead.
    pub(super) async fn stand_by(&self, work: &Work) -> Outcome {
        let (signed, ticket) = match ticket_of(&work.record) {
            Ok(ticket) => ticket,
            Err(outcome) => return outcome,
        };
        if !work.job.start || ticket.volumes.is_empty() {
            return Outcome::done();
        }
        let exports = match self.prepared(&signed, &ticket).await {
            Ok(exports) => exports,
            Err(reason) => {
                tracing::info!(machine = %work.machine, reason, "its volumes are shown only after the handoff");
                return Outcome::done();
            }
        };
        let grant = Grant { exports, ..Grant::default() };
        for (placement, hydration) in Hydration::of_move(&signed, &ticket, &grant) {
            let Some(placed) = &placement.volume else { continue };
            let volumes = &self.shared.organs.volumes;
            let _lock = volumes.lock(&placement.machine).await;
            // Tried once more after the handoff, and then its failure counts.
            if let Err(error) = volumes.stand_by(&placement.machine, placed, placement.epoch, &hydration).await {
                tracing::warn!(volume = %placed.id, error = chain(&error), "it is not shown ahead");
            }
        }
        Outcome::done()
    }

    /// Whatever it cannot do here it could not do after the handoff either: then nothing is asked of the source.
    pub(super) async fn start_ahead(&self, work: &Work) -> Outcome {
        let (_, ticket) = match ticket_of(&work.record) {
            Ok(ticket) => ticket,
            Err(outcome) => return outcome,
        };
        if !ticket.start_first {
            return Outcome::done();
        }
        let outcome = self.start_process(work).await;
        if matches!(outcome, Outcome::Done { .. }) {
            self.listens(&ticket.lead).await;
        }
        outcome
    }

    /// For a while; a program may take longer, or listen nowhere.
    async fn listens(&self, placement: &Placement) {
        let at = self.addresses(&placement.machine, placement.private_ip);
        let looking = async {
            for service in &placement.config.services {
                while dial(at, service.internal_port, None, LISTENS_WITHIN).await.is_err() {
                    tokio::time::sleep(LOOK).await;
                }
            }
        };
        if within(LISTENS_WITHIN, looking).await.is_none() {
            tracing::info!(machine = %placement.machine, "it does not listen yet, and the move goes on");
        }
    }

    async fn prepared(&self, signed: &SignedTicket, ticket: &Ticket) -> Result<Vec<ExportGrant>, String> {
        let mut backoff = Backoff::new(ASK_FIRST, ASK_LONGEST);
        let mut last = String::new();
        for _ in 0..ASK_ROUNDS {
            match self.ask_to_prepare(signed, ticket).await {
                Ok(PrepareAnswer::Prepared { exports }) => return Ok(exports),
                Ok(PrepareAnswer::Refused { reason }) => return Err(format!("{}: {reason}", ticket.source)),
                Err(error) => last = chain(&error),
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
        Err(last)
    }

    async fn ask_to_prepare(&self, signed: &SignedTicket, ticket: &Ticket) -> Result<PrepareAnswer, CallError> {
        let client_certificate = self.client_certificate(ticket).await.unwrap_or_default();
        let ask = HandoffAsk { ticket: signed.shown(), client_certificate };
        let client = Self::at_source(&ticket.source_url, signed);
        client.json(Method::Post, "/host/v1/moves/prepare", Some(&ask), ASK_TIMEOUT).await
    }

    /// At the source, while the Machine goes on: its volumes are served to the target, for a while.
    pub async fn prepare(&self, ticket: &Ticket, client_certificate: &str) -> Result<Vec<ExportGrant>, VolumeFault> {
        let mut exports = Vec::new();
        for carried in &ticket.volumes {
            let Some(placed) = &carried.placement.volume else { continue };
            let (number, epoch) = (&carried.placement.machine, carried.placement.epoch);
            let volumes = &self.shared.organs.volumes;
            let _lock = volumes.lock(number).await;
            self.shared.exports.lease(number, ticket.migration.as_str(), Instant::now() + PREPARED_FOR);
            exports.push(volumes.export(number, placed, epoch, ticket.migration.as_str(), client_certificate).await?);
        }
        Ok(exports)
    }

    /// At the source, of a move that will not come: at once, and not when its time is over.
    pub async fn end_prepared(&self, ticket: &Ticket, view: &View) {
        for carried in &ticket.volumes {
            let number = &carried.placement.machine;
            let _lock = self.shared.organs.volumes.lock(number).await;
            if self.shared.exports.drop_lease(number, ticket.migration.as_str()) {
                self.end_export_of(number, ticket.migration.as_str(), view).await;
            }
        }
    }

    /// From the handoff on, or on the way there, it is the job's.
    async fn end_export_of(&self, volume: &MachineId, migration: &str, view: &View) {
        if view.is_leaving(volume, migration) {
            return;
        }
        tracing::info!(%volume, migration, "it was prepared for a move that did not come");
        if let Err(error) = self.shared.organs.volumes.end_export(volume).await {
            tracing::warn!(%volume, error = chain(&error), "it is still served");
        }
    }

    /// Takes down what was prepared for moves that never came. Runs until it is dropped.
    pub async fn end_leases(&self, view: View) {
        for (volume, migration) in self.shared.organs.volumes.exported().await.unwrap_or_default() {
            self.shared.exports.lease(&volume, &migration, Instant::now() + PREPARED_FOR);
        }
        loop {
            tokio::time::sleep(SWEEP).await;
            for volume in self.shared.exports.leased_until(Instant::now()) {
                let _lock = self.shared.organs.volumes.lock(&volume).await;
                let Some(migration) = self.shared.exports.end_lease(&volume, Instant::now()) else { continue };
                self.end_export_of(&volume, &migration, &view).await;
            }
        }
    }
}
