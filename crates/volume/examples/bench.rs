//! Hydration against its peers, interleaved in one run: `bench MIB ROUNDS FOLDER`. Prints for each round and at the
//! end the median of: a clone that hydrates over TCP (verified against the source's hashes and synced), the same over
//! TLS, nbdcopy from the same server plain and over TLS (synced, not verified), and cp. Half of the image is holes.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_api::ids::Epoch;
use godwit_volume::map::{Geometry, Identity, LiveMap};
use godwit_volume::nbd::client::{Address, ClientTls, Target};
use godwit_volume::nbd::export::{FileExport, Named};
use godwit_volume::nbd::server::{Listener, NbdServer, Security};
use godwit_volume::nbd::tls;
use godwit_volume::shm::SharedBoard;
use godwit_volume::source::remote::NbdSource;
use godwit_volume::{CloneConfig, CloneDevice, CloneParts, map_file};

const EPOCH: Epoch = Epoch { generation: 1, n: 1 };

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mib, rounds, folder] = &arguments[..] else { panic!("usage: bench MIB ROUNDS FOLDER") };
    let (mib, rounds): (u64, usize) = (mib.parse().expect("MIB"), rounds.parse().expect("ROUNDS"));
    let scene = Scene::new(PathBuf::from(folder), mib);
    let names = ["clone", "clone-tls", "nbdcopy", "nbdcopy-tls", "cp"];
    let mut all: Vec<Vec<f64>> = vec![Vec::new(); names.len()];
    for _ in 0..rounds {
        for (name, rates) in names.iter().zip(&mut all) {
            let rate = (mib / 2) as f64 / scene.one(name).as_secs_f64();
            print!("{name} {rate:.0} MiB/s  ");
            rates.push(rate);
        }
        println!();
    }
    let medians: Vec<f64> = all
        .iter_mut()
        .map(|rates| {
            rates.sort_by(f64::total_cmp);
            rates[rates.len() / 2]
        })
        .collect();
    println!("median: {}", names.iter().zip(&medians).map(|(n, m)| format!("{n} {m:.0}  ")).collect::<String>());
    println!("clone/nbdcopy {:.2}x  clone-tls/nbdcopy-tls {:.2}x", medians[0] / medians[2], medians[1] / medians[3]);
}

struct Scene {
    folder: PathBuf,
    size: u64,
    plain: NbdServer,
    secure: NbdServer,
    client: tls::Identity,
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
        Self { folder, size: mib << 20, plain, secure, client }
    }

    fn one(&self, name: &str) -> Duration {
        let target = self.folder.join("target.raw");
        let _ = std::fs::remove_file(&target);
        let began = Instant::now();
        match name {
            "clone" => self.hydrate(&target, false),
            "clone-tls" => self.hydrate(&target, true),
            "cp" => {
                self.command(Command::new("cp").args(["--sparse=auto", "--reflink=never"]).arg(self.source()), &target)
            }
            name => {
                let uri = if name == "nbdcopy-tls" {
                    let port = self.secure.tcp_addr().expect("tcp").port();
                    format!("nbds://localhost:{port}/v?tls-certificates={}", self.folder.join("pki").display())
                } else {
                    format!("nbd://localhost:{}/v", self.plain.tcp_addr().expect("tcp").port())
                };
                File::create(&target).and_then(|file| file.set_len(self.size)).expect("a target");
                self.command(Command::new("nbdcopy").arg("--destination-is-zero").arg(uri), &target);
            }
        }
        File::open(&target).and_then(|file| file.sync_all()).expect("synced");
        began.elapsed()
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
        let file = File::options().read(true).write(true).create_new(true).open(target).expect("a file");
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
