//! Leases: who holds one may change a Machine, everybody else waits for it to end.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::machine::Acknowledged;

/// The header that carries a lease's nonce on every change of the Machine.
pub const NONCE_HEADER: &str = "fly-machine-lease-nonce";

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CreateLease {
    /// Seconds; also accepted in the query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Lease {
    pub nonce: String,
    /// Unix seconds.
    pub expires_at: u64,
    pub owner: String,
    pub description: String,
    /// The Machine's version when the lease was taken.
    pub version: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseAnswer {
    pub status: String,
    pub data: Lease,
}

/// `{"status": "success", "data": {"ok": true}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseReleased {
    pub status: String,
    pub data: Acknowledged,
}
