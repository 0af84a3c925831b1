//! Owns the address plan: which addresses, names and hardware addresses follow
//! from which ids. Pure: the same ids give the same answer on every host and in
//! every year. Must not know the kernel, the store, or where a Machine runs: a
//! private address that named its host would change on every move.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Longest interface name that Linux takes (`IFNAMSIZ` less the NUL).
pub const INTERFACE_NAME_MAX: usize = 15;
/// Longest id that becomes a file name, an interface alias or a table name here.
pub const ID_MAX: usize = 64;
/// Every Machine's private address lies in it (RFC 4193 unique local space).
pub const MACHINE_SPACE: Prefix6 = Prefix6 { base: Ipv6Addr::new(0xfdaa, 0, 0, 0, 0, 0, 0, 0), len: 16 };
/// The next hop that each Machine sees, the same on every host, so that a guest
/// that was moved while suspended still finds its gateway.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Hardware address of the host's end of every Machine's link, for the same reason.
pub const GATEWAY_MAC: Mac = Mac([0x02, 0x67, 0x77, 0x00, 0x00, 0x01]);
/// Name of a Machine's interface as the Machine sees it.
pub const MACHINE_INTERFACE: &str = "eth0";
/// Interface identifiers up to this one are kept for services (a resolver) in each network.
const RESERVED_IIDS: u64 = 0xffff;

/// Hosts of one dev fleet are numbered 1..=FLEET_HOSTS_MAX.
pub const FLEET_HOSTS_MAX: u16 = 250;

/// An IPv6 prefix; bits behind `len` are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Prefix6 {
    pub base: Ipv6Addr,
    pub len: u8,
}

/// An IPv4 prefix; bits behind `len` are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Prefix4 {
    pub base: Ipv4Addr,
    pub len: u8,
}

/// A hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

/// An id that cannot be used as a name on a host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{id:?} is not a usable id: 1 to {ID_MAX} of a-z A-Z 0-9 _ - and not starting with '-'")]
pub struct BadId {
    pub id: String,
}

/// Ids become file names, nftables names and interface aliases; none of those
/// may hold a slash, a quote, a blank or a dot-dot.
pub fn check_id(id: &str) -> Result<(), BadId> {
    let fits = (1..=ID_MAX).contains(&id.len())
        && !id.starts_with('-')
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if fits { Ok(()) } else { Err(BadId { id: id.to_owned() }) }
}

/// The /64 of one app network. 48 bits of hash: two of a million networks share a
/// prefix with a chance of 0.2 %, so control must still compare before it admits
/// a new network.
pub fn network_prefix(fleet: &str, network: &str) -> Prefix6 {
    let h = hash(&["network", fleet, network]);
    let word = |i: usize| u16::from_be_bytes([h[i], h[i + 1]]);
    // fdaa:0:0::/48 stays free for the platform's own services.
    let second = if word(0) == 0 { 0x8000 } else { word(0) };
    Prefix6 { base: Ipv6Addr::new(0xfdaa, second, word(2), word(4), 0, 0, 0, 0), len: 64 }
}

/// A Machine's private address, from 64 bits that control drew once.
pub fn machine_address(network: Prefix6, drawn: u64) -> Ipv6Addr {
    let iid = if drawn <= RESERVED_IIDS { drawn | 1 << 63 } else { drawn };
    Ipv6Addr::from(u128::from(network.base) | u128::from(iid))
}

/// The app network that a Machine's address belongs to.
pub fn network_of(address: Ipv6Addr) -> Prefix6 {
    Prefix6::new(address, 64)
}

/// Name of the host's end of a Machine's link. `host` is the name of the
/// [`HostNet`](crate::HostNet), so that two of them may share a kernel.
pub fn interface_name(host: &str, machine: &str) -> String {
    let h = hash(&["interface", host, machine]);
    format!("gw{:02x}{:02x}{:02x}{:02x}{:02x}{:02x}", h[0], h[1], h[2], h[3], h[4], h[5])
}

/// The interface group (`IFLA_GROUP`) that holds all Machine links of a host:
/// rules match the group, never the beginning of a name.
pub fn interface_group(host: &str) -> u32 {
    let h = hash(&["group", host]);
    // 0 is every other interface's group, and the highest bit is left alone
    // because some tools print groups as signed.
    u32::from_be_bytes([h[0] & 0x7f, h[1], h[2], h[3]]) | 0x4000_0000
}

/// A Machine's own hardware address: locally administered, the same on each host.
pub fn machine_mac(machine: &str) -> Mac {
    let h = hash(&["mac", machine]);
    // 0x06 keeps it apart from GATEWAY_MAC, which begins with 0x02.
    Mac([0x06, h[0], h[1], h[2], h[3], h[4]])
}

/// A dev fleet's short form, for interface and table names: 8 hex digits.
pub fn fleet_tag(fleet: &str) -> String {
    let h = hash(&["fleet", fleet]);
    format!("{:02x}{:02x}{:02x}{:02x}", h[0], h[1], h[2], h[3])
}

/// The /64 of a dev fleet's own bridge.
pub fn fleet_prefix(fleet: &str) -> Prefix6 {
    let h = hash(&["fleet", fleet]);
    let word = |i: usize| u16::from_be_bytes([h[i], h[i + 1]]);
    Prefix6 { base: Ipv6Addr::new(0xfd67, 0x6f64, word(0), word(2), 0, 0, 0, 0), len: 64 }
}

/// Address of the bridge itself: where control and edge listen.
pub fn fleet_gateway(fleet: &str) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(fleet_prefix(fleet).base) | 1)
}

/// Address of host `index` (1..=[`FLEET_HOSTS_MAX`]) on the fleet's bridge: host 3 is `…::1003`.
/// The hexadecimal digits are those of the decimal number, so that people can read it.
pub fn fleet_host_address(fleet: &str, index: u16) -> Ipv6Addr {
    let digits = ((index / 100 % 10) << 8) | ((index / 10 % 10) << 4) | (index % 10);
    Ipv6Addr::from(u128::from(fleet_prefix(fleet).base) | 0x1000 | u128::from(digits))
}

/// The nth /24 that a fleet may use for IPv4 egress (RFC 6598 shared space).
/// `attempt` steps on when another fleet of this kernel already holds one.
pub fn fleet_prefix_v4(fleet: &str, attempt: u16) -> Prefix4 {
    let h = hash(&["fleet-v4", fleet]);
    let slot = u16::from_be_bytes([h[0], h[1]]).wrapping_add(attempt) & 0x3fff;
    Prefix4 { base: Ipv4Addr::from(0x6440_0000 | u32::from(slot) << 8), len: 24 }
}

impl Prefix6 {
    /// The prefix of `len` (at most 128) bits that `address` lies in.
    pub fn new(address: Ipv6Addr, len: u8) -> Self {
        let len = len.min(128);
        let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
        Self { base: Ipv6Addr::from(u128::from(address) & mask), len }
    }

    pub fn contains(&self, address: Ipv6Addr) -> bool {
        Self::new(address, self.len).base == self.base
    }
}

impl Prefix4 {
    /// The prefix of `len` (at most 32) bits that `address` lies in.
    pub fn new(address: Ipv4Addr, len: u8) -> Self {
        let len = len.min(32);
        let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
        Self { base: Ipv4Addr::from(u32::from(address) & mask), len }
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        Self::new(address, self.len).base == self.base
    }

    /// How many addresses [`Prefix4::at`] gives out: all but the first and the last.
    pub fn capacity(&self) -> u32 {
        let all = 1u64 << (32 - u32::from(self.len.min(32)));
        u32::try_from(all.saturating_sub(2)).unwrap_or(u32::MAX)
    }

    /// The `index`th address, counted from 0; `None` past [`Prefix4::capacity`].
    pub fn at(&self, index: u32) -> Option<Ipv4Addr> {
        (index < self.capacity()).then(|| Ipv4Addr::from(u32::from(self.base) + 1 + index))
    }

    /// The lowest index that `taken` does not hold.
    pub fn first_free(&self, taken: impl IntoIterator<Item = Ipv4Addr>) -> Option<u32> {
        let mut used: Vec<u32> = taken
            .into_iter()
            .filter(|a| self.contains(*a))
            .map(u32::from)
            .filter_map(|a| a.checked_sub(u32::from(self.base) + 1))
            .collect();
        used.sort_unstable();
        used.dedup();
        // The first place where the sorted list leaves the count is free.
        let free =
            used.iter().zip(0u32..).find(|(have, want)| *have != want).map_or(used.len() as u32, |(_, want)| want);
        (free < self.capacity()).then_some(free)
    }
}

impl fmt::Display for Prefix6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.len)
    }
}

impl fmt::Display for Prefix4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.len)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A prefix of either family, as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Prefix {
    V6(Prefix6),
    V4(Prefix4),
}

impl Prefix {
    pub fn new(address: IpAddr, len: u8) -> Self {
        match address {
            IpAddr::V6(a) => Self::V6(Prefix6::new(a, len)),
            IpAddr::V4(a) => Self::V4(Prefix4::new(a, len)),
        }
    }
}

/// Domain-separated, and each part is preceded by its length, so that no two
/// lists of parts hash the same bytes (`w1`+`0` is not `w10`).
fn hash(parts: &[&str]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(b"godwit-net/1");
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "[a-zA-Z0-9_][a-zA-Z0-9_-]{0,63}";

    proptest! {
        #[test]
        fn an_address_is_in_its_network_and_names_no_host(fleet in ID, net in ID, drawn: u64) {
            let network = network_prefix(&fleet, &net);
            let address = machine_address(network, drawn);
            prop_assert!(network.contains(address));
            prop_assert!(MACHINE_SPACE.contains(address));
            prop_assert_eq!(network_of(address), network);
            prop_assert!(u128::from(address) as u64 > RESERVED_IIDS);
        }

        #[test]
        fn different_draws_give_different_addresses(a: u64, b: u64) {
            prop_assume!(a != b && a > RESERVED_IIDS && b > RESERVED_IIDS);
            let network = network_prefix("f", "n");
            prop_assert_ne!(machine_address(network, a), machine_address(network, b));
        }

        #[test]
        fn names_fit_and_differ(host in ID, a in ID, b in ID) {
            prop_assume!(a != b);
            let (na, nb) = (interface_name(&host, &a), interface_name(&host, &b));
            prop_assert!(na.len() <= INTERFACE_NAME_MAX);
            prop_assert_ne!(na, nb);
            prop_assert_ne!(machine_mac(&a), machine_mac(&b));
        }

        #[test]
        fn a_hardware_address_is_local_unicast_and_not_the_gateways(id in ID) {
            let mac = machine_mac(&id);
            prop_assert_eq!(mac.0[0] & 0b11, 0b10);
            prop_assert_ne!(mac, GATEWAY_MAC);
        }

        #[test]
        fn every_index_of_a_pool_is_inside_and_free_again(
            len in 16u8..31, index in 0u32..5000, addr: u32
        ) {
            let pool = Prefix4::new(Ipv4Addr::from(addr), len);
            match pool.at(index) {
                Some(address) => {
                    prop_assert!(pool.contains(address));
                    prop_assert_ne!(address, pool.base);
                    let others = (0..index).filter_map(|i| pool.at(i));
                    prop_assert_eq!(pool.first_free(others), Some(index));
                }
                None => prop_assert!(index >= pool.capacity()),
            }
        }

        #[test]
        fn hosts_of_a_fleet_have_their_own_addresses(fleet in ID, a in 1..=FLEET_HOSTS_MAX, b in 1..=FLEET_HOSTS_MAX) {
            prop_assume!(a != b);
            prop_assert_ne!(fleet_host_address(&fleet, a), fleet_host_address(&fleet, b));
            prop_assert_ne!(fleet_host_address(&fleet, a), fleet_gateway(&fleet));
            prop_assert!(fleet_prefix(&fleet).contains(fleet_host_address(&fleet, a)));
        }

        #[test]
        fn groups_are_never_the_default_one(host in ID) {
            prop_assert_ne!(interface_group(&host), 0);
        }

        #[test]
        fn only_plain_ids_pass(id in "\\PC{0,80}") {
            let plain = id.len() <= ID_MAX && !id.is_empty() && !id.starts_with('-')
                && id.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
            prop_assert_eq!(check_id(&id).is_ok(), plain);
        }
    }

    #[test]
    fn a_host_is_read_off_its_address() {
        let address = fleet_host_address("dev", 123).to_string();
        assert!(address.ends_with("::1123"), "{address}");
    }

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(interface_name("w1", "0"), interface_name("w", "10"));
    }

    #[test]
    fn a_full_pool_has_nothing_free() {
        let pool = Prefix4::new(Ipv4Addr::new(10, 0, 0, 0), 30);
        assert_eq!(pool.capacity(), 2);
        assert_eq!(pool.first_free([pool.at(0), pool.at(1)].into_iter().flatten()), None);
        assert_eq!(pool.at(2), None);
    }
}
