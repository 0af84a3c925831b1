//! Building blocks: layers and images written byte by byte, stores in temp folders, trees
//! read back, tools run. Knows nothing of the single tests.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use godwit_oci::{ContentStore, Digest, Error, Limits};
use serde_json::{Value, json};
use tar::EntryType;

/// A store in a temp folder of its own.
pub struct TestStore {
    pub store: Arc<ContentStore>,
    pub dir: tempfile::TempDir,
}

impl TestStore {
    pub fn new() -> Self {
        Self::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(ContentStore::open(dir.path().join("store"), limits).unwrap());
        Self { store, dir }
    }

    /// Everything in the store's folder that a failed call must not leave.
    pub fn leftovers(&self) -> Vec<String> {
        let root = self.dir.path().join("store");
        let mut found = Vec::new();
        for sub in ["blobs/sha256", "names", "partial", "layers", "tmp"] {
            for entry in std::fs::read_dir(root.join(sub)).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                if name != "empty" {
                    found.push(format!("{sub}/{name}"));
                }
            }
        }
        found.sort();
        found
    }
}

/// One layer's tar stream under construction.
pub struct Layer {
    out: Vec<u8>,
}

/// What of a member is not its name, type or data.
#[derive(Clone, Copy)]
pub struct Meta {
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
}

impl Default for Meta {
    fn default() -> Self {
        Self { mode: 0o644, uid: 0, gid: 0, mtime: 1_600_000_000 }
    }
}

impl Layer {
    pub fn new() -> Self {
        Self { out: Vec::new() }
    }

    /// A member with exactly these bytes in its header: no writer's checks in between.
    pub fn raw(mut self, kind: u8, name: &[u8], link: &[u8], meta: Meta, data: &[u8]) -> Self {
        assert!(name.len() <= 100 && link.len() <= 100, "use PAX");
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::new(kind));
        header.set_mode(meta.mode);
        header.set_uid(meta.uid);
        header.set_gid(meta.gid);
        header.set_mtime(meta.mtime);
        header.set_size(data.len() as u64);
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_cksum();
        self.out.extend_from_slice(header.as_bytes());
        self.data(data)
    }

    /// Bytes as they are, filled up to a block.
    pub fn data(mut self, data: &[u8]) -> Self {
        self.out.extend_from_slice(data);
        let padding = self.out.len().wrapping_neg() % 512;
        self.out.resize(self.out.len() + padding, 0);
        self
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            // The length counts its own digits.
            let length = (rest..).find(|n| n.to_string().len() + rest == *n).unwrap();
            body.extend_from_slice(format!("{length} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.raw(b'x', b"PaxHeaders/x", b"", Meta::default(), &body)
    }

    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.raw(b'0', name.as_bytes(), b"", Meta::default(), data)
    }

    pub fn file_with(self, name: &str, data: &[u8], meta: Meta) -> Self {
        self.raw(b'0', name.as_bytes(), b"", meta, data)
    }

    pub fn folder(self, name: &str, mode: u32) -> Self {
        self.raw(b'5', name.as_bytes(), b"", Meta { mode, ..Meta::default() }, b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(b'2', name.as_bytes(), target.as_bytes(), Meta { mode: 0o777, ..Meta::default() }, b"")
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.raw(b'1', name.as_bytes(), target.as_bytes(), Meta::default(), b"")
    }

    /// Ends the archive.
    pub fn done(mut self) -> Vec<u8> {
        self.out.resize(self.out.len() + 1024, 0);
        self.out
    }

    /// The bytes so far, without an end.
    pub fn cut(self) -> Vec<u8> {
        self.out
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// An image that tests build themselves.
pub struct Image {
    pub layers: Vec<(Vec<u8>, Packing)>,
    pub config: Value,
    pub architecture: String,
    pub tag: Option<String>,
}

impl Image {
    pub fn new(layers: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self {
            layers: layers.into_iter().map(|layer| (layer, Packing::Gzip)).collect(),
            config: json!({}),
            architecture: godwit_oci::spec::architecture().to_owned(),
            tag: Some("v1".into()),
        }
    }

    pub fn packed(mut self, packing: Packing) -> Self {
        self.layers.iter_mut().for_each(|layer| layer.1 = packing);
        self
    }

    fn config_document(&self) -> Vec<u8> {
        let diff_ids: Vec<Digest> = self.layers.iter().map(|(layer, _)| Digest::of(layer)).collect();
        let document = json!({
            "architecture": self.architecture, "os": "linux", "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        serde_json::to_vec(&document).unwrap()
    }

    /// The layout's files by path: `oci-layout`, `index.json`, `blobs/…`.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut blob = |media_type: &str, bytes: Vec<u8>| {
            let digest = Digest::of(&bytes);
            let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
            files.insert(format!("blobs/sha256/{}", digest.hex()), bytes);
            descriptor
        };
        let config = blob("application/vnd.oci.image.config.v1+json", self.config_document());
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|(layer, packing)| match packing {
                Packing::Plain => blob("application/vnd.oci.image.layer.v1.tar", layer.clone()),
                Packing::Gzip => blob("application/vnd.oci.image.layer.v1.tar+gzip", gzip(layer)),
                Packing::Zstd => {
                    let packed = zstd::encode_all(&layer[..], 1).unwrap();
                    blob("application/vnd.oci.image.layer.v1.tar+zstd", packed)
                }
            })
            .collect();
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers });
        let mut entry = blob(media_type, serde_json::to_vec(&manifest).unwrap());
        if let Some(tag) = &self.tag {
            entry["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        }
        let index = json!({ "schemaVersion": 2, "manifests": [entry] });
        files.insert("index.json".into(), serde_json::to_vec(&index).unwrap());
        files.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        files
    }

    pub fn write_layout(&self, dir: &Path) {
        write_files(dir, &self.files());
    }

    pub fn archive(&self) -> Vec<u8> {
        tar_of(&self.files())
    }

    /// What `docker save` wrote up to version 24.
    pub fn docker_archive(&self, tags: &[&str]) -> Vec<u8> {
        let mut files = BTreeMap::new();
        let config = self.config_document();
        let config_name = format!("{}.json", Digest::of(&config).hex());
        files.insert(config_name.clone(), config);
        let mut names = Vec::new();
        for (index, (layer, _)) in self.layers.iter().enumerate() {
            let name = format!("layer{index}/layer.tar");
            files.insert(name.clone(), layer.clone());
            names.push(name);
        }
        let manifest = json!([{ "Config": config_name, "RepoTags": tags, "Layers": names }]);
        files.insert("manifest.json".into(), serde_json::to_vec(&manifest).unwrap());
        tar_of(&files)
    }
}

pub fn write_files(dir: &Path, files: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in files {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// An archive as the `tar` crate writes it.
pub fn tar_of(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Loads an image under the name `t` and returns its digest.
pub fn load(store: &ContentStore, image: &Image) -> Result<Digest, Error> {
    let loaded = store.load_stream(&image.archive()[..], Some("t"), &godwit_oci::no_progress())?;
    assert_eq!(loaded.len(), 1);
    Ok(loaded[0].digest)
}

/// Loads and unpacks.
pub fn unpack(store: &ContentStore, image: &Image) -> Result<godwit_oci::Unpacked, Error> {
    let digest = load(store, image)?;
    store.unpack_blocking(&digest, &godwit_oci::no_progress())
}

/// Unpacks what a load has not seen: the blobs are put where a store keeps them, as a pull of a day before might have.
pub fn unpack_unseen(test: &TestStore, image: &Image) -> Result<godwit_oci::Unpacked, Error> {
    let files = image.files();
    for (name, bytes) in files.iter().filter(|(name, _)| name.starts_with("blobs/")) {
        std::fs::write(test.dir.path().join("store").join(name), bytes).unwrap();
    }
    let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
    let digest: Digest = serde_json::from_value(index["manifests"][0]["digest"].clone()).unwrap();
    test.store.unpack_blocking(&digest, &godwit_oci::no_progress())
}

/// An error with its causes, as a person reads it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

/// What a process can see of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub kind: char,
    pub mode: u32,
    pub owner: (u32, u32),
    /// Of a file: digest and size. Of a link: its target.
    pub content: String,
    pub mtime: i64,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    pub links: u64,
}

/// Every file below `root`, by its path.
pub fn tree(root: &Path) -> BTreeMap<String, Seen> {
    let mut all = BTreeMap::new();
    walk(root, Path::new(""), &mut all);
    all
}

fn walk(root: &Path, at: &Path, all: &mut BTreeMap<String, Seen>) {
    for entry in std::fs::read_dir(root.join(at)).unwrap() {
        let entry = entry.unwrap();
        let (relative, path) = (at.join(entry.file_name()), entry.path());
        let meta = path.symlink_metadata().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let kind = meta.file_type();
        let (kind, content) = match kind {
            k if k.is_dir() => ('d', String::new()),
            k if k.is_symlink() => ('l', std::fs::read_link(&path).unwrap().display().to_string()),
            k if k.is_file() => ('f', format!("{} {}", Digest::of(&std::fs::read(&path).unwrap()), meta.len())),
            k if k.is_fifo() => ('p', String::new()),
            _ => ('o', format!("{:x}", meta.rdev())),
        };
        let seen = Seen {
            kind,
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            content,
            mtime: meta.mtime(),
            xattrs: if kind == 'f' || kind == 'd' { xattrs(&path) } else { BTreeMap::new() },
            links: if kind == 'd' { 0 } else { meta.nlink() },
        };
        if kind == 'd' {
            walk(root, &relative, all);
        }
        all.insert(relative.display().to_string(), seen);
    }
}

/// The attributes that an image can have.
fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for name in ["security.capability", "user.test", "user.overlay.opaque", "trusted.overlay.redirect"] {
        if let Some(value) = xattr(path, name) {
            found.insert(name.to_owned(), value);
        }
    }
    found
}

pub fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let c = |bytes: &[u8]| std::ffi::CString::new(bytes).unwrap();
    let (path, name) = (c(path.as_os_str().as_bytes()), c(name.as_bytes()));
    let mut value = vec![0u8; 4096];
    // SAFETY: both strings end with a NUL, and the kernel writes at most `value.len()` bytes.
    let got = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(got).ok()?);
    Some(value)
}

/// Runs a tool of the system and returns what it printed. Tools are no option here: they
/// are what we are compared with.
pub fn run(tool: &str, args: &[&str]) -> String {
    let output = Command::new(tool).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {tool} ({error}): apt-get install {tool}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// A path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Where a lower folder has a file, top-most first.
pub fn find(unpacked: &godwit_oci::Unpacked, name: &str) -> Option<PathBuf> {
    unpacked.lower_paths().iter().map(|lower| lower.join(name)).find(|path| path.symlink_metadata().is_ok())
}

/// The layout with the configuration of another image in it, all digests made right.
pub fn swap_config(files: &mut BTreeMap<String, Vec<u8>>, other: &Image) -> BTreeMap<String, Vec<u8>> {
    let config = other.config_document();
    edit_manifest(files, |manifest| {
        manifest["config"]["digest"] = json!(Digest::of(&config));
        manifest["config"]["size"] = json!(config.len());
    });
    files.insert(format!("blobs/sha256/{}", Digest::of(&config).hex()), config);
    files.clone()
}

/// Changes the manifest of a layout and points the index at the new one.
pub fn edit_manifest(files: &mut BTreeMap<String, Vec<u8>>, edit: impl FnOnce(&mut Value)) {
    let mut index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
    let old: Digest = serde_json::from_value(index["manifests"][0]["digest"].clone()).unwrap();
    let old = files.remove(&format!("blobs/sha256/{}", old.hex())).unwrap();
    let mut manifest: Value = serde_json::from_slice(&old).unwrap();
    edit(&mut manifest);
    let bytes = serde_json::to_vec(&manifest).unwrap();
    index["manifests"][0]["digest"] = json!(Digest::of(&bytes));
    index["manifests"][0]["size"] = json!(bytes.len());
    files.insert("index.json".into(), serde_json::to_vec(&index).unwrap());
    files.insert(format!("blobs/sha256/{}", Digest::of(&bytes).hex()), bytes);
}
