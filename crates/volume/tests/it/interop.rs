//! The server, plain and over TLS, against Debian's NBD tools; and the client against nbdkit.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use godwit_volume::nbd::client::{Address, Target};
use godwit_volume::nbd::export::Named;
use godwit_volume::nbd::server::{NbdServer, Security};
use godwit_volume::source::file::FileSource;
use godwit_volume::source::remote::NbdSource;

use crate::protocol::{certificates, file_export, loopback};
use crate::support::{assert_same_file, eventually, image, open_clone, run, tool};

const MIB: u64 = 1 << 20;

fn nbd_tool(name: &str) -> Command {
    tool(name, "libnbd-bin")
}
fn qemu_tool(name: &str) -> Command {
    tool(name, "qemu-utils")
}

/// A server of three files, and URIs that the tools take.
struct Scene {
    folder: tempfile::TempDir,
    server: NbdServer,
    tls: bool,
}

impl Scene {
    fn new(tls: bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        image(&path("source.raw"), 32 * MIB, |block| block % 8 < 3);
        image(&path("target.raw"), 32 * MIB, |block| block % 5 == 0);
        let mut security = Security::Plain;
        if tls {
            let made = certificates();
            security = Security::Tls(made.server.server().expect("tls"));
            std::fs::create_dir(path("pki")).expect("a folder");
            for (name, text) in [
                ("ca-cert.pem", &made.client.trusted_pem),
                ("client-cert.pem", &made.client.certificates_pem),
                ("client-key.pem", &made.client.key_pem),
            ] {
                std::fs::write(path("pki").join(name), text).expect("written");
            }
            let private = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(path("pki/client-key.pem"), private).expect("private");
        }
        let exports = Named(
            [
                ("source".to_owned(), file_export(&path("source.raw"), true)),
                ("target".to_owned(), file_export(&path("target.raw"), false)),
            ]
            .into(),
        );
        let server = NbdServer::start(loopback(), security, Arc::new(exports), 32).expect("a server");
        Self { folder, server, tls }
    }
    fn port(&self) -> u16 {
        self.server.tcp_addr().expect("tcp").port()
    }
    fn uri(&self, export: &str) -> String {
        if self.tls {
            let pki = self.folder.path().join("pki");
            format!("nbds://localhost:{}/{export}?tls-certificates={}", self.port(), pki.display())
        } else {
            format!("nbd://localhost:{}/{export}", self.port())
        }
    }
    /// For qemu's tools, which take certificates as an object.
    fn qemu(&self, command: &mut Command, export: &str, image_opts: &str) -> String {
        let mut node = format!("driver=nbd,host=localhost,port={},export={export}", self.port());
        if self.tls {
            let pki = self.folder.path().join("pki");
            let object = format!("tls-creds-x509,id=tls0,endpoint=client,dir={}", pki.display());
            command.args(["--object", &object]);
            node += ",tls-creds=tls0";
        }
        command.arg(image_opts);
        node
    }
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }
}

fn in_both_ways(check: impl Fn(&Scene)) {
    for tls in [false, true] {
        check(&Scene::new(tls));
    }
}

#[test]
fn nbdinfo_reads_what_an_export_can_do() {
    in_both_ways(|scene| {
        let output = run(nbd_tool("nbdinfo").args(["--json", &scene.uri("source")]));
        let text: serde_json::Value = serde_json::from_slice(&output.stdout).expect("json");
        assert_eq!(text["structured"], true, "{text}");
        assert_eq!(text["TLS"], scene.tls, "{text}");
        let export = &text["exports"][0];
        assert_eq!(export["export-size"], 32 * MIB, "{export}");
        assert_eq!(export["is_read_only"], true);
        assert_eq!(export["can_multi_conn"], true);
        assert_eq!(export["contexts"], serde_json::json!(["base:allocation", "godwit:blake3"]), "{export}");
        let list = run(nbd_tool("nbdinfo").args(["--list", "--json", &scene.uri("")]));
        let list: serde_json::Value = serde_json::from_slice(&list.stdout).expect("json");
        assert_eq!(list["exports"].as_array().map(Vec::len), Some(2), "{list}");
        let map = run(nbd_tool("nbdinfo").args(["--map", "--totals", &scene.uri("source")]));
        let map = String::from_utf8_lossy(&map.stdout).into_owned();
        assert!(map.contains("37.5%") && map.contains("62.5%"), "three of eight blocks are data: {map}");
    });
}

#[test]
fn nbdcopy_copies_both_ways() {
    in_both_ways(|scene| {
        let fetched = scene.path("fetched.raw");
        run(nbd_tool("nbdcopy").arg(scene.uri("source")).arg(&fetched));
        assert_same_file(&scene.path("source.raw"), &fetched);
        run(nbd_tool("nbdcopy").arg("--flush").arg(&fetched).arg(scene.uri("target")));
        assert_same_file(&scene.path("source.raw"), &scene.path("target.raw"));
    });
}

#[test]
fn qemu_img_converts_and_compares() {
    in_both_ways(|scene| {
        let mut convert = qemu_tool("qemu-img");
        convert.arg("convert");
        let source = scene.qemu(&mut convert, "source", "--image-opts");
        run(convert.args(["-W", "-m", "8", "-O", "raw", &source]).arg(scene.path("fetched.raw")));
        assert_same_file(&scene.path("source.raw"), &scene.path("fetched.raw"));
        let mut compare = qemu_tool("qemu-img");
        compare.arg("compare");
        let source = scene.qemu(&mut compare, "source", "--image-opts");
        let local = format!("driver=raw,file.driver=file,file.filename={}", scene.path("fetched.raw").display());
        run(compare.args([&source, &local]));
        let mut push = qemu_tool("qemu-img");
        push.arg("convert");
        let target = scene.qemu(&mut push, "target", "--image-opts");
        run(push.args(["--target-image-opts", "-n", &local, &target]));
        assert_same_file(&scene.path("source.raw"), &scene.path("target.raw"));
    });
}

#[test]
fn qemu_io_writes_zeroes_and_discards() {
    in_both_ways(|scene| {
        let mut io = qemu_tool("qemu-io");
        let target = scene.qemu(&mut io, "target", "--image-opts");
        for command in [
            "write -P 0x5a 100k 200k",
            "write -f -P 0xa5 1M 64k",
            "write -z 2M 1M",
            "write -z -u 4M 1M",
            "discard 6M 2M",
            "flush",
            "read -P 0x5a 100k 200k",
            "read -P 0xa5 1M 64k",
            "read -P 0 2M 1M",
            "read -P 0 4M 1M",
            "read -P 0 6M 2M",
        ] {
            io.args(["-c", command]);
        }
        let output = run(io.arg(&target));
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(!text.contains("failed"), "{text}");
    });
}

/// fio's NBD engine over the server, whose export is a clone that hydrates meanwhile.
#[test]
fn fio_verifies_what_it_wrote_to_a_hydrating_clone() {
    let folder = tempfile::tempdir().expect("a folder");
    image(&folder.path().join("source.raw"), 64 * MIB, |_| true);
    let source = FileSource::new(folder.path().join("source.raw"));
    let clone = Arc::new(open_clone(folder.path(), 64 * MIB, Some(Arc::new(source)), |config| {
        config.limits.cap_bytes_per_s = 16 << 20;
    }));
    let exports = Named([("clone".to_owned(), Arc::clone(&clone) as _)].into());
    let server = NbdServer::start(loopback(), Security::Plain, Arc::new(exports), 8).expect("a server");
    let uri = format!("nbd://localhost:{}/clone", server.tcp_addr().expect("tcp").port());
    let fio = |extra: &[&str]| {
        let mut fio = tool("fio", "fio");
        fio.current_dir(folder.path());
        fio.args(["--name=v", "--ioengine=nbd", "--size=24M", "--bs=4k", "--iodepth=16", "--verify=crc32c"]);
        run(fio.args(["--verify_fatal=1", "--randrepeat=1"]).arg(format!("--uri={uri}")).args(extra));
    };
    fio(&["--rw=randwrite", "--fsync=64", "--do_verify=1"]);
    fio(&["--rw=randrw", "--offset=30M"]);
    eventually("complete", || clone.is_complete());
    assert_eq!(clone.status().mismatches, 0);
}

/// An nbdkit of our own, ended with the test.
struct Nbdkit(Child);

impl Nbdkit {
    fn start(socket: &Path, args: &[&str]) -> Self {
        let mut command = tool("nbdkit", "nbdkit");
        command.args(["-f", "-U"]).arg(socket).args(args).stdin(Stdio::null());
        let child = Self(command.spawn().expect("nbdkit starts"));
        eventually("nbdkit listens", || socket.exists());
        child
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A foreign server has no manifest: a clone takes it only when told to. One read in a hundred fails there.
#[test]
fn a_clone_of_a_foreign_server_that_errs_now_and_then() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("source.raw");
    image(&path, 32 * MIB, |block| block % 2 == 0);
    let socket = folder.path().join("kit.sock");
    let file = path.display().to_string();
    let _kit = Nbdkit::start(&socket, &["-r", "--filter=error", "file", &file, "error-pread-rate=5%"]);
    let source = NbdSource::new(Target::new(Address::Unix(socket.clone()), ""));
    let strict = tempfile::tempdir().expect("a folder");
    {
        let source = NbdSource::new(Target::new(Address::Unix(socket), ""));
        let device = open_clone(strict.path(), 32 * MIB, Some(Arc::new(source)), |_| {});
        eventually("refused", || device.status().source_error.is_some_and(|error| error.contains("hashes")));
        assert_eq!(device.status().hydrated_bytes, 0);
    }
    let device = open_clone(folder.path(), 32 * MIB, Some(Arc::new(source)), |config| config.manifest_required = false);
    eventually("complete", || device.is_complete());
    assert_eq!(device.status().hydrated_bytes, 16 * MIB);
    assert!(!device.status().verified, "there was nothing to compare with");
    assert_same_file(&path, &folder.path().join("volume.raw"));
}
