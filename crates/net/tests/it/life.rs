//! Owns the proof of coming and going: idempotence, exactness, nothing left over.

use std::future::Future;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use godwit_net::{Error, HostNet};
use nix::sched::{CloneFlags, unshare};

use crate::world::{self, ECHO_PORT, World, dial, machine};

#[test]
fn ensuring_again_keeps_namespace_link_and_connections() {
    world::run(async |w: World| {
        w.echo().await;
        let host = w.host("h1", 1).await;
        let net = machine("one", "n", 1);
        let path = host.net.ensure_machine(&net).await.unwrap();
        let identity = std::fs::metadata(&path).unwrap().ino();
        let before = host.net.list().await.unwrap();
        assert_eq!((before[0].link, before[0].namespace, before[0].elements), (true, true, 3));
        let index = link_index(&host.link.netns, &before[0].interface);
        host.net.ensure_host().await.unwrap();
        assert_eq!(host.net.ensure_machine(&net).await.unwrap(), path);
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), identity);
        assert_eq!(link_index(&host.link.netns, &before[0].interface), index);
        assert_eq!(host.net.list().await.unwrap(), before);
        dial(Some(&path), w.v6, ECHO_PORT).unwrap();
    });
}

#[test]
fn the_calling_thread_never_changes_its_namespace() {
    world::run(async |w: World| {
        let own = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let before = own();
        let host = w.host("h1", 1).await;
        for number in 1..20 {
            let id = format!("m{number}");
            host.net.ensure_machine(&machine(&id, "n", number)).await.unwrap();
            host.net.remove_machine(&id).await.unwrap();
            assert_eq!(own(), before);
            // Nor any thread of the runtime.
            for _ in 0..4 {
                assert_eq!(tokio::spawn(async move { own() }).await.unwrap(), before);
                assert_eq!(tokio::task::spawn_blocking(own).await.unwrap(), before);
            }
        }
    });
}

#[test]
fn removing_w1_leaves_w10_alone() {
    world::run(async |w: World| {
        w.echo().await;
        let host = w.host("h1", 1).await;
        for (id, number) in [("w1", 1), ("w10", 2), ("w", 3)] {
            host.net.ensure_machine(&machine(id, "n", number)).await.unwrap();
        }
        let everything = host.net.list().await.unwrap();
        for gone in ["w1", "w1", "w"] {
            host.net.remove_machine(gone).await.unwrap();
            let path = host.net.netns_path("w10");
            dial(Some(&path), w.v6, ECHO_PORT).unwrap();
            dial(Some(&path), w.v4, ECHO_PORT).unwrap();
        }
        let w10: Vec<_> = everything.into_iter().filter(|f| f.machine.as_deref() == Some("w10")).collect();
        assert_eq!(host.net.list().await.unwrap(), w10);
    });
}

#[test]
fn a_hundred_machines_come_and_go_without_a_trace() {
    world::run(async |w: World| {
        w.echo().await;
        let host = w.host("h1", 1).await;
        let mut took: Vec<Duration> = Vec::new();
        for number in 0..100 {
            let start = Instant::now();
            let net = machine(&format!("m{number}"), "n", number);
            host.net.ensure_machine(&net).await.unwrap();
            took.push(start.elapsed());
        }
        report("ensure_machine, new", &mut took);
        let found = host.net.list().await.unwrap();
        assert_eq!(found.len(), 100);
        assert!(found.iter().all(|f| f.link && f.namespace && f.elements == 3));
        let mut took: Vec<Duration> = Vec::new();
        for number in 0..100 {
            let start = Instant::now();
            let net = machine(&format!("m{number}"), "n", number);
            host.net.ensure_machine(&net).await.unwrap();
            took.push(start.elapsed());
        }
        report("ensure_machine, again", &mut took);
        dial(Some(&host.net.netns_path("m99")), w.v6, ECHO_PORT).unwrap();
        world::canary("tweet", &host.net.netns_path("m7"));
        let mut took: Vec<Duration> = Vec::new();
        for number in 0..50 {
            let start = Instant::now();
            host.net.remove_machine(&format!("m{number}")).await.unwrap();
            took.push(start.elapsed());
        }
        report("remove_machine", &mut took);
        assert_eq!(host.net.list().await.unwrap().len(), 50);
        host.net.remove_host().await.unwrap();
        host.net.remove_host().await.unwrap();
        assert!(host.net.list().await.unwrap().is_empty());
        let host_ns = Some(host.link.netns.as_path());
        assert_eq!(world::interfaces(host_ns), ["eth0", "lo"]);
        assert_eq!(world::shell(host_ns, "nft list ruleset"), "");
        assert!(!w.dir.join("h1/netns").exists());
        world::wait_until("m7's namespace is freed", || !world::canary_lives("tweet"));
    });
}

#[test]
fn calls_side_by_side_do_not_disturb_each_other() {
    world::run(async |w: World| {
        w.echo().await;
        let host = w.host("h1", 1).await;
        let net = Arc::new(host.net);
        let calls: Vec<_> = (0..24)
            .map(|number| {
                let net = Arc::clone(&net);
                let machine = machine(&format!("m{}", number % 8), "n", number % 8);
                tokio::spawn(async move { net.ensure_machine(&machine).await })
            })
            .collect();
        for call in calls {
            let netns = call.await.unwrap().unwrap();
            dial(Some(&netns), w.v6, ECHO_PORT).unwrap();
        }
        let listed = tokio::spawn(async move { net.list().await }).await.unwrap().unwrap();
        assert_eq!(listed.len(), 8);
    });
}

/// A future that is dropped half way is a crash without a restart.
#[test]
fn a_call_given_up_half_way_is_completed_by_the_next() {
    world::run(async |w: World| {
        w.echo().await;
        let host = w.host("h1", 1).await;
        // The first polls are where threads are at work in namespaces; the rest of
        // the way is walked once.
        let first = (0..30).map(|round| round % 3 + 1);
        let rounds = first.chain(0..40).zip(0..);
        for (polls, number) in rounds.clone() {
            let net = machine(&format!("m{number}"), "n", number);
            give_up_after(polls, host.net.ensure_machine(&net)).await;
            let netns = host.net.ensure_machine(&net).await.unwrap();
            dial(Some(&netns), w.v6, ECHO_PORT).unwrap_or_else(|e| panic!("given up after {polls} polls: {e}"));
            // What was given up must not go on beside its successor and mount a second one.
            let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            let mine = mounts.lines().filter(|line| line.contains(&format!("{} ", netns.display())));
            assert_eq!(mine.count(), 1, "given up after {polls} polls");
        }
        for (polls, number) in rounds.skip(30).take(12) {
            let id = format!("m{number}");
            give_up_after(polls % 10, host.net.remove_machine(&id)).await;
            host.net.remove_machine(&id).await.unwrap();
            let left = host.net.list().await.unwrap();
            assert!(left.iter().all(|f| f.machine.as_deref() != Some(&id)), "given up after {polls} polls: {left:?}");
        }
        host.net.remove_host().await.unwrap();
        assert_eq!(host.net.list().await.unwrap(), []);
    });
}

/// Polls `call` so many times, and drops it.
async fn give_up_after<T>(polls: u32, call: impl Future<Output = T>) {
    let mut call = std::pin::pin!(call);
    let mut left = polls;
    std::future::poll_fn(|context| {
        if left == 0 || call.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        left -= 1;
        // At once, not at the next wake: then what it waited for would be over.
        if left == 0 { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

#[test]
fn a_removed_namespace_dies_though_others_copied_its_mount() {
    world::run(async |w: World| {
        let host = w.host("h1", 1).await;
        let netns = host.net.ensure_machine(&machine("one", "n", 1)).await.unwrap();
        world::canary("tweet", &netns);
        // A process that was born later with a mount namespace of its own, as every
        // container is, holds copies of all mounts until it drops its old root.
        let (copied, wait) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let bystander = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            copied.send(()).unwrap();
            let _ = ended.recv();
        });
        wait.recv().unwrap();
        host.net.remove_machine("one").await.unwrap();
        world::wait_until("the namespace is freed", || !world::canary_lives("tweet"));
        drop(end);
        bystander.join().unwrap();
    });
}

#[test]
fn namespaces_go_away_with_the_mount_namespace_of_their_host() {
    world::run(async |w: World| {
        let link = w.fabric.ensure_host_netns("h1", 1).await.unwrap();
        // Shared mounts, as systemd makes them: the worst case for leaking outwards.
        world::shell(None, "mount --make-rshared /");
        let dir = w.dir.join("h1");
        std::fs::create_dir(&dir).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNS).unwrap();
                world::runtime().block_on(async {
                    let net = world::open(&link.netns, &dir, Vec::new()).await;
                    net.ensure_host().await.unwrap();
                    let netns = net.ensure_machine(&machine("one", "n", 1)).await.unwrap();
                    world::canary("tweet", &netns);
                });
            });
        });
        world::wait_until("the namespace is freed", || !world::canary_lives("tweet"));
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(!mounts.contains("h1/netns/one"), "leaked into the outer namespace");
    });
}

#[test]
fn a_later_agent_finds_what_an_earlier_one_made() {
    world::run(async |w: World| {
        w.echo().await;
        let host = w.host("h1", 1).await;
        let net = machine("one", "n", 1);
        let netns = host.net.ensure_machine(&net).await.unwrap();
        let before = host.net.list().await.unwrap();
        drop(host.net);
        dial(Some(&netns), w.v6, ECHO_PORT).unwrap();
        let later = world::open(&host.link.netns, &w.dir.join("h1"), Vec::new()).await;
        later.ensure_host().await.unwrap();
        assert_eq!(later.list().await.unwrap(), before);
        later.remove_machine("one").await.unwrap();
        assert!(later.list().await.unwrap().is_empty());
        assert_eq!(world::interfaces(Some(&host.link.netns)), ["eth0", "lo"]);
    });
}

/// Says so to the test that starts it, and waits to be killed.
#[test]
#[ignore = "started by killing_the_agent_leaves_its_machines_on_the_network"]
fn agent_that_will_be_killed() {
    let (netns, dir) = (std::env::var("AGENT_NETNS").unwrap(), std::env::var("AGENT_DIR").unwrap());
    world::runtime().block_on(async {
        let net = world::open(netns.as_ref(), dir.as_ref(), Vec::new()).await;
        net.ensure_host().await.unwrap();
        net.ensure_machine(&machine("one", "n", 1)).await.unwrap();
        println!("ready");
        std::future::pending::<()>().await;
    });
}

#[test]
fn killing_the_agent_leaves_its_machines_on_the_network() {
    world::run(async |w: World| {
        w.echo().await;
        let link = w.fabric.ensure_host_netns("h1", 1).await.unwrap();
        let dir = w.dir.join("h1");
        let mut agent = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "life::agent_that_will_be_killed", "--ignored", "--nocapture"])
            .env("AGENT_NETNS", &link.netns)
            .env("AGENT_DIR", &dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(agent.stdout.take().unwrap()).lines();
        let ready = said.map_while(Result::ok).any(|line| line.contains("ready"));
        agent.kill().unwrap();
        agent.wait().unwrap();
        assert!(ready);
        dial(Some(&dir.join("netns/one")), w.v6, ECHO_PORT).unwrap();
        let later = world::open(&link.netns, &dir, Vec::new()).await;
        let found = later.list().await.unwrap();
        assert_eq!((found.len(), found[0].machine.as_deref(), found[0].elements), (1, Some("one"), 3));
        later.remove_host().await.unwrap();
        assert_eq!(world::interfaces(Some(&link.netns)), ["eth0", "lo"]);
    });
}

#[test]
fn a_missing_nft_is_named_with_its_package() {
    world::run(async |w: World| {
        let host = w.host("h1", 1).await;
        // Only for this test: its mounts are its own.
        for place in ["/usr/sbin", "/usr/bin", "/usr/local/sbin"] {
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("none"), place, Some("tmpfs"), flags, None::<&str>).unwrap();
        }
        let refused = host.net.ensure_host().await;
        assert!(matches!(refused, Err(Error::NftMissing)), "{refused:?}");
        assert!(Error::NftMissing.to_string().contains("package nftables"));
    });
}

#[test]
fn new_addresses_replace_the_old_ones_wholly() {
    world::run(async |w: World| {
        w.echo().await;
        let host = w.host("h1", 1).await;
        host.net.ensure_machine(&machine("one", "n", 1)).await.unwrap();
        let moved = machine("one", "n", 2);
        let netns = host.net.ensure_machine(&moved).await.unwrap();
        dial(Some(&netns), w.v4, ECHO_PORT).unwrap();
        let found = host.net.list().await.unwrap();
        assert_eq!((found[0].elements, found[0].v4), (3, Some(moved.v4)));
        let old = machine("one", "n", 1).v4.to_string();
        let rules = world::shell(Some(&host.link.netns), "nft list ruleset; ip route");
        assert!(!rules.contains(&format!("{old} ")), "{old} is left in:\n{rules}");
    });
}

#[test]
fn an_address_in_use_is_refused_and_its_holder_keeps_it() {
    world::run(async |w: World| {
        w.echo().await;
        let host = w.host("h1", 1).await;
        let holder = machine("holder", "n", 1);
        let netns = host.net.ensure_machine(&holder).await.unwrap();
        let mut second = machine("second", "n", 2);
        second.v4 = holder.v4;
        let refused = host.net.ensure_machine(&second).await;
        assert!(matches!(refused, Err(Error::AddressTaken { .. })), "{refused:?}");
        second = machine("second", "n", 2);
        second.v6 = holder.v6;
        let refused = host.net.ensure_machine(&second).await;
        assert!(matches!(refused, Err(Error::AddressTaken { .. })), "{refused:?}");
        host.net.remove_machine("second").await.unwrap();
        dial(Some(&netns), w.v6, ECHO_PORT).unwrap();
        dial(Some(&netns), w.v4, ECHO_PORT).unwrap();
    });
}

#[test]
fn ids_and_addresses_that_cannot_be_are_refused() {
    world::run(async |w: World| {
        let host = w.host("h1", 1).await;
        for id in ["", "..", "a/b", "a b", "a\"b", "-x", &"x".repeat(65)] {
            let mut net = machine("one", "n", 1);
            net.machine = id.to_owned();
            let refused = host.net.ensure_machine(&net).await;
            assert!(matches!(refused, Err(Error::BadId(_))), "{id:?}: {refused:?}");
            assert!(host.net.remove_machine(id).await.is_err(), "{id:?}");
        }
        let mut net = machine("one", "n", 1);
        net.v6 = "2001:db8::1".parse().unwrap();
        let refused = host.net.ensure_machine(&net).await;
        assert!(matches!(refused, Err(Error::ForeignAddress { .. })));
        net = machine("one", "n", 1);
        net.v4 = "10.0.0.1".parse().unwrap();
        let refused = host.net.ensure_machine(&net).await;
        assert!(matches!(refused, Err(Error::ForeignAddress { .. })));
        assert!(host.net.list().await.unwrap().is_empty());
        assert!(matches!(HostNet::new(godwit_net::Options::new(&w.dir, "a b")).await, Err(Error::BadId(_))));
    });
}

#[test]
fn a_low_port_needs_no_privilege_inside() {
    world::run(async |w: World| {
        let host = w.host("h1", 1).await;
        let net = machine("one", "n", 1);
        let netns = host.net.ensure_machine(&net).await.unwrap();
        let start = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start";
        assert_eq!(world::shell(Some(&netns), start).trim(), "0");
        world::echo(Some(&netns), "[::1]:80".parse::<SocketAddr>().unwrap()).await;
        dial(Some(&netns), "::1".parse().unwrap(), 80).unwrap();
    });
}

fn link_index(netns: &std::path::Path, name: &str) -> String {
    let line = world::shell(Some(netns), &format!("ip -o link show dev {name}"));
    line.split(':').next().unwrap().to_owned()
}

fn report(what: &str, took: &mut [Duration]) {
    took.sort();
    println!(
        "{what}: p50 {:?}, p90 {:?}, max {:?}",
        took[took.len() / 2],
        took[took.len() * 9 / 10],
        took[took.len() - 1]
    );
}
