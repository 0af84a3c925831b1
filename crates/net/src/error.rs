//! Owns the one error that leaves this crate: what was being done, to what, and
//! whether doing it again may help. Must not know how any role reports it.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::plan::BadId;

/// What went wrong with the host's network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    BadId(#[from] BadId),
    #[error("{address} lies outside {expected}, which Machines of this host use")]
    ForeignAddress { address: IpAddr, expected: String },
    #[error("{address} is already routed to another interface of this host")]
    AddressTaken { address: IpAddr },
    #[error("interface {interface} belongs to {holder:?}, not to {machine:?}")]
    InterfaceTaken { interface: String, holder: String, machine: String },
    #[error("host number {index} is not between 1 and {max}")]
    BadHostIndex { index: u16, max: u16 },
    #[error("no free /24 of 100.64.0.0/10 for the fleet after {attempts} attempts")]
    NoFleetPrefix { attempts: u16 },
    #[error("the program `nft` was not found; install the package nftables")]
    NftMissing,
    #[error("nft refused to {doing}: {message}")]
    NftRefused { doing: &'static str, message: String },
    #[error("nft did not {doing} within {limit_ms} ms")]
    NftTimeout { doing: &'static str, limit_ms: u64 },
    #[error("nft printed something unexpected for {doing}")]
    NftOutput {
        doing: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("this thread is in another network namespace than the one that was opened")]
    WrongNamespace,
    #[error("cannot {doing}")]
    Netlink {
        doing: String,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("cannot {doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the record {} cannot be read", path.display())]
    Record {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

impl Error {
    /// True when the same call may succeed later without anybody mending anything.
    pub fn may_retry(&self) -> bool {
        matches!(self, Self::NftTimeout { .. } | Self::Netlink { .. } | Self::Io { .. } | Self::NftRefused { .. })
    }

    /// True when the caller asked for something that can never be.
    pub fn is_callers_fault(&self) -> bool {
        matches!(
            self,
            Self::BadId(_) | Self::ForeignAddress { .. } | Self::AddressTaken { .. } | Self::BadHostIndex { .. }
        )
    }
}
