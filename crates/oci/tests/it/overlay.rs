//! The unpacked folders under the kernel's own overlayfs, compared with what umoci makes of
//! the same image, file by file.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use godwit_oci::{Unpacked, no_progress};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::support::*;

/// Mounts the image in a mount namespace of one thread's own, and reads the tree there.
/// The namespace, and the mount with it, goes with the thread.
pub fn mounted(unpacked: &Unpacked) -> BTreeMap<String, Seen> {
    let lowers: Vec<&str> = unpacked.lowers.iter().map(|lower| text(lower)).collect();
    let scratch = tempfile::tempdir().unwrap();
    let [upper, work, target] = ["upper", "work", "target"].map(|name| scratch.path().join(name));
    for dir in [&upper, &work, &target] {
        std::fs::create_dir(dir).unwrap();
    }
    let root = unpacked.lower_paths()[0].metadata().unwrap();
    std::fs::set_permissions(&upper, std::fs::Permissions::from_mode(root.mode())).unwrap();
    let options = format!("lowerdir={},upperdir={},workdir={}", lowers.join(":"), text(&upper), text(&work));
    let read = || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).expect("needs root");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        // Relative lower folders: only this thread's working folder changes.
        std::env::set_current_dir(&unpacked.base).unwrap();
        mount(Some("overlay"), &target, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
        let seen = tree(&target);
        std::env::set_current_dir("/").unwrap();
        umount2(&target, MntFlags::MNT_DETACH).unwrap();
        seen
    };
    std::thread::scope(|scope| scope.spawn(read).join().unwrap())
}

fn layers() -> Vec<Vec<u8>> {
    let owned = |uid, gid, mode| Meta { mode, uid, gid, mtime: 1_400_000_000 };
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let base = Layer::new()
        .folder("./", 0o755)
        .folder("bin", 0o755)
        .file_with("bin/su", b"su", owned(0, 0, 0o4755))
        .file_with("bin/wall", b"wall", owned(0, 5, 0o2755))
        .pax(&[("SCHILY.xattr.security.capability", &capability)])
        .file("bin/ping", b"ping")
        .hard_link("bin/ping6", "bin/ping")
        .folder("data", 0o1777)
        .file_with("data/a", b"a", owned(1000, 1001, 0o600))
        .file("data/b", b"b")
        .folder("data/sub", 0o700)
        .file("data/sub/c", b"c")
        .folder("data/sub/deep", 0o755)
        .file("data/sub/deep/d", b"d")
        .folder("run", 0o755)
        .folder("var", 0o755)
        .symlink("var/run", "/run")
        .folder("usr", 0o755)
        .folder("usr/lib", 0o755)
        .symlink("lib", "usr/lib")
        .symlink("dangling", "/nowhere/at/all")
        .file("to-folder", b"file")
        .folder("to-file", 0o755)
        .file("to-file/x", b"x")
        .folder("cycle", 0o755)
        .file("cycle/1", b"1")
        .raw(b'6', b"pipe", b"", owned(7, 8, 0o640), b"");
    let change = Layer::new()
        .folder("data", 0o1777)
        .file("data/.wh.a", b"")
        .folder("data/sub", 0o711)
        .file("data/sub/.wh..wh..opq", b"")
        .file("data/sub/new", b"new")
        .folder("bin", 0o755)
        .hard_link("bin/su2", "bin/su")
        .file("var/run/pid", b"1")
        .file("lib/libc.so", b"libc")
        .folder("to-folder", 0o755)
        .file("to-folder/y", b"y")
        .file("to-file", b"now a file")
        .file(".wh.cycle", b"");
    let again = Layer::new()
        .folder("cycle", 0o750)
        .file("cycle/2", b"2")
        .folder("data", 0o1777)
        .file("data/a", b"a again")
        .folder("data/sub", 0o711)
        .file("data/sub/.wh.new", b"")
        .folder("to-file", 0o700)
        .file("to-file/z", b"z")
        .symlink("dangling", "bin/su")
        .file(".wh.pipe", b"")
        .file("lib/libm.so", b"libm");
    vec![base.done(), change.done(), again.done()]
}

/// Compares all but what differs by nature: link counts of files of several layers, and
/// the times of folders that a layer did not describe.
pub fn check_same(ours: &BTreeMap<String, Seen>, theirs: &BTreeMap<String, Seen>) {
    let names = |tree: &BTreeMap<String, Seen>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(ours), names(theirs));
    let mut different = Vec::new();
    for (name, our) in ours {
        let their = &theirs[name];
        let same = our.kind == their.kind
            && (our.mode == their.mode || our.kind == 'l')
            && our.owner == their.owner
            && our.content == their.content
            && our.xattrs == their.xattrs
            && (our.mtime == their.mtime || our.kind == 'd');
        if !same {
            different.push(format!("{name}:\n  ours   {our:?}\n  theirs {their:?}"));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

pub fn by_umoci(layout: &Path, tag: &str, into: &Path) -> BTreeMap<String, Seen> {
    run("umoci", &["unpack", "--image", &format!("{}:{tag}", text(layout)), text(into)]);
    tree(&into.join("rootfs"))
}

#[test]
fn the_mounted_image_is_what_umoci_unpacks() {
    let dir = tempfile::tempdir().unwrap();
    let image = Image::new(layers());
    image.write_layout(&dir.path().join("layout"));
    let theirs = by_umoci(&dir.path().join("layout"), "v1", &dir.path().join("bundle"));
    let test = TestStore::new();
    let unpacked = unpack(&test.store, &image).unwrap();
    let ours = mounted(&unpacked);
    assert_eq!(ours["run/pid"].content, theirs["run/pid"].content);
    check_same(&ours, &theirs);
    // Named once more, so that nobody has to trust the other tool for these.
    for gone in ["data/sub/c", "data/sub/deep", "data/sub/new", "cycle/1", "to-file/x", "pipe"] {
        assert!(!ours.contains_key(gone), "{gone}");
    }
    assert_eq!(ours["lib"].kind, 'l');
}

#[test]
fn an_image_that_umoci_built_from_a_folder_comes_out_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&dir.path().join(name)).to_owned();
    let image = format!("{}:x", at("layout"));
    run("umoci", &["init", "--layout", &at("layout")]);
    run("umoci", &["new", "--image", &image]);
    let root = dir.path().join("work/rootfs");
    // Three changes, each repacked into a layer of its own by umoci.
    let changes: [&dyn Fn(); 3] = [
        &|| {
            std::fs::create_dir_all(root.join("etc/conf.d")).unwrap();
            std::fs::create_dir_all(root.join("srv/www/static")).unwrap();
            for n in 0..30 {
                std::fs::write(root.join(format!("srv/www/static/{n}")), vec![n as u8; n * 100]).unwrap();
            }
            std::fs::write(root.join("etc/conf.d/a"), "a").unwrap();
            std::fs::hard_link(root.join("etc/conf.d/a"), root.join("etc/conf.d/b")).unwrap();
            std::fs::set_permissions(root.join("etc/conf.d/a"), std::fs::Permissions::from_mode(0o4711)).unwrap();
        },
        &|| {
            std::fs::remove_dir_all(root.join("srv/www/static")).unwrap();
            std::fs::create_dir(root.join("srv/www/static")).unwrap();
            std::fs::write(root.join("srv/www/static/only"), "1").unwrap();
            std::os::unix::fs::symlink("conf.d/a", root.join("etc/link")).unwrap();
        },
        &|| {
            std::fs::remove_file(root.join("etc/conf.d/b")).unwrap();
            std::fs::remove_file(root.join("etc/link")).unwrap();
            std::fs::create_dir(root.join("etc/link")).unwrap();
            std::os::unix::fs::lchown(root.join("etc/link"), Some(9), Some(10)).unwrap();
        },
    ];
    for change in changes {
        if root.exists() {
            std::fs::remove_dir_all(dir.path().join("work")).unwrap();
        }
        run("umoci", &["unpack", "--image", &image, &at("work")]);
        change();
        run("umoci", &["repack", "--image", &image, &at("work")]);
    }
    let theirs = by_umoci(&dir.path().join("layout"), "x", &dir.path().join("bundle"));
    let test = TestStore::new();
    let loaded = test.store.load_path(&dir.path().join("layout"), None, &no_progress()).unwrap();
    let unpacked = test.store.unpack_blocking(&loaded[0].digest, &no_progress()).unwrap();
    assert_eq!(unpacked.lowers.len(), 3);
    let ours = mounted(&unpacked);
    assert!(ours.contains_key("srv/www/static/only") && !ours.contains_key("srv/www/static/3"));
    check_same(&ours, &theirs);
}

#[test]
fn as_many_layers_as_docker_allows_can_be_mounted() {
    let layers: Vec<_> = (0..127)
        .map(|n| Layer::new().file(&format!("f{n}"), b"x").file("last", n.to_string().as_bytes()).done())
        .collect();
    let test = TestStore::new();
    let unpacked = unpack(&test.store, &Image::new(layers).packed(Packing::Plain)).unwrap();
    let seen = mounted(&unpacked);
    assert_eq!(seen.len(), 128);
    assert_eq!(seen["last"].content, format!("{} 3", godwit_oci::Digest::of(b"126")));
}
