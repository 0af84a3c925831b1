//! TLS for NBD: both sides show a certificate, TLS 1.2 or 1.3, from PEM texts. It must not know where they are kept.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::{NbdError, NbdResult};

/// One side's certificate chain and key, and whom it trusts, each in PEM.
#[derive(Clone)]
pub struct Identity {
    pub certificates_pem: String,
    pub key_pem: String,
    pub trusted_pem: String,
}

fn bad<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> NbdError {
    move |error| NbdError::Tls(format!("{what}: {error}"))
}

impl Identity {
    fn certificates(pem: &str) -> NbdResult<Vec<CertificateDer<'static>>> {
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(bad("a certificate"))
    }
    fn key(&self) -> NbdResult<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(bad("the key"))
    }
    fn roots(&self) -> NbdResult<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for certificate in Self::certificates(&self.trusted_pem)? {
            roots.add(certificate).map_err(bad("a trusted certificate"))?;
        }
        Ok(roots)
    }
    /// A server that accepts only clients with a certificate from whom it trusts.
    pub fn server(&self) -> NbdResult<Arc<ServerConfig>> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), Arc::clone(&provider))
            .build()
            .map_err(bad("whom to trust"))?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(bad("versions"))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(Self::certificates(&self.certificates_pem)?, self.key()?)
            .map_err(bad("the certificate"))?;
        Ok(Arc::new(config))
    }
    pub fn client(&self) -> NbdResult<Arc<ClientConfig>> {
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(bad("versions"))?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(Self::certificates(&self.certificates_pem)?, self.key()?)
            .map_err(bad("the certificate"))?;
        Ok(Arc::new(config))
    }
}
