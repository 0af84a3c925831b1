//! TLS from clients: which certificate a handshake gets, and how certificates come and go while connections stand.
//!
//! Certificates are files `*.pem` of one folder, each a chain with its key. The folder is looked at again and again; a
//! file that cannot be read leaves what it held before in force.

mod certificates;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use certificates::{Certificate, Certificates};

/// Between two looks at the folder.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Files of the folder, and bytes of each.
const MAX_FILES: usize = 10_000;
const MAX_FILE_BYTES: u64 = 256 << 10;
/// A client that has not shaken hands by then is closed.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
pub const ALPN_H2: &[u8] = b"h2";
pub const ALPN_HTTP1: &[u8] = b"http/1.1";

/// What is served now.
#[derive(Debug, Default)]
struct Live(RwLock<Arc<Certificates>>);

impl ResolvesServerCert for Live {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name()?;
        self.0.read().unwrap_or_else(PoisonError::into_inner).find(name)
    }
}

pub struct Tls {
    folder: PathBuf,
    provider: Arc<CryptoProvider>,
    live: Arc<Live>,
    acceptor: TlsAcceptor,
}

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

pub type Files = BTreeMap<PathBuf, Known>;

impl Tls {
    pub fn new(folder: &Path) -> Result<Arc<Self>, crate::Error> {
        let unusable = |why: rustls::Error| crate::Error::config("certificates_dir", why.to_string());
        let provider = Arc::new(aws_lc_rs::default_provider());
        let live = Arc::new(Live::default());
        let mut config = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_cert_resolver(live.clone());
        config.alpn_protocols = vec![ALPN_H2.to_vec(), ALPN_HTTP1.to_vec()];
        // Resumption without a memory of clients; its keys change by themselves.
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(unusable)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Ok(Arc::new(Self { folder: folder.to_owned(), provider, live, acceptor }))
    }

    pub async fn handshake(&self, socket: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(socket)).await;
        shaken.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// Keeps what is served in step with the folder, for ever.
    pub async fn follow(self: Arc<Self>, mut files: Files) {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            files = self.look_again(files).await;
        }
    }

    /// What is there when an edge starts.
    pub async fn first_look(self: &Arc<Self>) -> Files {
        self.look_again(Files::new()).await
    }

    async fn look_again(self: &Arc<Self>, mut files: Files) -> Files {
        let tls = self.clone();
        let looked = tokio::task::spawn_blocking(move || {
            tls.look(&mut files);
            files
        });
        // A look that panics is begun anew from nothing; what is served stays.
        looked.await.unwrap_or_default()
    }

    fn look(&self, files: &mut Files) {
        let found = match list(&self.folder) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(folder = %self.folder.display(), %error, "cannot list certificates");
                return;
            }
        };
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
            let certificate = self.read(&path).or(before);
            files.insert(path, Known { stamp, certificate });
        }
        if changed {
            let certificates = Certificates::of(files.values().filter_map(|known| known.certificate.as_ref()));
            tracing::info!(names = certificates.names(), "certificates");
            *self.live.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certificates);
        }
    }

    fn read(&self, path: &Path) -> Option<Certificate> {
        let read = std::fs::read(path).map_err(|error| error.to_string()).and_then(|pem| {
            let read = Certificate::from_pem(&pem, &self.provider);
            read.map_err(|error| godwit_base::telemetry::chain(&error))
        });
        read.inspect_err(|error| tracing::warn!(path = %path.display(), error, "a certificate cannot be served")).ok()
    }
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
