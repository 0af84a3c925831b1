//! Owns the proof of healing: whatever single piece is missing, the next call makes
//! the Machine whole, and a removal from there leaves nothing.

use std::net::SocketAddr;

use godwit_net::MachineNet;
use godwit_net::plan;

use crate::world::{self, ECHO_PORT, Host, World, dial, machine};

/// Where a breakage is done, and what it does. `IF`, `V6`, `V4`, `NETNS` are filled in.
enum Break {
    OnHost(&'static str),
    Inside(&'static str),
    Mounts(&'static str),
}
use Break::{Inside, Mounts, OnHost};

const BREAKAGES: [Break; 19] = [
    OnHost("ip link del IF"),
    OnHost("ip link set IF down"),
    OnHost("ip addr flush dev IF"),
    OnHost("ip -6 route del V6"),
    OnHost("ip route del V4"),
    OnHost("ip neigh flush all nud permanent dev IF"),
    OnHost("ip link set dev IF group default"),
    OnHost("ip link set dev IF alias ''"),
    OnHost("nft 'delete element inet godwit_t own6 { \"IF\" . V6 }'"),
    OnHost("nft 'delete element inet godwit_t own4 { \"IF\" . V4 }'"),
    OnHost("nft 'delete table inet godwit_t'"),
    OnHost("nft flush ruleset"),
    Inside("ip link del eth0"),
    Inside("ip link set eth0 down; ip link set lo down"),
    Inside("ip addr flush dev eth0"),
    Inside("ip route del default; ip -6 route del default"),
    Inside("ip neigh flush all nud permanent dev eth0"),
    Mounts("umount NETNS"),
    Mounts("umount NETNS; rm NETNS"),
];

#[test]
fn ensure_heals_each_missing_piece() {
    world::run(async |w: World| {
        w.echo().await;
        let host = w.host("h1", 1).await;
        let bystander = machine("bystander", "n", 99);
        let aside = host.net.ensure_machine(&bystander).await.unwrap();
        let net = machine("one", "n", 1);
        for (number, breakage) in BREAKAGES.iter().enumerate() {
            host.net.ensure_machine(&net).await.unwrap();
            let line = inflict(&host, &net, breakage);
            let netns = host.net.ensure_machine(&net).await;
            let netns = netns.unwrap_or_else(|e| panic!("after {line}: {e}"));
            let whole = host.net.list().await.unwrap();
            assert_eq!(whole.len(), 2, "after {line}: {whole:?}");
            assert!(whole.iter().all(|f| f.link && f.namespace && f.elements == 3), "after {line}: {whole:?}");
            for ns in [&netns, &aside] {
                for to in [w.v6, w.v4] {
                    dial(Some(ns), to, ECHO_PORT).unwrap_or_else(|e| panic!("after {line}: {to}: {e}"));
                }
            }
            let port = 9000 + number as u16;
            world::echo(Some(&netns), SocketAddr::new(net.v6.into(), port)).await;
            dial(Some(&host.link.netns), net.v6.into(), port).unwrap_or_else(|e| panic!("after {line}: door: {e}"));
        }
    });
}

#[test]
fn remove_completes_from_each_partial_state() {
    world::run(async |w: World| {
        let host = w.host("h1", 1).await;
        let net = machine("one", "n", 1);
        for breakage in &BREAKAGES {
            host.net.ensure_machine(&net).await.unwrap();
            let line = inflict(&host, &net, breakage);
            for _ in 0..2 {
                let removed = host.net.remove_machine("one").await;
                removed.unwrap_or_else(|e| panic!("after {line}: {e}"));
            }
            assert_eq!(host.net.list().await.unwrap(), [], "after {line}");
            assert_eq!(world::interfaces(Some(&host.link.netns)), ["eth0", "lo"], "after {line}");
        }
    });
}

/// A crash right after the namespace's file was made, before anything is mounted.
#[test]
fn an_empty_namespace_file_is_completed() {
    world::run(async |w: World| {
        w.echo().await;
        let host = w.host("h1", 1).await;
        std::fs::write(host.net.netns_path("one"), "").unwrap();
        let found = host.net.list().await.unwrap();
        assert_eq!((found[0].namespace, found[0].link), (false, false));
        let netns = host.net.ensure_machine(&machine("one", "n", 1)).await.unwrap();
        dial(Some(&netns), w.v6, ECHO_PORT).unwrap();
    });
}

/// A link whose elements are not there must not speak: the order of a crash.
#[test]
fn a_link_without_rule_elements_passes_nothing() {
    world::run(async |w: World| {
        w.echo().await;
        let host = w.host("h1", 1).await;
        let net = machine("one", "n", 1);
        let netns = host.net.ensure_machine(&net).await.unwrap();
        inflict(&host, &net, &OnHost("nft 'delete element inet godwit_t own6 { \"IF\" . V6 }'"));
        inflict(&host, &net, &OnHost("nft 'delete element inet godwit_t own4 { \"IF\" . V4 }'"));
        world::assert_unreachable(Some(&netns), w.v6, ECHO_PORT);
        world::assert_unreachable(Some(&netns), w.v4, ECHO_PORT);
    });
}

#[test]
fn running_machines_get_their_rules_back_when_the_host_starts_again() {
    world::run(async |w: World| {
        w.echo().await;
        let host = w.host("h1", 1).await;
        let netns = host.net.ensure_machine(&machine("one", "n", 1)).await.unwrap();
        let before = host.net.list().await.unwrap();
        world::shell(Some(&host.link.netns), "nft flush ruleset");
        host.net.ensure_host().await.unwrap();
        assert_eq!(host.net.list().await.unwrap(), before);
        dial(Some(&netns), w.v6, ECHO_PORT).unwrap();
    });
}

fn inflict(host: &Host, net: &MachineNet, breakage: &Break) -> String {
    let netns = host.net.netns_path(&net.machine);
    let (place, line) = match breakage {
        OnHost(line) => (Some(host.link.netns.as_path()), line),
        Inside(line) => (Some(netns.as_path()), line),
        Mounts(line) => (None, line),
    };
    let line = line
        .replace("NETNS", &netns.display().to_string())
        .replace("IF", &plan::interface_name("t", &net.machine))
        .replace("V6", &net.v6.to_string())
        .replace("V4", &net.v4.to_string());
    world::shell(place, &line);
    line
}
