//! Loading images from folders and archives, ours and those of other tools.

use std::collections::BTreeMap;
use std::path::Path;

use godwit_oci::{ContentStore, Error, ImageId, LayerFault, Limits, no_progress};
use serde_json::json;

use crate::support::*;

fn sample() -> Image {
    Image::new([
        Layer::new().folder("etc", 0o755).file("etc/name", b"sample").done(),
        Layer::new().file("app", b"#!/bin/true").done(),
    ])
}

fn names(images: &[ImageId]) -> Vec<&str> {
    images.iter().map(|image| image.name.as_str()).collect()
}

fn load_path(test: &TestStore, path: &Path, name: Option<&str>) -> Result<Vec<ImageId>, Error> {
    test.store.load_path(path, name, &no_progress())
}

#[test]
fn every_form_and_packing_gives_the_same_files() {
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let image = sample().packed(packing);
        let test = TestStore::new();
        let dir = tempfile::tempdir().unwrap();
        image.write_layout(&dir.path().join("my-app"));
        let forms = [
            ("my-app.tar", image.archive()),
            ("my-app.tar.gz", gzip(&image.archive())),
            ("my-app.tar.zst", zstd::encode_all(&image.archive()[..], 1).unwrap()),
        ];
        let loaded = load_path(&test, &dir.path().join("my-app"), None).unwrap();
        let unpacked = test.store.unpack_blocking(&loaded[0].digest, &no_progress()).unwrap();
        assert_eq!(std::fs::read(find(&unpacked, "etc/name").unwrap()).unwrap(), b"sample", "{packing:?}");
        for (file, bytes) in forms {
            std::fs::write(dir.path().join(file), bytes).unwrap();
            let again = load_path(&test, &dir.path().join(file), None).unwrap();
            assert_eq!(again, loaded, "{file} {packing:?}");
        }
        assert_eq!(names(&loaded), ["my-app"]);
        let resolved = test.store.resolve("my-app:v1").unwrap().unwrap();
        assert_eq!(resolved.digest, loaded[0].digest);
    }
}

#[test]
fn a_docker_save_archive_becomes_an_oci_image() {
    let test = TestStore::new();
    let archive = sample().docker_archive(&["docker.io/library/web:1.0", "web:stable"]);
    let loaded = test.store.load_stream(&archive[..], None, &no_progress()).unwrap();
    assert_eq!(names(&loaded), ["web"]);
    assert_eq!(test.store.tags("web").unwrap(), ["1.0", "stable"]);
    let manifest = test.store.manifest(&loaded[0].digest).unwrap();
    assert_eq!(manifest.layers[0].media_type, "application/vnd.oci.image.layer.v1.tar");
    let unpacked = test.store.unpack_blocking(&loaded[0].digest, &no_progress()).unwrap();
    assert!(find(&unpacked, "app").is_some());
}

#[test]
fn a_docker_archive_may_link_equal_layers() {
    let image = Image::new([Layer::new().file("a", b"1").done(), Layer::new().file("a", b"1").done()]);
    let mut tar = tar::Builder::new(Vec::new());
    let archive = image.docker_archive(&["x:y"]);
    for entry in tar::Archive::new(&archive[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut header = entry.header().clone();
        if entry.path().unwrap() == Path::new("layer1/layer.tar") {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, "layer1/layer.tar", "../layer0/layer.tar").unwrap();
        } else {
            let path = entry.path().unwrap().into_owned();
            tar.append_data(&mut header, path, &mut entry).unwrap();
        }
    }
    let test = TestStore::new();
    let loaded = test.store.load_stream(&tar.into_inner().unwrap()[..], None, &no_progress()).unwrap();
    assert_eq!(test.store.manifest(&loaded[0].digest).unwrap().layers.len(), 2);
}

#[test]
fn an_index_gives_the_image_of_this_machine() {
    let (ours, mut theirs) = (sample(), sample());
    theirs.architecture = "s390x".into();
    let test = TestStore::new();
    let files = with_index(&[(&theirs, "s390x"), (&ours, godwit_oci::spec::architecture())]);
    let loaded = test.store.load_stream(&tar_of(&files)[..], Some("multi"), &no_progress()).unwrap();
    assert_eq!(loaded.len(), 1);
    let direct = load(&test.store, &ours).unwrap();
    assert_eq!(loaded[0].digest, direct);

    let empty = TestStore::new();
    let files = with_index(&[(&theirs, "s390x")]);
    let error = empty.store.load_stream(&tar_of(&files)[..], Some("multi"), &no_progress()).unwrap_err();
    assert!(matches!(&error, Error::Platform { found, .. } if found == "linux/s390x"), "{error}");
    // The configuration's word counts too.
    let error = load(&empty.store, &theirs).unwrap_err();
    assert!(matches!(&error, Error::Platform { found, .. } if found == "linux/s390x"), "{error}");
    assert_eq!(empty.leftovers(), Vec::<String>::new());
}

/// A layout whose index.json points at one index of images with platforms.
fn with_index(images: &[(&Image, &str)]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut entries = Vec::new();
    for (image, architecture) in images {
        let mut one = image.files();
        let index: serde_json::Value = serde_json::from_slice(&one.remove("index.json").unwrap()).unwrap();
        let mut entry = index["manifests"][0].clone();
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        entries.push(entry);
        files.extend(one);
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    let inner = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries });
    let inner = serde_json::to_vec(&inner).unwrap();
    let digest = godwit_oci::Digest::of(&inner);
    let entry = json!({ "mediaType": media_type, "digest": digest, "size": inner.len() });
    files
        .insert("index.json".into(), serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": [entry] })).unwrap());
    files.insert(format!("blobs/sha256/{}", digest.hex()), inner);
    files
}

/// Loading these bytes fails, says so, and leaves the store as it was.
#[track_caller]
fn check_refused(bytes: &[u8], wanted: &str) -> Error {
    let test = TestStore::new();
    let error = test.store.load_stream(bytes, Some("t"), &no_progress()).unwrap_err();
    assert!(chain(&error).contains(wanted), "`{}` instead of `{wanted}`", chain(&error));
    assert_eq!(test.leftovers(), Vec::<String>::new());
    error
}

#[test]
fn what_is_no_image_is_refused() {
    check_refused(b"", "neither an index.json (OCI layout) nor a manifest.json");
    check_refused(b"not a tar archive", "the archive is not an image: it is not a tar archive");
    check_refused(&[7; 4096], "it is not a tar archive");
    check_refused(&tar_of(&BTreeMap::from([("a".into(), b"b".to_vec())])), "neither an index.json");
    let mut files = sample().files();
    files.remove("oci-layout");
    check_refused(&tar_of(&files), "no oci-layout file");
    files.insert("oci-layout".into(), br#"{"imageLayoutVersion":"9.0.0"}"#.to_vec());
    check_refused(&tar_of(&files), "its layout version is 9.0.0");
    files = sample().files();
    files.insert("index.json".into(), br#"{"manifests":[]}"#.to_vec());
    check_refused(&tar_of(&files), "it holds no image");
    files.insert("index.json".into(), b"{".to_vec());
    check_refused(&tar_of(&files), "index.json is malformed");
    files = sample().files();
    edit_manifest(&mut files, |manifest| {
        manifest["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json")
    });
    check_refused(&tar_of(&files), "its configuration has media type");
    let missing = tempfile::tempdir().unwrap().path().join("none");
    let error = TestStore::new().store.load_path(&missing, None, &no_progress()).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[test]
fn a_damaged_image_is_refused() {
    let layer_name = |files: &BTreeMap<String, Vec<u8>>| {
        let gz = |name: &&String| name.starts_with("blobs") && files[*name].starts_with(&[0x1f, 0x8b]);
        files.keys().find(gz).unwrap().clone()
    };
    // The archive itself ends early.
    let archive = sample().archive();
    check_refused(&archive[..archive.len() / 2], "truncated");
    let packed = gzip(&archive);
    check_refused(&packed[..packed.len() / 2], "truncated");
    // A blob is missing, short, or other than it says.
    let mut files = sample().files();
    let layer = layer_name(&files);
    let bytes = files.remove(&layer).unwrap();
    let error = check_refused(&tar_of(&files), "is missing");
    assert!(matches!(&error, Error::MissingBlob { role, .. } if role.contains("layer")), "{error}");
    files.insert(layer.clone(), bytes[..bytes.len() - 9].to_vec());
    let error = check_refused(&tar_of(&files), "bytes promised");
    assert!(matches!(error, Error::WrongSize { .. }), "{error}");
    let mut flipped = bytes.clone();
    flipped[20] ^= 1;
    files.insert(layer, flipped);
    let error = check_refused(&tar_of(&files), "but the bytes have");
    assert!(matches!(error, Error::WrongDigest { .. }), "{error}");
    // All digests are right, but the layer was cut before they were made.
    let mut files = sample().files();
    let layer = layer_name(&files);
    let cut = files[&layer][..files[&layer].len() - 9].to_vec();
    let digest = godwit_oci::Digest::of(&cut);
    edit_manifest(&mut files, |manifest| {
        let old = format!("sha256:{}", layer.rsplit_once('/').unwrap().1);
        let layers = manifest["layers"].as_array_mut().unwrap();
        let entry = layers.iter_mut().find(|entry| entry["digest"] == old).unwrap();
        entry["digest"] = json!(digest);
        entry["size"] = json!(cut.len());
    });
    files.insert(format!("blobs/sha256/{}", digest.hex()), cut);
    let error = check_refused(&tar_of(&files), "truncated");
    assert!(matches!(&error, Error::Layer { source, .. } if matches!(**source, LayerFault::Truncated)), "{error}");
}

#[test]
fn limits_of_archives_are_named() {
    let check = |limits: Limits, wanted: &str| {
        let test = TestStore::with(limits);
        let error = load(&test.store, &sample()).unwrap_err();
        assert!(chain(&error).contains(wanted), "{}", chain(&error));
        assert_eq!(test.leftovers(), Vec::<String>::new());
    };
    check(Limits { max_archive_members: 2, ..Limits::default() }, "max_archive_members = 2");
    check(Limits { max_archive_bytes: 2048, ..Limits::default() }, "max_archive_bytes = 2048");
    check(Limits { max_blob_bytes: 16, ..Limits::default() }, "max_blob_bytes = 16");
    check(Limits { max_layers: 1, ..Limits::default() }, "max_layers = 1");
}

#[tokio::test]
async fn an_async_stream_is_loaded_and_a_broken_one_refused() {
    let test = TestStore::new();
    let archive = sample().archive();
    let half = archive.len() / 2;
    let broken = tokio_util::io::StreamReader::new(futures_util::stream::iter([
        Ok(bytes::Bytes::copy_from_slice(&archive[..half])),
        Err(std::io::Error::other("the client went away")),
    ]));
    let error = test.store.load_async(broken, Some("t".into()), no_progress()).await.unwrap_err();
    assert!(chain(&error).contains("the client went away"), "{}", chain(&error));
    assert_eq!(test.leftovers(), Vec::<String>::new());
    // In pieces as small as they come.
    let pieces: Vec<_> = archive
        .chunks(1)
        .take(8)
        .chain(archive[8..].chunks(700))
        .map(|c| Ok::<_, std::io::Error>(bytes::Bytes::copy_from_slice(c)))
        .collect();
    let stream = tokio_util::io::StreamReader::new(futures_util::stream::iter(pieces));
    let loaded = test.store.load_async(stream, Some("t:v2".into()), no_progress()).await.unwrap();
    assert_eq!(test.store.resolve("t:v2").unwrap(), Some(loaded[0].clone()));
}

#[test]
fn names_tags_and_removal_survive_a_restart() {
    let TestStore { store, dir } = TestStore::new();
    let digest = load(&store, &sample()).unwrap();
    let image = ImageId { name: "t".into(), digest };
    store.tag(&image, "stable").unwrap();
    assert!(matches!(ContentStore::open(dir.path().join("store"), Limits::default()), Err(Error::StoreInUse(_))));
    drop(store);
    std::fs::write(dir.path().join("store/tmp/half-written"), "x").unwrap();
    std::fs::create_dir_all(dir.path().join("store/layers/0123456789abcdef/fs")).unwrap();
    let store = ContentStore::open(dir.path().join("store"), Limits::default()).unwrap();
    for name in ["t", "t:latest", "t:stable", &format!("t@{digest}"), &format!("t:whatever@{digest}")] {
        assert_eq!(store.resolve(name).unwrap(), Some(image.clone()), "{name}");
    }
    for name in ["u", "t:other", "ta", &format!("t@{}", godwit_oci::Digest::of(b"x"))] {
        assert_eq!(store.resolve(name).unwrap(), None, "{name}");
    }
    assert!(store.resolve("T:").is_err());
    assert!(!dir.path().join("store/tmp/half-written").exists());
    assert!(!dir.path().join("store/layers/0123456789abcdef").exists());
    assert_eq!(store.images()[0].tags, ["latest", "stable"]);
    assert!(store.remove(&image).unwrap());
    assert!(!store.remove(&image).unwrap());
    assert_eq!(store.resolve("t").unwrap(), None);
    assert!(store.images().is_empty());
}

#[test]
fn images_of_umoci_and_skopeo_are_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&dir.path().join(name)).to_owned();
    let layout = at("layout");
    run("umoci", &["init", "--layout", &layout]);
    let image = format!("{layout}:hello");
    run("umoci", &["new", "--image", &image]);
    for (file, bytes) in [("one", "first"), ("two", "second")] {
        std::fs::write(dir.path().join(file), bytes).unwrap();
        run("umoci", &["insert", "--image", &image, &at(file), &format!("/app/{file}")]);
    }
    run(
        "umoci",
        &[
            "config",
            "--image",
            &image,
            "--config.entrypoint",
            "/app/one",
            "--config.exposedports",
            "8080/tcp",
            "--config.env",
            "MODE=test",
            "--config.user",
            "7:8",
            "--config.workingdir",
            "/app",
            "--config.stopsignal",
            "SIGINT",
        ],
    );
    let oci_archive = format!("oci-archive:{}:hello", at("hello.tar"));
    let docker_archive = format!("docker-archive:{}:docker.io/library/hello:v3", at("docker.tar"));
    run("skopeo", &["copy", "-q", &format!("oci:{image}"), &oci_archive]);
    run("skopeo", &["copy", "-q", &format!("oci:{image}"), &docker_archive]);
    let test = TestStore::new();
    let mut configs = Vec::new();
    for (path, reference) in [("layout", "layout:hello"), ("hello.tar", "hello:hello"), ("docker.tar", "hello:v3")] {
        let loaded = load_path(&test, &dir.path().join(path), None).unwrap();
        assert_eq!(test.store.resolve(reference).unwrap().as_ref(), loaded.first(), "{reference}");
        let unpacked = test.store.unpack_blocking(&loaded[0].digest, &no_progress()).unwrap();
        assert_eq!(std::fs::read(find(&unpacked, "app/two").unwrap()).unwrap(), b"second");
        configs.push(unpacked.config.clone());
    }
    assert!(configs.iter().all(|config| *config == configs[0]));
    let config = &configs[0];
    assert_eq!((config.entrypoint.as_slice(), config.user.as_str()), (&["/app/one".to_owned()][..], "7:8"));
    assert_eq!(
        (config.exposed_ports.as_slice(), config.stop_signal.as_str()),
        (&["8080/tcp".to_owned()][..], "SIGINT")
    );
    assert_eq!(config.working_dir, "/app");
    assert!(config.env.contains(&"MODE=test".to_owned()));
}

#[test]
fn an_archive_of_several_images_keeps_their_own_tags() {
    let images = [("v1", "one"), ("v2", "two")].map(|(tag, file)| Image {
        tag: Some(tag.into()),
        ..Image::new([Layer::new().file("shared", b"x").done(), Layer::new().file(file, b"x").done()])
    });
    let mut files = BTreeMap::new();
    let mut entries = Vec::new();
    for image in &images {
        let mut one = image.files();
        let index: serde_json::Value = serde_json::from_slice(&one.remove("index.json").unwrap()).unwrap();
        entries.push(index["manifests"][0].clone());
        files.extend(one);
    }
    let index = json!({ "schemaVersion": 2, "manifests": entries });
    files.insert("index.json".into(), serde_json::to_vec(&index).unwrap());
    let archive = tar_of(&files);
    let test = TestStore::new();
    let loaded = test.store.load_stream(&archive[..], Some("apps/x"), &no_progress()).unwrap();
    assert_eq!(loaded.len(), 2);
    assert_eq!(test.store.tags("apps/x").unwrap(), ["v1", "v2"]);
    assert_eq!(test.store.resolve("apps/x:v2").unwrap().unwrap(), loaded[1]);

    // One of them is bad: then none is kept, and nothing of the good one either.
    let bad = files.keys().find(|name| files[*name] == gzip(&images[1].layers[1].0)).unwrap().clone();
    files.remove(&bad);
    let error = check_refused(&tar_of(&files), "is missing");
    assert!(matches!(error, Error::MissingBlob { .. }), "{error}");
}

#[test]
fn what_newer_docker_saves_is_loaded_as_the_layout_that_it_holds() {
    let image = sample();
    let mut files = image.files();
    let mut index: serde_json::Value = serde_json::from_slice(&files["index.json"]).unwrap();
    index["manifests"][0]["annotations"] =
        json!({ "io.containerd.image.name": "docker.io/library/web:1.2", "org.opencontainers.image.ref.name": "1.2" });
    files.insert("index.json".into(), serde_json::to_vec(&index).unwrap());
    files.insert("manifest.json".into(), b"[]".to_vec());
    let test = TestStore::new();
    let loaded = test.store.load_stream(&tar_of(&files)[..], None, &no_progress()).unwrap();
    assert_eq!(test.store.resolve("web:1.2").unwrap(), Some(loaded[0].clone()));
    assert_eq!(loaded[0].digest, load(&test.store, &image).unwrap());
}

/// A layout of these images, each with the name that its index gives it.
fn named(images: &[(&Image, &str)]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut entries = Vec::new();
    for (image, name) in images {
        let mut one = image.files();
        let index: serde_json::Value = serde_json::from_slice(&one.remove("index.json").unwrap()).unwrap();
        let mut entry = index["manifests"][0].clone();
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        entries.push(entry);
        files.extend(one);
    }
    files
        .insert("index.json".into(), serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": entries })).unwrap());
    files
}

#[test]
fn one_image_under_two_names_is_one_image() {
    let image = sample();
    let files = named(&[(&image, "localhost/two:latest"), (&image, "localhost/two:stable")]);
    let test = TestStore::new();
    let loaded = test.store.load_stream(&tar_of(&files)[..], None, &no_progress()).unwrap();
    assert_eq!(loaded.len(), 1);
    assert_eq!(test.store.tags("localhost/two").unwrap(), ["latest", "stable"]);
    let own = test.store.load_stream(&tar_of(&files)[..], Some("own:v3"), &no_progress()).unwrap();
    assert_eq!((own.len(), own[0].digest), (1, loaded[0].digest));
    assert_eq!(test.store.tags("own").unwrap(), ["v3"]);
    // A tag that is taken away leaves the other one, and the image.
    assert_eq!(test.store.untag("localhost/two", "latest").unwrap(), Some(loaded[0].clone()));
    assert_eq!(test.store.untag("localhost/two", "latest").unwrap(), None);
    assert_eq!(test.store.resolve("localhost/two:stable").unwrap(), Some(loaded[0].clone()));
}

#[test]
fn an_image_that_was_built_for_a_local_registry_keeps_its_name() {
    let test = TestStore::new();
    let image = sample();
    let archive = image.docker_archive(&["localhost:5000/team/app:v1"]);
    let loaded = test.store.load_stream(&archive[..], None, &no_progress()).unwrap();
    assert_eq!(loaded[0].name, "localhost/team/app");
    // It is found by the name that its builder knows, and by the one that is shown.
    for name in ["localhost:5000/team/app:v1", "localhost/team/app:v1"] {
        assert_eq!(test.store.resolve(name).unwrap(), Some(loaded[0].clone()), "{name}");
    }
    let layout = named(&[(&image, "localhost:5000/team/app:v1")]);
    assert_eq!(
        test.store.load_stream(&tar_of(&layout)[..], None, &no_progress()).unwrap()[0].name,
        "localhost/team/app"
    );
    let unnamed = image.docker_archive(&[]);
    let error = test.store.load_stream(&unnamed[..], None, &no_progress()).unwrap_err();
    assert!(error.to_string().contains("--name"), "{error}");
}

#[test]
fn other_words_for_this_architecture_are_understood() {
    let test = TestStore::new();
    let image = Image { architecture: std::env::consts::ARCH.into(), ..sample() };
    load(&test.store, &image).unwrap();
    let unknown = Image { architecture: String::new(), ..sample() };
    let error = load(&test.store, &unknown).unwrap_err();
    assert!(matches!(error, Error::Platform { .. }), "{error}");
}

#[test]
fn blobs_of_other_platforms_may_be_missing() {
    // `docker save` of an image of several platforms of which one was pulled (kind 3795, moby 49473).
    let image = sample();
    let mut files = with_index(&[(&image, godwit_oci::spec::architecture())]);
    let index: serde_json::Value = serde_json::from_slice(&files["index.json"]).unwrap();
    let digest: godwit_oci::Digest = serde_json::from_value(index["manifests"][0]["digest"].clone()).unwrap();
    let name = format!("blobs/sha256/{}", digest.hex());
    let mut inner: serde_json::Value = serde_json::from_slice(&files.remove(&name).unwrap()).unwrap();
    let gone = |of: &str, architecture: &str| {
        json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": godwit_oci::Digest::of(of.as_bytes()),
            "size": 500, "platform": { "os": if architecture == "unknown" { "unknown" } else { "linux" },
            "architecture": architecture } })
    };
    let entries = inner["manifests"].as_array_mut().unwrap();
    entries.insert(0, gone("other", "s390x"));
    entries.push(gone("attestation", "unknown"));
    for nested in [true, false] {
        let mut files = files.clone();
        let entries = inner["manifests"].clone();
        let bytes = serde_json::to_vec(&inner).unwrap();
        let digest = godwit_oci::Digest::of(&bytes);
        let top = match nested {
            true => {
                json!([{ "mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": bytes.len() }])
            }
            false => entries,
        };
        files
            .insert("index.json".into(), serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": top })).unwrap());
        files.insert(format!("blobs/sha256/{}", digest.hex()), bytes);
        let test = TestStore::new();
        let loaded = test.store.load_stream(&tar_of(&files)[..], Some("multi"), &no_progress()).unwrap();
        assert_eq!(loaded[0].digest, load(&test.store, &image).unwrap());
    }
}

#[test]
fn a_compression_that_is_not_read_is_named() {
    let test = TestStore::new();
    let error = test.store.load_stream(&b"\xfd7zXZ\0 and so on"[..], Some("t"), &no_progress()).unwrap_err();
    assert_eq!(
        chain(&error),
        "archive: it is compressed with xz, which is not supported: use gzip, zstd or no compression"
    );
}
