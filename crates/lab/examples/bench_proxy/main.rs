//! `make bench-proxy`: what a request costs in the edge, and in edge and door together, beside nginx, haproxy and caddy in
//! front of the same Machine. The subject is alone on core 0 with one worker; load, Machine and all the rest have core 1.
//! Subjects take turns within each round; figures are medians over the rounds, and processor time is what counts.
//!
//! The edge has 1,000 apps, its limits, its metrics and its access log on; the peers have one site each and no log.
//! `--rounds N`, `--only h1,h2`, `--apps N`, `--no-access-log`, `--json` shorten or change it. Root, and the peers from Debian.

mod load;
mod subject;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use godwit_api::machine::MachineState;
use godwit_lab::fleet::{Fleet, kill};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;

use subject::Subject;

/// The site that every subject serves.
const APP: &str = "bench";
const HOST: &str = "bench.localhost";
const CAPACITY: &str = "cpus=4096,memory_mb=8388608,disk_mb=8388608";
const PORT: u16 = 8080;
/// Apps that are created at a time.
const CREATING: usize = 8;
const LIMIT: Duration = Duration::from_secs(60);
const OPEN_FILES: u64 = 20_000;
const LOAD_CORE: usize = 1;
const SUBJECT_CORE: usize = 0;

#[derive(Parser)]
struct Options {
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Apps that the edge knows, all but one of them without a running Machine
    #[arg(long, default_value_t = 1000)]
    apps: usize,
    /// Of h1, h1s, h2, tls, ws, post, idle
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// As the peers: to see what the log costs
    #[arg(long)]
    no_access_log: bool,
    #[arg(long)]
    json: bool,
}

/// One kind of load and what it is to cost at most, in proportion to nginx.
struct Kind {
    name: &'static str,
    what: &'static str,
    goal: f64,
}

/// Idle connections come first and once: memory that a load has used is not all given back.
const KINDS: [Kind; 7] = [
    Kind { name: "idle", what: "idle connection", goal: f64::NAN },
    Kind { name: "h1", what: "H1 request", goal: 1.2 },
    Kind { name: "h1s", what: "H1 request over TLS", goal: 1.2 },
    Kind { name: "h2", what: "H2 request over TLS", goal: 1.5 },
    Kind { name: "tls", what: "new TLS connection", goal: 0.7 },
    Kind { name: "ws", what: "WebSocket message", goal: 1.0 },
    Kind { name: "post", what: "POST of 1 GiB", goal: 0.8 },
];
/// KiB.
const GOAL_IDLE: f64 = 18.0;

#[derive(Clone, Copy)]
struct Measured {
    /// µs of processor an operation, or KiB an idle connection.
    cost: f64,
    /// Operations a second, or 0.
    rate: f64,
}

fn main() -> Result<()> {
    let options = Options::parse();
    // Inherited by all that is started from here; subjects are moved afterwards.
    subject::pin(std::process::id(), LOAD_CORE)?;
    let (_, allowed) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(allowed >= OPEN_FILES, "only {allowed} files may be open, and {OPEN_FILES} are needed: ulimit -Hn");
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, allowed)?;
    let fleet = Fleet::start(1, &["--capacity", CAPACITY])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let upstream = runtime.block_on(prepare(&fleet, options.apps))?;
    if !options.no_access_log {
        with_access_log(&fleet)?;
    }
    let scratch = tempfile::tempdir()?;
    let mut subjects = subject::ours(&fleet)?;
    subjects.extend(subject::peers(&fleet, scratch.path(), &upstream)?);
    for one in &mut subjects {
        runtime.block_on(one.until_it_answers(HOST))?;
        one.fresh_kib = one.memory_kib()?;
        eprintln!("{} answers at {}", one.name, one.http);
    }

    let mut found: BTreeMap<(&str, &str), Vec<Measured>> = BTreeMap::new();
    for round in 1..=options.rounds {
        let wanted = |kind: &&Kind| options.only.is_empty() || options.only.iter().any(|one| one == kind.name);
        for kind in KINDS.iter().filter(wanted).filter(|kind| round == 1 || kind.name != "idle") {
            for one in &subjects {
                one.place(SUBJECT_CORE, LOAD_CORE)?;
                let measured = runtime.block_on(measure(kind.name, one))?;
                one.place(LOAD_CORE, LOAD_CORE)?;
                eprintln!(
                    "round {round}  {:<20} {:<12} {:>10.2}  {:>9.0}/s",
                    kind.what, one.name, measured.cost, measured.rate
                );
                found.entry((kind.name, one.name)).or_default().push(measured);
            }
        }
    }
    report(&found, &subjects, options.json);
    Ok(())
}

/// 1,000 apps with a Machine each, of which one runs; the address of that one's server.
async fn prepare(fleet: &Fleet, apps: usize) -> Result<String> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("the workspace")?;
    let image = root.join("target/demo/image-release.tar");
    ensure!(image.exists(), "{} is missing: run `make bench-image`", image.display());
    fleet.cli_ok(&["image", "load", image.to_str().context("UTF-8")?, "--name", "demo"])?;
    let config = json!({
        "image": "demo",
        "guest": { "cpu_kind": "performance", "cpus": 2, "memory_mb": 512 },
        "services": [{ "protocol": "tcp", "internal_port": PORT, "autostart": true, "autostop": false,
                       "ports": [{ "port": 80, "handlers": ["http"] }, { "port": 443, "handlers": ["tls", "http"] }],
                       "concurrency": { "type": "requests", "soft_limit": 20_000, "hard_limit": 30_000 } }],
        "restart": { "policy": "no" },
    });
    fleet.create_app(APP).await?;
    let machine = fleet.create_machine(APP, json!({ "config": config.clone() })).await?;
    let machine = fleet.wait_state(APP, machine.id.as_str(), &[MachineState::Started], LIMIT).await?;
    let mut asleep = config;
    asleep["services"][0]["autostart"] = json!(false);
    let begun = Instant::now();
    let names: Vec<String> = (1..apps).map(|n| format!("app-{n}")).collect();
    for some in names.chunks(CREATING) {
        let creating = some.iter().map(|name| async {
            fleet.create_app(name).await?;
            let request = json!({ "config": asleep.clone(), "skip_launch": true });
            fleet.create_machine(name, request).await.map(drop)
        });
        futures_util::future::try_join_all(creating).await?;
    }
    eprintln!("{apps} apps in {:.1} s", begun.elapsed().as_secs_f64());
    // From its first request on the edge follows an app; their Machines do not start for it.
    let addr = fleet.dev()?.http_addr;
    for name in &names {
        let answer = godwit_lab::plain::get(&addr, &format!("{name}.localhost"), "/", LIMIT).await?;
        ensure!(answer.status == 503, "{name}: {} {}", answer.status, answer.text());
    }
    let ip = machine.private_ip;
    Ok(format!("[{ip}]:{PORT}"))
}

/// The dev fleet's edge writes no access log of its own accord.
fn with_access_log(fleet: &Fleet) -> Result<()> {
    let path = fleet.dir().join("edge/edge.toml");
    let log = fleet.dir().join("edge/access.log");
    let config = std::fs::read_to_string(&path)?;
    std::fs::write(&path, format!("access_log = {:?}\n{config}", log.to_str().context("UTF-8")?))?;
    kill(fleet.dev()?.edge_pid, libc::SIGHUP);
    let deadline = Instant::now() + LIMIT;
    while !log.exists() {
        ensure!(Instant::now() < deadline, "the edge writes no access log");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

async fn measure(kind: &str, one: &Subject) -> Result<Measured> {
    if kind == "idle" {
        let held = load::hold(&one.http, HOST).await?;
        return Ok(Measured { cost: (one.memory_kib()? - one.fresh_kib) / held.len() as f64, rate: 0.0 });
    }
    // Its connections to the Machine stand, and its caches are warm.
    load::run(kind, one, HOST, load::Size::Warm).await?;
    let (from, begun) = (one.processor_time()?, Instant::now());
    let operations = load::run(kind, one, HOST, load::Size::Whole).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let spent = one.processor_time()? - from;
    Ok(Measured { cost: spent.as_secs_f64() * 1e6 / operations, rate: operations / seconds })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn report(found: &BTreeMap<(&str, &str), Vec<Measured>>, subjects: &[Subject], as_json: bool) {
    let cost = |kind: &str, name: &str| median(found.get(&(kind, name)).into_iter().flatten().map(|one| one.cost));
    let rate = |kind: &str, name: &str| median(found.get(&(kind, name)).into_iter().flatten().map(|one| one.rate));
    let mut rows = Vec::new();
    let mut table = comfy_table::Table::new();
    table.set_header(["", "subject", "µs (idle: KiB)", "a second", "of nginx", "of haproxy", "goal"]);
    for kind in &KINDS {
        for one in subjects.iter().filter(|one| found.contains_key(&(kind.name, one.name))) {
            let mine = cost(kind.name, one.name);
            let ratios = ["nginx", "haproxy"].map(|peer| mine / cost(kind.name, peer));
            let goal = match (one.name, kind.name) {
                ("edge", "idle") => format!("≤ {GOAL_IDLE:.0} KiB"),
                ("edge", _) => format!("≤ {:.1}", kind.goal),
                _ => String::new(),
            };
            table.add_row([
                kind.what.to_owned(),
                one.name.to_owned(),
                format!("{mine:.1}"),
                format!("{:.0}", rate(kind.name, one.name)),
                format!("{:.2}", ratios[0]),
                format!("{:.2}", ratios[1]),
                goal,
            ]);
            rows.push(json!({ "kind": kind.name, "subject": one.name, "cost": mine, "rate": rate(kind.name, one.name),
                              "of_nginx": ratios[0], "of_haproxy": ratios[1] }));
        }
    }
    if as_json {
        println!("{}", json!(rows));
    } else {
        println!("{table}");
    }
}
