//! The demo image: an OCI archive (image-layout 1.0.0) with one gzip layer around the static demo binary. The same
//! binary gives the same bytes.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// Where the binary lies in the image.
const PROGRAM: &str = "app";
const PORT: u16 = 8080;
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

#[derive(clap::Args)]
pub struct Options {
    /// The static demo binary
    #[arg(long, value_name = "FILE")]
    binary: PathBuf,
    /// The archive to write
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

pub fn write(options: &Options) -> Result<()> {
    let binary = std::fs::read(&options.binary).with_context(|| format!("cannot read {}", options.binary.display()))?;
    ensure!(is_static(&binary), "{} needs a dynamic linker, which the image has not", options.binary.display());
    if let Some(folder) = options.output.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let fresh = options.output.with_extension("tar.new");
    write_archive(&fresh, &layer(&binary)?).with_context(|| format!("cannot write {}", fresh.display()))?;
    std::fs::rename(&fresh, &options.output)?;
    println!("{}", options.output.display());
    Ok(())
}

/// Whether an ELF file names no interpreter (program header of type `PT_INTERP`, 3).
fn is_static(elf: &[u8]) -> bool {
    let u16_at = |at: usize| Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?));
    let headers = || {
        let offset = u64::from_le_bytes(elf.get(32..40)?.try_into().ok()?) as usize;
        let (size, count) = (u16_at(54)? as usize, u16_at(56)? as usize);
        (0..count)
            .map(|n| Some(u32::from_le_bytes(elf.get(offset + n * size..offset + n * size + 4)?.try_into().ok()?)))
            .collect::<Option<Vec<u32>>>()
    };
    elf.starts_with(b"\x7fELF\x02") && headers().is_some_and(|types| !types.contains(&3))
}

/// The root file system as an uncompressed tar.
fn layer(binary: &[u8]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (folder, mode) in [("data/", 0o755), ("etc/", 0o755), ("tmp/", 0o1777)] {
        append(&mut tar, folder, EntryType::Directory, mode, b"")?;
    }
    append(&mut tar, "etc/passwd", EntryType::Regular, 0o644, b"root:x:0:0:root:/:/app\n")?;
    append(&mut tar, "etc/group", EntryType::Regular, 0o644, b"root:x:0:\n")?;
    append(&mut tar, PROGRAM, EntryType::Regular, 0o755, binary)?;
    Ok(tar.into_inner()?)
}

fn append<W: Write>(tar: &mut tar::Builder<W>, name: &str, kind: EntryType, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    header.set_mtime(0);
    tar.append_data(&mut header, name, bytes)?;
    Ok(())
}

fn write_archive(path: &Path, layer: &[u8]) -> Result<()> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    gzip.write_all(layer)?;
    let zipped = gzip.finish()?;
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": [format!("/{PROGRAM}")],
            "Env": ["PATH=/"],
            "ExposedPorts": { format!("{PORT}/tcp"): {} },
            "WorkingDir": "/",
            "StopSignal": "SIGTERM",
        },
        "rootfs": { "type": "layers", "diff_ids": [digest(layer)] },
        "history": [{ "created_by": "godwit-lab image" }],
    });
    let config = serde_json::to_vec(&config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &zipped)],
    });
    let manifest = serde_json::to_vec(&manifest)?;
    let mut entry = descriptor(MANIFEST_TYPE, &manifest);
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    entry["platform"] = json!({ "architecture": architecture(), "os": "linux" });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    });
    let mut tar = tar::Builder::new(BufWriter::new(File::create(path)?));
    append(&mut tar, "oci-layout", EntryType::Regular, 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append(&mut tar, "index.json", EntryType::Regular, 0o644, &serde_json::to_vec(&index)?)?;
    for folder in ["blobs/", "blobs/sha256/"] {
        append(&mut tar, folder, EntryType::Directory, 0o755, b"")?;
    }
    for blob in [&config, &manifest, &zipped] {
        append(&mut tar, &format!("blobs/sha256/{}", hex_digest(blob)), EntryType::Regular, 0o644, blob)?;
    }
    tar.into_inner()?.into_inner().map_err(|error| error.into_error())?.sync_all()?;
    Ok(())
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() })
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex_digest(bytes))
}

fn hex_digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The processor in the words of OCI (which are Go's).
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
