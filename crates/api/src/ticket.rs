//! The permission to move something from one host to another, and what the two hosts say to each other with it.
//! Control signs a ticket for either host, so that both can verify it without control.
//!
//! | call at the source's host API | body → answer |
//! |---|---|
//! | `POST /host/v1/moves/prepare` (the target) | `HandoffAsk` → `PrepareAnswer`; the Machine goes on. Good for `PREPARED_FOR`, then asked again |
//! | `POST /host/v1/moves/handoff` (the target) | `HandoffAsk` → `HandoffAnswer`; held open for a while, then `pending`: ask again |
//! | `POST /host/v1/moves/take-back` (the target) | `SignedTicket` → `TakeBackAnswer` |
//! | `POST /host/v1/moves/release` (the target) | `Release` → `Acknowledged`; done already is done |
//! | `POST /host/v1/moves/cancel` (control) | `SignedTicket` → `CancelAnswer` |
//!
//! Each host finds its own proof in the ticket. That makes the ticket true; who shows it is another matter: the target
//! names itself by the bearer that control gave it with the ticket, control by its own key, and `may` decides.

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, HostId, MachineId, MigrationId, VolumeId};
use crate::row::Placement;

/// Requests in flight at the source may go on for so long, unless the move says otherwise.
pub const DRAIN_TIMEOUT_MS: u64 = 5_000;
/// A ticket that nobody has used by then is void. A handoff that has happened does not expire.
pub const TICKET_TTL_MS: u64 = 60 * 60 * 1000;

/// Of a move that copies first: a terabyte takes hours.
pub const PRECOPY_TICKET_TTL_MS: u64 = 24 * TICKET_TTL_MS;
/// What a source prepared it takes down again, unless it was asked anew or has handed off by then.
pub const PREPARED_FOR: std::time::Duration = std::time::Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ticket {
    pub migration: MigrationId,
    pub source: HostId,
    /// Of its host API.
    pub source_url: String,
    pub target: HostId,
    /// `[addr]:port` of the target's door, for requests that the source turns away.
    pub target_door: String,
    /// What moves, a Machine or the placement of a volume, as the target is to hold it.
    pub lead: Placement,
    /// What the source must hold for the move to begin; the target's is the next one.
    pub from_epoch: Epoch,
    /// The volumes that it takes along; of a volume that moves by itself, that one alone.
    #[serde(default)]
    pub volumes: Vec<Carried>,
    pub drain_timeout_ms: u64,
    /// Of each part (its lead and its volumes): by what the source proves that it has it again, at the epoch after the
    /// target's. Those of the target stand in the placements.
    #[serde(default)]
    pub back: std::collections::BTreeMap<MachineId, String>,
    /// Who asks the source in the name of this ticket must show `SignedTicket::caller`. False only in what a control
    /// has signed that knew no such thing.
    #[serde(default)]
    pub names_caller: bool,
    /// Bound on the background copy; 0: none.
    #[serde(default)]
    pub rate_bytes_per_s: u64,
    /// Copy before the handoff what the volumes hold by then.
    #[serde(default)]
    pub precopy: bool,
    /// Start it at the target before the source stops it: for a while there are two, by its owner's wish.
    #[serde(default)]
    pub start_first: bool,
    pub expires_at_ms: u64,
}

/// A volume's placement as the target is to hold it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Carried {
    pub from_epoch: Epoch,
    pub placement: Placement,
}

/// A ticket as it travels. The proofs are keyed hashes of `body`, each with a key that control shares with that host
/// alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedTicket {
    /// JSON of `Ticket`, exactly as signed.
    pub body: String,
    pub for_source: String,
    pub for_target: String,
    /// By which the target names itself to the source, as a bearer: it is given to the target alone and never stands in a
    /// body that it sends. The source makes it out of its own key.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub caller: String,
}

impl SignedTicket {
    /// What the target shows the source: all but what it names itself by.
    pub fn shown(&self) -> Self {
        Self { caller: String::new(), ..self.clone() }
    }
    /// What it says. Whoever acts on it has verified it first.
    pub fn read(&self) -> Result<Ticket, serde_json::Error> {
        serde_json::from_str(&self.body)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoffAsk {
    pub ticket: SignedTicket,
    /// PEM; whoever reads the volumes must show it. Empty when there are none.
    #[serde(default)]
    pub client_certificate: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum PrepareAnswer {
    /// Where the volumes can be read while their Machine runs and writes, and after the handoff if nothing comes
    /// between: what counts then is its grant.
    Prepared { exports: Vec<ExportGrant> },
    /// Not as things stand.
    Refused { reason: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum HandoffAnswer {
    /// Under way. Ask again.
    Pending { step: String },
    /// Journaled: the source will never run it at this epoch or below.
    HandedOff { grant: Box<Grant> },
    /// Journaled: never at this epoch. The source has it.
    Refused { reason: String },
}

/// What the target needs to go on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Grant {
    /// It ran (or was about to be started again) and is to run at the target.
    pub running: bool,
    pub exports: Vec<ExportGrant>,
    pub handed_off_at_ms: u64,
    /// When the source's door closed.
    pub closed_at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportGrant {
    pub volume: VolumeId,
    /// `[addr]:port` at which it is served.
    pub addr: String,
    /// The NBD export, with its one-time token.
    pub export: String,
    /// PEM of the server.
    pub server_certificate: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum TakeBackAnswer {
    /// Journaled: the source has it again, at the epoch after the target's.
    TakenBack,
    /// It never handed it off, and has it.
    Never,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub ticket: SignedTicket,
    pub volume: VolumeId,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum CancelAnswer {
    /// Journaled: no handoff at this epoch.
    Cancelled,
    TooLate,
}
