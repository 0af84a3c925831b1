//! Identifiers: exact, validated when parsed, never matched by prefix. Fresh ones are made from bits that the
//! caller drew, so that this crate stays without randomness.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// For a noun.
fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o']) { "an" } else { "a" }
}

/// Why a text is not an id of its kind. Always the caller's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {} {kind}: {rule}", article(.kind))]
pub struct InvalidId {
    pub kind: &'static str,
    pub text: String,
    pub rule: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schemars(with = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            pub fn parse(text: &str) -> Result<Self, InvalidId> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidId { kind: $kind, text: text.chars().take(80).collect(), rule: $rule })
                }
            }
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::parse(text)
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::parse(&text)
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.as_str().to_owned()
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// A DNS label: what app and host names have in common.
fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && bytes[0] != b'-'
        && bytes[bytes.len() - 1] != b'-'
}

id!(
    /// The name of an app, unique in the fleet; also its label in host names (`APP.localhost`).
    AppName, "app name", "1 to 63 of a-z, 0-9 and '-', neither first nor last a '-'", is_label
);
id!(
    /// A host, as control named it when it joined: the wanted name and four hex digits of chance
    /// (`worker-fra-9b7e`). A host that lost its data folder joins again under a new id.
    HostId, "host id", "1 to 63 of a-z, 0-9 and '-', neither first nor last a '-'", is_label
);
id!(
    /// An edge, named like a host.
    EdgeId, "edge id", "1 to 63 of a-z, 0-9 and '-', neither first nor last a '-'", is_label
);
id!(
    /// A Machine for its whole life, over every move: 14 hex digits.
    MachineId, "machine id", "14 digits of 0-9 and a-f",
    is_number
);
id!(
    /// One version of a Machine's configuration: a ULID (26 digits, Crockford base 32, sortable by time).
    InstanceId, "instance id", "26 digits of Crockford base 32",
    |text| text.len() == 26 && text.bytes().all(|b| CROCKFORD.contains(&b))
);

id!(
    /// A volume for its whole life, over every move: `vol_` and 14 hex digits.
    VolumeId, "volume id", "vol_ and 14 digits of 0-9 and a-f",
    |text| text.strip_prefix("vol_").is_some_and(is_number)
);
id!(
    /// One move of a Machine or a volume: `mig_` and 14 hex digits.
    MigrationId, "migration id", "mig_ and 14 digits of 0-9 and a-f",
    |text| text.strip_prefix("mig_").is_some_and(is_number)
);

/// 56 bits in hex.
fn is_number(text: &str) -> bool {
    text.len() == 14 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// The digits of a ULID of a moment (Unix milliseconds, 48 bits) and 80 bits of chance.
pub fn ulid(unix_ms: u64, chance: u128) -> [u8; 26] {
    let value = (u128::from(unix_ms & 0xffff_ffff_ffff) << 80) | (chance & ((1 << 80) - 1));
    std::array::from_fn(|at| CROCKFORD[((value >> (5 * (25 - at))) & 31) as usize])
}

impl MachineId {
    /// The id for 56 bits of chance (the upper 8 are dropped).
    pub fn from_bits(bits: u64) -> Self {
        Self(format!("{:014x}", bits & 0x00ff_ffff_ffff_ffff).into())
    }
}

impl VolumeId {
    /// The id for 56 bits of chance (the upper 8 are dropped).
    pub fn from_bits(bits: u64) -> Self {
        Self(format!("vol_{:014x}", bits & 0x00ff_ffff_ffff_ffff).into())
    }
    /// The id under which hosts hold it: a volume is placed, fenced and moved like a Machine without a process, and
    /// its number names both.
    pub fn carrier(&self) -> MachineId {
        MachineId(self.0.strip_prefix("vol_").unwrap_or(&self.0).into())
    }
}

impl MigrationId {
    pub fn from_bits(bits: u64) -> Self {
        Self(format!("mig_{:014x}", bits & 0x00ff_ffff_ffff_ffff).into())
    }
}

impl InstanceId {
    /// The ULID of a moment (Unix milliseconds, 48 bits) and 80 bits of chance.
    pub fn from_parts(unix_ms: u64, chance: u128) -> Self {
        Self(ulid(unix_ms, chance).map(char::from).iter().collect::<String>().into())
    }
}

/// Which life of a placement this is. Two epochs of a Machine never run at once, a higher one fences a lower one,
/// and an epoch is never used twice. A store that was restored from an old copy starts a higher `generation`.
/// Neither number reaches `EPOCH_LIMIT`: what is read and would is unreadable, so counting on never wraps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "EpochNumbers")]
pub struct Epoch {
    pub generation: u64,
    pub n: u64,
}

/// 2^53, up to which JSON's readers agree on whole numbers (RFC 8259, section 6). Generations are Unix milliseconds,
/// and one number is used for each placement: neither comes near.
pub const EPOCH_LIMIT: u64 = 1 << 53;

/// An epoch as it is read, before its bounds are looked at.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "Epoch")]
struct EpochNumbers {
    generation: u64,
    n: u64,
}

impl TryFrom<EpochNumbers> for Epoch {
    type Error = &'static str;
    fn try_from(read: EpochNumbers) -> Result<Self, Self::Error> {
        match read.generation.max(read.n) {
            ..EPOCH_LIMIT => Ok(Self { generation: read.generation, n: read.n }),
            _ => Err("an epoch's numbers stay below 2^53"),
        }
    }
}

impl Epoch {
    /// The one after it: of a move, the target's; and then again, the source's if it takes back what it handed off.
    pub fn next(self) -> Self {
        Self { n: self.n.saturating_add(1), ..self }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation, self.n)
    }
}

impl FromStr for Epoch {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let parse = || {
            let (generation, n) = text.split_once('.')?;
            EpochNumbers { generation: generation.parse().ok()?, n: n.parse().ok()? }.try_into().ok()
        };
        parse().ok_or_else(|| InvalidId {
            kind: "epoch",
            text: text.chars().take(80).collect(),
            rule: "two decimal numbers with a dot between",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_checked_when_parsed() {
        assert!(AppName::parse("my-app-1").is_ok());
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", &"x".repeat(64)] {
            assert!(AppName::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(MachineId::from_bits(u64::MAX).as_str(), "ffffffffffffff");
        assert!(MachineId::parse("ABCDEF01234567").is_err());
        let volume = VolumeId::parse("vol_00000000000abc").unwrap();
        assert_eq!(volume.carrier(), MachineId::from_bits(0xabc));
        assert!(VolumeId::parse("vol_abc").is_err() && MigrationId::parse("vol_00000000000abc").is_err());
        let early = InstanceId::from_parts(1_700_000_000_000, 0);
        let late = InstanceId::from_parts(1_700_000_000_001, 0);
        assert!(early < late && InstanceId::parse(early.as_str()).is_ok());
    }

    #[test]
    fn a_restored_store_outranks_every_older_epoch() {
        let old = Epoch { generation: 1, n: 900 };
        let restored = Epoch { generation: 2, n: 1 };
        assert!(restored > old);
        assert_eq!("2.1".parse(), Ok(restored));
        assert!("2".parse::<Epoch>().is_err());
    }
}
