//! Owns the packet rules as text for `nft -f`: which packets of a Machine pass.
//! Pure: from names and prefixes to a script. Must not know how it is applied.
//!
//! A Machine's interface is known by its interface *group*, so a link whose set
//! elements are not there yet (or not any more) passes nothing: fail closed.

use core::fmt::Write as _;
use core::net::{Ipv4Addr, Ipv6Addr};
use std::collections::BTreeSet;

use crate::plan::{MACHINE_SPACE, Prefix, Prefix4, Prefix6};

/// One element that lets one interface do one thing. Added and deleted exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Element {
    /// It may send from this address.
    Own6(Ipv6Addr),
    Own4(Ipv4Addr),
    /// It may reach other Machines of this host with an address in here.
    Peers([u16; 8], u8),
}

impl Element {
    pub(crate) fn peers(network: Prefix6) -> Self {
        Self::Peers(network.base.segments(), network.len)
    }

    pub(crate) fn set(&self) -> &'static str {
        match self {
            Self::Own6(_) => OWN6,
            Self::Own4(_) => OWN4,
            Self::Peers(..) => PEERS,
        }
    }
}

impl core::fmt::Display for Element {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Own6(a) => a.fmt(f),
            Self::Own4(a) => a.fmt(f),
            Self::Peers(base, len) => write!(f, "{}/{len}", Ipv6Addr::from(*base)),
        }
    }
}

/// The sets of a host's table, all keyed by interface name first.
pub(crate) const OWN6: &str = "own6";
pub(crate) const OWN4: &str = "own4";
pub(crate) const PEERS: &str = "peers";
/// The set that a listed element belongs to, and the element from its second part.
pub(crate) fn element_of(set: &str, value: &str) -> Option<Element> {
    match set {
        OWN6 => value.parse().ok().map(Element::Own6),
        OWN4 => value.parse().ok().map(Element::Own4),
        PEERS => {
            let (base, len) = value.split_once('/')?;
            let base: Ipv6Addr = base.parse().ok()?;
            Some(Element::Peers(base.segments(), len.parse().ok()?))
        }
        _ => None,
    }
}

/// Name of a host's table, of family `inet`.
pub(crate) fn host_table_name(host: &str) -> String {
    format!("godwit_{host}")
}

/// A host's whole table. Applied again it renews the rules and keeps the sets.
pub(crate) fn host_table(table: &str, group: u32, pool: Prefix4, denied: &[Prefix]) -> String {
    let denied: String = denied
        .iter()
        .map(|prefix| match prefix {
            Prefix::V6(p) => format!("add rule inet {table} leaving ip6 daddr {p} drop\n"),
            Prefix::V4(p) => format!("add rule inet {table} leaving ip daddr {p} drop\n"),
        })
        .collect();
    format!(
        "\
add table inet {table}
add set inet {table} {OWN6} {{ type ifname . ipv6_addr; }}
add set inet {table} {OWN4} {{ type ifname . ipv4_addr; }}
add set inet {table} {PEERS} {{ type ifname . ipv6_addr; flags interval; }}
add chain inet {table} spoofed {{ type filter hook prerouting priority raw; policy accept; }}
add chain inet {table} to_host {{ type filter hook input priority filter; policy accept; }}
add chain inet {table} through {{ type filter hook forward priority filter; policy accept; }}
add chain inet {table} masked {{ type nat hook postrouting priority srcnat; policy accept; }}
add chain inet {table} leaving
add chain inet {table} arriving
flush chain inet {table} spoofed
flush chain inet {table} to_host
flush chain inet {table} through
flush chain inet {table} masked
flush chain inet {table} leaving
flush chain inet {table} arriving

add rule inet {table} spoofed iifgroup != {group} accept
add rule inet {table} spoofed iifname . ip6 saddr @{OWN6} accept
add rule inet {table} spoofed iifname . ip saddr @{OWN4} accept
add rule inet {table} spoofed ip6 saddr fe80::/10 icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
add rule inet {table} spoofed drop

add rule inet {table} to_host iifgroup != {group} accept
add rule inet {table} to_host ct state established,related accept
add rule inet {table} to_host icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, echo-request }} accept
add rule inet {table} to_host icmp type echo-request accept
add rule inet {table} to_host drop

add rule inet {table} through iifgroup {group} jump leaving
add rule inet {table} through oifgroup {group} iifgroup != {group} jump arriving
add rule inet {table} leaving ct state established,related accept
add rule inet {table} leaving oifgroup {group} iifname . ip6 daddr @{PEERS} accept
add rule inet {table} leaving oifgroup {group} drop
add rule inet {table} leaving ip6 daddr {MACHINE_SPACE} drop
add rule inet {table} leaving ip daddr {pool} drop
{denied}add rule inet {table} arriving ct state established,related accept
add rule inet {table} arriving drop

add rule inet {table} masked ip6 saddr {MACHINE_SPACE} ip6 daddr != {MACHINE_SPACE} oifgroup != {group} masquerade
add rule inet {table} masked ip saddr {pool} oifgroup != {group} masquerade
"
    )
}

/// Deletes `stale` and adds `wanted`, of one interface.
pub(crate) fn change_elements(
    table: &str,
    interface: &str,
    stale: &BTreeSet<Element>,
    wanted: &BTreeSet<Element>,
) -> String {
    let mut script = String::new();
    for (verb, elements) in [("delete", stale), ("add", wanted)] {
        for element in elements {
            let set = element.set();
            // Writing to a String cannot fail.
            let _ = writeln!(script, "{verb} element inet {table} {set} {{ \"{interface}\" . {element} }}");
        }
    }
    script
}

/// Deletes a table, and is no error when there is none.
pub(crate) fn delete_table(family: &str, table: &str) -> String {
    format!("add table {family} {table}\ndelete table {family} {table}\n")
}

/// IPv4 of a dev fleet's hosts to the world.
pub(crate) fn fleet_egress(table: &str, bridge: &str, prefix: Prefix4) -> String {
    format!(
        "\
{}add table inet {table}
add chain inet {table} masked {{ type nat hook postrouting priority srcnat; policy accept; }}
add rule inet {table} masked ip saddr {prefix} oifname != \"{bridge}\" masquerade
",
        delete_table("inet", table)
    )
}

/// Drops what arrives at `device`, silently for the sender: only neighbour
/// discovery still passes, so that a partition looks like a lost path (packets
/// vanish) and not like an unplugged cable (an error at once).
pub(crate) fn cut(table: &str, device: &str) -> String {
    format!(
        "\
{}add table netdev {table}
add chain netdev {table} cut {{ type filter hook ingress device \"{device}\" priority -300; policy accept; }}
add rule netdev {table} cut meta protocol arp accept
add rule netdev {table} cut meta protocol ip6 icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
add rule netdev {table} cut drop
",
        delete_table("netdev", table)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_is_read_back_as_it_was_written() {
        let all = [
            Element::Own6("fdaa:1::5".parse().unwrap()),
            Element::Own4("172.20.0.1".parse().unwrap()),
            Element::Peers([0xfdaa, 1, 2, 3, 0, 0, 0, 0], 64),
        ];
        for element in all {
            assert_eq!(element_of(element.set(), &element.to_string()), Some(element));
        }
        assert_eq!(element_of("somebody_elses", "::1"), None);
    }

    #[test]
    fn a_change_names_the_interface_in_full() {
        let stale = BTreeSet::from([Element::Own4("10.0.0.1".parse().unwrap())]);
        let wanted = BTreeSet::from([Element::Own4("10.0.0.2".parse().unwrap())]);
        assert_eq!(
            change_elements("t", "gw1", &stale, &wanted),
            "delete element inet t own4 { \"gw1\" . 10.0.0.1 }\n\
             add element inet t own4 { \"gw1\" . 10.0.0.2 }\n"
        );
    }
}
