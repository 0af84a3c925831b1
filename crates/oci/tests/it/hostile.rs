//! Layers that mean harm: each is refused with an error that names layer and member, and
//! nothing outside of its temp folder has changed.

use godwit_oci::{Blame, Error, Limits};

use crate::support::*;

const OUTSIDE: &str = "OUTSIDE";

/// Bounds small enough to be passed by a test.
fn limits() -> Limits {
    Limits {
        max_layer_bytes: 4 << 20,
        max_layer_files: 50,
        max_ratio: 20,
        ratio_free_bytes: 64 << 10,
        ..Limits::default()
    }
}

/// A layer whose member's header is changed after it was built.
fn patched(layer: Layer, patch: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = layer.done();
    patch(&mut bytes);
    bytes
}

fn resum(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header[..512].iter().map(|&b| u32::from(b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

type Case = (&'static str, Vec<Vec<u8>>, &'static str);

/// (name, layers, what the error must say). `OUTSIDE` in a link is the folder to attack.
fn cases(outside: &str) -> Vec<Case> {
    let meta = Meta::default;
    let out = |layer: Layer| layer.symlink("out", outside);
    let one = |layer: Layer| vec![layer.done()];
    vec![
        ("dotdot", one(Layer::new().file("../evil", b"x")), "`../evil`: the name leaves the root"),
        (
            "dotdot after a folder",
            one(Layer::new().folder("a", 0o755).file("a/../../evil", b"x")),
            "the name leaves the root",
        ),
        ("dotdot folder", one(Layer::new().folder("..", 0o777)), "the name leaves the root"),
        (
            "a hard link to the outside",
            one(Layer::new().hard_link("evil", "../../../keep")),
            "the hard link's target `../../../keep` leaves the root",
        ),
        (
            "a hard link through a link",
            one(out(Layer::new()).hard_link("evil", "out/keep")),
            "`out/keep` is not a file of this image",
        ),
        (
            "a hard link before its target",
            one(Layer::new().folder("a", 0o755).hard_link("a/link", "a/target").file("a/target", b"later")),
            "member `a/link`: the hard link's target `a/target` is not a file of this image",
        ),
        (
            "a hard link in place of the folder of its target",
            one(Layer::new().folder("a", 0o755).file("a/x", b"x").hard_link("a", "a/x")),
            "`a/x` is not a file of this image",
        ),
        (
            "a link to itself as parent",
            one(Layer::new().symlink("a", "a").file("a/x", b"x")),
            "member `a/x`: too many symbolic links",
        ),
        (
            "a link that leads too deep",
            one(Layer::new()
                .symlink("a", &"d/".repeat(49))
                .symlink("b", &"a/../d/a/".repeat(10))
                .file("b/b/b/b/b/b/b/b/b/b/b/x", b"x")),
            "member `b/b/b/b/b/b/b/b/b/b/b/x`: ",
        ),
        (
            "a hard link to nothing",
            one(Layer::new().hard_link("evil", "nothing")),
            "`nothing` is not a file of this image",
        ),
        ("a hard link to a folder", one(Layer::new().folder("a", 0o755).hard_link("evil", "a")), "`a` is not a file"),
        (
            "a hard link to itself",
            one(Layer::new().file("a", b"x").hard_link("a", "./a")),
            "is not a file of this image",
        ),
        ("a whiteout of the parent", one(Layer::new().file("a/.wh...", b"")), "a whiteout of no name"),
        ("a whiteout of nothing", one(Layer::new().file(".wh.", b"")), "a whiteout of no name"),
        ("below a whiteout's name", one(Layer::new().file(".wh.a/b", b"")), "named like a whiteout"),
        ("a file as parent", one(Layer::new().file("a", b"x").file("a/b", b"x")), "its parent `a` is not a folder"),
        (
            "a lower file as parent",
            vec![Layer::new().file("a", b"x").done(), Layer::new().file("a/b", b"x").done()],
            "layer 2 of 2",
        ),
        (
            "links in a circle below",
            vec![Layer::new().symlink("a", "b").symlink("b", "a").done(), Layer::new().file("a/x", b"x").done()],
            "too many symbolic links",
        ),
        ("the root as a file", one(Layer::new().file(".", b"x")), "the root can only be a folder"),
        ("a NUL in the name", one(Layer::new().pax(&[("path", b"a\0b")]).file("a", b"x")), "it holds a NUL"),
        ("a NUL in the target", one(Layer::new().pax(&[("linkpath", b"a\0b")]).symlink("a", "x")), "it holds a NUL"),
        ("a part too long", one(Layer::new().pax(&[("path", &[b'a'; 300])]).file("a", b"x")), "longer than 255 bytes"),
        ("too deep", one(Layer::new().pax(&[("path", &b"a/".repeat(300))]).file("a", b"x")), "deeper than 200 folders"),
        ("an empty name", one(Layer::new().file("", b"x")), "it is empty"),
        ("an unknown type", one(Layer::new().raw(b'V', b"a", b"", meta(), b"")), "type `V` are not supported"),
        (
            "an impossible owner",
            one(Layer::new()
                .file_with("a", b"x", Meta { uid: 0o7777777, ..meta() })
                .pax(&[("uid", b"4294967295")])
                .file("b", b"x")),
            "member `b`: uid is out of range",
        ),
        (
            "a huge header",
            vec![patched(Layer::new().pax(&[("path", b"a")]).file("a", b"x"), |b| {
                b[124..136].copy_from_slice(b"77777777777\0");
                resum(b);
            })],
            "MAX_HEADER_BYTES",
        ),
        (
            "headers without end",
            one((0..40).fold(Layer::new(), |l, _| l.pax(&[("path", b"a")]))),
            "too many extension headers",
        ),
        ("a bad checksum", vec![patched(Layer::new().file("a", b"x"), |b| b[0] = b'b')], "checksum is wrong"),
        (
            "data that are not there",
            vec![Layer::new().file("a", b"x").raw(b'0', b"b", b"", meta(), &[0; 2048]).cut()[..2048].to_vec()],
            "truncated",
        ),
        (
            "a size past all bounds",
            vec![patched(Layer::new().file("a", b"x"), |b| {
                b[124..136].copy_from_slice(b"77777777777\0");
                resum(b);
            })],
            "max_layer_bytes",
        ),
        (
            "a sparse file of eight exabytes",
            one(Layer::new()
                .pax(&[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.name", b"s"),
                    ("GNU.sparse.realsize", b"9000000000000000000"),
                ])
                .file("a", &[&b"0\n"[..], &[0; 510]].concat())),
            "max_layer_bytes",
        ),
        (
            "a sparse map past its file",
            one(Layer::new()
                .pax(&[("GNU.sparse.map", b"0,1,9,5"), ("GNU.sparse.size", b"10"), ("GNU.sparse.name", b"s")])
                .file("a", b"123456")),
            "a bad map of a sparse file",
        ),
        (
            "too many files",
            one((0..60).fold(Layer::new(), |l, n| l.file(&format!("f{n}"), b""))),
            "max_layer_files = 50",
        ),
        (
            "too many implied folders",
            one(Layer::new().pax(&[("path", &b"a/".repeat(100))]).file("a", b"x")),
            "max_layer_files = 50",
        ),
        ("too many bytes", one(Layer::new().file("a", &noise(5 << 20))), "max_layer_bytes = 4194304"),
        ("a bomb", one(Layer::new().file("a", &vec![0; 3 << 20])), "max_ratio = 20"),
    ]
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn hostile_layers_are_refused_and_touch_nothing() {
    let outside = tempfile::Builder::new().prefix(OUTSIDE).tempdir().unwrap();
    std::fs::write(outside.path().join("keep"), "kept").unwrap();
    let before = tree(outside.path());
    let mut wrong = Vec::new();
    for (name, layers, wanted) in cases(text(outside.path())) {
        let test = TestStore::with(limits());
        let image = Image::new(layers);
        let told = |outcome: Result<(), Error>| match outcome {
            Ok(()) => "no error".to_owned(),
            Err(error) => {
                assert_eq!(error.blame(), Blame::Image, "{name}");
                assert!(!error.may_retry(), "{name}");
                chain(&error)
            }
        };
        // The load says it first, in the words of the unpacker, and keeps nothing.
        let loaded = told(load(&test.store, &image).map(drop));
        assert_eq!(test.leftovers(), Vec::<String>::new(), "{name}");
        let said = told(unpack_unseen(&test, &image).map(drop));
        if loaded != said {
            wrong.push(format!("{name}: the load said `{loaded}`, the unpacker `{said}`"));
        }
        if !said.contains(wanted) || !said.contains("layer ") || !said.contains("sha256:") {
            wrong.push(format!("{name}: `{said}` instead of `{wanted}`"));
        }
        // Lower layers that were good may stay; nothing half-done does.
        let left: Vec<String> = test.leftovers().into_iter().filter(|path| path.starts_with("tmp/")).collect();
        assert!(left.is_empty(), "{name} left {left:?}");
        let layers = test.leftovers().into_iter().filter(|path| path.starts_with("layers/")).count();
        assert!(layers <= 1, "{name}");
        assert_eq!(tree(outside.path()), before, "{name}");
        // Not above the layer's root either.
        let evil = test.dir.path().join("store");
        for at in ["tmp/evil", "layers/evil", "evil"] {
            assert!(!evil.join(at).exists(), "{name}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn links_of_the_same_layer_are_followed_inside_of_the_image() {
    let outside = tempfile::Builder::new().prefix(OUTSIDE).tempdir().unwrap();
    std::fs::write(outside.path().join("keep"), "kept").unwrap();
    let before = tree(outside.path());
    // Where the folder to attack would be if the image's root were the world.
    let inside = text(outside.path()).trim_start_matches('/').to_owned();
    let there = |name: &str| format!("{inside}/{name}");
    let out = || Layer::new().symlink("out", text(outside.path()));
    let up = |target: &str| Layer::new().folder("a", 0o755).symlink("a/up", target);
    let table: Vec<(&str, Layer, String)> = vec![
        ("a file", out().file("out/new", b"x"), there("new")),
        ("a file of a name that is there", out().file("out/keep", b"x"), there("keep")),
        ("a folder", out().folder("out/dir", 0o777), there("dir")),
        ("a link", out().symlink("out/link", "x"), there("link")),
        ("a hard link", out().file("a", b"x").hard_link("out/new", "a"), there("new")),
        ("a fifo", out().raw(b'6', b"out/pipe", b"", Meta::default(), b""), there("pipe")),
        ("a whiteout", out().file("out/.wh.keep", b"").file("out/x", b""), there("x")),
        ("an opaque marker", out().file("out/.wh..wh..opq", b"").file("out/x", b""), there("x")),
        ("implied folders", out().file("out/b/c/d", b"x"), there("b/c/d")),
        ("more steps up than there are", up("../../../../../..").file("a/up/new", b"x"), "new".into()),
        ("the root", up("/").file("a/up/new", b"x"), "new".into()),
        ("a magic link's path", up("/proc/self/root").file("a/up/new", b"x"), "proc/self/root/new".into()),
        (
            "a link upon a link",
            up("..").symlink("b", "a/up").symlink("c", text(outside.path())).file("b/c/new", b"x"),
            there("new"),
        ),
        ("a link that is exchanged", out().file("out/1", b"").symlink("out", "/b").file("out/2", b""), "b/2".into()),
        (
            "a package store",
            Layer::new().folder("store/pkg", 0o755).symlink("nm", "./store/../store/").file("nm/pkg/extra.js", b"2"),
            "store/pkg/extra.js".into(),
        ),
    ];
    for (name, layer, wanted) in table {
        let test = TestStore::new();
        let unpacked =
            unpack(&test.store, &Image::new([layer.done()])).unwrap_or_else(|e| panic!("{name}: {}", chain(&e)));
        let seen = tree(&unpacked.lower_paths()[0]);
        assert!(seen.contains_key(&wanted), "{name}: no {wanted} in {:?}", seen.keys());
        assert_eq!(tree(outside.path()), before, "{name}");
    }
}

#[test]
fn a_link_to_the_outside_is_replaced_not_followed() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("file");
    std::fs::write(&target, "kept").unwrap();
    let test = TestStore::new();
    let layer = Layer::new()
        .symlink("a", text(&target))
        .file("a", b"mine")
        .symlink("d", text(outside.path()))
        .folder("d", 0o700)
        .file("d/x", b"1");
    let unpacked = unpack(&test.store, &Image::new([layer.done()])).unwrap();
    assert_eq!(std::fs::read(find(&unpacked, "a").unwrap()).unwrap(), b"mine");
    assert!(find(&unpacked, "d/x").is_some());
    assert_eq!(std::fs::read(&target).unwrap(), b"kept");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn a_lower_link_to_the_outside_stays_inside_of_the_image() {
    let outside = tempfile::tempdir().unwrap();
    let test = TestStore::new();
    let (below, above) = (Layer::new().symlink("out", text(outside.path())), Layer::new().file("out/x", b"1"));
    let unpacked = unpack(&test.store, &Image::new([below.done(), above.done()])).unwrap();
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    // It is where a process inside of the image would have put it.
    let inside = outside.path().strip_prefix("/").unwrap().join("x");
    assert!(find(&unpacked, text(&inside)).is_some());
}

#[test]
fn attributes_of_overlayfs_and_device_nodes_are_left_out() {
    let test = TestStore::new();
    let layer = Layer::new()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.test", b"kept"),
        ])
        .folder("d", 0o755)
        .raw(b'3', b"null", b"", Meta::default(), b"")
        .raw(b'4', b"sda", b"", Meta::default(), b"");
    let unpacked = unpack(&test.store, &Image::new([layer.done()])).unwrap();
    let seen = tree(&unpacked.lower_paths()[0]);
    assert_eq!(seen.keys().collect::<Vec<_>>(), ["d"]);
    assert_eq!(seen["d"].xattrs.keys().collect::<Vec<_>>(), ["user.test"]);
}

#[test]
fn bytes_that_differ_from_their_diff_id_are_refused_and_leave_nothing() {
    let test = TestStore::new();
    let good = Image::new([Layer::new().file("a", b"x").done()]);
    let mut files = good.files();
    // The configuration's DiffID is another layer's; every digest on the way is right.
    let lie = Image { config: serde_json::json!({}), ..Image::new([Layer::new().file("b", b"y").done()]) };
    let swapped = crate::support::swap_config(&mut files, &lie);
    let error = test.store.load_stream(&tar_of(&swapped)[..], Some("t"), &godwit_oci::no_progress()).unwrap_err();
    assert!(matches!(error, Error::Layer { number: 1, of: 1, .. }), "{error}");
    assert!(chain(&error).contains("DiffID should be"), "{}", chain(&error));
    assert_eq!(test.leftovers(), Vec::<String>::new());
}
