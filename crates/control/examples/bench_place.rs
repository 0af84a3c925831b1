//! Placements a second on 1,000 hosts: each is decided on the picture, and the picture takes it in. Prints rates, and
//! beside them a plain scan that does the least that any placement must (read each host's free memory), measured in
//! turns with it.

use std::hint::black_box;
use std::time::{Duration, Instant};

use godwit_api::fact::Resources;
use godwit_api::{AppName, HostId, MachineId};
use godwit_control::place::{HostEntry, Request, Snapshot};

const HOSTS: usize = 1_000;
const APPS: usize = 500;
const ROUND: Duration = Duration::from_millis(500);
const ROUNDS: usize = 6;

fn main() {
    let hosts: Vec<HostId> = (0..HOSTS).map(|n| HostId::parse(&format!("host-{n:04}")).expect("a host id")).collect();
    let apps: Vec<AppName> = (0..APPS).map(|n| AppName::parse(&format!("app-{n}")).expect("an app name")).collect();
    let capacity = Resources { cpu_millis: 64_000, memory_mb: 524_288, disk_mb: 4_000_000 };
    let mut snapshot = Snapshot::new();
    for (number, host) in hosts.iter().enumerate() {
        let region = ["fra", "ams", "iad", "syd"][number % 4];
        snapshot.host(host, &HostEntry { region: region.into(), cordoned: number % 50 == 0 });
        let used = Resources { memory_mb: (number as u64 * 7919) % 200_000, ..Resources::default() };
        snapshot.report(host, capacity, used, 1);
    }
    let need = Resources { cpu_millis: 62, memory_mb: 256, disk_mb: 256 };
    let (mut place, mut scan) = (Vec::new(), Vec::new());
    let mut placed: std::collections::VecDeque<(HostId, MachineId)> = Default::default();
    let mut revision = 2u64;
    for _ in 0..ROUNDS {
        place.push(rate(|n| {
            let app = &apps[(n % APPS as u64) as usize];
            let region = (n % 2 == 0).then_some("fra");
            let request = Request { app, region, need, running: need, cpus: 1, only: None, refused: &[], tie: n };
            let host = snapshot.place(&request).expect("there is room");
            revision += 1;
            let machine = MachineId::from_bits(revision);
            snapshot.placed(&host, &machine, app, need, revision);
            placed.push_back((host, machine));
            // As many go as come, so that the fleet stays as it is.
            if placed.len() > 20_000
                && let Some((host, machine)) = placed.pop_front()
            {
                snapshot.unplaced(&host, &machine);
            }
        }));
        let free: Vec<u64> = (0..HOSTS as u64).map(|n| n * 7919 % 524_288).collect();
        scan.push(rate(|n| {
            black_box(black_box(&free).iter().enumerate().max_by_key(|(_, free)| **free ^ n));
        }));
    }
    let (place, scan) = (median(place), median(scan));
    println!("hosts {HOSTS}, apps {APPS}, machines {}", placed.len());
    println!("placements/s          {place:>12.0}");
    println!("least possible scan/s {scan:>12.0}   ratio {:.2}", scan / place);
    println!("goal of 100000/s      {}", if place >= 100_000.0 { "met" } else { "missed" });
}

fn rate(mut step: impl FnMut(u64)) -> f64 {
    let since = Instant::now();
    let mut steps = 0u64;
    while since.elapsed() < ROUND {
        for _ in 0..100 {
            step(steps);
            steps += 1;
        }
    }
    steps as f64 / since.elapsed().as_secs_f64()
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
