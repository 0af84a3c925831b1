//! The API over TLS: the pair that is served, read anew on SIGHUP and whenever its files have changed. A pair that is wrong
//! changes nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use godwit_base::http::tls;
use godwit_base::telemetry::{Spell, chain};
use rustls::ServerConfig;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::StartError;

/// Between two looks at the files: whoever renews them need not know of control.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

type Stamp = [Option<SystemTime>; 2];

impl Files {
    pub fn load(&self) -> Result<Arc<ServerConfig>, StartError> {
        tls::serve(&self.certificate, &self.key).map_err(StartError::Tls)
    }

    fn stamp(&self) -> Stamp {
        [&self.certificate, &self.key].map(|path| std::fs::metadata(path).and_then(|found| found.modified()).ok())
    }
}

/// SIGHUP means "read what you read at the start", here of the pair alone; without one it means nothing, and control does
/// not end by it.
pub async fn follow(pair: Option<(watch::Sender<Arc<ServerConfig>>, Files)>) {
    let Ok(mut hangups) = signal(SignalKind::hangup()) else { return };
    let mut stamp = pair.as_ref().map(|(_, files)| files.stamp());
    let wrong = Spell::default();
    loop {
        let asked = tokio::select! {
            _ = hangups.recv() => true,
            () = tokio::time::sleep(LOOK_INTERVAL) => false,
        };
        let Some((served, files)) = &pair else { continue };
        let now = Some(files.stamp());
        if !asked && now == stamp {
            continue;
        }
        match files.load() {
            Ok(config) => {
                (stamp, _) = (now, wrong.ends());
                served.send_replace(config);
                tracing::info!(certificate = %files.certificate.display(), "the API's certificate was read anew");
            }
            // The two files are seldom replaced in one moment: what does not fit yet is looked at again.
            Err(error) if asked || wrong.begins() => {
                tracing::warn!(error = chain(&error), "the API's certificate stays as it was");
            }
            Err(_) => {}
        }
    }
}
