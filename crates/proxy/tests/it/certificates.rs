//! Host names and certificates from the store: served by name, changed under load, kept for when the store is away, and
//! what certificate authorities are answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use godwit_api::hostname::{CertificateRow, ChallengeAnswer, ChallengeRow, Hostname, HostnameRow, KeyPem, Source};
use godwit_api::keys;
use godwit_store::{Op, Store, Txn, put_json};
use rustls::pki_types::CertificateDer;

use crate::client::{Browser, PATIENCE, metric, until};
use crate::failures::Switched;
use crate::fleet::{Fleet, Setup, http_service, one_running, start_edge};
use crate::tls::{Http1, certify, connected, handshake, trust};

pub fn name(text: &str) -> Hostname {
    Hostname::parse(text).unwrap()
}

struct Made {
    chain_pem: String,
    key_pem: KeyPem,
    der: CertificateDer<'static>,
}

fn made(names: &[&str]) -> Made {
    let made =
        rcgen::generate_simple_self_signed(names.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>()).unwrap();
    let key_pem = KeyPem(made.signing_key.serialize_pem());
    Made { chain_pem: made.cert.pem(), key_pem, der: made.cert.der().clone() }
}

fn row(hostname: &str, source: Source, made: &Made, not_after_ms: u64) -> Op {
    let hostname = name(hostname);
    let (chain_pem, key_pem) = (made.chain_pem.clone(), made.key_pem.clone());
    let key = keys::certificate(&hostname, source);
    put_json(key, &CertificateRow { hostname, source, not_after_ms, chain_pem, key_pem }).unwrap()
}

/// The host name, for the fleet's one app.
pub fn named(fleet: &Fleet, hostname: &str) -> Op {
    let hostname = name(hostname);
    let key = keys::hostname(&hostname);
    let row = HostnameRow {
        hostname,
        app: fleet.app.clone(),
        created_at_ms: 1,
        updated_at_ms: 1,
        acme: None,
        custom: None,
        issued: None,
        check: None,
    };
    put_json(key, &row).unwrap()
}

/// Writes a host name of the app with a certificate for it, and answers what a client must trust.
pub async fn add(fleet: &Fleet, hostname: &str) -> CertificateDer<'static> {
    let made = made(&[hostname]);
    let ops = [named(fleet, hostname), row(hostname, Source::Custom, &made, u64::MAX)];
    fleet.store.txn(Txn::of(ops)).await.unwrap();
    made.der
}

/// As control makes it: with the critical extension that only an authority understands.
fn challenge_of(hostname: &str) -> Made {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![hostname.to_owned()]).unwrap();
    params.custom_extensions = vec![rcgen::CustomExtension::new_acme_identifier(&[7; 32])];
    let certificate = params.self_signed(&key).unwrap();
    Made { chain_pem: certificate.pem(), key_pem: KeyPem(key.serialize_pem()), der: certificate.der().clone() }
}

/// Looks at nothing but whether it gets this very certificate.
#[derive(Debug)]
struct Exactly(CertificateDer<'static>, Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Exactly {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        let same = *leaf == self.0;
        same.then(rustls::client::danger::ServerCertVerified::assertion)
            .ok_or_else(|| rustls::Error::General("another certificate".into()))
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.1.signature_verification_algorithms.supported_schemes()
    }
}

fn authority(expects: &CertificateDer<'static>) -> Arc<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(Exactly(expects.clone(), provider.clone()));
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    Arc::new(config)
}

async fn put(fleet: &Fleet, op: Op) {
    fleet.store.txn(Txn::of([op])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_name_of_the_store_has_its_certificate_and_leads_to_its_app() {
    let (fleet, _host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let edge = &fleet.edge;
    let exact = add(&fleet, "shop.example.org").await;
    let wildcard = add(&fleet, "*.example.net").await;
    for (root, host) in [(&exact, "shop.example.org"), (&wildcard, "any.example.net")] {
        let stream = connected(edge.https, &trust(&[root], &[]), host).await;
        let mut browser = Http1::over(stream).await;
        assert_eq!(browser.get_at(host, "/").await.text(), "1", "{host}");
        until("plain HTTP finds it too", async || {
            (Browser::new(edge.addr, &host.to_ascii_uppercase()).get("/").await.text() == "1").then_some(())
        })
        .await;
    }
    for nobody in ["example.net", "a.b.example.net", "example.org", "x.shop.example.org"] {
        assert_eq!(Browser::new(edge.addr, nobody).get("/").await.code, 404, "{nobody}");
    }
    // A row is for its host name alone, whatever else its certificate holds: that may be another app's.
    let greedy = made(&["mine.example.org", "shop.example.org", "other.example.org"]);
    put(&fleet, row("mine.example.org", Source::Custom, &greedy, u64::MAX)).await;
    let greedy = trust(&[&greedy.der], &[]);
    connected(edge.https, &greedy, "mine.example.org").await;
    assert!(handshake(edge.https, &greedy, "other.example.org").await.is_err());
    assert!(handshake(edge.https, &greedy, "shop.example.org").await.is_err());
    // The operator's folder comes first.
    let own = certify(&edge.certificates, "own.pem", &["shop.example.org"]);
    connected(edge.https, &trust(&[&own], &[]), "shop.example.org").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_row_is_served_and_drops_no_connection() {
    let (fleet, _host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let https = fleet.edge.https;
    let host = "shop.example.org";
    let before = add(&fleet, host).await;
    let before = trust(&[&before], &[]);
    let mut standing = Http1::over(connected(https, &before, host).await).await;
    assert_eq!(standing.get_at(host, "/").await.text(), "1");
    // A row that cannot be served changes nothing.
    let key = keys::certificate(&name(host), Source::Custom);
    put(&fleet, Op::put(key.clone(), "nothing")).await;
    let issued = made(&[host]);
    put(&fleet, row(host, Source::Acme, &issued, u64::MAX)).await;
    let issued = trust(&[&issued.der], &[]);
    connected(https, &before, host).await;
    assert!(handshake(https, &issued, host).await.is_err(), "the owner's own comes first");
    let after = made(&[host]);
    put(&fleet, row(host, Source::Custom, &after, u64::MAX)).await;
    let after = trust(&[&after.der], &[]);
    connected(https, &after, host).await;
    assert_eq!(standing.get_at(host, "/").await.text(), "1", "the old connection stands");
    // An own one that has expired gives way; so does one that is taken away.
    let expired = made(&[host]);
    put(&fleet, row(host, Source::Custom, &expired, 1)).await;
    connected(https, &issued, host).await;
    put(&fleet, row(host, Source::Custom, &expired, u64::MAX)).await;
    connected(https, &trust(&[&expired.der], &[]), host).await;
    put(&fleet, Op::delete(key)).await;
    connected(https, &issued, host).await;
    fleet.store.txn(Txn::of([Op::delete(keys::certificate(&name(host), Source::Acme))])).await.unwrap();
    until("none is served", async || handshake(https, &issued, host).await.is_err().then_some(())).await;
    assert_eq!(standing.get_at(host, "/").await.text(), "1", "and still the old connection stands");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_starts_without_the_store_has_its_names_and_certificates() {
    let (fleet, _host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let away = Arc::new(AtomicBool::new(false));
    let store = Arc::new(Switched { store: fleet.store.clone(), away: away.clone() });
    let folder = tempfile::TempDir::new().unwrap();
    let edge = start_edge(folder.path(), store.clone(), &Setup::default()).await;
    let host = "shop.example.org";
    let root = add(&fleet, host).await;
    let root = trust(&[&root], &[]);
    connected(edge.https, &root, host).await;
    until("the name leads to the app", async || {
        (Browser::new(edge.addr, host).get("/").await.code == 200).then_some(())
    })
    .await;
    let kept = folder.path().join("routes/certificates/shop.example.org@custom.json");
    until("they are on disk", async || {
        (kept.exists() && folder.path().join("routes/hostnames.json").exists()).then_some(())
    })
    .await;
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&kept).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    away.store(true, Ordering::SeqCst);
    fleet.store.close().await;
    edge.role.stop().await;

    let edge = start_edge(folder.path(), store, &Setup::default()).await;
    let mut browser = Http1::over(connected(edge.https, &root, host).await).await;
    assert_eq!(browser.get_at(host, "/").await.text(), "1");
    assert_eq!(Browser::new(edge.addr, "other.example.org").get("/").await.code, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_is_answered_for_the_name_that_it_asks_for_and_no_other() {
    let (fleet, _host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let edge = &fleet.edge;
    let host = "new.example.org";
    let answer = ChallengeAnswer::Http01 { token: "tok-1".into(), key_authorization: "tok-1.thumb".into() };
    let row = |answer| ChallengeRow { hostname: name(host), until_ms: u64::MAX, answer };
    let key = keys::challenge(&name(host));
    put(&fleet, put_json(key.clone(), &row(answer)).unwrap()).await;
    let path = "/.well-known/acme-challenge/tok-1";
    // The name has no app and no Machine yet.
    let browser = Browser::new(edge.addr, host);
    let answered =
        until("it is answered", async || Some(browser.get(path).await).filter(|answer| answer.code == 200)).await;
    assert_eq!(answered.text(), "tok-1.thumb");
    assert_eq!(browser.get("/.well-known/acme-challenge/tok-2").await.code, 404);
    // An app that answers challenges of its own gets them.
    let own = Browser::new(edge.addr, "web.localhost").get("/.well-known/acme-challenge/tok-1").await;
    assert_ne!(own.text(), "tok-1.thumb");

    let challenge = challenge_of(host);
    let served = add(&fleet, host).await;
    let (chain_pem, key_pem) = (challenge.chain_pem.clone(), challenge.key_pem.clone());
    put(&fleet, put_json(key.clone(), &row(ChallengeAnswer::TlsAlpn01 { chain_pem, key_pem })).unwrap()).await;
    let authority = authority(&challenge.der);
    let mut stream = connected(edge.https, &authority, host).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"acme-tls/1"[..]));
    let mut said = [0; 16];
    let read = tokio::io::AsyncReadExt::read(&mut stream, &mut said);
    assert_eq!(tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap_or(0), 0, "nothing is said on it");
    assert!(metric(edge.admin, "godwit_edge_handshakes_total{protocol=\"acme-tls/1\"} ").await >= 1.0);
    // Everybody else gets the name's own, an authority that asks for another name none.
    connected(edge.https, &trust(&[&served], &[b"h2"]), host).await;
    assert!(handshake(edge.https, &trust(&[&challenge.der], &[b"h2"]), host).await.is_err());
    assert!(handshake(edge.https, &authority, "web.localhost").await.is_err());
    put(&fleet, Op::delete(key)).await;
    until("it is over", async || handshake(edge.https, &authority, host).await.is_err().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_of_ones_own_makes_certificates_for_the_apps_of_a_suffix_only() {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
    let folder = tempfile::TempDir::new().unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap();
    let path = folder.path().join("authority.pem");
    std::fs::write(&path, format!("{}{}", ca.pem(), key.serialize_pem())).unwrap();
    let setup = Setup { mint_from: Some(path), ..Setup::default() };
    let (fleet, _host, _) = one_running(&setup, |port| vec![http_service(port)]).await;
    let edge = &fleet.edge;
    let config = trust(&[ca.der()], &[]);
    let mut browser = Http1::over(connected(edge.https, &config, "web.localhost").await).await;
    assert_eq!(browser.get_at("web.localhost", "/").await.text(), "1");
    let other = handshake(edge.https, &config, "other.localhost").await.unwrap();
    assert_eq!(other.get_ref().1.peer_certificates().unwrap().len(), 2);
    for stranger in ["a.web.localhost", "localhost", "www.example.com"] {
        assert!(handshake(edge.https, &config, stranger).await.is_err(), "{stranger}");
    }
    // One of the operator's comes before.
    let own = certify(&edge.certificates, "own.pem", &["web.localhost"]);
    connected(edge.https, &trust(&[&own], &[]), "web.localhost").await;
}
