//! `make bench-start`: from a request to its first byte for a stopped Machine, against `crun run` of the same image
//! until its port answers; interleaved, on one dev fleet of this machine. Prints a table, or JSON with `--json`.
//!
//! crun is favoured where the two differ: its container gets no network namespace of its own, its root is already
//! unpacked, and the clock starts right before its process.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use godwit_api::machine::MachineState;
use godwit_lab::fleet::{Fleet, kill};
use serde_json::json;

const PORT: u16 = 8080;
const LIMIT: Duration = Duration::from_secs(30);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, bundle] = arguments.as_slice()
        && word == "crun-once"
    {
        println!("{}", crun_once(Path::new(bundle))?.as_micros());
        return Ok(());
    }
    let rounds = arguments.iter().find_map(|text| text.parse().ok()).unwrap_or(40usize);
    let as_json = arguments.iter().any(|text| text == "--json");

    let scratch = tempfile::tempdir()?;
    let bundle = make_bundle(scratch.path())?;
    let fleet = Fleet::start(1, &[])?;
    let image = image()?;
    fleet.cli_ok(&["image", "load", image.to_str().context("UTF-8")?, "--name", "demo"])?;
    let runtime = tokio::runtime::Runtime::new()?;
    let id = runtime.block_on(prepare(&fleet))?;

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..rounds + 2 {
        let wake = runtime.block_on(wake_once(&fleet, &id))?;
        let crun = crun_in_namespaces(&bundle)?;
        // The first two rounds warm caches on both sides.
        if round >= 2 {
            ours.push(wake);
            theirs.push(crun);
        }
    }
    report(&mut ours, &mut theirs, as_json);
    Ok(())
}

async fn prepare(fleet: &Fleet) -> Result<String> {
    fleet.create_app("bench").await?;
    let config = json!({
        "image": "demo",
        "guest": { "cpu_kind": "shared", "cpus": 1, "memory_mb": 64 },
        "services": [{ "protocol": "tcp", "internal_port": PORT, "autostart": true, "autostop": false,
                       "ports": [{ "port": 80, "handlers": ["http"] }] }],
        "restart": { "policy": "no" },
    });
    let machine = fleet.create_machine("bench", json!({ "config": config })).await?;
    fleet.wait_state("bench", machine.id.as_str(), &[MachineState::Started], LIMIT).await?;
    let answer = fleet.get("bench", "/", LIMIT).await?;
    ensure!(answer.status == 200, "{}", answer.text());
    Ok(machine.id.to_string())
}

/// Stops the Machine, waits until it is stopped, and times one request that wakes it.
async fn wake_once(fleet: &Fleet, id: &str) -> Result<Duration> {
    fleet.stop_machine("bench", id).await?;
    fleet.wait_state("bench", id, &[MachineState::Stopped], LIMIT).await?;
    let addr = fleet.dev()?.http_addr;
    tokio::task::spawn_blocking(move || {
        let begun = Instant::now();
        first_byte(&addr, "bench.localhost").map(|()| begun.elapsed())
    })
    .await?
}

fn first_byte(addr: &str, host: &str) -> Result<()> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut first = [0u8; 1];
    stream.read_exact(&mut first)?;
    answer.push(first[0]);
    stream.read_to_end(&mut answer)?;
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// A bundle whose root is the demo image's one layer, and a configuration that shares the network namespace.
fn make_bundle(folder: &Path) -> Result<std::path::PathBuf> {
    let bundle = folder.join("bundle");
    std::fs::create_dir_all(&bundle)?;
    let layout = folder.join("layout");
    std::fs::create_dir_all(&layout)?;
    run(Command::new("tar").arg("-xf").arg(image()?).arg("-C").arg(&layout))?;
    let tag = first_tag(&layout)?;
    run(Command::new("umoci").args(["unpack", "--image"]).arg(format!("{}:{tag}", layout.display())).arg(&bundle))?;
    let path = bundle.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    config["process"]["terminal"] = json!(false);
    if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
    }
    std::fs::write(&path, serde_json::to_vec(&config)?)?;
    Ok(bundle)
}

fn first_tag(layout: &Path) -> Result<String> {
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(layout.join("index.json"))?)?;
    let name = &index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"];
    Ok(name.as_str().context("the image has a tag")?.to_owned())
}

/// One round of crun in a mount namespace without the half-empty v2 hierarchy, which crun 1.8 refuses beside v1, and
/// in a network namespace of this round alone.
fn crun_in_namespaces(bundle: &Path) -> Result<Duration> {
    let script = "mount --make-rprivate /; umount /sys/fs/cgroup/unified 2>/dev/null; ip link set lo up; exec \"$@\"";
    let output = Command::new("unshare")
        .args(["-mn", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe()?)
        .arg("crun-once")
        .arg(bundle)
        .stderr(Stdio::inherit())
        .output()
        .context("unshare")?;
    ensure!(output.status.success(), "crun's round failed");
    Ok(Duration::from_micros(String::from_utf8(output.stdout)?.trim().parse()?))
}

fn crun_once(bundle: &Path) -> Result<Duration> {
    let id = format!("bench-{}", std::process::id());
    let begun = Instant::now();
    let mut child: Child = Command::new("crun")
        .args(["run", "--bundle"])
        .arg(bundle)
        .arg(&id)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("crun (apt-get install crun)")?;
    let addr = format!("127.0.0.1:{PORT}");
    let elapsed = loop {
        if first_byte(&addr, "bench").is_ok() {
            break begun.elapsed();
        }
        ensure!(begun.elapsed() < LIMIT && child.try_wait()?.is_none(), "crun's container never answered");
        std::thread::sleep(Duration::from_micros(200));
    };
    let killed = Command::new("crun").args(["kill", &id, "KILL"]).status()?;
    if !killed.success() {
        kill(i32::try_from(child.id())?, libc::SIGKILL);
    }
    child.wait()?;
    let _ = Command::new("crun").args(["delete", "--force", &id]).stderr(Stdio::null()).status();
    Ok(elapsed)
}

fn image() -> Result<std::path::PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("the workspace")?;
    let path = root.join("target/demo/image-release.tar");
    ensure!(path.exists(), "{} is missing: run `make bench-image`", path.display());
    Ok(path)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn report(ours: &mut [Duration], theirs: &mut [Duration], as_json: bool) {
    let at = |sorted: &[Duration], share: f64| {
        let index = ((sorted.len() as f64 - 1.0) * share).round() as usize;
        sorted[index].as_secs_f64() * 1e3
    };
    ours.sort();
    theirs.sort();
    let rows = [("godwit wake", &*ours), ("crun run", &*theirs)];
    if as_json {
        let row = |sorted: &[Duration]| json!({ "p50_ms": at(sorted, 0.5), "p99_ms": at(sorted, 0.99), "min_ms": at(sorted, 0.0) });
        println!("{}", json!({ "rounds": ours.len(), "godwit": row(ours), "crun": row(theirs) }));
        return;
    }
    println!("request → first byte, {} rounds, interleaved", ours.len());
    println!("{:<14}{:>10}{:>10}{:>10}", "", "min ms", "p50 ms", "p99 ms");
    for (name, sorted) in rows {
        println!("{name:<14}{:>10.1}{:>10.1}{:>10.1}", at(sorted, 0.0), at(sorted, 0.5), at(sorted, 0.99));
    }
    println!("p50: godwit is {:+.1} ms from crun (goal: at most +40 ms)", at(ours, 0.5) - at(theirs, 0.5));
}
