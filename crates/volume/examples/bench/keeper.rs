//! A keeper of a clone whose source is an NBD server in this process; all of it is gone when it is dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_volume::host;
use godwit_volume::nbd::export::{FileExport, Named};
use godwit_volume::nbd::server::{Listener, NbdServer, Security};
use godwit_volume::pace::Limits;
use godwit_volume::spec::{AddressSpec, SourceSpec, VolumeSpec};

use crate::EPOCH;

pub struct Keeper {
    pub spec: VolumeSpec,
    _source: NbdServer,
    child: Child,
}

impl Keeper {
    /// An empty clone of `source` in `folder`.
    pub fn start(folder: &Path, source: &Path, limits: Limits) -> Self {
        clear(folder);
        std::fs::create_dir_all(folder.join("mnt")).expect("a folder");
        let file = std::fs::File::open(source).expect("the source");
        let size_bytes = file.metadata().expect("its size").len();
        let export = FileExport::new(file, true).expect("an export");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("its address");
        let named = Named([("v".to_owned(), Arc::new(export) as _)].into());
        let server = NbdServer::start(Listener::Tcp(listener), Security::Plain, Arc::new(named), 64).expect("serves");
        let spec = VolumeSpec {
            volume: "bench".to_owned(),
            epoch: EPOCH,
            size_bytes,
            local: folder.join("volume.raw"),
            map: folder.join("volume.map"),
            source: Some(SourceSpec::Nbd { address: AddressSpec::Tcp(addr), export: "v".to_owned(), tls: None }),
            held: false,
            limits,
            mountpoint: folder.join("mnt"),
            control: folder.join("keeper.sock"),
        };
        let path = folder.join("spec.json");
        std::fs::write(&path, serde_json::to_vec(&spec).expect("json")).expect("written");
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg("keeper").arg(&path).stdin(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("a keeper");
        Self { spec, _source: server, child }
    }

    pub fn device(&self) -> PathBuf {
        let mut found = None;
        until("a loop device", || {
            found = host::keeper_status(&self.spec).and_then(|status| status.keeper.loop_device);
            found.is_some()
        });
        found.expect("just seen")
    }
    pub fn set_limits(&self, limits: Limits) {
        until("limits are set", || host::set_limits(&self.spec, limits).is_ok());
    }
    pub fn wait_whole(&self) {
        let whole =
            || host::keeper_status(&self.spec).and_then(|status| status.clone).is_some_and(|clone| clone.verified);
        until("whole", whole);
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Err(error) = host::stop(&self.spec) {
            eprintln!("not stopped: {error}");
        }
        let _ = self.child.wait();
    }
}

/// What an earlier clone left. Hundreds of megabytes take their time to be freed, which is nobody's start.
pub fn clear(folder: &Path) {
    let _ = std::fs::remove_dir_all(folder);
}

pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(300), "{what}: not within five minutes");
        std::thread::sleep(Duration::from_millis(1));
    }
}
