//! Owns the proof of a dev fleet's bridge: hosts meet, partitions cut, fleets live
//! side by side, and nothing stays.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;

use godwit_net::{Direction, Error, Fabric, FabricOptions, plan};

use crate::world::{self, World, dial};

const PORT: u16 = 4242;

#[test]
fn hosts_and_the_root_reach_each_other_at_once() {
    world::run(async |w: World| {
        let (one, two) = (w.host("h1", 1).await, w.host("h2", 2).await);
        world::echo(None, SocketAddr::new(w.v6, PORT)).await;
        world::echo(Some(&two.link.netns), SocketAddr::new(two.link.v6.into(), PORT)).await;
        let from_one = dial(Some(&one.link.netns), two.link.v6.into(), PORT).unwrap();
        assert_eq!(from_one, IpAddr::V6(one.link.v6));
        let from_root = dial(None, two.link.v6.into(), PORT).unwrap();
        assert_eq!(from_root, w.v6);
        let to_root = dial(Some(&one.link.netns), w.v6, PORT).unwrap();
        assert_eq!(to_root, IpAddr::V6(one.link.v6));
    });
}

#[test]
fn a_partition_cuts_one_host_off_until_it_is_healed() {
    world::run(async |w: World| {
        let (one, two) = (w.host("h1", 1).await, w.host("h10", 10).await);
        for host in [&one, &two] {
            world::echo(Some(&host.link.netns), SocketAddr::new(host.link.v6.into(), PORT)).await;
        }
        let (a, b) = (one.link.v6.into(), two.link.v6.into());
        for direction in [Direction::Both, Direction::In, Direction::Out] {
            w.fabric.partition("h1", direction).await.unwrap();
            world::assert_unreachable(None, a, PORT);
            world::assert_unreachable(Some(&one.link.netns), b, PORT);
            dial(None, b, PORT).unwrap();
        }
        w.fabric.heal("h1").await.unwrap();
        w.fabric.heal("h1").await.unwrap();
        dial(None, a, PORT).unwrap();
        dial(Some(&one.link.netns), b, PORT).unwrap();
    });
}

#[test]
fn a_partition_of_one_direction_lets_the_other_through() {
    world::run(async |w: World| {
        let host = w.host("h1", 1).await;
        let inside = world::udp(Some(&host.link.netns), SocketAddr::new(host.link.v6.into(), 0));
        let root = world::udp(None, SocketAddr::new(w.v6, 0));
        let send = |from: &UdpSocket, to: &UdpSocket, text: &str| {
            from.send_to(text.as_bytes(), to.local_addr().unwrap()).unwrap();
        };
        w.fabric.partition("h1", Direction::In).await.unwrap();
        send(&root, &inside, "lost");
        send(&inside, &root, "heard");
        assert_eq!(world::next_datagram(&root), "heard");
        w.fabric.partition("h1", Direction::Out).await.unwrap();
        send(&inside, &root, "lost");
        send(&root, &inside, "heard");
        assert_eq!(world::next_datagram(&inside), "heard");
        w.fabric.heal("h1").await.unwrap();
        send(&inside, &root, "after");
        assert_eq!(world::next_datagram(&root), "after");
    });
}

#[test]
fn taking_h1_off_leaves_h10_alone() {
    world::run(async |w: World| {
        let (one, ten) = (w.host("h1", 1).await, w.host("h10", 10).await);
        world::echo(Some(&ten.link.netns), SocketAddr::new(ten.link.v6.into(), PORT)).await;
        w.fabric.partition("h1", Direction::Both).await.unwrap();
        for _ in 0..2 {
            w.fabric.remove_host_netns("h1").await.unwrap();
            dial(None, ten.link.v6.into(), PORT).unwrap();
        }
        assert!(!one.link.netns.exists());
        // What is cut off stays so, too.
        w.host("h1", 1).await;
        w.fabric.partition("h10", Direction::Both).await.unwrap();
        w.fabric.remove_host_netns("h1").await.unwrap();
        world::assert_unreachable(None, ten.link.v6.into(), PORT);
        w.fabric.heal("h10").await.unwrap();
        dial(None, ten.link.v6.into(), PORT).unwrap();
    });
}

#[test]
fn hosts_have_a_way_to_the_world_when_asked_for() {
    world::run(async |w: World| {
        let host = w.host("h1", 1).await;
        world::echo(None, SocketAddr::new(w.v4, PORT)).await;
        let seen = dial(Some(&host.link.netns), w.v4, PORT).unwrap();
        assert_eq!(Some(seen), host.link.v4.map(IpAddr::V4));
    });
}

#[test]
fn fleets_live_side_by_side_and_one_goes_without_a_trace() {
    world::isolated(|dir| {
        world::runtime().block_on(async {
            let (keep, goes) = (World::new("w10", dir).await, World::new("w1", dir).await);
            let kept = keep.fabric.ensure_host_netns("h1", 1).await.unwrap();
            world::echo(Some(&kept.netns), SocketAddr::new(kept.v6.into(), PORT)).await;
            let before = (world::interfaces(None), tables());
            // Without its folder's record too, as after a disk that was lost.
            for lose_record in [false, true] {
                let link = goes.fabric.ensure_host_netns("h1", 1).await.unwrap();
                goes.fabric.ensure_host_netns("h2", 2).await.unwrap();
                goes.fabric.partition("h1", Direction::Both).await.unwrap();
                world::canary("tweet", &link.netns);
                if lose_record {
                    std::fs::write(dir.join("w1/fabric.json"), "{").unwrap();
                }
                for _ in 0..2 {
                    Fabric::remove_all("w1", &dir.join("w1")).await.unwrap();
                }
                world::wait_until("h1's namespace is freed", || !world::canary_lives("tweet"));
                let left = std::fs::read_dir(dir.join("w1")).unwrap().count();
                assert_eq!(left, 0);
                assert_eq!(world::interfaces(None).len(), before.0.len() - 1, "its bridge is gone");
                assert_eq!(tables().len(), before.1.len() - 1, "its rules are gone");
                dial(None, kept.v6.into(), PORT).unwrap();
                goes.fabric.ensure().await.unwrap();
            }
            Fabric::remove_all("w1", &dir.join("w1")).await.unwrap();
            Fabric::remove_all("w10", &dir.join("w10")).await.unwrap();
            assert_eq!(world::interfaces(None), ["lo"]);
            assert!(tables().is_empty());
        });
    });
}

#[test]
fn a_fleet_goes_on_where_it_stopped() {
    world::isolated(|dir| {
        world::runtime().block_on(async {
            let first = World::new("dev", dir).await;
            let before = first.fabric.ensure_host_netns("h1", 1).await.unwrap();
            world::echo(Some(&before.netns), SocketAddr::new(before.v6.into(), PORT)).await;
            drop(first);
            let again = World::new("dev", dir).await;
            let after = again.fabric.ensure_host_netns("h1", 1).await.unwrap();
            assert_eq!(after, before);
            dial(None, after.v6.into(), PORT).unwrap();
        });
    });
}

#[test]
fn forwarding_is_put_back_as_it_was() {
    world::isolated(|dir| {
        world::runtime().block_on(async {
            let read = || world::shell(None, "cat /proc/sys/net/ipv4/ip_forward");
            for initial in ["0", "1"] {
                let set = format!("echo {initial} > /proc/sys/net/ipv4/ip_forward");
                world::shell(None, &set);
                World::new("dev", dir).await;
                assert_eq!(read().trim(), "1");
                // A second start must not take its own setting for the user's.
                World::new("dev", dir).await;
                Fabric::remove_all("dev", &dir.join("dev")).await.unwrap();
                assert_eq!(read().trim(), initial);
            }
        });
    });
}

#[test]
fn two_hosts_cannot_share_a_number_and_one_cannot_have_two() {
    world::run(async |w: World| {
        w.fabric.ensure_host_netns("h1", 1).await.unwrap();
        for (host, index) in [("h2", 1), ("h1", 2)] {
            let refused = w.fabric.ensure_host_netns(host, index).await;
            assert!(matches!(refused, Err(Error::AddressTaken { .. })), "{refused:?}");
        }
        for index in [0, plan::FLEET_HOSTS_MAX + 1] {
            let refused = w.fabric.ensure_host_netns("h3", index).await;
            assert!(matches!(refused, Err(Error::BadHostIndex { .. })), "{refused:?}");
        }
        w.fabric.remove_host_netns("h1").await.unwrap();
        w.fabric.remove_host_netns("h1").await.unwrap();
        w.fabric.ensure_host_netns("h2", 1).await.unwrap();
    });
}

#[test]
fn no_ipv4_unless_asked_for() {
    world::isolated(|dir| {
        world::runtime().block_on(async {
            let fabric = Fabric::new(FabricOptions { fleet: "dev".to_owned(), dir: dir.join("dev"), egress_v4: false })
                .await
                .unwrap();
            fabric.ensure().await.unwrap();
            let link = fabric.ensure_host_netns("h1", 1).await.unwrap();
            assert_eq!(link.v4, None);
            assert!(tables().is_empty());
            let routes = world::shell(Some(Path::new(&link.netns)), "ip route");
            assert_eq!(routes, "");
        });
    });
}

fn tables() -> Vec<String> {
    let text = world::shell(None, "nft list tables");
    text.lines().map(str::to_owned).collect()
}
