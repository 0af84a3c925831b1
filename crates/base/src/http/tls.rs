//! TLS as a role serves it and as a client trusts it: PEM files read into what rustls takes. Certificates of clients are
//! not asked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_rustls::ConfigBuilderExt;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {what} from {}: {why}", path.display())]
    File { what: &'static str, path: PathBuf, why: String },
    #[error("the certificate {} and the private key {} cannot be served: {why}", certificate.display(), key.display())]
    Pair { certificate: PathBuf, key: PathBuf, why: String },
    #[error("this system has no certificate authorities ({why}); install ca-certificates, or name a file by --ca-file")]
    NoRoots { why: String },
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |why: String| TlsError::File { what, path: path.to_owned(), why };
    let read = CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))?;
    let found: Vec<_> = read.collect::<Result<_, _>>().map_err(|error| failed(error.to_string()))?;
    if found.is_empty() { Err(failed("it holds no certificate in PEM".into())) } else { Ok(found) }
}

/// A server that shows this chain (its own certificate first).
pub fn serve(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates("the certificate", certificate)?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| TlsError::File {
        what: "the private key",
        path: key.to_owned(),
        why: error.to_string(),
    })?;
    let wrong = |error: rustls::Error| TlsError::Pair {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        why: error.to_string(),
    };
    let builder =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().map_err(wrong)?;
    let mut config = builder.with_no_client_auth().with_single_cert(chain, private).map_err(wrong)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A client that trusts the authorities of this file and no other.
pub fn trust_only(ca_file: &Path) -> Result<ClientConfig, TlsError> {
    let what = "certificate authorities";
    let failed = |why: String| TlsError::File { what, path: ca_file.to_owned(), why };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(what, ca_file)? {
        roots.add(certificate).map_err(|error| failed(error.to_string()))?;
    }
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| failed(error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// A client that trusts what this system trusts.
pub fn trust_system() -> Result<ClientConfig, TlsError> {
    let none = |why: String| TlsError::NoRoots { why };
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| none(error.to_string()))?;
    Ok(builder.with_native_roots().map_err(|error| none(error.to_string()))?.with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TaskGroup;
    use crate::http::client::{CallError, Client, empty};
    use crate::http::server::serve_tls;

    /// An authority's file, and a pair of its making for 127.0.0.1.
    fn pair(folder: &Path, name: &str) -> [PathBuf; 3] {
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = parameters.self_signed(&authority_key).unwrap();
        let issuer = rcgen::Issuer::from_params(&parameters, &authority_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let own =
            rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let files = ["ca", "pem", "key"].map(|kind| folder.join(format!("{name}.{kind}")));
        for (file, text) in files.iter().zip([authority.pem(), own.pem(), key.serialize_pem()]) {
            std::fs::write(file, text).unwrap();
        }
        files
    }

    async fn ask(client: &Client) -> Result<u16, CallError> {
        let wait = std::time::Duration::from_secs(10);
        let answer = client.send_raw("/", http::Request::new(empty()), wait).await?;
        Ok(answer.status().as_u16())
    }

    #[tokio::test]
    async fn a_client_trusts_its_authority_alone_and_a_new_certificate_is_served_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let [first_ca, first, first_key] = pair(folder.path(), "first");
        let [second_ca, second, second_key] = pair(folder.path(), "second");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let config = tokio::sync::watch::Sender::new(serve(&first, &first_key).unwrap());
        let group = TaskGroup::new();
        let router = axum::Router::new().fallback(|| async { "hello" });
        group.spawn(serve_tls(listener, config.subscribe(), router, group.clone()));

        let knows_first = Client::trusting(&url, None, &first_ca).unwrap();
        let knows_second = Client::trusting(&url, None, &second_ca).unwrap();
        assert_eq!(ask(&knows_first).await.unwrap(), 200);
        for stranger in [&knows_second, &Client::tcp(&url, None)] {
            let refused = ask(stranger).await.unwrap_err();
            let said = crate::telemetry::chain(&refused);
            assert!(matches!(refused, CallError::Connect { .. }) && said.contains("certificate"), "{said}");
        }
        // Who speaks plainly to the port is turned away, and harms nobody.
        assert!(ask(&Client::tcp(&url.replace("https", "http"), None)).await.is_err());
        config.send_replace(serve(&second, &second_key).unwrap());
        assert_eq!(ask(&knows_second).await.unwrap(), 200);
        assert!(group.drain(std::time::Duration::from_secs(10)).await);
    }

    #[test]
    fn files_that_cannot_be_served_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let [ca, certificate, key] = pair(folder.path(), "one");
        let [_, _, other_key] = pair(folder.path(), "other");
        let said = |certificate: &Path, key: &Path| serve(certificate, key).err().unwrap().to_string();
        assert!(said(&folder.path().join("none"), &key).contains("none"));
        assert!(said(&key, &key).contains("holds no certificate"));
        assert!(said(&certificate, &certificate).contains("the private key"));
        assert!(said(&certificate, &other_key).contains("cannot be served"));
        assert!(trust_only(&ca).is_ok());
        assert!(trust_only(&key).err().unwrap().to_string().contains("holds no certificate"));
    }
}
