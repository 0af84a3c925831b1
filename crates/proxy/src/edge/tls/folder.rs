//! Certificates as files `*.pem` of one folder, each a chain with its key. The folder is looked at again and again; a
//! file that cannot be read leaves what it held before in force.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use godwit_base::telemetry::Spell;

use super::Tls;
use super::certificates::Certificate;

/// Between two looks at the folder.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Files of the folder, and bytes of each.
const MAX_FILES: usize = 10_000;
const MAX_FILE_BYTES: u64 = 256 << 10;

/// A file as it was when it was last read.
pub struct Known {
    stamp: Stamp,
    certificate: Option<Certificate>,
}

/// Tells one state of a file from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
}

/// What is served of the folder.
#[derive(Default)]
pub struct Files {
    known: BTreeMap<PathBuf, Known>,
    /// The folder cannot be listed.
    unlisted: Spell,
}

/// Keeps what is served in step with the folder, for ever.
pub async fn follow(tls: Arc<Tls>, folder: PathBuf, mut files: Files) {
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        files = look_again(tls.clone(), folder.clone(), files).await;
    }
}

/// What is there when an edge starts.
pub async fn first_look(tls: &Arc<Tls>, folder: &Path) -> Files {
    look_again(tls.clone(), folder.to_owned(), Files::default()).await
}

async fn look_again(tls: Arc<Tls>, folder: PathBuf, mut files: Files) -> Files {
    let looked = tokio::task::spawn_blocking(move || {
        look(&tls, &folder, &mut files);
        files
    });
    // A look that panics is begun anew from nothing; what is served stays.
    looked.await.unwrap_or_default()
}

fn look(tls: &Tls, folder: &Path, files: &mut Files) {
    let found = match list(folder) {
        Ok(found) => {
            if files.unlisted.ends() {
                tracing::info!(folder = %folder.display(), "certificates can be listed again");
            }
            found
        }
        Err(error) => {
            // It is looked at each second; what was served before is served on.
            if files.unlisted.begins() {
                tracing::warn!(folder = %folder.display(), %error, "cannot list certificates");
            }
            return;
        }
    };
    let files = &mut files.known;
    let mut changed = false;
    files.retain(|path, _| {
        let stays = found.contains_key(path);
        changed |= !stays;
        stays
    });
    for (path, stamp) in found {
        if files.get(&path).is_some_and(|known| known.stamp == stamp) {
            continue;
        }
        changed = true;
        let before = files.remove(&path).and_then(|known| known.certificate);
        let certificate = read(tls, &path).or(before);
        files.insert(path, Known { stamp, certificate });
    }
    if changed {
        let served: Vec<_> = files.values().filter_map(|known| known.certificate.clone()).collect();
        tls.set_folder(&served);
    }
}

fn read(tls: &Tls, path: &Path) -> Option<Certificate> {
    let read = std::fs::read(path).map_err(|error| error.to_string()).and_then(|pem| {
        let read = Certificate::from_pem(&pem, &tls.provider);
        read.map_err(|error| godwit_base::telemetry::chain(&error))
    });
    read.inspect_err(|error| tracing::warn!(path = %path.display(), error, "a certificate cannot be served")).ok()
}

fn list(folder: &Path) -> io::Result<BTreeMap<PathBuf, Stamp>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        // A file that goes away meanwhile is none.
        let Ok(metadata) = std::fs::metadata(&path) else { continue };
        let is_pem = path.extension().is_some_and(|extension| extension == "pem");
        if is_pem && metadata.is_file() && metadata.len() <= MAX_FILE_BYTES && found.len() < MAX_FILES {
            found.insert(path, Stamp { modified: metadata.modified().ok(), length: metadata.len() });
        }
    }
    Ok(found)
}
