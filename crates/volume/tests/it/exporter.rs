//! An export after a handoff, as the target of a move sees it: the address stays while servers die, the keeper's
//! successor takes the port, and nobody else gets in.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use godwit_volume::exporter::{ExportEntry, ExportSpec, ExportTls, ExporterAsk, ExporterStatus};
use godwit_volume::host;
use godwit_volume::keeper::control;
use godwit_volume::nbd::client::{Address, ClientTls, NbdClient, Target};
use godwit_volume::nbd::tls::Identity;
use godwit_volume::precopy::{PrecopySpec, PrecopyStatus};
use godwit_volume::source::remote::NbdSource;
use godwit_volume::spec::{AddressSpec, SourceSpec, TlsSpec};

use crate::support::{EPOCH, assert_same_file, eventually, image, kill_hard, open_clone};

const MIB: u64 = 1 << 20;

/// A certificate that only its own holder can vouch for: one is made for each side of a migration.
fn pinned(name: &str) -> (String, String) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("names");
    (params.self_signed(&key).expect("a certificate").pem(), key.serialize_pem())
}

struct Scene {
    folder: tempfile::TempDir,
    spec: ExportSpec,
    keeper: Child,
    client: Identity,
}

impl Scene {
    fn new(size: u64) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        image(&path("source.raw"), size, |block| block % 4 != 0);
        let (server_certificate, server_key) = pinned("source.migration");
        let (client_certificate, client_key) = pinned("target.migration");
        for (name, text) in
            [("cert.pem", &server_certificate), ("key.pem", &server_key), ("peer.pem", &client_certificate)]
        {
            std::fs::write(path(name), text).expect("written");
        }
        let entry = ExportEntry {
            volume: "vol_1".to_owned(),
            epoch: EPOCH,
            token: "s3cret".to_owned(),
            local: path("source.raw"),
            size_bytes: size,
        };
        let spec = ExportSpec {
            migration: "mig_1".to_owned(),
            listen: "127.0.0.1:0".parse().expect("an address"),
            ports: None,
            exports: vec![entry],
            tls: Some(ExportTls { certificates: path("cert.pem"), key: path("key.pem"), trusted: path("peer.pem") }),
            control: path("export.sock"),
        };
        let client =
            Identity { certificates_pem: client_certificate, key_pem: client_key, trusted_pem: server_certificate };
        let keeper = start(&spec, &path("export.json"));
        Self { folder, spec, keeper, client }
    }
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
    fn ask(&self, ask: &ExporterAsk) -> Option<ExporterStatus> {
        control::ask(&self.spec.control, ask).ok()
    }
    fn status(&self) -> ExporterStatus {
        let mut found = None;
        eventually("the exporter serves", || {
            found = self.ask(&ExporterAsk::Status).filter(|status| status.server_pid != 0);
            found.is_some()
        });
        found.expect("just seen")
    }
    fn client_files(&self) -> TlsSpec {
        let write = |name: &str, text: &str| {
            std::fs::write(self.path(name), text).expect("written");
            self.path(name)
        };
        TlsSpec {
            certificates: write("client-cert.pem", &self.client.certificates_pem),
            key: write("client-key.pem", &self.client.key_pem),
            trusted: write("client-trusted.pem", &self.client.trusted_pem),
            server_name: "source.migration".to_owned(),
        }
    }
    fn target(&self, token: &str) -> Target {
        let mut target = Target::new(Address::Tcp(self.status().addr), format!("vol_1@{EPOCH}+{token}"));
        let config = self.client.client().expect("tls");
        target.tls = Some(ClientTls { config, server_name: "source.migration".to_owned() });
        target
    }
}

fn start(spec: &ExportSpec, path: &std::path::Path) -> Child {
    std::fs::write(path, serde_json::to_vec(spec).expect("json")).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_godwit-volume-process"));
    command.arg("export").arg(path).stdin(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("a keeper")
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.ask(&ExporterAsk::Stop);
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

#[test]
fn a_clone_fills_though_servers_and_the_keeper_of_its_source_are_killed() {
    let mut scene = Scene::new(64 * MIB);
    let source = NbdSource::new(scene.target("s3cret"));
    let device = open_clone(scene.folder.path(), 64 * MIB, Some(Arc::new(source)), |config| {
        config.limits.cap_bytes_per_s = 16 << 20;
    });
    let addr = scene.status().addr;
    for round in 1..=4 {
        let present = device.status().present_blocks;
        eventually("some blocks arrive", || device.status().present_blocks > present);
        // Holes arrive without being read.
        eventually("some bytes are read", || {
            let export = &scene.status().exports[0];
            export.claimed && export.read_bytes > 0
        });
        let status = scene.status();
        assert_eq!(status.addr, addr);
        if round == 3 {
            kill_hard(status.pid);
            scene.keeper.wait().expect("ends");
            scene.spec.listen = addr;
            scene.keeper = start(&scene.spec, &scene.path("export.json"));
        } else {
            kill_hard(status.server_pid);
        }
    }
    let fast = godwit_volume::pace::Limits::default();
    device.set_limits(fast);
    eventually("complete", || device.is_complete());
    assert_same_file(&scene.path("source.raw"), &scene.path("volume.raw"));
    let status = scene.status();
    assert!(status.exports[0].hashes > 0 && status.exports[0].connections_total > 0, "{status:?}");
    drop(device);
    eventually("nobody is connected", || scene.status().exports[0].connections == 0);
    scene.ask(&ExporterAsk::Stop).expect("the keeper answers");
    assert!(scene.keeper.wait().expect("it ends").success());
    assert!(std::net::TcpStream::connect(addr).is_err(), "nothing listens any more");
}

/// A wrong token, no certificate or another's, a write: all refused.
#[test]
fn nobody_but_the_target_gets_in_and_nothing_is_written() {
    let scene = Scene::new(4 * MIB);
    assert!(NbdClient::connect(&scene.target("guess")).is_err());
    let mut plain = scene.target("s3cret");
    plain.tls = None;
    assert!(NbdClient::connect(&plain).is_err());
    let (certificates_pem, key_pem) = pinned("target.migration");
    let stranger = Identity { certificates_pem, key_pem, ..scene.client.clone() };
    let mut target = scene.target("s3cret");
    let config = stranger.client().expect("tls");
    target.tls = Some(ClientTls { config, server_name: "source.migration".to_owned() });
    assert!(NbdClient::connect(&target).is_err());
    let mut client = NbdClient::connect(&scene.target("s3cret")).expect("the target itself");
    assert!(client.write(0, b"no", false).is_err());
}

#[test]
fn a_second_exporter_of_one_migration_does_not_start() {
    let scene = Scene::new(4 * MIB);
    scene.status();
    let mut second = start(&scene.spec, &scene.path("export.json"));
    let status = second.wait().expect("ends");
    assert_eq!(status.code(), Some(i32::from(godwit_volume::roles::EXIT_TAKEN)));
    scene.status();
}

/// The source still runs and writes: what was copied by then is not fetched again after the handoff.
#[test]
fn a_precopy_spares_the_move_most_of_its_bytes() {
    let scene = Scene::new(64 * MIB);
    let source = std::fs::File::options().write(true).open(scene.path("source.raw")).expect("the live file");
    let spec = PrecopySpec {
        source: SourceSpec::Nbd {
            address: AddressSpec::Tcp(scene.status().addr),
            export: format!("vol_1@{EPOCH}+s3cret"),
            tls: Some(scene.client_files()),
        },
        local: scene.path("volume.raw"),
        size_bytes: 64 * MIB,
        limits: Default::default(),
        passes: 2,
        control: scene.path("precopy.sock"),
    };
    std::fs::write(scene.path("precopy.json"), serde_json::to_vec(&spec).expect("json")).expect("written");
    let run = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_godwit-volume-process"));
        let output = crate::support::run(command.arg("precopy").arg(scene.path("precopy.json")));
        serde_json::from_slice::<PrecopyStatus>(&output.stdout).expect("what it did")
    };
    let first = run();
    assert!(first.done && first.copied_bytes == 48 * MIB && first.pass == 2, "{first:?}");
    source.write_all_at(b"written since", 17 * MIB).expect("a write");
    let second = run();
    assert!(second.copied_bytes == 65536 && second.wire_bytes < MIB, "only the difference: {second:?}");
    source.write_all_at(b"at the last moment", 33 * MIB).expect("a write");
    assert!(host::precopy_status(&spec).is_none());
    assert_eq!(host::precopy_result(&spec), Some(second));
    host::precopy_stop(&spec).expect("over already");
    // Handed off.
    let clone = NbdSource::new(scene.target("s3cret"));
    let device = open_clone(scene.folder.path(), 64 * MIB, Some(Arc::new(clone)), |_| {});
    eventually("complete", || device.is_complete());
    let status = device.status();
    assert!(status.verified && status.hydrated_bytes == 65536 && status.wire_bytes < MIB, "{status:?}");
    assert_same_file(&scene.path("source.raw"), &scene.path("volume.raw"));
}
