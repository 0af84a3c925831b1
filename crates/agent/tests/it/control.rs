//! What a host needs of control: joining, the store, the images. All real but the handler of `/v1/join`.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use godwit_api::HostId;
use godwit_api::fact::{HostFact, MachineFact};
use godwit_api::fleet::{Join, Joined};
use godwit_api::ids::MachineId;
use godwit_api::keys;
use godwit_api::row::Placement;
use godwit_base::http::server::serve_tcp;
use godwit_base::{Peer, TaskGroup, Verb, may, secret};
use godwit_oci::{ContentStore, Limits, no_progress};
use godwit_store::{Op, Options, Refused, SqliteStore, Store, StoreExt, Txn, put_json};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

pub const CONTROL_KEY: &str = "gwc_test";
pub const IMAGE: &str = "demo";

type Keys = Arc<Mutex<HashMap<String, (String, HostId)>>>;

pub struct Control {
    pub addr: SocketAddr,
    pub store: Arc<dyn Store>,
    pub image_digest: String,
    /// Of the same name.
    pub other_digest: String,
    keys: Keys,
    images: Arc<ContentStore>,
    serving: Mutex<Option<TaskGroup>>,
    _folder: tempfile::TempDir,
}

impl Control {
    pub async fn start() -> Arc<Self> {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(folder.path().join("store.db"), Options::default()).unwrap();
        let images = Arc::new(ContentStore::open(folder.path().join("images"), Limits::default()).unwrap());
        let load = |content: &str| {
            let layout = folder.path().join(content);
            write_layout(&layout, content);
            images.load_path(&layout, Some(IMAGE), &no_progress()).unwrap()[0].digest.to_string()
        };
        let (image_digest, other_digest) = (load("one"), load("other"));
        let listener = TcpListener::bind("[::1]:0").await.unwrap();
        let control = Arc::new(Self {
            addr: listener.local_addr().unwrap(),
            store: Arc::new(store),
            image_digest,
            other_digest,
            keys: Keys::default(),
            images,
            serving: Mutex::default(),
            _folder: folder,
        });
        control.serve(listener);
        control
    }

    fn serve(&self, listener: TcpListener) {
        let keys = self.keys.clone();
        let authorize = Arc::new(move |parts: &http::request::Parts, verb, key: &str| {
            let bearer = godwit_base::http::bearer(&parts.headers).unwrap_or_default();
            let known = keys.lock().unwrap().get(bearer).cloned();
            let Some((_, host)) = known else { return Err(Refused::Unauthenticated) };
            let verb = match verb {
                godwit_store::Verb::Read => Verb::Read,
                godwit_store::Verb::Write => Verb::Write,
                godwit_store::Verb::Watch => Verb::Watch,
                godwit_store::Verb::Identify => return Ok(()),
            };
            may(&Peer::Host(host), verb, key).map_err(|error| Refused::Forbidden { reason: error.to_string() })
        });
        let joining = Router::new().route("/v1/join", post(join)).with_state(self.keys.clone());
        let router = joining
            .merge(godwit_store::router(self.store.clone(), authorize))
            .merge(godwit_oci::routes(self.images.clone()));
        let group = TaskGroup::new();
        tokio::spawn(serve_tcp(listener, router, group.clone()));
        *self.serving.lock().unwrap() = Some(group);
    }

    /// Nobody reaches it any more; open connections are cut.
    pub async fn stop(&self) {
        let group = self.serving.lock().unwrap().take();
        if let Some(group) = group {
            group.drain(std::time::Duration::from_millis(1)).await;
        }
    }

    pub async fn come_back(&self) {
        for _ in 0..500 {
            match TcpListener::bind(self.addr).await {
                Ok(listener) => return self.serve(listener),
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        }
        panic!("the address of control stays taken");
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub async fn put(&self, placement: &Placement) {
        let key = keys::placement(&placement.host, &placement.machine);
        self.store.txn(Txn::of([put_json(key, placement).unwrap()])).await.unwrap();
    }

    pub async fn delete_row(&self, host: &HostId, machine: &MachineId) {
        self.store.txn(Txn::of([Op::delete(keys::placement(host, machine))])).await.unwrap();
    }

    pub async fn fact(&self, host: &HostId, machine: &MachineId) -> Option<MachineFact> {
        self.store.get_json(&keys::machine_fact(host, machine)).await.unwrap().map(|row| row.value)
    }

    pub async fn host_fact(&self, host: &HostId) -> Option<HostFact> {
        self.store.get_json(&keys::host_fact(host)).await.unwrap().map(|row| row.value)
    }
}

/// The same incarnation is the same host.
async fn join(State(keys): State<Keys>, Json(request): Json<Join>) -> Json<Joined> {
    let mut keys = keys.lock().unwrap();
    let known = keys.values().find(|(incarnation, _)| *incarnation == request.incarnation).map(|(_, id)| id.clone());
    let drawn = || HostId::parse(&format!("{}-{:04x}", request.name, secret::random_u64() & 0xffff)).unwrap();
    let id = known.unwrap_or_else(drawn);
    let key = secret::new_key("gwh");
    keys.insert(key.clone(), (request.incarnation, id.clone()));
    Json(Joined { id: id.to_string(), key, control_key: CONTROL_KEY.into() })
}

/// A small OCI image: one layer with one file.
fn write_layout(folder: &Path, content: &str) {
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let blob = |bytes: &[u8], kind: &str| {
        let hex = hex::encode(Sha256::digest(bytes));
        std::fs::write(blobs.join(&hex), bytes).unwrap();
        serde_json::json!({"mediaType": kind, "digest": format!("sha256:{hex}"), "size": bytes.len()})
    };
    let layer = tar_of("app", content.as_bytes());
    let diff_id = format!("sha256:{}", hex::encode(Sha256::digest(&layer)));
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = serde_json::json!({
        "architecture": architecture, "os": "linux",
        "config": {"Entrypoint": ["/app"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]}
    });
    let layer = blob(&layer, "application/vnd.oci.image.layer.v1.tar");
    let config = blob(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]});
    let manifest = blob(manifest.to_string().as_bytes(), kind);
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(folder.join("index.json"), index.to_string()).unwrap();
    std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// A tar archive (ustar) with one small executable.
fn tar_of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    let mut field = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    field(0, name);
    field(100, "0000755\0");
    field(108, "0000000\0");
    field(116, "0000000\0");
    field(124, &format!("{:011o}\0", content.len()));
    field(136, "00000000000\0");
    field(148, "        ");
    field(156, "0");
    field(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend_from_slice(content);
    tar.resize(tar.len().div_ceil(512) * 512 + 1024, 0);
    tar
}

/// What a Machine's events say, oldest first.
pub fn story(fact: &MachineFact) -> Vec<String> {
    fact.events.iter().rev().map(|event| format!("{} {}", event.kind, event.status)).collect()
}

/// Counted by what stands in the first column.
pub fn count_lines(path: &Path) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for line in std::fs::read_to_string(path).unwrap_or_default().lines() {
        *counts.entry(line.split(' ').next().unwrap_or_default().to_owned()).or_default() += 1;
    }
    counts
}
