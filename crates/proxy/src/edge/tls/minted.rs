//! Certificates made on the spot by an authority of one's own, for names under the edge's suffixes that have no other. For
//! development: whoever trusts that authority trusts whoever can read its key.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::Error;

/// Names that are kept; each costs a key.
const MAX_NAMES: usize = 1_000;

pub struct Mint {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    /// Each with its leading dot.
    suffixes: Vec<String>,
    provider: Arc<CryptoProvider>,
    made: Mutex<HashMap<String, Arc<CertifiedKey>>>,
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
        let name = name.to_ascii_lowercase();
        let label = self.suffixes.iter().find_map(|suffix| name.strip_suffix(suffix.as_str()))?;
        if label.is_empty() || label.contains('.') {
            return None;
        }
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = made.get(&name) {
            return Some(known.clone());
        }
        let fresh = self.make(&name).inspect_err(|error| tracing::warn!(name, error, "a certificate cannot be made"));
        let fresh = Arc::new(fresh.ok()?);
        if made.len() >= MAX_NAMES {
            made.clear();
        }
        made.insert(name, fresh.clone());
        Some(fresh)
    }

    fn make(&self, name: &str) -> Result<CertifiedKey, String> {
        let key = KeyPair::generate().map_err(|error| error.to_string())?;
        let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(|error| error.to_string())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.issuer).map_err(|error| error.to_string())?;
        let chain = vec![leaf.der().clone(), self.root.clone()];
        let der = PrivateKeyDer::try_from(key.serialize_der())?;
        CertifiedKey::from_der(chain, der, &self.provider).map_err(|error| error.to_string())
    }
}
