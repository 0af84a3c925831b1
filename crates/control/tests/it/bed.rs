//! What a test stands on: a control of its own in a temporary folder, which can be killed and started again, and
//! agents beside it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_api::fact::Resources;
use godwit_control::{Config, Control, Raw, StartError};
use godwit_store::RemoteStore;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::agent::Agent;
use crate::api::{Api, PATIENCE};
use crate::image;

pub const IMAGE: &str = "demo:v1";

/// Control on a runtime of its own, so that it can be killed with all that it is about.
pub struct Running {
    runtime: Option<tokio::runtime::Runtime>,
    pub control: Option<Arc<Control>>,
}

impl Running {
    fn start(dir: &Path, listen: SocketAddr, edit: impl Fn(&mut Raw)) -> (Self, SocketAddr) {
        let mut raw: Raw = serde_json::from_value(json!({
            "data_dir": dir, "listen": listen.to_string(), "lost_after_ms": 1500, "image_grace_s": 0,
        }))
        .unwrap();
        edit(&mut raw);
        let config = Config::try_from(raw).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            let control = open(config.clone()).await;
            let listener = bind(config.listen).await;
            sender.send((control.clone(), listener.local_addr().unwrap())).unwrap();
            godwit_control::serve(control, listener, std::future::pending()).await;
        });
        let (control, address) = receiver.recv_timeout(PATIENCE).expect("control starts");
        (Self { runtime: Some(runtime), control: Some(control) }, address)
    }

    /// Like SIGKILL: nothing of it goes on, whatever it was about.
    fn kill(&mut self) {
        self.control = None;
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A killed predecessor in this process may need a moment to let go of its files.
async fn open(config: Config) -> Arc<Control> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Control::open(config.clone()).await {
            Ok(control) => return control,
            Err(StartError::Store(godwit_store::Error::InUse { .. }) | StartError::Images(_))
                if Instant::now() < deadline =>
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("control does not start: {error:?}"),
        }
    }
}

async fn bind(address: SocketAddr) -> tokio::net::TcpListener {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match tokio::net::TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub struct Bed {
    pub api: Api,
    pub url: String,
    pub agents: Vec<Agent>,
    pub running: Running,
    address: SocketAddr,
    pub dir: TempDir,
}

pub fn capacity(memory_mb: u64) -> Resources {
    Resources { cpu_millis: 8_000, memory_mb, disk_mb: 100_000 }
}

impl Bed {
    pub async fn alone() -> Self {
        if std::env::var_os("GODWIT_LOG").is_some() {
            godwit_base::telemetry::init("test", false);
        }
        let dir = tempfile::tempdir().unwrap();
        let (running, address) = Running::start(dir.path(), "127.0.0.1:0".parse().unwrap(), |_| {});
        let url = format!("http://{address}");
        let token = std::fs::read_to_string(dir.path().join("admin-token")).unwrap();
        Self { api: Api::new(&url, Some(token.trim())), url, agents: Vec::new(), running, address, dir }
    }

    /// Control, hosts in region `fra`, and an image.
    pub async fn with_hosts(hosts: usize) -> Self {
        let mut bed = Self::alone().await;
        bed.load_image().await;
        for number in 1..=hosts {
            bed.add_host(&format!("w{number}"), "fra", 4096).await;
        }
        bed
    }

    pub async fn load_image(&self) {
        let images = self.api.call("POST", &format!("/images?name={IMAGE}"), Some(image::archive("hello")), &[]).await;
        assert_eq!(images.expect(200)[0]["name"], IMAGE);
    }

    pub async fn add_host(&mut self, name: &str, region: &str, memory_mb: u64) -> usize {
        let agent = Agent::start(&self.url, &self.join_token(), name, region, capacity(memory_mb)).await;
        // Placement knows a host once it has reported.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let host = self.api.get(&format!("/hosts/{}", agent.id)).await.expect(200);
            if host["capacity"]["memory_mb"] == memory_mb {
                break;
            }
            assert!(Instant::now() < deadline, "the host never reported: {host}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.agents.push(agent);
        self.agents.len() - 1
    }

    pub fn join_token(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("join-token")).unwrap().trim().to_owned()
    }

    /// Kills control and starts it again on the same folder and address.
    pub fn restart(&mut self, edit: impl Fn(&mut Raw)) {
        self.kill();
        self.start_again(edit);
    }
    pub fn kill(&mut self) {
        self.running.kill();
    }
    pub fn start_again(&mut self, edit: impl Fn(&mut Raw)) {
        self.running = Running::start(self.dir.path(), self.address, edit).0;
    }

    pub fn agent_of(&self, host: &str) -> &Agent {
        self.agents.iter().find(|agent| agent.id == host).unwrap()
    }

    /// What Prometheus scrapes.
    pub async fn metrics(&self) -> String {
        let client = godwit_base::http::client::Client::tcp(&self.url, None);
        let request = http::Request::new(godwit_base::http::client::empty());
        let response = client.send_raw("/metrics", request, PATIENCE).await.unwrap();
        let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }

    /// The store as an agent of this fleet may use it.
    pub fn store_as(&self, bearer: &str) -> RemoteStore {
        RemoteStore::new(&self.url, bearer)
    }
}

pub fn config() -> Value {
    json!({ "image": IMAGE })
}

pub fn web(port: u16) -> Value {
    json!({ "image": IMAGE, "services": [{ "internal_port": port, "ports": [{ "port": 80, "handlers": ["http"] }] }] })
}

/// Looks until a condition holds, with a deadline.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
