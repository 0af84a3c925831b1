//! A fleet of two hosts with one Machine, its volume, and a client that writes to it all the time; and what is asked of
//! all of them after each fault. One bed bears many rows; a row that fails gets the next one a new bed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{MachinesMigrate, MigrationsCancel, MigrationsShow, VolumesCreate, VolumesShow};
use godwit_api::machine::MachineState;
use godwit_api::migration::{Migrate, Migration, MigrationPhase};
use godwit_api::volume::{CreateVolume, Volume};
use godwit_base::http::client::CallError;
use godwit_lab::fleet::{DevHost, Fleet, eventually};
use godwit_lab::plain;
use serde_json::{Value, json};

use super::ledger::{Ledger, lost};
use super::table::Row;
use super::traces::{holdings, pids, rows_of_store};
use crate::kills::Copies;
use crate::support::{PATIENCE, demo_machine, fleet};

pub const APP: &str = "moves";
/// Records of `FILL_BYTES` in the volume before the first move: what a copy takes its time for.
const FILL_RECORDS: usize = 16;
const FILL_BYTES: usize = 1 << 20;
/// With it the copy takes several seconds.
pub const SLOW_BYTES_PER_S: u64 = 3 << 20;
/// A request that is in flight for so long keeps the source draining.
pub const DRAINS_MS: u64 = 1_500;
/// For a move with whatever was done to it.
const MOVE_WITHIN: Duration = Duration::from_secs(90);

/// How a move may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Moved,
    Stays,
    Either,
}

/// The two hosts of a move, as they are now.
pub struct Ends {
    pub source: DevHost,
    pub target: DevHost,
}

pub struct Bed {
    pub fleet: Fleet,
    pub machine: String,
    pub volume: String,
    pub ledger: Ledger,
    arguments: Vec<String>,
}

impl Bed {
    pub async fn new(arguments: &[&str]) -> Result<Self> {
        let mut all = vec!["--lab"];
        all.extend(arguments);
        let fleet = fleet(2, &all);
        fleet.create_app(APP).await?;
        let volume = create_volume(&fleet).await?;
        let changes = json!({
            "guest": { "memory_mb": 256 },
            "mounts": [{ "volume": volume.id, "path": "/data" }],
            "restart": { "policy": "always" },
        });
        let machine = demo_machine(&fleet, APP, changes, true).await.id.to_string();
        let addr = fleet.dev()?.http_addr;
        for _ in 0..FILL_RECORDS {
            let mut content = vec![0; FILL_BYTES];
            getrandom::fill(&mut content).map_err(|error| anyhow::anyhow!("{error}"))?;
            let host = format!("{APP}.localhost");
            let answer = plain::request(&addr, "POST", &host, "/log", &[], &content, PATIENCE).await?;
            ensure!(answer.status == 200, "filling: {} {}", answer.status, answer.text());
        }
        let ledger = Ledger::begin(&fleet, APP);
        let arguments = arguments.iter().map(|text| (*text).to_owned()).collect();
        Ok(Self { fleet, machine, volume: volume.id.to_string(), ledger, arguments })
    }

    /// Another one like it.
    pub async fn anew(&self) -> Result<Self> {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        Self::new(&arguments).await
    }

    /// Where the Machine is, and where else it could be.
    pub async fn ends(&self) -> Result<Ends> {
        let at = self.fleet.machine(APP, &self.machine).await?.host_id;
        let (source, target): (Vec<_>, Vec<_>) = self.fleet.dev()?.hosts.into_iter().partition(|host| host.id == at);
        let (source, target) = (source.into_iter().next(), target.into_iter().next());
        Ok(Ends { source: source.context("its host")?, target: target.context("another host")? })
    }

    pub async fn ask(&self, wish: Value) -> Result<Migration, CallError> {
        let wish: Migrate = serde_json::from_value(wish).expect("a wish");
        let api = self.fleet.api().expect("dev.json");
        api.call::<MachinesMigrate>(&[APP, &self.machine], &Empty {}, &wish).await
    }

    /// Asks for a move and answers its id. The move before it may be complete a moment before the target has written
    /// down that its volume is whole: it is asked again.
    pub async fn begin(&self, wish: Value) -> Result<String> {
        eventually("the move begins", PATIENCE, async || match self.ask(wish.clone()).await {
            Ok(begun) => Ok(Some(begun.id.to_string())),
            Err(CallError::Answered(error)) if error.to_string().contains("still being copied") => Ok(None),
            // Whatever else is wrong stays wrong.
            Err(error) => Ok(Some(format!("refused: {error}"))),
        })
        .await
        .and_then(|id| if id.starts_with("mig_") { Ok(id) } else { bail!(id) })
    }

    /// A move whose source drains for a while, and the request that makes it.
    pub async fn begin_draining(&self, mut wish: Value) -> Result<(String, tokio::task::JoinHandle<()>)> {
        wish["drain_timeout_ms"] = json!(2 * DRAINS_MS);
        let addr = self.fleet.dev()?.http_addr;
        let path = format!("/sleep?ms={DRAINS_MS}");
        let slow = tokio::spawn(async move {
            let _ = plain::get(&addr, &format!("{APP}.localhost"), &path, PATIENCE).await;
        });
        // It is in flight before the door closes.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let id = self.begin(wish).await?;
        self.reaches(&id, MigrationPhase::HandingOff).await?;
        Ok((id, slow))
    }

    pub async fn migration(&self, id: &str) -> Result<Migration, CallError> {
        self.fleet.api().expect("dev.json").call::<MigrationsShow>(&[id], &Empty {}, &Empty {}).await
    }

    pub async fn cancel(&self, id: &str) -> Result<Migration, CallError> {
        self.fleet.api().expect("dev.json").call::<MigrationsCancel>(&[id], &Empty {}, &Empty {}).await
    }

    /// Waits until it is in this phase or a later one.
    pub async fn reaches(&self, id: &str, phase: MigrationPhase) -> Result<Migration> {
        let order = |phase: MigrationPhase| phase as u8;
        eventually(&format!("the move is {}", phase.as_str()), PATIENCE, async || {
            let shown = self.migration(id).await?;
            ensure!(order(shown.phase) >= order(phase), "it is {}", shown.phase.as_str());
            Ok(Some(shown))
        })
        .await
    }

    pub async fn over(&self, id: &str) -> Result<Migration> {
        let last = std::cell::RefCell::new(String::new());
        let over = eventually("the move is over", MOVE_WITHIN, async || {
            let shown = self.migration(id).await?;
            last.replace(format!("{} {:?} {:?}", shown.phase.as_str(), shown.progress.stalled, shown.events.last()));
            Ok(shown.phase.is_over().then_some(shown))
        });
        over.await.with_context(|| last.borrow().clone())
    }

    /// Pid of the Machine's app, wherever it runs.
    pub fn app_pid(&self) -> Result<i32> {
        let wanted = format!("FLY_MACHINE_ID={}", self.machine);
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            let is_app = std::fs::read(entry.path().join("comm")).is_ok_and(|name| name == b"app\n");
            if is_app && environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes()) {
                return Ok(pid);
            }
        }
        bail!("its app does not run")
    }

    /// The log as it stands in the volume, read through the Machine's own mount.
    async fn log(&self) -> Result<Vec<u8>> {
        eventually("the log is read", PATIENCE, async || {
            Ok(Some(std::fs::read(format!("/proc/{}/root/data/log", self.app_pid()?))?))
        })
        .await
    }

    /// One row: does what `fault` does, and then asks for all that must hold. What went wrong is part of the row.
    pub async fn row(
        &mut self,
        name: impl Into<String>,
        expected: End,
        fault: impl AsyncFnOnce(&Bed, &Ends) -> Result<String>,
    ) -> Row {
        let name = name.into();
        let mut row = Row::named(&name);
        let before = self.ledger.tally();
        self.ledger.forget_gap();
        let copies = Copies::count(self.machine.clone());
        let done = self.judge(&mut row, expected, fault).await;
        row.copies = copies.most();
        let after = self.ledger.tally();
        row.acknowledged = after.acknowledged - before.acknowledged;
        row.failed = self.ledger.failures_after(before.failed);
        row.starts = after.starts - before.starts;
        row.gap = after.longest_gap;
        let mut wrong: Vec<String> = done.err().map(|error| format!("{error:#}")).into_iter().collect();
        if row.copies > 1 {
            wrong.push(format!("{} copies at once", row.copies));
        }
        wrong.extend(self.ledger.contradictions());
        if row.acknowledged == 0 {
            wrong.push("nothing was written meanwhile".into());
        }
        if !wrong.is_empty() {
            row.wrong = wrong;
            row.kept = self.keep_logs(&name);
            match self.anew().await {
                Ok(new) => *self = new,
                Err(error) => row.wrong.push(format!("and no new fleet: {error:#}")),
            }
        }
        println!("{row}");
        row
    }

    async fn judge(
        &self,
        row: &mut Row,
        expected: End,
        fault: impl AsyncFnOnce(&Bed, &Ends) -> Result<String>,
    ) -> Result<()> {
        let ends = self.ends().await?;
        let id = fault(self, &ends).await?;
        let over = self.over(&id).await?;
        row.ended(&over);
        let moved = over.phase == MigrationPhase::Completed;
        ensure!(
            expected == End::Either || moved == (expected == End::Moved),
            "expected {expected:?}, and it is {}: {:?}",
            over.phase.as_str(),
            over.reason
        );
        ensure!(!moved || over.progress.verified, "completed without being verified");
        let (has, has_not) = if moved { (&ends.target, &ends.source) } else { (&ends.source, &ends.target) };
        self.runs_at(&has.id).await?;
        self.lost_nothing(row).await?;
        self.left_nothing(&has.id, &has_not.id).await
    }

    /// One running Machine, at this host, and that says the same.
    pub async fn runs_at(&self, host: &str) -> Result<()> {
        eventually(&format!("it runs at {host}"), PATIENCE, async || {
            let shown = self.fleet.machine(APP, &self.machine).await?;
            ensure!(
                shown.state == MachineState::Started && shown.host_id == host,
                "{:?} {}",
                shown.state,
                shown.host_id
            );
            let answer = self.fleet.get(APP, "/", Duration::from_secs(10)).await?;
            ensure!(answer.status == 200 && answer.json()["host"] == host, "{} {}", answer.status, answer.text());
            Ok(Some(()))
        })
        .await
    }

    /// Every record that was acknowledged stands in the volume, and every record is whole.
    pub async fn lost_nothing(&self, row: &mut Row) -> Result<()> {
        let told = self.fleet.get(APP, "/log/verify", PATIENCE).await?;
        ensure!(told.status == 200 && told.json()["ok"] == true, "the log: {}", told.text());
        let lives = self.fleet.get(APP, "/lives", PATIENCE).await?;
        let (counted, most) = (lives.json()["counted"] == true, lives.json()["most_at_once"].as_u64());
        ensure!(counted && most == Some(1), "the app's own count of its copies: {}", lives.text());
        // First what was acknowledged, then the file: what is written in between is only more.
        let wanted = self.ledger.acknowledged();
        let lost = lost(&wanted, &self.log().await?);
        row.lost = lost.len();
        ensure!(lost.is_empty(), "{} acknowledged writes are lost, of them {}", lost.len(), lost[0]);
        Ok(())
    }

    /// The host that has it holds one of each; the other one, and the store, nothing.
    pub async fn left_nothing(&self, has: &str, has_not: &str) -> Result<()> {
        let marks = ["tickets/".to_owned(), format!("placements/{has_not}/")];
        eventually("nothing is left", PATIENCE, async || {
            let (holds, left) = (holdings(&self.fleet.host(has)?), holdings(&self.fleet.host(has_not)?));
            ensure!(left.is_empty(), "{has_not} still holds {left:?}");
            let rows = rows_of_store(&self.fleet, &marks);
            ensure!(rows.is_empty(), "the store still holds {rows:?}");
            let one = |what: &str| (what.to_owned(), 1);
            let names = ["shim", "namespaces", "loops", "volume folders", "machine folders"];
            let mut wanted: BTreeMap<String, usize> = names.into_iter().map(one).collect();
            // A volume that came from elsewhere keeps its keeper until the Machine's next start.
            if holds.contains_key("keeper") {
                wanted.extend(["keeper", "server", "fuse mounts"].map(one));
            }
            ensure!(holds == wanted, "{has} holds {holds:?}");
            Ok(Some(()))
        })
        .await
    }

    /// Kills every process of a host that bears `needle`, once there is one.
    pub async fn kill(&self, host: &DevHost, needle: &str) -> Result<()> {
        let found = eventually(&format!("`{needle}` runs on {}", host.id), Duration::from_secs(15), async || {
            let found = pids(&self.fleet.host(&host.id)?, needle);
            Ok((!found.is_empty()).then_some(found))
        })
        .await?;
        for pid in found {
            godwit_lab::fleet::kill(pid, libc::SIGKILL);
        }
        Ok(())
    }

    /// What a person needs who looks for the cause.
    pub fn keep_logs(&self, name: &str) -> Option<PathBuf> {
        let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2)?.join("target/moves-failed");
        let to = root.join(plain);
        let _ = std::fs::remove_dir_all(&to);
        for folder in ["control", "edge"].map(PathBuf::from).into_iter().chain(
            self.fleet
                .dev()
                .ok()?
                .hosts
                .iter()
                .filter_map(|host| Some(PathBuf::from("hosts").join(host.data_dir.file_name()?))),
        ) {
            let into = to.join(&folder);
            // As the host sees it: what is mounted there stands in its own namespace.
            let agents = self.fleet.dev().ok()?.hosts;
            let agent = agents.iter().find(|host| host.data_dir.ends_with(&folder)).map(|host| host.agent_pid);
            let outside = self.fleet.dir().join(&folder);
            let inside = agent.map(|pid| PathBuf::from(format!("/proc/{pid}/root{}", outside.display())));
            let from = inside.filter(|inside| inside.exists()).unwrap_or(outside);
            std::fs::create_dir_all(&into).ok()?;
            let files = std::fs::read_dir(&from).into_iter().flatten().flatten();
            let volumes = std::fs::read_dir(from.join("volumes")).into_iter().flatten().flatten();
            let volumes = volumes.flat_map(|volume| std::fs::read_dir(volume.path()).into_iter().flatten().flatten());
            for file in files.chain(volumes) {
                let path = file.path();
                let is_small = file.metadata().is_ok_and(|found| found.is_file() && found.len() < 32 << 20);
                if is_small && let Some(name) = path.file_name() {
                    let _ = std::fs::copy(&path, into.join(name));
                }
            }
        }
        if let Ok(log) = self.fleet.cli(&["migration", "list", "--all", "--json"]) {
            let _ = std::fs::write(to.join("migrations.json"), log.stdout);
        }
        Some(to)
    }
}

pub async fn create_volume(fleet: &Fleet) -> Result<Volume> {
    let request = CreateVolume { name: "data".into(), size_gb: Some(1), ..CreateVolume::default() };
    let api = fleet.api()?;
    let volume = api.call::<VolumesCreate>(&[APP], &Empty {}, &request).await?;
    eventually("the volume is created", PATIENCE, async || {
        let shown = api.call::<VolumesShow>(&[APP, volume.id.as_str()], &Empty {}, &Empty {}).await?;
        Ok((shown.state == "created").then_some(shown))
    })
    .await
}
