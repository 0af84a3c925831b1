//! Certificates by name, as the server name of a handshake asks for them.
//!
//! RFC 6066 section 3 (SNI), RFC 9525 section 6.3 (a wildcard stands for one whole label).

use std::collections::HashMap;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// Why a certificate is not served.
#[derive(Debug, thiserror::Error)]
pub enum BadCertificate {
    #[error("it is not PEM")]
    Pem(#[source] rustls::pki_types::pem::Error),
    #[error("it holds no certificate")]
    Empty,
    #[error("its certificate cannot be read")]
    Certificate(#[source] webpki::Error),
    #[error("its key does not fit")]
    Key(#[source] rustls::Error),
    #[error("it is for no name")]
    Nameless,
}

/// A chain with its key, and the names that it is for.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// In lower case; one that begins with `*.` stands for any one label.
    pub names: Vec<String>,
    key: Arc<CertifiedKey>,
}

impl Certificate {
    /// Reads a chain, leaf first, and a key from one text.
    pub fn from_pem(pem: &[u8], provider: &CryptoProvider) -> Result<Self, BadCertificate> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let chain = chain.map_err(BadCertificate::Pem)?;
        let leaf = chain.first().ok_or(BadCertificate::Empty)?;
        let parsed = webpki::EndEntityCert::try_from(leaf).map_err(BadCertificate::Certificate)?;
        let names: Vec<String> = parsed.valid_dns_names().map(str::to_ascii_lowercase).collect();
        if names.is_empty() {
            return Err(BadCertificate::Nameless);
        }
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(BadCertificate::Pem)?;
        let key = CertifiedKey::from_der(chain, key, provider).map_err(BadCertificate::Key)?;
        Ok(Self { names, key: Arc::new(key) })
    }
}

/// The certificate of a challenge. Its critical extension is nobody's but the authority's (RFC 8737 section 3), so that
/// what judges other certificates would refuse it.
pub fn challenge(
    chain_pem: &str,
    key_pem: &str,
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, BadCertificate> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain_pem.as_bytes()).collect();
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(BadCertificate::Pem)?;
    let key = provider.key_provider.load_private_key(key).map_err(BadCertificate::Key)?;
    Ok(Arc::new(CertifiedKey::new(chain.map_err(BadCertificate::Pem)?, key)))
}

/// All that can be served.
#[derive(Debug, Default)]
pub struct Certificates {
    by_name: HashMap<String, Arc<CertifiedKey>>,
}

impl Certificates {
    /// Of several for one name the last is served.
    pub fn of<'c>(all: impl IntoIterator<Item = &'c Certificate>) -> Self {
        let mut by_name = HashMap::new();
        for certificate in all {
            for name in &certificate.names {
                by_name.insert(name.clone(), certificate.key.clone());
            }
        }
        Self { by_name }
    }

    pub fn names(&self) -> usize {
        self.by_name.len()
    }

    /// The one for this very name, or a wildcard's.
    pub fn find(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        let exact = self.by_name.get(&name);
        let found = exact.or_else(|| {
            let (_, parent) = name.split_once('.')?;
            self.by_name.get(&format!("*.{parent}"))
        });
        found.cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider() -> CryptoProvider {
        rustls::crypto::aws_lc_rs::default_provider()
    }

    fn certificate(names: &[&str]) -> Certificate {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let pem = format!("{}{}", made.cert.pem(), made.signing_key.serialize_pem());
        Certificate::from_pem(pem.as_bytes(), &provider()).unwrap()
    }

    #[test]
    fn the_name_itself_comes_before_a_wildcard_which_stands_for_one_label() {
        let all = [certificate(&["*.example.com", "example.com"]), certificate(&["www.Example.com"])];
        let table = Certificates::of(&all);
        let which = |name: &str| {
            let found = table.find(name)?;
            all.iter().position(|one| Arc::ptr_eq(&one.key, &found))
        };
        assert_eq!(which("www.example.com"), Some(1));
        assert_eq!(which("WWW.EXAMPLE.COM"), Some(1));
        assert_eq!(which("api.example.com"), Some(0));
        assert_eq!(which("example.com"), Some(0));
        for nobody in ["a.b.example.com", "com", "example.org", "", "*.com"] {
            assert_eq!(which(nobody), None, "{nobody}");
        }
    }

    #[test]
    fn what_cannot_be_served_is_said() {
        let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
        let read = |pem: String| Certificate::from_pem(pem.as_bytes(), &provider()).unwrap_err();
        assert!(matches!(read(String::new()), BadCertificate::Empty));
        assert!(matches!(read(made.cert.pem()), BadCertificate::Pem(_)), "no key");
        let strange = format!("{}{}", made.cert.pem(), other.signing_key.serialize_pem());
        assert!(matches!(read(strange), BadCertificate::Key(_)));
    }
}
