//! Layers that people reported of other tools: each comes out as umoci unpacks it, under the kernel's own overlayfs.
//! And the rehearsal of a load against the unpacker itself, on layers drawn at random.

use std::sync::Arc;

use godwit_oci::{ContentStore, Limits};
use proptest::prelude::*;

use crate::overlay::{by_umoci, check_same, mounted};
use crate::support::*;

fn base() -> Layer {
    Layer::new().folder("bin", 0o755).file("bin/busybox", b"#!").symlink("bin/env", "busybox").folder("tmp", 0o1777)
}

fn lower() -> Layer {
    Layer::new().folder("d", 0o755).file("d/a", b"").folder("d/sub", 0o755).file("d/sub/x", b"")
}

/// The report, and the layers above [`base`].
fn reported() -> Vec<(&'static str, Vec<Layer>)> {
    let new = Layer::new;
    vec![
        (
            "a file below a link that the same layer made (boxlite 187)",
            vec![
                new()
                    .folder("app", 0o755)
                    .folder("app/store", 0o755)
                    .folder("app/store/pkg", 0o755)
                    .file("app/store/pkg/index.js", b"1")
                    .folder("app/nm", 0o755)
                    .symlink("app/nm/pkg", "../store/pkg")
                    .file("app/nm/pkg/extra.js", b"2"),
            ],
        ),
        (
            "a file below an absolute link of the same layer",
            vec![
                new().folder("srv", 0o755).folder("srv/data", 0o750).symlink("data", "/srv/data").file("data/x", b"1"),
            ],
        ),
        (
            "a whiteout that is a hard link (smolvm 401)",
            vec![
                new().file("tmp/keep.txt", b"k").file("tmp/gone.txt", b"g"),
                new().hard_link("tmp/.wh.gone.txt", "tmp/keep.txt"),
            ],
        ),
        (
            "an opaque folder in place of a lower link (stereoscope 694)",
            vec![
                new().folder("target", 0o755).file("target/keep.txt", b"k").symlink("link", "/target"),
                new().folder("link", 0o755).file("link/.wh..wh..opq", b"").file("link/new.txt", b"n"),
            ],
        ),
        (
            "a hard link whose parent no member describes (apple/container 1797)",
            vec![new().file("bin2/app", b"x").hard_link("bin2/app.runfiles/a/b/app", "bin2/app")],
        ),
        (
            "a hard link to a lower layer's file (image-spec 1204)",
            vec![new().folder("lo", 0o755).file("lo/f", b"low"), new().folder("up", 0o755).hard_link("up/f", "lo/f")],
        ),
        (
            "a folder removed and made again",
            vec![lower(), new().file(".wh.d", b"").folder("d", 0o755).file("d/c", b"")],
        ),
        (
            "a folder made again and then removed",
            vec![lower(), new().folder("d", 0o755).file("d/c", b"").file(".wh.d", b"")],
        ),
        (
            "a file over a folder, and a folder over that",
            vec![
                lower(),
                new().folder("d", 0o755).file("d/sub", b"now a file"),
                new().folder("d/sub", 0o755).file("d/sub/y", b""),
            ],
        ),
        ("a link over a folder", vec![lower(), new().symlink("d", "tmp"), new().file("d/new", b"")]),
        (
            "a folder that was removed",
            vec![lower(), new().file(".wh.d", b""), new().folder("d/sub", 0o755).file("d/sub/z", b"")],
        ),
        ("a file over a link (image-spec 171)", vec![new().file("bin/env", b"#!/bin/sh")]),
        (
            "duplicates, of which the last one counts (umoci 436)",
            vec![
                new()
                    .file("dup", b"1")
                    .file("dup", b"22")
                    .folder("dupd", 0o700)
                    .file("dupd/x", b"")
                    .folder("dupd", 0o755)
                    .symlink("dupl", "a")
                    .file("dupl", b"f"),
            ],
        ),
        (
            "odd names",
            vec![
                new().file("a b\nc", b"z").file(" leading", b"z").file("..hidden", b"z").file("tmp/../tmp/dots", b"z"),
            ],
        ),
    ]
}

#[test]
fn reported_layers_come_out_as_umoci_unpacks_them() {
    for (name, layers) in reported() {
        println!("{name}");
        let dir = tempfile::tempdir().unwrap();
        let image = Image::new(std::iter::once(base()).chain(layers).map(Layer::done));
        image.write_layout(&dir.path().join("layout"));
        let theirs = by_umoci(&dir.path().join("layout"), "v1", &dir.path().join("bundle"));
        let test = TestStore::new();
        let unpacked = unpack(&test.store, &image).unwrap_or_else(|error| panic!("{name}: {}", chain(&error)));
        check_same(&mounted(&unpacked), &theirs);
    }
}

#[test]
fn odd_headers_are_no_reason_to_refuse_an_image() {
    let test = TestStore::new();
    let layer = Layer::new()
        // guest-components 1737: a value that is empty, of an attribute that is left out and of one that is not.
        .pax(&[("SCHILY.xattr.user.overlay.origin", b""), ("comment", b"")])
        .file("f", b"x")
        .pax(&[("SCHILY.xattr.user.test", b"")])
        .file("g", b"x")
        // guest-components 1586: times before 1970 and past the end of every file system.
        .pax(&[("mtime", b"-86400.5")])
        .file("neg", b"")
        .pax(&[("mtime", b"16725225600")])
        .file("y2500", b"")
        .pax(&[("mtime", b"9000000000000000000")])
        .file("huge", b"")
        .raw(b'0', b"caf\xe9.txt", b"", Meta::default(), b"z")
        // umoci 436: no end marker, then a layer of no bytes.
        .cut();
    let unpacked = unpack(&test.store, &Image::new([layer, Vec::new()])).unwrap();
    let layer = unpacked.lower_paths().pop().unwrap();
    let seen = tree(&layer);
    for name in ["f", "g", "neg", "y2500", "huge", "caf\u{fffd}.txt"] {
        assert!(seen.contains_key(name), "{name}: {:?}", seen.keys());
    }
    assert_eq!(seen["neg"].mtime, -86_401);
    assert_eq!(seen["g"].xattrs["user.test"], b"");
    assert!(seen["f"].xattrs.is_empty());
}

/// One member of a layer, of few names, so that they meet.
fn members() -> impl Strategy<Value = (u8, String, String)> {
    let part = |parts: &[&'static str]| proptest::sample::select(parts.to_vec());
    let path = || proptest::collection::vec(part(&["a", "b", "c"]), 1..4).prop_map(|parts| parts.join("/"));
    let target = proptest::collection::vec(part(&["a", "b", "c", ".."]), 1..4).prop_map(|parts| parts.join("/"));
    let link = (any::<bool>(), target).prop_map(|(root, path)| if root { format!("/{path}") } else { path });
    let name = (path(), 0..8u8).prop_map(|(path, how)| match (how, path.rsplit_once('/')) {
        (0, Some((folder, _))) => format!("{folder}/.wh..wh..opq"),
        (1, Some((folder, name))) => format!("{folder}/.wh.{name}"),
        (1, None) => format!(".wh.{path}"),
        _ => path,
    });
    (proptest::sample::select(b"00012225555536".to_vec()), name, link)
}

fn built(members: &[(u8, String, String)]) -> Vec<u8> {
    let layer = members.iter().fold(Layer::new(), |layer, (kind, name, link)| match kind {
        b'0' => layer.file(name, b"data"),
        b'1' => layer.hard_link(name, link.trim_start_matches('/')),
        b'2' => layer.symlink(name, link),
        b'5' => layer.folder(name, 0o755),
        other => layer.raw(*other, name.as_bytes(), b"", Meta::default(), b""),
    });
    layer.done()
}

fn small_store() -> (Arc<ContentStore>, TestStore) {
    let test = TestStore::with(Limits { max_layer_files: 40, max_layer_bytes: 30_000, ..Limits::default() });
    (test.store.clone(), test)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// What a load lets in can be unpacked, and what it refuses the unpacker refuses in the same words.
    #[test]
    fn a_load_judges_as_the_unpacker_does(
        layers in proptest::collection::vec(proptest::collection::vec(members(), 0..9), 1..4),
    ) {
        let image = Image::new(layers.iter().map(|members| built(members)));
        let (store, test) = small_store();
        let loaded = load(&store, &image).map(drop).map_err(|error| chain(&error));
        let unpacked = unpack_unseen(&test, &image).map(drop).map_err(|error| chain(&error));
        prop_assert_eq!(loaded, unpacked);
    }
}
