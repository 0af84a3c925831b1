//! Host names that apps have of their own, from the store's rows: which app a name means, and what an authority that asks
//! over HTTP is answered (RFC 8555 section 8.3). A copy of the names stands on disk for an edge that starts while the
//! store is away.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use godwit_api::hostname::{ChallengeAnswer, ChallengeRow, HostnameRow};
use godwit_api::ids::AppName;
use godwit_api::keys;
use godwit_store::{Mirror, Store, Update, follow};
use tokio::sync::watch;

const CHALLENGE_PATH: &str = "/.well-known/acme-challenge/";
/// A request for a name that nobody knows waits so long for the first word of the store.
const FIRST_TIMEOUT: Duration = Duration::from_secs(2);
/// Changes are gathered this long before they are written to disk.
const GATHER: Duration = Duration::from_secs(1);

pub struct Hostnames {
    /// By name; a wildcard as `*.parent`.
    apps: RwLock<HashMap<String, AppName>>,
    /// Token and answer, by name.
    challenges: RwLock<HashMap<String, (String, String)>>,
    /// Turns true with the first names, from the store or from disk.
    known: watch::Sender<bool>,
    path: PathBuf,
}

impl Hostnames {
    /// With what stands on disk.
    pub fn new(path: PathBuf) -> Arc<Self> {
        let kept: Option<HashMap<String, AppName>> =
            godwit_base::durable::read(&path).ok().flatten().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Arc::new(Self {
            known: watch::Sender::new(kept.is_some()),
            apps: RwLock::new(kept.unwrap_or_default()),
            challenges: RwLock::default(),
            path,
        })
    }

    /// The app of a host name, in any case.
    pub async fn app(&self, host: &str) -> Option<AppName> {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        if let Some(app) = self.find(&host) {
            return Some(app);
        }
        if *self.known.borrow() {
            return None;
        }
        let mut known = self.known.subscribe();
        let _ = tokio::time::timeout(FIRST_TIMEOUT, known.wait_for(|known| *known)).await;
        self.find(&host)
    }

    fn find(&self, host: &str) -> Option<AppName> {
        let apps = self.apps.read().unwrap_or_else(PoisonError::into_inner);
        let wildcard = || apps.get(&format!("*.{}", host.split_once('.')?.1));
        apps.get(host).or_else(wildcard).cloned()
    }

    /// What is answered at `path` of `host`, if it is a challenge that is under way. Others are the app's own.
    pub fn challenge<'a>(&self, host: impl FnOnce() -> Option<&'a str>, path: &str) -> Option<String> {
        let token = path.strip_prefix(CHALLENGE_PATH)?;
        let host = host()?;
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let challenges = self.challenges.read().unwrap_or_else(PoisonError::into_inner);
        let (known, answer) = challenges.get(&host)?;
        (known == token).then(|| answer.clone())
    }

    /// Keeps both in step with the store, for ever.
    pub async fn follow(self: Arc<Self>, store: Arc<dyn Store>) {
        let mut names = follow(store.clone(), keys::HOSTNAMES);
        let mut challenges = follow(store, keys::CHALLENGES);
        let (mut name_rows, mut challenge_rows) = (Mirror::new(), Mirror::new());
        // When what changed is to be kept: counted from the first change on, so that no stream of updates puts it off.
        let mut due: Option<tokio::time::Instant> = None;
        loop {
            let told = tokio::select! {
                told = names.next() => told.map(|update| {
                    if self.take_names(&mut name_rows, update) {
                        due = due.or_else(|| Some(tokio::time::Instant::now() + GATHER));
                    }
                }),
                told = challenges.next() => told.map(|update| self.take_challenges(&mut challenge_rows, update)),
                () = tokio::time::sleep_until(due.unwrap_or_else(tokio::time::Instant::now)), if due.is_some() => {
                    self.clone().keep().await;
                    due = None;
                    Ok(())
                }
            };
            if let Err(error) = told {
                tracing::warn!(%error, "the store does not show this edge its host names");
            }
        }
    }

    fn take_names(&self, rows: &mut Mirror, update: Update) -> bool {
        let first = !rows.is_complete();
        let changed = rows.apply(update);
        if changed.is_empty() && !first {
            return false;
        }
        let mut apps = self.apps.write().unwrap_or_else(PoisonError::into_inner);
        if first {
            // What only the copy on disk knew is no more.
            apps.retain(|name, _| rows.get(&format!("{}{name}", keys::HOSTNAMES)).is_some());
        }
        for key in changed {
            let Some(name) = key.strip_prefix(keys::HOSTNAMES) else { continue };
            match rows.get(&key).map(|row| serde_json::from_slice::<HostnameRow>(&row.value)) {
                Some(Ok(row)) => drop(apps.insert(name.to_owned(), row.app)),
                // The last good row stays in force.
                Some(Err(error)) => tracing::warn!(key, %error, "a host name is not understood"),
                None => drop(apps.remove(name)),
            }
        }
        drop(apps);
        self.known.send_if_modified(|known| !std::mem::replace(known, true));
        true
    }

    fn take_challenges(&self, rows: &mut Mirror, update: Update) {
        rows.apply(update);
        let read = |(_, row): (&str, &godwit_store::Versioned<bytes::Bytes>)| {
            let row: ChallengeRow = serde_json::from_slice(&row.value).ok()?;
            match row.answer {
                ChallengeAnswer::Http01 { token, key_authorization } => {
                    Some((row.hostname.to_string(), (token, key_authorization)))
                }
                ChallengeAnswer::TlsAlpn01 { .. } => None,
            }
        };
        let answers = rows.rows().filter_map(read).collect();
        *self.challenges.write().unwrap_or_else(PoisonError::into_inner) = answers;
    }

    async fn keep(self: Arc<Self>) {
        let written = tokio::task::spawn_blocking(move || {
            let apps = self.apps.read().unwrap_or_else(PoisonError::into_inner).clone();
            let bytes = serde_json::to_vec(&apps).unwrap_or_default();
            if let Err(error) = godwit_base::durable::write(&self.path, &bytes, 0o600) {
                tracing::warn!(path = %self.path.display(), %error, "cannot keep the host names");
            }
        });
        // A panic there has said so itself.
        let _ = written.await;
    }
}
