//! A real control on loopback with an image and, if wanted, a host that runs nothing and says that it does: what the
//! command line meets where the API judges. The host and the image are those of control's own tests.

use std::net::SocketAddr;
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_control::{Config, Control, Raw};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::cli::{godwit_with, stderr, stdout};
use crate::image;

/// Long enough for a busy machine of two cores; nothing here measures speed.
const PATIENCE: Duration = Duration::from_secs(60);
pub const IMAGES: [&str; 2] = ["x-base", "x-srv"];

pub struct Fleet {
    pub url: String,
    pub token: String,
    pub agents: Vec<Agent>,
    dir: tempfile::TempDir,
    runtime: Option<tokio::runtime::Runtime>,
    _control: Arc<Control>,
}

impl Fleet {
    /// Control, two images and so many hosts in region `fra`.
    pub fn start(hosts: usize) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let raw = json!({ "data_dir": dir.path(), "listen": "127.0.0.1:0", "lost_after_ms": 1500, "image_grace_s": 0 });
        let raw: Raw = serde_json::from_value(raw).expect("a configuration");
        let config = Config::try_from(raw).expect("it is sound");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let (control, address) = runtime.block_on(async move {
            let control = Control::open(config).await.expect("control opens");
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            let listener = tokio::net::TcpListener::bind(any).await.expect("a port");
            let address = listener.local_addr().expect("bound");
            let serving = control.clone();
            tokio::spawn(async move { godwit_control::serve(serving, listener, std::future::pending()).await });
            (control, address)
        });
        let token = |name: &str| std::fs::read_to_string(dir.path().join(name)).expect("a token").trim().to_owned();
        let (admin, join) = (token("admin-token"), token("join-token"));
        let url = format!("http://{address}");
        let mut fleet = Self { url, token: admin, agents: Vec::new(), dir, runtime: Some(runtime), _control: control };
        for name in IMAGES {
            fleet.load(name, "hello");
        }
        for number in 1..=hosts {
            fleet.add_host(&format!("w{number}"), &join);
        }
        fleet
    }

    fn add_host(&mut self, name: &str, join: &str) {
        let capacity = godwit_api::fact::Resources { cpu_millis: 8_000, memory_mb: 4096, disk_mb: 100_000 };
        let runtime = self.runtime.as_ref().expect("it runs");
        let agent = runtime.block_on(Agent::start(&self.url, join, name, "fra", capacity));
        let id = agent.id.clone();
        self.agents.push(agent);
        self.until("the host reports", |fleet| {
            let host = fleet.json(&["host", "show", id.as_str()]);
            (host["capacity"]["memory_mb"] == 4096).then_some(())
        });
    }

    /// Loads an image whose contents are `text` under a name.
    pub fn load(&self, name: &str, text: &str) {
        let path = self.dir.path().join("image.tar");
        std::fs::write(&path, image::archive(text)).expect("writable");
        self.ok(&["image", "load", path.to_str().expect("UTF-8"), "--name", name]);
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(arguments, &[])
    }

    pub fn run_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        let own = [("GODWIT_API_URL", self.url.as_str()), ("GODWIT_TOKEN", self.token.as_str())];
        godwit_with(self.dir.path(), arguments, &[&own[..], environment].concat())
    }

    /// The same, where anything but success is a fault of the test.
    pub fn ok(&self, arguments: &[&str]) -> Output {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {} {}", output.status, stderr(&output));
        output
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.ok(&[&["--json"], arguments].concat());
        serde_json::from_str(&stdout(&output)).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    }

    pub fn until<T>(&self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(Instant::now() < deadline, "in vain: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.agents.clear();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
