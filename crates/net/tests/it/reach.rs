//! Owns the proof of who reaches whom: the world, the host, the neighbours.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;

use godwit_net::plan::{self, GATEWAY_V4, Prefix};

use crate::world::{self, ECHO_PORT, World, dial, machine};

const APP_PORT: u16 = 8080;

#[test]
fn two_machines_reach_the_world_and_are_seen_as_their_host() {
    world::run(async |w: World| {
        w.echo().await;
        let host = w.host("h1", 1).await;
        for (id, number) in [("one", 1), ("two", 2)] {
            let netns = host.net.ensure_machine(&machine(id, "n", number)).await.unwrap();
            let seen6 = dial(Some(&netns), w.v6, ECHO_PORT).unwrap();
            let seen4 = dial(Some(&netns), w.v4, ECHO_PORT).unwrap();
            assert_eq!(seen6, IpAddr::V6(host.link.v6), "{id}");
            assert_eq!(Some(seen4), host.link.v4.map(IpAddr::V4), "{id}");
        }
    });
}

#[test]
fn the_door_dials_a_machine_by_its_private_address() {
    world::run(async |w: World| {
        let host = w.host("h1", 1).await;
        let net = machine("one", "n", 1);
        let netns = host.net.ensure_machine(&net).await.unwrap();
        world::echo(Some(&netns), SocketAddr::new(net.v6.into(), APP_PORT)).await;
        world::echo(Some(&netns), SocketAddr::new(net.v4.into(), APP_PORT)).await;
        dial(Some(&host.link.netns), net.v6.into(), APP_PORT).unwrap();
        dial(Some(&host.link.netns), net.v4.into(), APP_PORT).unwrap();
    });
}

#[test]
fn an_address_survives_the_move_to_another_host() {
    world::run(async |w: World| {
        let (source, target) = (w.host("h1", 1).await, w.host("h2", 2).await);
        let net = machine("one", "n", 1);
        for host in [&source, &target, &source] {
            let netns = host.net.ensure_machine(&net).await.unwrap();
            world::echo(Some(&netns), SocketAddr::new(net.v6.into(), APP_PORT)).await;
            dial(Some(&host.link.netns), net.v6.into(), APP_PORT).unwrap();
            host.net.remove_machine("one").await.unwrap();
            assert!(host.net.list().await.unwrap().is_empty());
        }
    });
}

#[test]
fn a_machine_cannot_reach_what_its_host_listens_on() {
    world::run(async |w: World| {
        let host = w.host("h1", 1).await;
        let netns = host.net.ensure_machine(&machine("one", "n", 1)).await.unwrap();
        let host_ns = Some(host.link.netns.as_path());
        world::echo(host_ns, "[::]:4242".parse().unwrap()).await;
        let mine: [IpAddr; 3] = [host.link.v6.into(), host.link.v4.unwrap().into(), GATEWAY_V4.into()];
        for address in mine {
            assert!(dial(host_ns, address, 4242).is_ok(), "nothing listens at {address}");
            world::assert_unreachable(Some(&netns), address, 4242);
        }
        let scoped = "[fe80::1%2]:4242";
        assert!(scoped.parse::<SocketAddr>().is_ok());
        let reached = world::within(Some(&netns), || {
            std::net::TcpStream::connect_timeout(&scoped.parse().unwrap(), world::REFUSED_AFTER)
        });
        assert!(reached.is_err(), "reached the host by its link-local address");
    });
}

#[test]
fn what_is_denied_stays_out_of_reach_while_the_rest_is_not() {
    world::run(async |w: World| {
        w.echo().await;
        let denied = vec![Prefix::V6(plan::fleet_prefix("test"))];
        let host = w.host_with("h1", 1, denied).await;
        let other = w.host("h2", 2).await;
        world::echo(Some(&other.link.netns), "[::]:4242".parse().unwrap()).await;
        let netns = host.net.ensure_machine(&machine("one", "n", 1)).await.unwrap();
        dial(Some(&host.link.netns), other.link.v6.into(), 4242).unwrap();
        world::assert_unreachable(Some(&netns), other.link.v6.into(), 4242);
        world::assert_unreachable(Some(&netns), w.v6, ECHO_PORT);
        dial(Some(&netns), w.v4, ECHO_PORT).unwrap();
    });
}

#[test]
fn machines_meet_only_inside_their_app_network() {
    world::run(async |w: World| {
        let host = w.host("h1", 1).await;
        let (one, mate, stranger) =
            (machine("one", "mine", 1), machine("mate", "mine", 2), machine("stranger", "theirs", 3));
        let one_ns = host.net.ensure_machine(&one).await.unwrap();
        for net in [&mate, &stranger] {
            let netns = host.net.ensure_machine(net).await.unwrap();
            world::echo(Some(&netns), SocketAddr::new(net.v6.into(), APP_PORT)).await;
            world::echo(Some(&netns), SocketAddr::new(net.v4.into(), APP_PORT)).await;
        }
        let seen = dial(Some(&one_ns), mate.v6.into(), APP_PORT).unwrap();
        assert_eq!(seen, IpAddr::V6(one.v6), "no NAT between Machines");
        world::assert_unreachable(Some(&one_ns), stranger.v6.into(), APP_PORT);
        // IPv4 is for the way out only.
        world::assert_unreachable(Some(&one_ns), mate.v4.into(), APP_PORT);
        world::assert_unreachable(Some(&one_ns), stranger.v4.into(), APP_PORT);
    });
}

#[test]
fn nobody_outside_dials_a_machine_past_the_door() {
    world::run(async |w: World| {
        let host = w.host("h1", 1).await;
        let net = machine("one", "n", 1);
        let netns = host.net.ensure_machine(&net).await.unwrap();
        world::echo(Some(&netns), SocketAddr::new(net.v6.into(), APP_PORT)).await;
        let route = format!("ip -6 route add {} via {}", net.v6, host.link.v6);
        world::shell(None, &route);
        world::assert_unreachable(None, net.v6.into(), APP_PORT);
    });
}

#[test]
fn a_forged_source_address_goes_nowhere() {
    world::run(async |w: World| {
        let host = w.host("h1", 1).await;
        let (thief, victim) = (machine("thief", "n", 1), machine("victim", "n", 2));
        let netns = host.net.ensure_machine(&thief).await.unwrap();
        host.net.ensure_machine(&victim).await.unwrap();
        for (internet, own, stolen) in [
            (w.v6, IpAddr::V6(thief.v6), IpAddr::V6(victim.v6)),
            (w.v4, IpAddr::V4(thief.v4), IpAddr::V4(victim.v4)),
            (w.v6, IpAddr::V6(thief.v6), "fdaa:1:2:3:4:5:6:7".parse().unwrap()),
            (w.v4, IpAddr::V4(thief.v4), "198.51.100.9".parse().unwrap()),
        ] {
            let sink = world::udp(None, SocketAddr::new(internet, 0));
            let to = sink.local_addr().unwrap();
            let nodad = if stolen.is_ipv6() { "nodad" } else { "" };
            world::shell(Some(&netns), &format!("ip addr add {stolen} dev eth0 {nodad}"));
            // One path, so the order holds: what arrives first is what was let through.
            send(&netns, stolen, to, "forged");
            send(&netns, own, to, "honest");
            assert_eq!(world::next_datagram(&sink), "honest", "{stolen} passed");
        }
    });
}

fn send(netns: &Path, from: IpAddr, to: SocketAddr, text: &str) {
    world::within(Some(netns), || {
        let socket = UdpSocket::bind(SocketAddr::new(from, 0)).unwrap();
        socket.send_to(text.as_bytes(), to).unwrap();
    });
}
