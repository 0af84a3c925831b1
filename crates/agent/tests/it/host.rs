//! One host under test: its folder, its configuration, its agent (in this process or in one of its own), and what a
//! user or control would ask of it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_agent::{Config, Raw};
use godwit_api::fact::MachineFact;
use godwit_api::host::{PlaceReply, RunRestart, RunStart, RunStop};
use godwit_api::ids::{AppName, Epoch, InstanceId, MachineId};
use godwit_api::machine::{Acknowledged, MachineState, StartAnswer};
use godwit_api::row::Placement;
use godwit_api::{HostId, Method};
use godwit_base::TaskGroup;
use godwit_base::http::client::{CallError, Client};
use godwit_driver::fake::FakeDriver;
use tokio::task::JoinHandle;

use crate::control::{CONTROL_KEY, Control, IMAGE};

/// Nothing in these tests takes longer unless it is broken.
pub const DEADLINE: Duration = Duration::from_secs(60);
const CALL: Duration = Duration::from_secs(30);

pub struct Host {
    pub control: Arc<Control>,
    pub dir: PathBuf,
    pub driver: Arc<FakeDriver>,
    pub client: Client,
    listen: std::net::SocketAddr,
    /// Keeps `listen` from every other run of these tests.
    _claim: std::net::UdpSocket,
    /// More lines for the configuration.
    pub extra: &'static str,
    running: Option<(TaskGroup, JoinHandle<Result<(), godwit_agent::Error>>)>,
    child: Option<Child>,
    folder: Option<tempfile::TempDir>,
}

/// An address that stays free between two lives of an agent: below the ports that the kernel gives to connections and to
/// whoever asks for any; and claimed by a UDP socket at the same number, which another run of these tests meets before it.
pub fn free_address() -> (std::net::SocketAddr, std::net::UdpSocket) {
    use std::sync::atomic::{AtomicU16, Ordering};
    const FIRST: u16 = 12_000;
    const PORTS: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Another run of these tests on the same machine begins elsewhere.
    let start = (std::process::id() % u32::from(PORTS)) as u16;
    loop {
        let at = (start + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS) % PORTS;
        let address = std::net::SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, FIRST + at));
        if let Ok(claim) = std::net::UdpSocket::bind((std::net::Ipv4Addr::new(127, 255, 255, 1), FIRST + at))
            && std::net::TcpListener::bind(address).is_ok()
        {
            return (address, claim);
        }
    }
}

impl Host {
    /// Not started yet.
    pub async fn new(control: &Arc<Control>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("data");
        std::fs::write(folder.path().join("boot-id"), "boot-1\n").unwrap();
        // The port must be the same after a restart, so it is taken from the kernel once.
        let (listen, claim) = free_address();
        Self {
            control: control.clone(),
            dir,
            driver: Arc::new(FakeDriver::new()),
            client: Client::tcp(&format!("http://{listen}"), Some(CONTROL_KEY.into())),
            listen,
            _claim: claim,
            extra: "",
            running: None,
            child: None,
            folder: Some(folder),
        }
    }

    pub async fn started(control: &Arc<Control>) -> Self {
        let mut host = Self::new(control).await;
        host.start().await;
        host
    }

    fn root(&self) -> &Path {
        self.folder.as_ref().unwrap().path()
    }

    fn config_text(&self) -> String {
        let (dir, root, listen) = (self.dir.display(), self.root().display(), self.listen);
        format!(
            "data_dir = '{dir}'\nlisten = '{listen}'\nadvertise_url = 'http://{listen}'\ndoor_addr = '[::1]:1'\n\
             control_url = '{}'\njoin_token = 'x'\nname = 'w'\nregion = 'fra'\nlab = true\n\
             boot_id_file = '{root}/boot-id'\n\
             [capacity]\ncpus = 8\nmemory_mb = 1024\ndisk_mb = 100000\n\
             [driver]\nkind = 'fake'\n[network]\nkind = 'none'\n\
             [timing]\npull_interval = '1s'\nhost_fact_interval = '200ms'\ndrain_timeout = '1s'\n{}",
            self.control.url(),
            self.extra,
        )
    }

    pub fn config_file(&self) -> PathBuf {
        let path = self.root().join("agent.toml");
        std::fs::write(&path, self.config_text()).unwrap();
        path
    }

    /// An agent in this process.
    pub async fn start(&mut self) {
        let raw: Raw = godwit_base::config::read(&self.config_file()).unwrap();
        let config = Config::try_from(raw).unwrap();
        let group = TaskGroup::new();
        let running = godwit_agent::run_with(config, Some(self.driver.clone()), group.clone());
        let running = async move {
            let ended = running.await;
            if let Err(error) = &ended {
                eprintln!("the agent gave up: {}", godwit_base::telemetry::chain(error));
            }
            ended
        };
        self.running = Some((group, tokio::spawn(running)));
        self.reachable().await;
    }

    pub async fn stop(&mut self) {
        if let Some((group, task)) = self.running.take() {
            group.drain(Duration::from_secs(10)).await;
            task.await.unwrap().unwrap();
            // Connections in this process may outlive their agent by a moment, which no other process would see.
            let images = self.dir.join("images");
            self.until("the folder is free", async || {
                godwit_oci::ContentStore::open(&images, godwit_oci::Limits::default()).ok().map(drop)
            })
            .await;
        }
    }

    /// Stopped and started, as an upgrade does it.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
    }

    pub fn reboot(&self, boot_id: &str) {
        std::fs::write(self.root().join("boot-id"), boot_id).unwrap();
    }

    /// An agent in a process of its own, which can be killed.
    pub async fn start_child(&mut self) {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "child::the_agent_of_a_test", "--nocapture", "--test-threads=1"])
            .env("GODWIT_TEST_AGENT", self.config_file())
            .env("GODWIT_TEST_COUNTS", self.counts_file())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::options().create(true).append(true).open(self.root().join("agent.log")).unwrap())
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    pub fn counts_file(&self) -> PathBuf {
        self.root().join("counts")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.root().join("agent.log")).unwrap_or_default()
    }

    /// Waits for the child's end; the signal that ended it.
    pub async fn child_ended(&mut self) -> Option<i32> {
        use std::os::unix::process::ExitStatusExt;
        let deadline = Instant::now() + DEADLINE;
        loop {
            // It stays in its place until it has ended, so that a test which is dropped here kills it.
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                self.child = None;
                return status.signal();
            }
            assert!(Instant::now() < deadline, "the agent did not end\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn kill_child(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub async fn reachable(&self) {
        self.until("the host API answers", async || {
            let request = http::Request::new(godwit_base::http::client::empty());
            self.client.send_raw("/healthz", request, CALL).await.is_ok().then_some(())
        })
        .await;
    }

    pub fn id(&self) -> Option<HostId> {
        let bytes = std::fs::read(self.dir.join("identity.json")).ok()?;
        let identity: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
        HostId::parse(identity["host"].as_str()?).ok()
    }

    pub async fn joined(&self) -> HostId {
        self.until("the host has joined", async || self.id()).await
    }

    /// Polls until there is something, or the deadline.
    pub async fn until<T>(&self, what: &str, mut poll: impl AsyncFnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(found) = poll().await {
                return found;
            }
            assert!(Instant::now() < deadline, "never: {what}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What the journal holds; it may be read beside the agent.
    pub fn journal(&self) -> godwit_store::journal::Loaded {
        godwit_store::journal::Journal::open(self.dir.join("journal.db")).unwrap().load().unwrap()
    }

    pub fn machine_dir(&self, machine: &MachineId) -> PathBuf {
        self.dir.join("machines").join(machine.as_str())
    }

    pub fn placement(&self, n: u64, version: u64) -> Placement {
        let mut config = godwit_api::config::MachineConfig { image: IMAGE.into(), ..Default::default() };
        config.guest.memory_mb = 128;
        Placement {
            machine: MachineId::from_bits(n),
            app: AppName::parse("shop").unwrap(),
            host: self.id().expect("the host has joined"),
            epoch: Epoch { generation: 1, n: 1 },
            instance_id: InstanceId::from_parts(version, 0),
            name: "m".into(),
            region: "fra".into(),
            network: "default".into(),
            private_ip: "::1".parse().unwrap(),
            image_digest: self.control.image_digest.clone(),
            image_name: IMAGE.into(),
            config,
            launch: true,
            destroy: false,
            force: false,
            proof: String::new(),
            volume: None,
        }
    }

    /// Waits until the fleet is told a state, at this configuration.
    pub async fn told(&self, placement: &Placement, state: MachineState) -> MachineFact {
        let what = format!("{} is {}", placement.machine, state.as_str());
        self.until(&what, async || {
            let fact = self.control.fact(&placement.host, &placement.machine).await?;
            (fact.state == state && fact.instance_id == placement.instance_id).then_some(fact)
        })
        .await
    }

    /// A Machine that was placed through the store and runs.
    pub async fn launched(&self, placement: &Placement) -> MachineFact {
        self.control.put(placement).await;
        self.told(placement, MachineState::Started).await
    }

    async fn post<Q: serde::Serialize, A: serde::de::DeserializeOwned>(
        &self,
        machine: &MachineId,
        verb: &str,
        call: &Q,
    ) -> Result<A, CallError> {
        let path = format!("/host/v1/machines/{machine}/{verb}");
        self.client.json(Method::Post, &path, Some(call), CALL).await
    }

    pub async fn call_start(&self, placement: &Placement) -> Result<StartAnswer, CallError> {
        self.post(&placement.machine, "start", &RunStart { epoch: placement.epoch }).await
    }

    pub async fn call_stop(&self, placement: &Placement) -> Result<Acknowledged, CallError> {
        let call = RunStop { epoch: placement.epoch, signal: None, timeout: None };
        self.post(&placement.machine, "stop", &call).await
    }

    pub async fn call_restart(&self, placement: &Placement, force: bool) -> Result<Acknowledged, CallError> {
        let call = RunRestart { epoch: placement.epoch, signal: None, timeout: None, force };
        self.post(&placement.machine, "restart", &call).await
    }

    pub async fn call_place(&self, placement: &Placement) -> Result<PlaceReply, CallError> {
        let path = format!("/host/v1/placements/{}", placement.machine);
        self.client.json(Method::Put, &path, Some(placement), CALL).await
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill_child();
        if let Some((group, _)) = &self.running {
            group.token().cancel();
        }
        if std::thread::panicking() && std::env::var_os("GODWIT_TEST_KEEP").is_some() {
            let kept = self.folder.take().map(tempfile::TempDir::keep);
            eprintln!("kept {kept:?}");
        }
    }
}
