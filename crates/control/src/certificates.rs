//! Can this chain and key be served for this name? Pure: the moment is handed in, and each refusal names its field.

use godwit_api::ApiError;
use godwit_api::hostname::{CertificateInfo, Hostname, KeyPem};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Certificates of one chain.
pub const CHAIN_MAX: usize = 10;
pub const CHAIN_MAX_BYTES: usize = 64 << 10;
pub const KEY_MAX_BYTES: usize = 16 << 10;

/// A pair that can be served.
#[derive(Debug)]
pub struct Pair {
    pub info: CertificateInfo,
    /// What was found in the caller's text, written anew: nothing else that stood there is kept.
    pub chain_pem: String,
    pub key_pem: KeyPem,
}

fn wrong(field: &str, why: impl std::fmt::Display) -> ApiError {
    ApiError::unprocessable(format!("{field}: {why}"))
}

/// Judges what the owner of a name brings, or what an authority has issued.
pub fn inspect(hostname: &Hostname, fullchain: &str, private_key: &str, now_ms: u64) -> Result<Pair, ApiError> {
    let chain = chain(fullchain)?;
    let (_, leaf) = X509Certificate::from_der(&chain[0])
        .map_err(|error| wrong("fullchain", format!("its first certificate cannot be read: {error}")))?;
    let key = key(private_key)?;
    let info = info(&leaf, &chain[0], now_ms)?;
    if info.not_after_ms <= now_ms {
        let at = godwit_base::clock::rfc3339(info.not_after_ms);
        return Err(wrong("fullchain", format!("its certificate expired at {at}: renew it first")));
    }
    if info.not_before_ms > now_ms {
        let at = godwit_base::clock::rfc3339(info.not_before_ms);
        return Err(wrong("fullchain", format!("its certificate is not valid before {at}")));
    }
    if !covers(&info.names, hostname) {
        return Err(wrong(
            "hostname",
            format!("the certificate is for {}, and not for {hostname}", spoken(&info.names)),
        ));
    }
    links(&chain)?;
    signatures(&chain, now_ms)?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => wrong("private_key", "it is not the key of the certificate"),
        _ => wrong("private_key", "it is of no kind that can be served: RSA from 2048 bits, ECDSA or Ed25519"),
    })?;
    let chain_pem = chain.iter().map(|one| pem("CERTIFICATE", one)).collect();
    let label = match &key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    Ok(Pair { info, chain_pem, key_pem: KeyPem(pem(label, key.secret_der())) })
}

/// Whether a certificate with these names may be served for `hostname` (RFC 9525 section 6.3: `*` is one whole label).
/// A wildcard is covered by the same wildcard alone.
pub fn covers(names: &[String], hostname: &Hostname) -> bool {
    let wildcard = hostname.as_str().split_once('.').map(|(_, parent)| format!("*.{parent}"));
    names.iter().any(|name| *name == hostname.as_str() || Some(name) == wildcard.as_ref())
}

fn spoken(names: &[String]) -> String {
    const NAMED: usize = 5;
    match names.len() {
        0 => "no name of the DNS".to_owned(),
        count if count > NAMED => format!("{} and {} more", names[..NAMED].join(", "), count - NAMED),
        _ => names.join(", "),
    }
}

fn chain(fullchain: &str) -> Result<Vec<CertificateDer<'static>>, ApiError> {
    if fullchain.trim().is_empty() {
        return Err(wrong("fullchain", "it is missing: the certificate and those that vouch for it, in PEM"));
    }
    if fullchain.len() > CHAIN_MAX_BYTES {
        return Err(wrong("fullchain", format!("more than {CHAIN_MAX_BYTES} bytes")));
    }
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(fullchain.as_bytes()).collect();
    let chain = read.map_err(|error| wrong("fullchain", format!("it is not PEM: {error}")))?;
    match chain.len() {
        0 => Err(wrong("fullchain", "it holds no certificate")),
        count if count > CHAIN_MAX => Err(wrong("fullchain", format!("more than {CHAIN_MAX} certificates"))),
        _ => Ok(chain),
    }
}

fn key(private_key: &str) -> Result<PrivateKeyDer<'static>, ApiError> {
    if private_key.len() > KEY_MAX_BYTES {
        return Err(wrong("private_key", format!("more than {KEY_MAX_BYTES} bytes")));
    }
    if private_key.contains("ENCRYPTED") {
        return Err(wrong("private_key", "it is encrypted: decrypt it first (`openssl pkey`)"));
    }
    // The cause may quote what was read.
    PrivateKeyDer::from_pem_slice(private_key.as_bytes())
        .map_err(|_| wrong("private_key", "it is not a private key in PEM (PKCS #8, SEC1 or PKCS #1)"))
}

fn info(leaf: &X509Certificate<'_>, der: &[u8], now_ms: u64) -> Result<CertificateInfo, ApiError> {
    let parsed = EndEntityCert::try_from(&CertificateDer::from(der))
        .map(|cert| cert.valid_dns_names().map(str::to_ascii_lowercase).collect())
        .map_err(|error| wrong("fullchain", format!("its first certificate is none of a server: {error}")))?;
    let millis = |moment: x509_parser::time::ASN1Time| u64::try_from(moment.timestamp()).unwrap_or(0) * 1_000;
    let key_type = match leaf.public_key().parsed() {
        Ok(x509_parser::public_key::PublicKey::RSA(_)) => "rsa",
        Ok(x509_parser::public_key::PublicKey::EC(_)) => "ecdsa",
        _ => "ed25519",
    };
    Ok(CertificateInfo {
        names: parsed,
        issuer: issuer(leaf),
        serial: leaf.raw_serial_as_string().replace(':', ""),
        not_before_ms: millis(leaf.validity().not_before),
        not_after_ms: millis(leaf.validity().not_after),
        key_type: key_type.to_owned(),
        sha256: hex::encode(Sha256::digest(der)),
        self_signed: leaf.subject().as_raw() == leaf.issuer().as_raw(),
        stored_at_ms: now_ms,
    })
}

/// The issuer as people know it.
fn issuer(leaf: &X509Certificate<'_>) -> String {
    let first = |mut names: Box<dyn Iterator<Item = Option<String>> + '_>| names.next().flatten();
    let issuer = leaf.issuer();
    let common = first(Box::new(issuer.iter_common_name().map(|name| name.as_str().ok().map(str::to_owned))));
    let organization = first(Box::new(issuer.iter_organization().map(|name| name.as_str().ok().map(str::to_owned))));
    match (organization, common) {
        (Some(organization), Some(common)) => format!("{organization}, {common}"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => issuer.to_string(),
    }
}

/// Each certificate is vouched for by the next one: the order in which TLS 1.2 wants them, and clients still do.
fn links(chain: &[CertificateDer<'static>]) -> Result<(), ApiError> {
    for (number, two) in chain.windows(2).enumerate() {
        let read = |der| X509Certificate::from_der(der).map(|(_, cert)| cert);
        let (Ok(one), Ok(next)) = (read(&two[0]), read(&two[1])) else {
            return Err(wrong("fullchain", format!("certificate {} cannot be read", number + 2)));
        };
        if one.issuer().as_raw() != next.subject().as_raw() {
            return Err(wrong(
                "fullchain",
                format!(
                    "certificate {} was issued by {}, and the next is of {}: put the leaf first and each issuer after it",
                    number + 1,
                    one.issuer(),
                    next.subject()
                ),
            ));
        }
    }
    Ok(())
}

/// The signatures from the last of the chain down to the leaf. Of a lone leaf nothing can be said.
fn signatures(chain: &[CertificateDer<'static>], now_ms: u64) -> Result<(), ApiError> {
    let [leaf, between @ .., last] = chain else { return Ok(()) };
    let bad =
        |error: webpki::Error| wrong("fullchain", format!("its certificates do not vouch for each other: {error}"));
    let anchor = webpki::anchor_from_trusted_cert(last).map_err(bad)?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_millis(now_ms));
    let usage = KeyUsage::server_auth();
    let verified = EndEntityCert::try_from(leaf).and_then(|leaf| {
        leaf.verify_for_usage(
            provider.signature_verification_algorithms.all,
            &[anchor],
            between,
            now,
            usage,
            None,
            None,
        )
        .map(drop)
    });
    verified.map_err(bad)
}

/// RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    // Base 64 is ASCII: every cut is between characters.
    for start in (0..text.len()).step_by(64) {
        pem.push_str(&text[start..text.len().min(start + 64)]);
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;

    struct Made {
        chain: String,
        key: String,
        ca: String,
    }

    /// A leaf under an authority of its own.
    fn made(names: &[&str], from_s: i64, until_s: i64) -> Made {
        let at = |s| time::OffsetDateTime::from_unix_timestamp(NOW_MS as i64 / 1_000 + s).unwrap();
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(DnType::CommonName, "An authority");
        (ca.not_before, ca.not_after) = (at(-1_000_000), at(1_000_000));
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate().unwrap();
        let mut leaf = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        (leaf.not_before, leaf.not_after) = (at(from_s), at(until_s));
        let leaf = leaf.signed_by(&key, &issuer).unwrap().pem();
        Made { chain: format!("{leaf}{ca_pem}"), key: key.serialize_pem(), ca: ca_pem }
    }

    fn name(text: &str) -> Hostname {
        Hostname::parse(text).unwrap()
    }

    #[track_caller]
    fn refused(hostname: &str, chain: &str, key: &str, words: &str) {
        let error = inspect(&name(hostname), chain, key, NOW_MS).unwrap_err();
        assert!(error.code == 422 && error.error.contains(words), "{} does not say {words:?}", error.error);
        assert!(!error.error.contains("PRIVATE"), "{}", error.error);
    }

    #[test]
    fn a_pair_that_can_be_served_is_told_of() {
        let made = made(&["www.example.com", "*.Example.com"], -10, 1_000);
        let noise = format!("subject: someone\n{}", made.chain);
        let pair = inspect(&name("www.example.com"), &noise, &made.key, NOW_MS).unwrap();
        assert_eq!(pair.info.names, ["www.example.com", "*.example.com"]);
        assert_eq!((pair.info.issuer.as_str(), pair.info.key_type.as_str()), ("An authority", "ecdsa"));
        assert_eq!(pair.info.not_after_ms, NOW_MS + 1_000_000);
        assert!(!pair.info.self_signed && !pair.chain_pem.contains("subject"));
        // What is stored can be read again.
        let again = inspect(&name("*.example.com"), &pair.chain_pem, &pair.key_pem.0, NOW_MS).unwrap();
        assert_eq!(again.info, pair.info);
        assert!(inspect(&name("api.example.com"), &made.chain, &made.key, NOW_MS).is_ok());
    }

    #[test]
    fn each_fault_of_a_pair_is_named() {
        let good = made(&["a.example"], -10, 1_000);
        let other = made(&["a.example"], -10, 1_000);
        refused("b.example", &good.chain, &good.key, "is for a.example, and not for b.example");
        refused("x.a.example", &good.chain, &good.key, "hostname: ");
        refused("a.example", &good.chain, &other.key, "private_key: it is not the key");
        refused("a.example", &good.chain, "", "private_key: it is not a private key");
        refused("a.example", &good.chain, "-----BEGIN ENCRYPTED PRIVATE KEY-----", "decrypt it first");
        refused("a.example", "", &good.key, "fullchain: it is missing");
        refused("a.example", "x", &good.key, "holds no certificate");
        refused("a.example", "-----BEGIN CERTIFICATE-----\n?", &good.key, "fullchain: ");
        refused("a.example", &good.ca.repeat(11), &good.key, "more than 10");
        let late = made(&["a.example"], -1_000, -10);
        refused("a.example", &late.chain, &late.key, "expired at");
        let early = made(&["a.example"], 10, 1_000);
        refused("a.example", &early.chain, &early.key, "not valid before");
        // An authority of the same name that did not sign it.
        let leaf = &good.chain[..good.chain.len() - good.ca.len()];
        refused("a.example", &format!("{leaf}{}", other.ca), &good.key, "do not vouch");
        refused("a.example", &format!("{leaf}{leaf}"), &good.key, "leaf first");
        assert!(inspect(&name("a.example"), leaf, &good.key, NOW_MS).is_ok(), "a lone leaf may be all there is");
    }
}
