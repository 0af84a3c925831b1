//! What was last known of routes, on disk: one file an app and one for the directory. An edge that starts while the
//! store is away serves it, and says how old it is.
//!
//! Nothing here is the truth: a file that cannot be read is passed over.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use godwit_api::ids::AppName;
use godwit_api::route::RouteRow;
use godwit_base::telemetry::Spell;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Which regions an app has Machines in, and which app serves a raw port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    pub regions: BTreeMap<AppName, Vec<String>>,
    pub ports: BTreeMap<u16, AppName>,
}

/// An app's rows by region.
pub type Rows = BTreeMap<String, RouteRow>;

#[derive(Serialize, Deserialize)]
struct Stamped<T> {
    /// Unix milliseconds.
    written_at_ms: u64,
    value: T,
}

/// What is to be written.
#[derive(Default)]
struct Dirty {
    directory: bool,
    apps: HashSet<AppName>,
}

pub struct Snapshots {
    folder: PathBuf,
    dirty: Mutex<Dirty>,
    unwritten: Spell,
}

impl Snapshots {
    pub fn new(folder: &Path) -> Result<Self, Error> {
        let apps = folder.join("apps");
        std::fs::create_dir_all(&apps).map_err(|source| Error::File { path: apps, source })?;
        Ok(Self { folder: folder.to_owned(), dirty: Mutex::default(), unwritten: Spell::default() })
    }

    /// With the Unix milliseconds of its writing.
    pub fn directory(&self) -> Option<(u64, Directory)> {
        read(&self.folder.join("directory.json"))
    }

    pub fn rows(&self, app: &AppName) -> Option<(u64, Rows)> {
        read(&self.app_path(app))
    }

    fn app_path(&self, app: &AppName) -> PathBuf {
        self.folder.join("apps").join(format!("{app}.json"))
    }

    pub fn mark_directory(&self) {
        self.lock().directory = true;
    }

    /// Bounded by the apps that are watched.
    pub fn mark_app(&self, app: &AppName) {
        self.lock().apps.insert(app.clone());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Dirty> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what changed since the last call; blocks on the disk. `rows` answers an app's present rows, nothing if
    /// the app is no longer watched.
    pub fn write(&self, directory: impl FnOnce() -> Directory, rows: impl Fn(&AppName) -> Option<Rows>) {
        let dirty = std::mem::take(&mut *self.lock());
        if dirty.directory {
            self.keep(&self.folder.join("directory.json"), directory());
        }
        for app in dirty.apps {
            match rows(&app) {
                Some(rows) => self.keep(&self.app_path(&app), rows),
                None => continue,
            }
        }
    }

    /// A disk that fails fails for every app: it is told once.
    fn keep<T: Serialize>(&self, path: &Path, value: T) {
        match write(path, value) {
            Ok(()) => drop(self.unwritten.ends()),
            Err(error) if self.unwritten.begins() => {
                tracing::warn!(path = %path.display(), %error, "cannot keep routes; they are served from memory");
            }
            Err(_) => {}
        }
    }

    /// The app is no more.
    pub fn forget(&self, app: &AppName) {
        // It is gone, or was never there.
        let _ = std::fs::remove_file(self.app_path(app));
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<(u64, T)> {
    let bytes = godwit_base::durable::read(path).ok().flatten()?;
    match serde_json::from_slice::<Stamped<T>>(&bytes) {
        Ok(stamped) => Some((stamped.written_at_ms, stamped.value)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a kept route cannot be read");
            None
        }
    }
}

fn write<T: Serialize>(path: &Path, value: T) -> io::Result<()> {
    let stamped = Stamped { written_at_ms: godwit_base::clock::unix_ms(), value };
    let bytes = serde_json::to_vec(&stamped).unwrap_or_default();
    // Somebody may have cleared it away meanwhile.
    godwit_base::folder::private_parent(path)?;
    godwit_base::durable::write(path, &bytes, 0o600)
}
