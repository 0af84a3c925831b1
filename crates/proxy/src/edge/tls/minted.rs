//! Certificates made on the spot by an authority of one's own, for names under the edge's suffixes that have no other. For
//! development: whoever trusts that authority trusts whoever can read its key.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::Error;

/// Names that are kept; each costs a key.
const MAX_NAMES: usize = 1_000;
/// Before now, for clients whose clock is behind.
const BACKDATED: Duration = Duration::from_secs(24 * 3_600);
/// Clients refuse more than 398 days (CA/Browser Forum Baseline Requirements 6.3.2), some of them from one's own authority too.
const LIFETIME: Duration = Duration::from_secs(90 * 24 * 3_600);
/// With less than that left, one is made anew.
const RENEWED_BEFORE: Duration = Duration::from_secs(30 * 24 * 3_600);

/// One that was made, and until when it is served.
struct Made {
    key: Arc<CertifiedKey>,
    until: SystemTime,
}

pub struct Mint {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    /// Each with its leading dot.
    suffixes: Vec<String>,
    provider: Arc<CryptoProvider>,
    made: Mutex<HashMap<String, Made>>,
}

impl std::fmt::Debug for Mint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mint").field("suffixes", &self.suffixes).finish_non_exhaustive()
    }
}

impl Mint {
    /// Reads the authority: its certificate and its key in one file.
    pub fn new(path: &Path, suffixes: &[String], provider: Arc<CryptoProvider>) -> Result<Self, Error> {
        let pem = std::fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
        let wrong = |why: String| Error::config("mint_from", why);
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| wrong(error.to_string()))?;
        let key = KeyPair::try_from(&key).map_err(|error| wrong(error.to_string()))?;
        let root = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| wrong(error.to_string()))?;
        let issuer = Issuer::from_ca_cert_der(&root, key).map_err(|error| wrong(error.to_string()))?;
        let suffixes = suffixes.iter().map(|suffix| format!(".{suffix}")).collect();
        Ok(Self { issuer, root, suffixes, provider, made: Mutex::default() })
    }

    /// For one label under a suffix, as an app's name is.
    pub fn find(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        self.find_at(name, SystemTime::now())
    }

    fn find_at(&self, name: &str, now: SystemTime) -> Option<Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        let label = self.suffixes.iter().find_map(|suffix| name.strip_suffix(suffix.as_str()))?;
        if label.is_empty() || label.contains('.') {
            return None;
        }
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = made.get(&name).filter(|known| now < known.until) {
            return Some(known.key.clone());
        }
        let fresh =
            self.make(&name, now).inspect_err(|error| tracing::warn!(name, error, "a certificate cannot be made"));
        let fresh = Arc::new(fresh.ok()?);
        if made.len() >= MAX_NAMES {
            made.clear();
        }
        made.insert(name, Made { key: fresh.clone(), until: now + LIFETIME - RENEWED_BEFORE });
        Some(fresh)
    }

    fn make(&self, name: &str, now: SystemTime) -> Result<CertifiedKey, String> {
        let key = KeyPair::generate().map_err(|error| error.to_string())?;
        let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(|error| error.to_string())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + LIFETIME).into();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.issuer).map_err(|error| error.to_string())?;
        let chain = vec![leaf.der().clone(), self.root.clone()];
        let der = PrivateKeyDer::try_from(key.serialize_der())?;
        CertifiedKey::from_der(chain, der, &self.provider).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, IsCa};
    use x509_parser::prelude::{FromDer, X509Certificate};

    #[test]
    fn a_certificate_is_valid_now_for_no_longer_than_clients_take_and_is_made_anew_in_time() {
        let folder = tempfile::TempDir::new().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let path = folder.path().join("authority.pem");
        let authority = params.self_signed(&key).unwrap().pem();
        std::fs::write(&path, format!("{authority}{}", key.serialize_pem())).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mint = Mint::new(&path, &["localhost".to_owned()], provider).unwrap();
        let now = SystemTime::now();
        let valid = |made: &CertifiedKey| {
            let (_, leaf) = X509Certificate::from_der(&made.cert[0]).unwrap();
            (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp())
        };
        let first = mint.find_at("a.localhost", now).unwrap();
        let (from, to) = valid(&first);
        let now_s = i64::try_from(now.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()).unwrap();
        assert!(from <= now_s - 3_600 && now_s + 30 * 86_400 <= to, "{from} {now_s} {to}");
        assert!(to - from <= 398 * 86_400, "{from} {to}");
        let day = Duration::from_secs(86_400);
        assert!(Arc::ptr_eq(&first, &mint.find_at("a.localhost", now + 50 * day).unwrap()));
        let renewed = mint.find_at("a.localhost", now + 61 * day).unwrap();
        assert!(!Arc::ptr_eq(&first, &renewed) && valid(&renewed).1 > to);
    }
}
