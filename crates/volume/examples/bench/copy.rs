//! Until a copy is whole and synced: a clone that hydrates over TCP (each block checked against the source's hash, on
//! arrival and once more in the file), plain and over TLS and after a pre-copy, against nbdcopy from our server and from
//! nbdkit, plain and over GnuTLS (none of them checks anything), against sendfile and splice, and cp.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_volume::map::{BLOCK_BYTES, Geometry, Identity, LiveMap};
use godwit_volume::nbd::client::{Address, ClientTls, Target};
use godwit_volume::nbd::export::{FileExport, Named};
use godwit_volume::nbd::server::{Listener, NbdServer, Security};
use godwit_volume::nbd::tls;
use godwit_volume::shm::SharedBoard;
use godwit_volume::source::remote::NbdSource;
use godwit_volume::{CloneConfig, CloneDevice, CloneParts, map_file};

use crate::{EPOCH, Plan, Table};

const NAMES: [&str; 9] = [
    "clone",
    "nbdcopy",
    "nbdcopy nbdkit",
    "sendfile+splice",
    "clone tls",
    "nbdcopy tls",
    "nbdcopy nbdkit tls",
    "clone precopied",
    "cp",
];
/// Blocks of 64 KiB that differ when a pre-copied clone is handed off: one in so many.
const CHANGED: u64 = 50;

pub fn run(plan: &Plan) {
    println!("== copy: {} MiB of data in {} MiB, whole and synced", plan.mib / 2, plan.mib);
    let scene = Scene::new(plan.folder.clone(), plan.mib);
    let mut table = Table::new("MiB/s");
    for _ in 0..plan.rounds {
        for name in NAMES {
            table.add(name, (plan.mib / 2) as f64 / scene.one(name).as_secs_f64());
        }
        table.end_of_round();
    }
    table.medians();
    table.ratio("clone", "nbdcopy", 1.0);
    table.ratio("clone", "nbdcopy nbdkit", 1.0);
    table.ratio("clone", "sendfile+splice", 0.95);
    table.ratio("clone tls", "nbdcopy tls", 3.0);
    table.ratio("clone tls", "nbdcopy nbdkit tls", 3.0);
    table.ratio("clone precopied", "clone", 1.0);
}

struct Scene {
    folder: PathBuf,
    size: u64,
    plain: NbdServer,
    secure: NbdServer,
    client: tls::Identity,
    /// nbdkit, plain and with a shared key.
    kits: [Kit; 2],
}

/// Ended when dropped.
struct Kit {
    port: u16,
    child: Child,
}

impl Kit {
    fn start(source: &Path, options: &[String]) -> Self {
        // Free now; nobody else here takes ports of this kind.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        let mut command = Command::new("nbdkit");
        command.args(["-f", "-r", "-i", "127.0.0.1", "-p"]).arg(port.to_string()).args(options).arg("file").arg(source);
        let child = command.spawn().expect("nbdkit starts");
        crate::keeper::until("nbdkit listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { port, child }
    }
}

impl Drop for Kit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Scene {
    fn new(folder: PathBuf, mib: u64) -> Self {
        let source = folder.join("source.raw");
        let file = File::create(&source).expect("a file");
        file.set_len(mib << 20).expect("sized");
        let mut noise = blake3::Hasher::new().update(b"bench").finalize_xof();
        let mut chunk = vec![0; 4 << 20];
        for at in (0..mib << 20).step_by(8 << 20) {
            noise.fill(&mut chunk);
            file.write_all_at(&chunk, at).expect("written");
        }
        file.sync_all().expect("synced");
        let (server, client) = identities(&folder);
        let start = |security| {
            let export = FileExport::new(File::open(&source).expect("opens"), true).expect("an export");
            let named = Named([("v".to_owned(), Arc::new(export) as _)].into());
            let listener = Listener::Tcp(TcpListener::bind("127.0.0.1:0").expect("a port"));
            NbdServer::start(listener, security, Arc::new(named), 64).expect("serves")
        };
        let plain = start(Security::Plain);
        let secure = start(Security::Tls(server.server().expect("tls")));
        let psk = folder.join("psk");
        let key: String = blake3::hash(b"bench").as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        std::fs::write(&psk, format!("m:{key}\n")).expect("written");
        std::fs::set_permissions(&psk, std::fs::Permissions::from_mode(0o600)).expect("private");
        let secure_options = ["--tls=require".to_owned(), format!("--tls-psk={}", psk.display())];
        let kits = [Kit::start(&source, &[]), Kit::start(&source, &secure_options)];
        Self { folder, size: mib << 20, plain, secure, client, kits }
    }

    fn one(&self, name: &str) -> Duration {
        let target = self.folder.join("target.raw");
        let _ = std::fs::remove_file(&target);
        if name == "clone precopied" {
            self.precopied(&target);
        }
        let began = Instant::now();
        match name {
            "clone" | "clone precopied" => self.hydrate(&target, false),
            "clone tls" => self.hydrate(&target, true),
            "sendfile+splice" => crate::floor::copy(&self.source(), &target, self.size),
            "cp" => {
                self.command(Command::new("cp").args(["--sparse=auto", "--reflink=never"]).arg(self.source()), &target)
            }
            name => {
                File::create(&target).and_then(|file| file.set_len(self.size)).expect("a target");
                self.command(Command::new("nbdcopy").arg("--destination-is-zero").arg(self.uri(name)), &target);
            }
        }
        File::open(&target).and_then(|file| file.sync_all()).expect("synced");
        began.elapsed()
    }
    fn uri(&self, name: &str) -> String {
        let folder = self.folder.display();
        match name {
            "nbdcopy tls" => {
                let port = self.secure.tcp_addr().expect("tcp").port();
                format!("nbds://localhost:{port}/v?tls-certificates={folder}/pki")
            }
            "nbdcopy nbdkit" => format!("nbd://localhost:{}/", self.kits[0].port),
            "nbdcopy nbdkit tls" => format!("nbds://m@localhost:{}/?tls-psk-file={folder}/psk", self.kits[1].port),
            _ => format!("nbd://localhost:{}/v", self.plain.tcp_addr().expect("tcp").port()),
        }
    }
    /// As a pre-copy leaves it, with what the source wrote since.
    fn precopied(&self, target: &Path) {
        self.command(Command::new("cp").args(["--sparse=auto", "--reflink=never"]).arg(self.source()), target);
        let file = File::options().write(true).open(target).expect("the copy");
        for block in (0..self.size / BLOCK_BYTES).step_by(CHANGED as usize) {
            file.write_all_at(b"stale", block * BLOCK_BYTES).expect("written");
        }
        file.sync_all().expect("synced");
    }
    fn source(&self) -> PathBuf {
        self.folder.join("source.raw")
    }
    fn command(&self, command: &mut Command, target: &Path) {
        assert!(command.arg(target).status().expect("it runs").success());
    }

    /// Until every block is verified and durable.
    fn hydrate(&self, target: &Path, secure: bool) {
        let map = self.folder.join("target.map");
        let _ = std::fs::remove_file(&map);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(target).expect("a file");
        file.set_len(self.size).expect("sized");
        let geometry = Geometry::new(self.size).expect("a size");
        let (store, slots, head, pages) = map_file::open(&map, Identity::new("bench", EPOCH), geometry).expect("a map");
        let words = LiveMap::board_words(&geometry);
        let board = SharedBoard::map(&SharedBoard::create(words).expect("memory"), words).expect("mapped");
        let live = LiveMap::fresh(Box::new(board), geometry, EPOCH, head, &pages).expect("large enough");
        let server = if secure { &self.secure } else { &self.plain };
        let mut from = Target::new(Address::Tcp(server.tcp_addr().expect("tcp")), "v");
        if secure {
            let config = self.client.client().expect("tls");
            from.tls = Some(ClientTls { config, server_name: "localhost".to_owned() });
        }
        let source = Some(Arc::new(NbdSource::new(from)) as _);
        let parts = CloneParts { backing: Arc::new(file), map_store: Box::new(store), slots, live, source };
        let device = CloneDevice::start(CloneConfig::new(EPOCH), parts).expect("starts");
        let mut seen = 0;
        while !device.is_complete() {
            seen = device.wait_progress(seen, Duration::from_millis(100));
        }
    }
}

fn identities(folder: &Path) -> (tls::Identity, tls::Identity) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let trusted_pem = params.self_signed(&key).expect("an authority").pem();
    let issuer = Issuer::new(params, key);
    let issue = |name: &str| {
        let key = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::new(vec![name.to_owned()]).expect("names").signed_by(&key, &issuer);
        let certificates_pem = certificate.expect("a certificate").pem();
        tls::Identity { certificates_pem, key_pem: key.serialize_pem(), trusted_pem: trusted_pem.clone() }
    };
    let (server, client) = (issue("localhost"), issue("client"));
    let pki = folder.join("pki");
    std::fs::create_dir_all(&pki).expect("a folder");
    for (name, text) in [
        ("ca-cert.pem", &client.trusted_pem),
        ("client-cert.pem", &client.certificates_pem),
        ("client-key.pem", &client.key_pem),
    ] {
        std::fs::write(pki.join(name), text).expect("written");
    }
    (server, client)
}
