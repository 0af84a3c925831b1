//! What one layer's members become, and what layers do to the ones below them.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use godwit_oci::{ContentStore, Error, LayerFault, Limits, no_progress, resolve_user};

use crate::support::*;

#[test]
fn attributes_arrive_as_the_layer_has_them() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let long = format!("deep/{}/{}", "x".repeat(120), "y".repeat(120));
    let layer = Layer::new()
        .folder("bin", 0o751)
        .file_with("bin/su", b"su", Meta { mode: 0o6755, uid: 3, gid: 4, mtime: 1_234_567_890 })
        .pax(&[("SCHILY.xattr.security.capability", &capability), ("mtime", b"1500000000.25"), ("uid", b"3000000000")])
        .file("bin/ping", b"ping")
        .pax(&[("path", long.as_bytes())])
        .file("cut", b"long")
        .raw(b'L', b"././@LongLink", b"", Meta::default(), format!("gnu/{}\0", "z".repeat(200)).as_bytes())
        .file("cut", b"gnu")
        .symlink("abs", "/etc/../../passwd")
        .raw(b'6', b"pipe", b"", Meta { mode: 0o622, ..Meta::default() }, b"")
        .hard_link("su2", "/bin/su")
        .folder("bin", 0o711)
        .folder("./", 0o700);
    let test = TestStore::new();
    let unpacked = unpack(&test.store, &Image::new([layer.done()])).unwrap();
    let root = &unpacked.lower_paths()[0];
    let seen = tree(root);
    assert_eq!((seen["bin/su"].mode, seen["bin/su"].owner, seen["bin/su"].mtime), (0o6755, (3, 4), 1_234_567_890));
    assert_eq!(seen["bin/ping"].xattrs["security.capability"], capability);
    assert_eq!((seen["bin/ping"].owner.0, seen["bin/ping"].mtime), (3_000_000_000, 1_500_000_000));
    assert_eq!(seen["bin"].mode, 0o711);
    // Adding to a folder does not show in its time.
    assert_eq!(seen["bin"].mtime, 1_600_000_000);
    assert!(seen.contains_key(&long) && seen.contains_key(&format!("gnu/{}", "z".repeat(200))));
    assert_eq!((seen["deep"].mode, seen["deep"].owner, seen["deep"].mtime), (0o755, (0, 0), 0));
    assert_eq!(seen["abs"].content, "/etc/../../passwd");
    assert_eq!((seen["pipe"].kind, seen["pipe"].mode), ('p', 0o622));
    let inode = |name: &str| root.join(name).metadata().unwrap().ino();
    assert_eq!(inode("su2"), inode("bin/su"));
    assert_eq!(root.metadata().unwrap().mode() & 0o7777, 0o700);
}

#[test]
fn sparse_files_of_gnu_tar_keep_their_holes() {
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("sparse")).unwrap();
    let put = |bytes: &[u8], at| std::os::unix::fs::FileExt::write_all_at(&file, bytes, at).unwrap();
    // Enough segments for the old format's extension blocks.
    for n in 0..40u64 {
        put(&[b'a' + n as u8 % 26; 4096], n * (1 << 20));
    }
    file.set_len(64 << 20).unwrap();
    let wanted = std::fs::read(dir.path().join("sparse")).unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let archive = dir.path().join("layer.tar");
        let mut args = vec!["-cSf", text(&archive), "-C", text(dir.path())];
        args.extend(format);
        args.push("sparse");
        run("tar", &args);
        let test = TestStore::new();
        let unpacked = unpack(&test.store, &Image::new([std::fs::read(&archive).unwrap()])).unwrap();
        let path =
            find(&unpacked, "sparse").unwrap_or_else(|| panic!("{format:?}: {:?}", tree(&unpacked.lower_paths()[0])));
        assert!(std::fs::read(&path).unwrap() == wanted, "{format:?}");
        let used = path.metadata().unwrap().blocks() * 512;
        assert!(used < 8 << 20, "{format:?}: {used} bytes on disk");
    }
}

#[test]
fn the_layers_below_are_taken_into_account() {
    let below = Layer::new()
        .folder("tmp", 0o1777)
        .folder("run", 0o755)
        .folder("var", 0o750)
        .symlink("var/run", "/run")
        .symlink("lib", "usr/lib")
        .folder("usr/lib", 0o711)
        .file_with("usr/lib/tool", b"tool", Meta { mode: 0o4711, uid: 5, gid: 6, mtime: 1_111_111_111 })
        .file("gone", b"")
        .folder("empty", 0o755)
        .file("empty/a", b"")
        .folder("plain", 0o755)
        .file("plain/a", b"");
    let above = Layer::new()
        // No entry for the parents of any of these.
        .file("tmp/x", b"1")
        .file("var/run/pid", b"2")
        .file("lib/new", b"3")
        .hard_link("tool2", "lib/tool")
        .file(".wh.gone", b"")
        .file(".wh.never-there", b"")
        .file("nowhere/.wh.never-there", b"")
        .file("empty/.wh.a", b"")
        .file("empty/.wh..wh..opq", b"")
        .file("empty/b", b"")
        .file(".wh.plain", b"")
        .folder("plain", 0o755);
    let test = TestStore::new();
    let unpacked = unpack(&test.store, &Image::new([below.done(), above.done()])).unwrap();
    let top = &unpacked.lower_paths()[0];
    let seen = tree(top);
    // A folder keeps its mode although this layer has no word of it.
    assert_eq!(seen["tmp"].mode, 0o1777);
    assert_eq!(seen["usr/lib"].mode, 0o711);
    // A link of a lower layer is followed inside of the image, and stays a link.
    assert_eq!(seen["run/pid"].kind, 'f');
    assert_eq!(seen["usr/lib/new"].kind, 'f');
    assert!(!seen.contains_key("var/run") && !seen.contains_key("lib"));
    // A hard link into a lower layer brings the file up with all that it has.
    assert_eq!(
        (seen["usr/lib/tool"].mode, seen["usr/lib/tool"].owner, seen["usr/lib/tool"].mtime),
        (0o4711, (5, 6), 1_111_111_111)
    );
    assert_eq!(top.join("tool2").metadata().unwrap().ino(), top.join("usr/lib/tool").metadata().unwrap().ino());
    // A whiteout where there is something to hide, and only there.
    assert_eq!((seen["gone"].kind, seen["gone"].content.as_str()), ('o', "0"));
    assert!(!seen.contains_key("never-there") && !seen.contains_key("nowhere") && !seen.contains_key("empty/a"));
    for opaque in ["empty", "plain"] {
        assert_eq!(xattr(&top.join(opaque), "trusted.overlay.opaque").as_deref(), Some(&b"y"[..]), "{opaque}");
    }
}

#[test]
fn an_opaque_root_leaves_the_layers_below_it_out() {
    let image = Image::new([
        Layer::new().file("old", b"").symlink("l", "/old-target").done(),
        Layer::new().file(".wh..wh..opq", b"").file("new", b"").done(),
        Layer::new().file("l/x", b"").done(),
    ]);
    let test = TestStore::new();
    let unpacked = unpack(&test.store, &image).unwrap();
    assert_eq!(unpacked.lowers.len(), 2);
    assert!(find(&unpacked, "old").is_none() && find(&unpacked, "new").is_some());
    // The link is hidden, so it is not followed.
    assert!(find(&unpacked, "l/x").is_some());
}

#[test]
fn layers_are_shared_by_images_with_the_same_layers_below() {
    let (a, b, c) =
        (Layer::new().file("a", b"").done(), Layer::new().file("b", b"").done(), Layer::new().file("c", b"").done());
    let test = TestStore::new();
    let one = unpack(&test.store, &Image::new([a.clone(), b.clone()])).unwrap();
    let two = unpack(&test.store, &Image::new([a, b.clone(), c]).packed(Packing::Zstd)).unwrap();
    let three = unpack(&test.store, &Image::new([b])).unwrap();
    assert_eq!(two.lowers[1..], one.lowers[..]);
    assert!(!one.lowers.contains(&three.lowers[0]));
    assert_eq!(std::fs::read_dir(&two.base).unwrap().count(), 4 + 1);
    // Short enough for 127 of them on the one page of mount(2).
    assert!(one.lowers.iter().all(|lower| lower.as_os_str().len() * 128 < 4096));
}

#[test]
fn an_image_without_layers_is_an_empty_folder() {
    let test = TestStore::new();
    let unpacked = unpack(&test.store, &Image::new([])).unwrap();
    assert_eq!(tree(&unpacked.lower_paths()[0]).len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_unpack_each_layer_once() {
    let test = TestStore::new();
    let layers: Vec<_> =
        (0..5).map(|n| (0..200).fold(Layer::new(), |l, m| l.file(&format!("{n}-{m}"), b"x")).done()).collect();
    let digest = load(&test.store, &Image::new(layers)).unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let store = test.store.clone();
            tokio::spawn(async move { store.unpack(&digest, no_progress()).await.unwrap().lowers })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.push(task.await.unwrap());
    }
    assert!(all.iter().all(|lowers| *lowers == all[0]));
    assert_eq!(test.leftovers().iter().filter(|path| path.starts_with("layers/")).count(), 5);
    assert_eq!(test.leftovers().iter().filter(|path| path.starts_with("tmp/")).count(), 0);
}

#[test]
fn a_blob_that_rotted_on_disk_is_found_out() {
    let test = TestStore::new();
    let image = Image::new([Layer::new().file("a", &[b'x'; 5000]).done()]).packed(Packing::Plain);
    let digest = load(&test.store, &image).unwrap();
    let blob = test.store.manifest(&digest).unwrap().layers[0].digest;
    let path = test.dir.path().join("store/blobs/sha256").join(blob.hex());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[600] = b'y';
    std::fs::write(&path, bytes).unwrap();
    let error = test.store.unpack_blocking(&digest, &no_progress()).unwrap_err();
    assert!(
        matches!(&error, Error::Layer { source, .. } if matches!(**source, LayerFault::WrongDiffId { .. })),
        "{error}"
    );
    assert!(test.leftovers().iter().all(|path| path.starts_with("blobs/") || path.starts_with("names/")));
}

#[test]
fn layers_of_an_earlier_boot_are_made_again() {
    let TestStore { store, dir } = TestStore::new();
    let unpacked = unpack(&store, &Image::new([Layer::new().file("a", b"x").done()])).unwrap();
    let note = unpacked.base.join(&unpacked.lowers[0]).with_file_name("layer.json");
    let file = find(&unpacked, "a").unwrap();
    drop((unpacked, store));
    let path = dir.path().join("store");
    let store = Arc::new(ContentStore::open(&path, Limits::default()).unwrap());
    assert!(file.exists(), "same boot, same layer");
    drop(store);
    let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(&note).unwrap()).unwrap();
    value["boot_id"] = "another boot".into();
    std::fs::write(&note, value.to_string()).unwrap();
    // As a power failure leaves it.
    std::fs::write(&file, "").unwrap();
    let store = ContentStore::open(&path, Limits::default()).unwrap();
    assert!(!file.exists());
    let digest = store.resolve("t").unwrap().unwrap().digest;
    store.unpack_blocking(&digest, &no_progress()).unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), b"x");
}

#[test]
fn the_user_is_looked_up_inside_of_the_image() {
    let below = Layer::new()
        .file("etc/passwd", b"old:x:1:1::/:/\n")
        .file("nix/group", b"wheel:x:10:web\n")
        .symlink("etc/group", "/../../nix/group");
    let above = Layer::new().file("etc/passwd", b"web:x:33:34::/srv:/bin/sh\n");
    let test = TestStore::new();
    let mut image = Image::new([below.done(), above.done()]);
    image.config = serde_json::json!({ "User": "web" });
    let unpacked = unpack(&test.store, &image).unwrap();
    let user = unpacked.user().unwrap();
    assert_eq!((user.uid, user.gid, user.additional_gids, user.home.as_str()), (33, 34, vec![10], "/srv"));
    assert!(matches!(resolve_user(&unpacked.lower_paths(), "old"), Err(Error::NoUser { .. })));

    // Neither the host's files, nor a pipe that nobody writes to.
    let passwd = Layer::new().symlink("etc/passwd", "/proc/self/root/etc/passwd").raw(
        b'6',
        b"etc/group",
        b"",
        Meta::default(),
        b"",
    );
    let unpacked = unpack(&test.store, &Image::new([passwd.done()])).unwrap();
    assert!(Path::new("/etc/passwd").exists());
    assert!(matches!(resolve_user(&unpacked.lower_paths(), "root"), Err(Error::NoUser { .. })));
    assert_eq!(resolve_user(&unpacked.lower_paths(), "12:13").unwrap().gid, 13);
}
