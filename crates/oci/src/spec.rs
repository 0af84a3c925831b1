//! The documents of the OCI image-spec that we read and write: descriptor, index, manifest,
//! configuration. Pure: bytes in, values out.
//!
//! Written by hand rather than taken from a crate because we read untrusted documents: only
//! the fields that we act on are parsed, `null` stands for "absent" wherever Go writes it,
//! and a digest is a checked type from the first moment.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;
use crate::error::Error;
use crate::limits::Limits;

/// Media types (image-spec, media-types.md; Docker's from its schema 2).
pub mod media_type {
    /// OCI image manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image index.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI image configuration.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// A plain layer.
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// A gzip layer.
    pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// A zstd layer.
    pub const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    /// Docker's image manifest, schema 2.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker's index.
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker's image configuration.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

    /// Whether a descriptor of this type leads to further manifests.
    pub fn is_index(text: &str) -> bool {
        text == INDEX || text == DOCKER_INDEX
    }

    /// Whether a descriptor of this type is one image.
    pub fn is_manifest(text: &str) -> bool {
        text == MANIFEST || text == DOCKER_MANIFEST
    }
}

/// The operating system whose images run here.
pub const OS: &str = "linux";

/// The architecture of this machine in Go's words, as the spec wants it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

/// Content descriptor (descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of the content.
    #[serde(default)]
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Size of the content in bytes.
    pub size: u64,
    /// Free notes; `org.opencontainers.image.ref.name` holds a tag in a layout's index.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null")]
    pub annotations: BTreeMap<String, String>,
    /// In an index: where the image runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// The platform of an image (image-index.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// CPU in Go's words (`amd64`).
    #[serde(default)]
    pub architecture: String,
    /// Operating system in Go's words (`linux`).
    #[serde(default)]
    pub os: String,
    /// Variant of the CPU (`v8`); empty means the plain one.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null")]
    pub variant: String,
}

impl Platform {
    /// Whether this machine can run it. The many words for one architecture are taken as containerd takes them
    /// (`platforms/database.go`).
    pub fn is_ours(&self) -> bool {
        self.os.eq_ignore_ascii_case(OS) && normalized(&self.architecture) == architecture()
    }

    /// Whether it is for every processor of its architecture.
    fn is_plain(&self) -> bool {
        matches!(
            (normalized(&self.architecture), self.variant.as_str()),
            (_, "") | ("amd64", "v1") | ("arm64", "8" | "v8")
        )
    }
}

/// An architecture in Go's words.
fn normalized(architecture: &str) -> &str {
    let plain = architecture.strip_suffix("/v8").unwrap_or(architecture);
    match plain {
        "x86_64" | "x86-64" | "X86_64" | "AMD64" => "amd64",
        "aarch64" | "ARM64" => "arm64",
        "i386" | "i686" => "386",
        other => other,
    }
}

/// Image index (image-index.md), also the `index.json` of an image layout.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Images and further indexes.
    pub manifests: Vec<Descriptor>,
}

impl Index {
    /// The entry for this machine: the plain one rather than one for certain processors, else one that does not say
    /// its platform (its configuration will).
    pub(crate) fn for_this_machine(&self) -> Result<&Descriptor, Error> {
        let fits = |entry: &&Descriptor| entry.platform.as_ref().is_some_and(Platform::is_ours);
        let plain = |entry: &&Descriptor| entry.platform.as_ref().is_some_and(Platform::is_plain);
        let ours = self.manifests.iter().find(|entry| fits(entry) && plain(entry));
        let ours = ours.or_else(|| self.manifests.iter().find(fits));
        let silent = || self.manifests.iter().find(|e| e.platform.is_none());
        ours.or_else(silent).ok_or_else(|| no_platform(&self.manifests))
    }
}

/// That none of the entries is for this machine.
pub(crate) fn no_platform(entries: &[Descriptor]) -> Error {
    let platforms = entries.iter().filter_map(|entry| entry.platform.as_ref());
    let mut names: Vec<String> = platforms.map(|p| format!("{}/{}", p.os, p.architecture)).collect();
    names.sort();
    names.dedup();
    // An index may be long; the first few tell enough.
    names.truncate(16);
    wrong_platform(if names.is_empty() { "none".to_owned() } else { names.join(", ") })
}

fn wrong_platform(found: String) -> Error {
    Error::Platform { wanted: format!("{OS}/{}", architecture()), found }
}

/// Image manifest (manifest.md). Docker's schema 2 has the same fields.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Media type of the manifest itself.
    #[serde(default)]
    pub media_type: String,
    /// Descriptor of the configuration.
    pub config: Descriptor,
    /// Layers, bottom first.
    #[serde(deserialize_with = "null")]
    pub layers: Vec<Descriptor>,
}

impl Manifest {
    /// Whether it is an image that we take. `what` is what to call it.
    pub(crate) fn check(&self, what: &str, limits: &Limits) -> Result<(), Error> {
        let config_type = self.config.media_type.as_str();
        if ![media_type::CONFIG, media_type::DOCKER_CONFIG].contains(&config_type) {
            let reason = format!("its configuration has media type `{config_type}`");
            return Err(Error::NotAnImage { what: what.to_owned(), reason });
        }
        if self.layers.len() > limits.max_layers {
            let what = format!("an image of {} layers", self.layers.len());
            return Err(Error::Limit { what, limit: "max_layers", bound: limits.max_layers as u64 });
        }
        let large = self.blobs().find(|blob| blob.size > limits.max_blob_bytes);
        match large {
            None => Ok(()),
            Some(blob) => {
                let what = format!("blob {} of {} bytes", blob.digest, blob.size);
                Err(Error::Limit { what, limit: "max_blob_bytes", bound: limits.max_blob_bytes })
            }
        }
    }

    /// The blobs that the image consists of besides the manifest: configuration first.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}

/// The file `oci-layout` (image-layout.md).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LayoutMarker {
    pub image_layout_version: String,
}

/// One image of the `manifest.json` that `docker save` writes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DockerImage {
    pub config: String,
    #[serde(default, deserialize_with = "null")]
    pub repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "null")]
    pub layers: Vec<String>,
}

/// Image configuration (config.md): what of it a runtime needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `name|uid[:group|gid]`; empty means root. See [`crate::User`].
    #[serde(default, rename = "User", deserialize_with = "null")]
    pub user: String,
    /// Working directory of the process; empty means `/`.
    #[serde(default, rename = "WorkingDir", deserialize_with = "null")]
    pub working_dir: String,
    /// `NAME=value` lines.
    #[serde(default, rename = "Env", deserialize_with = "null")]
    pub env: Vec<String>,
    /// First words of the command.
    #[serde(default, rename = "Entrypoint", deserialize_with = "null")]
    pub entrypoint: Vec<String>,
    /// Default arguments, or the whole command when there is no entry point.
    #[serde(default, rename = "Cmd", deserialize_with = "null")]
    pub cmd: Vec<String>,
    /// `SIGTERM`, `15`, `SIGRTMIN+3`; empty means the runtime's default.
    #[serde(default, rename = "StopSignal", deserialize_with = "null")]
    pub stop_signal: String,
    /// `port`, `port/tcp` or `port/udp`, in order.
    #[serde(default, rename = "ExposedPorts", deserialize_with = "keys", serialize_with = "as_set")]
    pub exposed_ports: Vec<String>,
    /// Labels.
    #[serde(default, rename = "Labels", deserialize_with = "null")]
    pub labels: BTreeMap<String, String>,
}

/// The configuration document around [`ImageConfig`].
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ConfigDocument {
    #[serde(flatten)]
    pub platform: Platform,
    #[serde(default, deserialize_with = "null")]
    pub config: ImageConfig,
    pub rootfs: RootFs,
}

impl ConfigDocument {
    /// Whether it is for this machine and for a manifest of so many layers.
    pub(crate) fn check(&self, layers: usize, what: &str) -> Result<(), Error> {
        if !self.platform.is_ours() {
            let Platform { os, architecture, .. } = &self.platform;
            return Err(wrong_platform(format!("{os}/{architecture}")));
        }
        match self.rootfs.diff_ids.len() {
            n if n == layers => Ok(()),
            n => {
                let reason = format!("{n} DiffIDs for {layers} layers");
                Err(Error::NotAnImage { what: what.to_owned(), reason })
            }
        }
    }
}

/// The layers' DiffIDs (config.md, `rootfs`).
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default, deserialize_with = "null")]
    pub diff_ids: Vec<Digest>,
}

/// Reads `null` as the default: Go writes empty lists and maps so.
fn null<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// A Go set is a map with empty values; we keep its keys.
fn keys<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    let map = Option::<BTreeMap<String, serde::de::IgnoredAny>>::deserialize(d)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

fn as_set<S: serde::Serializer>(keys: &[String], s: S) -> Result<S::Ok, S::Error> {
    s.collect_map(keys.iter().map(|key| (key, BTreeMap::<(), ()>::new())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_as_docker_writes_it() {
        let document: ConfigDocument = serde_json::from_str(
            r#"{"architecture":"amd64","os":"linux","config":{"User":"app:www","ExposedPorts":{"8080/tcp":{},"53/udp":{}},
                "Env":["A=b"],"Cmd":null,"Entrypoint":["/app"],"WorkingDir":"","Labels":null,"StopSignal":"SIGQUIT","Volumes":null},
                "rootfs":{"type":"layers","diff_ids":null},"history":[]}"#,
        )
        .unwrap();
        let config = document.config;
        assert_eq!(config.user, "app:www");
        assert_eq!(config.exposed_ports, ["53/udp", "8080/tcp"]);
        assert_eq!(config.entrypoint, ["/app"]);
        assert!(config.cmd.is_empty() && config.labels.is_empty());
        let again: ImageConfig = serde_json::from_value(serde_json::to_value(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn an_architecture_has_many_names() {
        let normal =
            [("x86_64", "amd64"), ("x86-64", "amd64"), ("aarch64", "arm64"), ("arm64/v8", "arm64"), ("i386", "386")];
        for (written, meant) in normal {
            assert_eq!(normalized(written), meant);
        }
        assert_eq!((normalized("s390x"), normalized("")), ("s390x", ""));
        let entry = |architecture: &str, variant: &str, n: u64| Descriptor {
            media_type: media_type::MANIFEST.into(),
            digest: Digest::of(&n.to_le_bytes()),
            size: n,
            annotations: BTreeMap::new(),
            platform: Some(Platform { architecture: architecture.into(), os: "Linux".into(), variant: variant.into() }),
        };
        let ours = std::env::consts::ARCH; // `x86_64`, which Go calls `amd64`.
        let index = Index { manifests: vec![entry("s390x", "", 1), entry(ours, "v3", 2), entry(ours, "", 3)] };
        assert_eq!(index.for_this_machine().unwrap().size, 3, "the one for every processor");
        let index = Index { manifests: vec![entry("s390x", "", 1), entry(ours, "v3", 2)] };
        assert_eq!(index.for_this_machine().unwrap().size, 2);
    }

    #[test]
    fn a_configuration_may_be_nearly_empty() {
        let document: ConfigDocument =
            serde_json::from_str(r#"{"architecture":"amd64","os":"linux","rootfs":{}}"#).unwrap();
        assert_eq!(document.config, ImageConfig::default());
    }
}
