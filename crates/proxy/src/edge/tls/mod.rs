//! TLS from clients: which certificate a handshake gets, and how certificates come and go while connections stand.
//!
//! They are of two kinds: files of the operator's folder (`folder`), and rows of the store (`rows`). A handshake for
//! `acme-tls/1` is an authority's: it gets the certificate of its challenge and nothing else (RFC 8737).

pub(super) mod certificates;
pub mod folder;
mod minted;
pub mod rows;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use godwit_api::config::TlsOptions;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{Acceptor, ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SupportedProtocolVersion};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use certificates::{Certificate, Certificates};

/// A client that has not shaken hands by then is closed.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// No name was asked for, and each certificate here is for names (RFC 8446 section 9.2).
const MISSING_EXTENSION: u8 = 109;
/// No certificate is for this name (RFC 6066 section 3).
const UNRECOGNIZED_NAME: u8 = 112;
/// Ways of shaking hands that differ: each is kept ready.
const MAX_MANNERS: usize = 64;
pub const ALPN_H2: &[u8] = b"h2";
pub const ALPN_HTTP1: &[u8] = b"http/1.1";
/// An authority looks whether this is the name's edge.
pub const ALPN_ACME: &[u8] = b"acme-tls/1";

/// What is served now.
#[derive(Debug, Default)]
struct Live {
    /// The operator's own come before all others.
    folder: RwLock<Arc<Certificates>>,
    rows: RwLock<Arc<Certificates>>,
    /// For names that have no other.
    mint: Option<minted::Mint>,
    /// What authorities are answered, by name.
    challenges: RwLock<HashMap<String, Arc<CertifiedKey>>>,
}

impl ResolvesServerCert for Live {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name()?;
        if hello.alpn().is_some_and(|mut offered| offered.any(|one| one == ALPN_ACME)) {
            let challenges = self.challenges.read().unwrap_or_else(PoisonError::into_inner);
            return challenges.get(&name.to_ascii_lowercase()).cloned();
        }
        let find = |table: &RwLock<Arc<Certificates>>| table.read().unwrap_or_else(PoisonError::into_inner).find(name);
        find(&self.folder).or_else(|| find(&self.rows)).or_else(|| self.mint.as_ref()?.find(name))
    }
}

/// How a port shakes hands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Manner {
    /// Protocols in the order in which they are liked; none: whatever a client offers is passed over.
    pub alpn: Vec<Vec<u8>>,
    pub versions: Versions,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Versions {
    #[default]
    All,
    Only12,
    Only13,
}

static ONLY_12: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS12];
static ONLY_13: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];

impl Manner {
    /// As a Machine's configuration has it.
    pub fn of(options: &TlsOptions) -> Self {
        let alpn = options.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Self { alpn, versions: Versions::named(&options.versions) }
    }

    /// The same for the port that all apps share: it speaks HTTP, and nothing else whatever is asked for.
    pub fn of_https(options: &TlsOptions) -> Self {
        let mut manner = Self::of(options);
        manner.alpn.retain(|name| name == ALPN_H2 || name == ALPN_HTTP1);
        if manner.alpn.is_empty() {
            manner.alpn = vec![ALPN_H2.to_vec(), ALPN_HTTP1.to_vec()];
        }
        manner
    }
}

impl Versions {
    /// As a Machine's configuration names them.
    pub fn named(names: &[String]) -> Self {
        let has = |name: &str| names.iter().any(|one| one.eq_ignore_ascii_case(name));
        match (has("TLSv1.2"), has("TLSv1.3")) {
            (true, false) => Self::Only12,
            (false, true) => Self::Only13,
            _ => Self::All,
        }
    }

    fn supported(self) -> &'static [&'static SupportedProtocolVersion] {
        match self {
            Self::All => rustls::ALL_VERSIONS,
            Self::Only12 => &ONLY_12,
            Self::Only13 => &ONLY_13,
        }
    }
}

pub struct Tls {
    provider: Arc<CryptoProvider>,
    live: Arc<Live>,
    https: Arc<ServerConfig>,
    ticketer: Arc<dyn rustls::server::ProducesTickets>,
    manners: Mutex<HashMap<Manner, Arc<ServerConfig>>>,
}

impl Tls {
    pub fn new(config: &super::EdgeConfig) -> Result<Arc<Self>, crate::Error> {
        let unusable = |why: rustls::Error| crate::Error::config("listen_https", why.to_string());
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mint = config.mint_from.as_deref();
        let mint = mint.map(|path| minted::Mint::new(path, &config.suffixes, provider.clone())).transpose()?;
        let live = Arc::new(Live { mint, ..Live::default() });
        // Resumption without a memory of clients; its keys change by themselves.
        let ticketer = aws_lc_rs::Ticketer::new().map_err(unusable)?;
        let alpn = [ALPN_H2, ALPN_HTTP1, ALPN_ACME].map(<[u8]>::to_vec).into();
        let manner = Manner { alpn, versions: Versions::All };
        let https = configure(&provider, &live, &ticketer, &manner).map_err(unusable)?;
        Ok(Arc::new(Self { provider, live, https, ticketer, manners: Mutex::default() }))
    }

    /// A handshake for HTTPS, for an app that wants it in a manner of its own if there is one.
    pub async fn finish(&self, hello: Hello, manner: Option<Manner>) -> io::Result<TlsStream<TcpStream>> {
        let config = match manner {
            Some(manner) => self.of(&manner).map_err(io::Error::other)?,
            None => self.https.clone(),
        };
        self.shake(hello, config).await
    }

    /// A handshake of a raw port.
    pub async fn handshake_of(&self, manner: &Manner, socket: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let config = self.of(manner).map_err(io::Error::other)?;
        self.shake(Hello::read(socket).await?, config).await
    }

    /// `rustls` would tell a client whose name has no certificate that its access is denied.
    async fn shake(&self, hello: Hello, config: Arc<ServerConfig>) -> io::Result<TlsStream<TcpStream>> {
        let asked = hello.start.client_hello();
        let alert = match asked.server_name() {
            None => Some(MISSING_EXTENSION),
            Some(_) => self.live.resolve(asked).is_none().then_some(UNRECOGNIZED_NAME),
        };
        match alert {
            None => in_time(hello.start.into_stream(config)).await,
            Some(alert) => Err(turn_away(hello.start.io, alert).await),
        }
    }

    fn of(&self, manner: &Manner) -> Result<Arc<ServerConfig>, rustls::Error> {
        let mut manners = self.manners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = manners.get(manner) {
            return Ok(known.clone());
        }
        let made = configure(&self.provider, &self.live, &self.ticketer, manner)?;
        if manners.len() >= MAX_MANNERS {
            manners.clear();
        }
        manners.insert(manner.clone(), made.clone());
        Ok(made)
    }

    fn set_folder(&self, certificates: &[Certificate]) {
        set(&self.live.folder, certificates);
    }

    fn set_rows(&self, certificates: &[Certificate]) {
        set(&self.live.rows, certificates);
    }

    fn set_challenges(&self, challenges: HashMap<String, Arc<CertifiedKey>>) {
        *self.live.challenges.write().unwrap_or_else(PoisonError::into_inner) = challenges;
    }
}

fn set(table: &RwLock<Arc<Certificates>>, certificates: &[Certificate]) {
    let fresh = Certificates::of(certificates);
    tracing::debug!(names = fresh.names(), "certificates");
    *table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
}

fn configure(
    provider: &Arc<CryptoProvider>,
    live: &Arc<Live>,
    ticketer: &Arc<dyn rustls::server::ProducesTickets>,
    manner: &Manner,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(manner.versions.supported())?
        .with_no_client_auth()
        .with_cert_resolver(live.clone());
    config.alpn_protocols = manner.alpn.clone();
    config.ticketer = ticketer.clone();
    Ok(Arc::new(config))
}

/// Says why there will be no handshake: one record with a fatal alert (RFC 8446 sections 5.1 and 6).
async fn turn_away(mut socket: TcpStream, alert: u8) -> io::Error {
    const ALERT: u8 = 21;
    const FATAL: u8 = 2;
    let record = [ALERT, 3, 3, 0, 2, FATAL, alert];
    // A client that does not wait for it is not told.
    let _ = in_time(async {
        socket.write_all(&record).await?;
        socket.shutdown().await
    })
    .await;
    io::Error::new(io::ErrorKind::InvalidInput, "the client asks for a name that has no certificate, or for none")
}

async fn in_time<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let done = tokio::time::timeout(HANDSHAKE_TIMEOUT, step).await;
    done.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// A handshake whose client has said what it wants and is not answered yet.
pub struct Hello {
    start: StartHandshake<TcpStream>,
}

impl Hello {
    pub async fn read(socket: TcpStream) -> io::Result<Self> {
        let start = in_time(LazyConfigAcceptor::new(Acceptor::default(), socket)).await?;
        Ok(Self { start })
    }

    /// Whom it wants, unless it is an authority that looks at the edge itself.
    pub fn name(&self) -> Option<String> {
        let hello = self.start.client_hello();
        let is_authority = hello.alpn().is_some_and(|mut offered| offered.any(|one| one == ALPN_ACME));
        hello.server_name().filter(|_| !is_authority).map(str::to_owned)
    }
}
