//! Volumes on the wire and as hosts hold and report them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::Guest;
use crate::ids::{HostId, MigrationId, VolumeId};

/// A gigabyte of the API is 2^30 bytes.
pub const GB_BYTES: u64 = 1 << 30;
pub const VOLUME_MAX_GB: u64 = 16 << 10;

/// What lies in it when it is new.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeFs {
    #[default]
    Ext4,
    /// Nothing: the Machine gets the block device.
    Raw,
}

impl VolumeFs {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Raw => "raw",
        }
    }
}

/// What a placement says of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedVolume {
    pub id: VolumeId,
    pub name: String,
    pub size_bytes: u64,
    pub fstype: VolumeFs,
}

/// `POST /v1/apps/{app}/volumes`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["name"]))]
pub struct CreateVolume {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// 3 unless told otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_gb: Option<u64>,
    /// `ext4` (the default) or `raw`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fstype: Option<VolumeFs>,
    /// The Machine that it is for: a host with room for it is preferred.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute: Option<Guest>,
    /// A host without a volume of this app and name is preferred.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require_unique_zone: Option<bool>,
    /// A host without any volume of this app is preferred.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unique_zone_app_wide: Option<bool>,
    /// Whether that is granted is told by the answer (docs/decisions/0018).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<bool>,
}

/// A volume as users see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Volume {
    pub id: VolumeId,
    pub name: String,
    /// `creating`, `created`, `hydrating`, `failed`, `pending_destroy` or `destroyed`.
    pub state: String,
    pub size_gb: u64,
    pub region: String,
    /// The host that holds it.
    pub zone: String,
    pub encrypted: bool,
    pub fstype: VolumeFs,
    /// `null` while no Machine holds it.
    #[serde(default)]
    pub attached_machine_id: Option<String>,
    /// The same, under the name that older clients read.
    #[serde(default)]
    pub attached_alloc_id: Option<String>,
    /// RFC 3339.
    pub created_at: String,
    pub block_size: u64,
    pub blocks: u64,
    pub blocks_avail: u64,
    pub blocks_free: u64,
    /// 0: there are no snapshots.
    pub snapshot_retention: u64,
    /// False: there are no backups.
    #[serde(default)]
    pub auto_backup_enabled: bool,
    /// `null`: hosts are nobody's own.
    #[serde(default)]
    pub host_dedication_key: Option<String>,
    pub host_status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hydration: Option<HydrationFact>,
}

/// A volume as its host knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeFact {
    pub id: VolumeId,
    pub size_bytes: u64,
    /// Taken of the host's disk, as last measured.
    #[serde(default)]
    pub allocated_bytes: u64,
    /// While it is being filled from another host.
    #[serde(default)]
    pub hydration: Option<HydrationFact>,
    /// How the last filling ended; lost with the agent.
    #[serde(default)]
    pub hydrated: Option<HydrationFact>,
    /// Handed off, and read by this host until it has all of it.
    #[serde(default)]
    pub lent_to: Option<HostId>,
}

/// How far a volume has been filled from its source.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct HydrationFact {
    pub migration: Option<MigrationId>,
    pub source: Option<HostId>,
    /// Blocks of 64 KiB.
    pub total_blocks: u64,
    pub done_blocks: u64,
    /// What the source's file holds; the rest are holes, which never cross the wire.
    pub data_bytes: u64,
    pub hydrated_bytes: u64,
    pub wire_bytes: u64,
    pub demand_fetches: u64,
    /// Blocks that differed from the source's hash and were fetched again.
    pub mismatches: u64,
    /// Thousandths of the source's data that had been copied when the Machine's process had started. Holes do not count:
    /// all of them are known at once.
    pub map_permille_at_running: Option<u64>,
    pub first_read_ms: Option<f64>,
    pub rate_bytes_per_s: u64,
    /// Every block was checked against the source.
    pub verified: bool,
    /// Why nothing moves, if nothing does.
    pub stalled: Option<String>,
    pub updated_at_ms: u64,
}
