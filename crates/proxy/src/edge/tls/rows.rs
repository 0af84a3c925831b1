//! Certificates from the store's rows, and what authorities are answered. A copy of each row stands on disk, readable by
//! this edge's user alone, so that an edge which starts while the store is away shakes hands all the same.
//!
//! A row is for its host name and for no other name that its certificate may hold: that one may be another app's.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use godwit_api::hostname::{CertificateRow, ChallengeAnswer, ChallengeRow, Source};
use godwit_api::keys;
use godwit_store::{Mirror, Store, Update, follow as follow_store};

use super::Tls;
use super::certificates::{Certificate, challenge};

/// Which of two certificates of a name is valid changes with time alone.
const REVIEW_INTERVAL: Duration = Duration::from_secs(30);
/// Rows that are served: their bound in control is lower.
const MAX_ROWS: usize = 200_000;

/// A row that was understood.
#[derive(Clone)]
pub struct Known {
    revision: u64,
    source: Source,
    not_after_ms: u64,
    certificate: Certificate,
}

pub type Rows = BTreeMap<String, Known>;

/// What an edge kept of the store on its disk: served until the store tells more.
pub async fn first_look(tls: &Arc<Tls>, folder: &Path) -> Rows {
    let (of, from) = (tls.clone(), folder.to_owned());
    let known = tokio::task::spawn_blocking(move || kept(&of, &from)).await.unwrap_or_default();
    tls.set_rows(&served(&known));
    known
}

/// Keeps what is served in step with the store, for ever.
pub async fn follow(tls: Arc<Tls>, store: Arc<dyn Store>, folder: PathBuf, mut known: Rows) {
    let mut certificates = follow_store(store.clone(), keys::CERTIFICATES);
    let mut challenges = follow_store(store, keys::CHALLENGES);
    let (mut rows, mut challenge_rows) = (Mirror::new(), Mirror::new());
    let mut review = tokio::time::interval(REVIEW_INTERVAL);
    loop {
        tokio::select! {
            told = certificates.next() => match told {
                Ok(update) => {
                    let changes = changes(&mut rows, &known, update);
                    if changes.is_empty() {
                        continue;
                    }
                    let (of, folder, mut next) = (tls.clone(), folder.clone(), known.clone());
                    // Keys are checked and files are written: not a thing for the threads that carry traffic.
                    let took = tokio::task::spawn_blocking(move || {
                        take_in(&of, &folder, &mut next, changes);
                        next
                    });
                    match took.await {
                        Ok(next) => known = next,
                        Err(_) => tracing::warn!("certificates of the store could not be taken in"),
                    }
                    tls.set_rows(&served(&known));
                }
                Err(error) => tracing::warn!(%error, "the store does not show this edge its certificates"),
            },
            told = challenges.next() => match told {
                Ok(update) => {
                    challenge_rows.apply(update);
                    tls.set_challenges(answers(&tls, &challenge_rows));
                }
                Err(error) => tracing::warn!(%error, "the store does not show this edge its challenges"),
            },
            _ = review.tick() => tls.set_rows(&served(&known)),
        }
    }
}

/// What is served: of a name's two, the owner's own as long as it is valid.
fn served(known: &Rows) -> Vec<Certificate> {
    let now_ms = godwit_base::clock::unix_ms();
    let mut all: Vec<&Known> = known.values().collect();
    // Of several for one name the last is served; an expired one only where there is nothing else.
    all.sort_by_key(|one| (one.not_after_ms > now_ms, one.source == Source::Custom));
    all.into_iter().map(|one| one.certificate.clone()).collect()
}

type Changes = Vec<(String, Option<(u64, bytes::Bytes)>)>;

/// Rows that differ from what is known; with nothing in them, rows that are gone.
fn changes(rows: &mut Mirror, known: &Rows, update: Update) -> Changes {
    let first = !rows.is_complete();
    let mut keys = rows.apply(update);
    if first {
        // What only the copy on disk knew is no more.
        keys.extend(known.keys().filter(|key| rows.get(key).is_none()).cloned());
    }
    let differs = |key: &String| match (rows.get(key), known.get(key)) {
        (Some(row), Some(known)) => row.mod_revision != known.revision,
        (None, None) => false,
        _ => true,
    };
    let with_row = |key: String| {
        let row = rows.get(&key).map(|row| (row.mod_revision, row.value.clone()));
        (key, row)
    };
    keys.into_iter().filter(differs).map(with_row).collect()
}

fn take_in(tls: &Tls, folder: &Path, known: &mut Rows, changes: Changes) {
    for (key, row) in changes {
        let path = path_of(folder, &key);
        let Some((revision, value)) = row else {
            known.remove(&key);
            // It is gone, or was never there.
            let _ = std::fs::remove_file(path);
            continue;
        };
        if known.len() >= MAX_ROWS && !known.contains_key(&key) {
            tracing::warn!(key, "too many certificates: this one is not served");
            continue;
        }
        let row = serde_json::from_slice::<CertificateRow>(&value).map_err(|error| error.to_string());
        match row.and_then(|row| read(tls, revision, &row).map(|known| (row, known))) {
            Ok((row, one)) => {
                known.insert(key, one);
                if let Err(error) = write(folder, &path, Kept { revision, row }) {
                    tracing::warn!(path = %path.display(), %error, "cannot keep a certificate");
                }
            }
            // What the row held before stays in force.
            Err(error) => tracing::warn!(key, error, "a certificate of the store cannot be served"),
        }
    }
}

fn read(tls: &Tls, revision: u64, row: &CertificateRow) -> Result<Known, String> {
    let pem = format!("{}{}", row.chain_pem, row.key_pem.0);
    let read = Certificate::from_pem(pem.as_bytes(), &tls.provider);
    let mut certificate = read.map_err(|error| godwit_base::telemetry::chain(&error))?;
    certificate.names = vec![row.hostname.to_string()];
    Ok(Known { revision, source: row.source, not_after_ms: row.not_after_ms, certificate })
}

fn answers(tls: &Tls, rows: &Mirror) -> HashMap<String, Arc<rustls::sign::CertifiedKey>> {
    let mut answers = HashMap::new();
    for (key, row) in rows.rows() {
        let Ok(row) = serde_json::from_slice::<ChallengeRow>(&row.value) else {
            tracing::warn!(key, "a challenge is not understood");
            continue;
        };
        if let ChallengeAnswer::TlsAlpn01 { chain_pem, key_pem } = row.answer {
            match challenge(&chain_pem, &key_pem.0, &tls.provider) {
                Ok(answer) => drop(answers.insert(row.hostname.to_string(), answer)),
                Err(error) => tracing::warn!(key, error = godwit_base::telemetry::chain(&error), "a challenge"),
            }
        }
    }
    answers
}

// ---- the copy on disk ------------------------------------------------------------------

/// A revision of another history of the store may be the same: the first word of the store is compared by it alone, and
/// at worst a certificate of before a restore is served until it changes next.
#[derive(serde::Serialize, serde::Deserialize)]
struct Kept {
    revision: u64,
    row: CertificateRow,
}

/// `certificates/NAME/SOURCE` as `NAME@SOURCE.json`: neither part holds what a file's name may not.
fn path_of(folder: &Path, key: &str) -> PathBuf {
    folder.join(format!("{}.json", key.trim_start_matches(keys::CERTIFICATES).replace('/', "@")))
}

fn key_of(path: &Path) -> Option<String> {
    let (name, source) = path.file_name()?.to_str()?.strip_suffix(".json")?.split_once('@')?;
    Some(format!("{}{name}/{source}", keys::CERTIFICATES))
}

fn write(folder: &Path, path: &Path, kept: Kept) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    godwit_base::durable::write(path, &serde_json::to_vec(&kept)?, 0o600)
}

fn kept(tls: &Tls, folder: &Path) -> Rows {
    let mut known = Rows::new();
    // Before the first certificate there is no folder.
    let Ok(entries) = std::fs::read_dir(folder) else { return known };
    for path in entries.flatten().map(|entry| entry.path()).take(MAX_ROWS) {
        let Some(key) = key_of(&path) else { continue };
        let row = std::fs::read(&path).map_err(|error| error.to_string()).and_then(|bytes| {
            let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
            read(tls, kept.revision, &kept.row)
        });
        match row {
            Ok(row) => drop(known.insert(key, row)),
            Err(error) => tracing::warn!(path = %path.display(), error, "a kept certificate cannot be read"),
        }
    }
    known
}
