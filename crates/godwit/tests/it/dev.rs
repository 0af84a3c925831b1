//! A dev fleet from its first start to its last trace.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use godwit_api::machine::MachineState;
use godwit_lab::fleet::{DevFile, Fleet, binary, eventually, kill};

/// Long enough for a busy machine of two cores; nothing here measures speed.
const PATIENCE: Duration = Duration::from_secs(60);

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(test)
}

fn demo_image() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the workspace");
    let path = root.join("target/demo/image.tar");
    assert!(path.exists(), "{} is missing: run `make demo-image`", path.display());
    path.to_str().expect("UTF-8").to_owned()
}

fn pids(dev: &DevFile) -> Vec<i32> {
    let hosts = dev.hosts.iter().flat_map(|host| [host.agent_pid, host.door_pid]);
    hosts.chain([dev.control_pid, dev.edge_pid]).collect()
}

fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// The code of an answer over HTTPS, asked for with Debian's curl.
fn over_https(dev: &DevFile, app: &str) -> String {
    let (name, port) = (format!("{app}.localhost"), dev.https_addr.rsplit_once(':').expect("a port").1);
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"]).arg(&dev.ca_file);
    let output =
        curl.args(["--resolve", &format!("{name}:{port}:127.0.0.1"), &format!("https://{name}:{port}/")]).output();
    let output = output.expect("curl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Everything in the kernel that bears the fleet's id or lies in its folder.
fn traces(id: &str, folder: &Path) -> Vec<String> {
    let folder = folder.display().to_string();
    let mut found = Vec::new();
    let mut keep = |kind: &str, text: String, needle: &str| {
        found.extend(text.lines().filter(|line| line.contains(needle)).map(|line| format!("{kind}: {line}")));
    };
    let output = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().expect("it is installed");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let tag = godwit_net::plan::fleet_tag(id);
    keep("mount", std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo"), &folder);
    keep("link", output("ip", &["-o", "link"]), &tag);
    keep("table", output("nft", &["list", "tables"]), &tag);
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten() {
        for entry in std::fs::read_dir(hierarchy.path()).into_iter().flatten().flatten() {
            keep("cgroup", entry.path().display().to_string(), &format!("godwit-dev-{id}-"));
        }
    }
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        keep("process", String::from_utf8_lossy(&command).replace('\0', " "), &folder);
    }
    found
}

fn fleet_id(fleet: &Fleet) -> String {
    let record = std::fs::read(fleet.dir().join("fleet.json")).expect("the record");
    let record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
    record["fleet"].as_str().expect("an id").to_owned()
}

/// The whole life of a fleet, told through the command line.
#[test]
fn a_fleet_serves_loses_its_power_goes_on_and_leaves_nothing() {
    run(async {
        let mut fleet = Fleet::start(2, &["--region", "fra", "--region", "ams"]).expect("the fleet starts");
        let (id, dir) = (fleet_id(&fleet), fleet.dir().to_owned());
        let dev = fleet.dev().expect("dev.json");
        assert!(!dev.api_url.ends_with("/v1"), "{}", dev.api_url);
        assert_eq!(dev.hosts.iter().map(|host| host.region.as_str()).collect::<Vec<_>>(), ["fra", "ams"]);
        assert!(pids(&dev).into_iter().all(lives), "every pid is one of ours: {dev:?}");
        assert!(!traces(&id, &dir).is_empty(), "the search for traces finds a fleet that lives");

        // Another one on the same folder is refused, and harms nothing.
        let second = Command::new(binary("godwit").unwrap()).args(["dev", "--data"]).arg(&dir).output().unwrap();
        assert_eq!(second.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&second.stderr).contains("another `godwit dev` uses"), "{second:?}");

        fleet.cli_ok(&["image", "load", &demo_image(), "--name", "demo"]).expect("loads");
        fleet.cli_ok(&["apps", "create", "smoke"]).expect("creates");
        let machine = fleet
            .cli_ok(&["machine", "run", "demo", "-a", "smoke", "--port", "80:8080/tcp:http", "--region", "ams"])
            .expect("runs");
        let machine = machine.trim();
        let first = eventually("it answers through the edge", PATIENCE, async || {
            let answer = fleet.get("smoke", "/", PATIENCE).await?;
            Ok((answer.status == 200).then(|| answer.json()))
        })
        .await
        .expect("answers");
        assert_eq!(first["machine"], machine);
        assert_eq!(first["host"], dev.hosts[1].id.as_str(), "it was placed in ams");
        assert_eq!(over_https(&dev, "smoke"), "200", "and over HTTPS, for whoever trusts the fleet's authority");

        fleet.cut_power().expect("SIGKILL");
        eventually("the fleet dies with its `godwit dev`", PATIENCE, async || {
            Ok((!pids(&dev).into_iter().any(lives)).then_some(()))
        })
        .await
        .expect("nothing runs on");

        fleet.up().expect("starts again");
        let again = fleet.dev().expect("dev.json");
        assert_eq!(
            again.hosts.iter().map(|host| &host.id).collect::<Vec<_>>(),
            dev.hosts.iter().map(|host| &host.id).collect::<Vec<_>>()
        );
        fleet.wait_state("smoke", machine, &[MachineState::Started], PATIENCE).await.expect("what ran runs again");
        let second = eventually("it answers again", PATIENCE, async || {
            let answer = fleet.get("smoke", "/", PATIENCE).await?;
            Ok((answer.status == 200).then(|| answer.json()))
        })
        .await
        .expect("answers");
        assert_eq!(second["machine"], machine);
        let again = DevFile { ca_file: dev.ca_file.clone(), ..fleet.dev().expect("dev.json") };
        assert_eq!(over_https(&again, "smoke"), "200", "by the authority that it had before");
        assert_ne!(second["started_at"], first["started_at"]);

        fleet.cut_power().expect("SIGKILL");
        fleet.clean().expect("cleans");
        assert_eq!(traces(&id, &dir), Vec::<String>::new());
        assert!(!dir.exists());
        fleet.clean().expect("cleaning what is gone is not an error");
    });
}

/// A clean stop asks the Machines to end, and is no reason for them to stay stopped.
#[test]
fn a_fleet_that_was_stopped_in_order_goes_on_where_it_was() {
    run(async {
        let mut fleet = Fleet::start(1, &[]).expect("the fleet starts");
        fleet.cli_ok(&["image", "load", &demo_image(), "--name", "demo"]).expect("loads");
        fleet.cli_ok(&["apps", "create", "tidy"]).expect("creates");
        let create = ["machine", "run", "demo", "-a", "tidy", "--port", "80:8080/tcp:http", "--restart", "no"];
        let runs = fleet.cli_ok(&create).expect("runs").trim().to_owned();
        let rests = fleet.cli_ok(&[&create[..], &["--skip-launch"]].concat()).expect("is created").trim().to_owned();
        let dev = fleet.dev().expect("dev.json");
        fleet.down().expect("stops");
        assert!(!pids(&dev).into_iter().any(lives), "nothing runs on");
        assert!(!fleet.dir().join("dev.json").exists(), "nobody takes it for a fleet that serves");
        fleet.up().expect("starts again");
        fleet.wait_state("tidy", &runs, &[MachineState::Started], PATIENCE).await.expect("what ran runs again");
        assert_eq!(fleet.machine("tidy", &rests).await.expect("shown").state, MachineState::Stopped);
    });
}

/// Control, edge, agent and door killed: each is there again, and `dev.json` says so.
#[test]
fn what_is_killed_is_started_again_and_told() {
    run(async {
        let fleet = Fleet::start(1, &[]).expect("the fleet starts");
        type Pick = fn(&DevFile) -> i32;
        let parts: [(&str, Pick); 4] = [
            ("control", |dev| dev.control_pid),
            ("edge", |dev| dev.edge_pid),
            ("agent", |dev| dev.hosts[0].agent_pid),
            ("door", |dev| dev.hosts[0].door_pid),
        ];
        for (name, pick) in parts {
            let before = pick(&fleet.dev().expect("dev.json"));
            kill(before, libc::SIGKILL);
            let after = eventually(name, PATIENCE, async || {
                let after = pick(&fleet.dev()?);
                Ok((after != before && lives(after)).then_some(after))
            })
            .await
            .expect("it comes back");
            let command = std::fs::read(format!("/proc/{after}/cmdline")).expect("it runs");
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            assert!(command.contains(&format!("run {name} ")), "{command}");
        }
        fleet.cli_ok(&["host", "list"]).expect("the API answers again");
    });
}

/// Two fleets share the machine and nothing else; each is cleaned without the other noticing.
#[test]
fn two_fleets_live_side_by_side() {
    run(async {
        let one = Fleet::start(1, &[]).expect("the first starts");
        let mut other = Fleet::start(1, &[]).expect("the second starts");
        let (id, dir) = (fleet_id(&other), other.dir().to_owned());
        other.down().expect("stops");
        other.clean().expect("cleans");
        assert_eq!(traces(&id, &dir), Vec::<String>::new());
        assert!(pids(&one.dev().expect("dev.json")).into_iter().all(lives));
        one.cli_ok(&["apps", "list"]).expect("the first goes on");
    });
}

#[test]
fn clean_touches_no_folder_that_is_not_a_fleets() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("precious"), "x").expect("written");
    let output =
        Command::new(env!("CARGO_BIN_EXE_godwit")).args(["dev", "--clean"]).arg(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not a dev fleet's folder"), "{output:?}");
    assert!(folder.path().join("precious").exists());
}
