//! NBD against itself and against peers that misbehave: what is refused before TLS, wrong tokens, lengths out of
//! bounds, bytes without sense.

use std::fs::File;
use std::io::{Cursor, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use godwit_volume::nbd::NbdError;
use godwit_volume::nbd::client::{self, Address, ClientTls, NbdClient, Target};
use godwit_volume::nbd::export::{Export, Exports, FileExport, Named, Peer, Tickets};
use godwit_volume::nbd::negotiate::{Chosen, Contexts, Negotiation, TlsState, greet};
use godwit_volume::nbd::server::{Listener, NbdServer, Security};
use godwit_volume::nbd::tls::Identity;
use godwit_volume::nbd::{transmit, wire};
use godwit_volume::source::remote::NbdSource;
use proptest::prelude::*;

use crate::support::{assert_same_file, eventually, image, open_clone, pattern};

const MIB: u64 = 1 << 20;

pub struct Certificates {
    pub server: Identity,
    pub client: Identity,
}

/// An authority, a server `localhost` and a client, made for one test.
pub fn certificates() -> Certificates {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).expect("an authority").pem();
    let issuer = Issuer::new(params, key);
    let issue = |name: &str| {
        let key = KeyPair::generate().expect("a key");
        let names = vec![name.to_owned(), "127.0.0.1".to_owned()];
        let certificate =
            CertificateParams::new(names).expect("names").signed_by(&key, &issuer).expect("a certificate");
        Identity { certificates_pem: certificate.pem(), key_pem: key.serialize_pem(), trusted_pem: authority.clone() }
    };
    Certificates { server: issue("localhost"), client: issue("client") }
}

pub fn loopback() -> Listener {
    Listener::Tcp(TcpListener::bind("127.0.0.1:0").expect("a port"))
}

pub fn file_export(path: &std::path::Path, read_only: bool) -> Arc<dyn Export> {
    let file = File::options().read(true).write(!read_only).open(path).expect("the file");
    Arc::new(FileExport::new(file, read_only).expect("an export"))
}

fn target(server: &NbdServer, export: &str) -> Target {
    Target::new(Address::Tcp(server.tcp_addr().expect("tcp")), export)
}

fn tls(identity: &Identity) -> Option<ClientTls> {
    Some(ClientTls { config: identity.client().expect("tls"), server_name: "localhost".to_owned() })
}

/// A volume at one epoch, over TLS, for whoever shows the token first.
struct Exported {
    folder: tempfile::TempDir,
    certificates: Certificates,
    server: NbdServer,
}

fn exported(size: u64, data: impl Fn(u64) -> bool) -> Exported {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("source.raw");
    image(&path, size, data);
    let certificates = certificates();
    let tickets = Tickets::default();
    tickets.add("vol_1@1.7", "s3cret", file_export(&path, true));
    let security = Security::Tls(certificates.server.server().expect("tls"));
    let server = NbdServer::start(loopback(), security, Arc::new(tickets), 16).expect("a server");
    Exported { folder, certificates, server }
}

#[test]
fn a_clone_hydrates_over_tls_and_the_wire_carries_little_more_than_the_data() {
    let scene = exported(48 * MIB, |block| block % 4 == 0);
    let mut target = target(&scene.server, "vol_1@1.7+s3cret");
    target.tls = tls(&scene.certificates.client);
    let device = open_clone(scene.folder.path(), 48 * MIB, Some(Arc::new(NbdSource::new(target))), |_| {});
    eventually("complete", || device.is_complete());
    let status = device.status();
    assert_eq!(status.hydrated_bytes, 12 * MIB);
    assert!(status.wire_bytes >= 12 * MIB && status.wire_bytes < 12 * MIB * 105 / 100, "{status:?}");
    assert_same_file(&scene.folder.path().join("source.raw"), &scene.folder.path().join("volume.raw"));
}

/// The server of the source is started again while a clone reads from it.
#[test]
fn a_source_that_comes_back_is_read_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("source.raw");
    image(&path, 16 * MIB, |_| true);
    let named = || Arc::new(Named([("v".to_owned(), file_export(&path, true))].into()));
    let socket = folder.path().join("nbd.sock");
    let listen = || {
        let _ = std::fs::remove_file(&socket);
        Listener::Unix(std::os::unix::net::UnixListener::bind(&socket).expect("a socket"))
    };
    let mut server = NbdServer::start(listen(), Security::Plain, named(), 16).expect("a server");
    let source = NbdSource::new(Target::new(Address::Unix(socket.clone()), "v"));
    let device = open_clone(folder.path(), 16 * MIB, Some(Arc::new(source)), |config| {
        config.limits.cap_bytes_per_s = 0;
    });
    let mut buf = [0; 4096];
    device.read(0, &mut buf).expect("a read");
    server.stop();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| device.read(9 * MIB, &mut [0; 4096]));
        eventually("the loss is told", || device.status().source_lost_ms.is_some());
        let _server = NbdServer::start(listen(), Security::Plain, named(), 16).expect("a server");
        reader.join().expect("ends").expect("reads on");
    });
}

#[test]
fn names_and_tokens_open_only_what_they_should() {
    let scene = exported(MIB, |_| true);
    let connect = |export: &str, identity: &Identity| {
        let mut target = target(&scene.server, export);
        target.tls = tls(identity);
        NbdClient::connect(&target)
    };
    let ours = &scene.certificates.client;
    for wrong in ["vol_1@1.7", "vol_1@1.7+", "vol_1@1.7+s3cre", "vol_1@1.8+s3cret", "vol_10@1.7+s3cret", ""] {
        let error = connect(wrong, ours).err().expect("refused");
        assert!(matches!(error, NbdError::Refused { .. }), "{wrong}: {error}");
    }
    let first = connect("vol_1@1.7+s3cret", ours).expect("the first who shows it");
    assert_eq!(first.facts().flags & wire::export_flag::READ_ONLY, wire::export_flag::READ_ONLY);
    connect("vol_1@1.7+s3cret", ours).expect("on a second connection too");
    // The server's own certificate is of the same authority, and yet somebody else.
    assert!(connect("vol_1@1.7+s3cret", &scene.certificates.server).is_err(), "nobody else may use the token");
    let strangers = certificates();
    let stranger = Identity { trusted_pem: ours.trusted_pem.clone(), ..strangers.client };
    assert!(connect("vol_1@1.7+s3cret", &stranger).is_err(), "a certificate of another authority");
    assert!(NbdClient::connect(&target(&scene.server, "vol_1@1.7+s3cret")).is_err(), "no TLS");
}

/// Speaks raw bytes to the server.
fn raw(server: &NbdServer) -> TcpStream {
    let mut socket = TcpStream::connect(server.tcp_addr().expect("tcp")).expect("connects");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    client::greet(&mut socket).expect("greets");
    socket
}

fn option_reply(socket: &mut impl Read) -> Option<u32> {
    let mut header = [0; wire::OPTION_REPLY_HEADER_BYTES];
    socket.read_exact(&mut header).ok()?;
    let reply = wire::decode_option_reply(&header).ok()?;
    socket.read_exact(&mut vec![0; reply.len as usize]).ok()?;
    Some(reply.kind)
}

fn go_data(name: &str) -> Vec<u8> {
    let mut data = Vec::new();
    wire::encode_text(name, &mut data);
    data.extend(0u16.to_be_bytes());
    data
}

#[test]
fn before_tls_nothing_is_answered_and_after_starttls_no_plaintext_counts() {
    let scene = exported(MIB, |_| true);
    let go = go_data("vol_1@1.7+s3cret");
    let mut socket = raw(&scene.server);
    for (option, data) in [
        (wire::option::GO, &go[..]),
        (wire::option::INFO, &go),
        (wire::option::LIST, &[]),
        (wire::option::STRUCTURED_REPLY, &[]),
        (wire::option::SET_META_CONTEXT, &go),
        (77, b"anything"),
    ] {
        socket.write_all(&wire::encode_option(option, data)).expect("sent");
        assert_eq!(option_reply(&mut socket), Some(wire::reply::ERR_TLS_REQD), "option {option}");
    }
    // STARTTLS and, in the same packet, a GO in the clear, as an attacker on the path would inject it.
    let mut both = wire::encode_option(wire::option::STARTTLS, &[]);
    both.extend(wire::encode_option(wire::option::GO, &go));
    socket.write_all(&both).expect("sent");
    assert_eq!(option_reply(&mut socket), Some(wire::reply::ACK));
    assert_eq!(option_reply(&mut socket), None, "the injected option is not answered");
    // The connection is over, not merely silent.
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest);
    eventually("closed", || scene.server.connections() == 0);

    let mut socket = raw(&scene.server);
    socket.write_all(&wire::encode_option(wire::option::EXPORT_NAME, b"vol_1@1.7+s3cret")).expect("sent");
    assert_eq!(socket.read(&mut [0; 1]).unwrap_or(0), 0, "EXPORT_NAME before TLS ends the connection");
}

fn plain(folder: &std::path::Path, max_connections: usize) -> NbdServer {
    let path = folder.join("plain.raw");
    image(&path, 4 * MIB, |block| block < 32);
    let named =
        Named([("rw".to_owned(), file_export(&path, false)), ("ro".to_owned(), file_export(&path, true))].into());
    NbdServer::start(loopback(), Security::Plain, Arc::new(named), max_connections).expect("a server")
}

#[test]
fn every_command_does_what_it_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = plain(folder.path(), 8);
    let mut client = NbdClient::connect(&target(&server, "rw")).expect("connects");
    let mut buf = vec![0; 3 * MIB as usize];
    client.read(MIB, &mut buf).expect("data and holes");
    assert_eq!(buf[..65536], pattern(17, 65536));
    assert!(buf[MIB as usize..].iter().all(|byte| *byte == 0));
    assert!(client.received_bytes() < MIB + 4096, "holes cross the wire as lengths");
    client.write(MIB + 10, b"godwit", true).expect("a write");
    client.trim(0, 65536).expect("a trim");
    client.write_zeroes(65536, 65536, true).expect("zeroes");
    client.flush().expect("a flush");
    client.read(0, &mut buf[..131072]).expect("a read");
    assert!(buf[..131072].iter().all(|byte| *byte == 0));
    client.read(MIB + 10, &mut buf[..6]).expect("a read");
    assert_eq!(&buf[..6], b"godwit");
    let extents = client.extents(0, 4 << 20).expect("extents");
    assert_eq!(extents.iter().map(|extent| extent.len).sum::<u64>(), 4 * MIB);
    assert!(extents[0].zero && extents.iter().any(|extent| !extent.zero));
    assert_eq!(client.hashes(0, MIB).expect("answered"), None, "what changes has no manifest");
    for error in
        [client.read(4 * MIB - 10, &mut buf[..11]), client.write(4 * MIB, b"x", false), client.trim(u64::MAX - 1, 10)]
    {
        assert!(matches!(error, Err(NbdError::Failed(_))), "{error:?}");
    }
    client.read(4 * MIB - 10, &mut buf[..10]).expect("the connection lives on");
    client.disconnect().expect("says good-bye");

    let mut client = NbdClient::connect(&target(&server, "ro")).expect("connects");
    assert!(matches!(client.write(0, b"x", false), Err(NbdError::Failed(1))));
    let hashes = client.hashes(0, 4 * MIB).expect("answered").expect("a manifest");
    assert_eq!(hashes.len(), 64);
    assert_eq!(hashes[20], *blake3::hash(&pattern(21, 65536)).as_bytes());
}

#[test]
fn connections_are_bounded_and_free_themselves() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = plain(folder.path(), 2);
    let first = NbdClient::connect(&target(&server, "ro")).expect("the first");
    let _second = NbdClient::connect(&target(&server, "ro")).expect("the second");
    assert!(NbdClient::connect(&target(&server, "ro")).is_err(), "the third is refused");
    eventually("counted", || server.refused() == 1);
    first.disconnect().expect("leaves");
    eventually("one is free", || server.connections() == 1);
    NbdClient::connect(&target(&server, "ro")).expect("the next");
}

#[test]
fn a_length_out_of_bounds_ends_the_connection() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = plain(folder.path(), 8);
    // An option of 4 GiB.
    let mut socket = raw(&server);
    let mut header = wire::encode_option(wire::option::GO, &[]);
    header[12..].copy_from_slice(&u32::MAX.to_be_bytes());
    socket.write_all(&header).expect("sent");
    assert_eq!(socket.read(&mut [0; 1]).unwrap_or(0), 0);
    // A write of 32 MiB and one byte.
    let mut socket = raw(&server);
    socket.write_all(&wire::encode_option(wire::option::GO, &go_data("rw"))).expect("sent");
    while option_reply(&mut socket) != Some(wire::reply::ACK) {}
    let command = wire::command::WRITE;
    let request = wire::Request { flags: 0, command, cookie: 1, offset: 0, len: wire::MAX_PAYLOAD_BYTES + 1 };
    socket.write_all(&request.encode()).expect("sent");
    assert_eq!(socket.read(&mut [0; 1]).unwrap_or(0), 0);
    // More options than anybody needs.
    let mut socket = raw(&server);
    for _ in 0..wire::MAX_OPTIONS {
        socket.write_all(&wire::encode_option(99, &[])).expect("sent");
        assert_eq!(option_reply(&mut socket), Some(wire::reply::ERR_UNSUP));
    }
    assert_eq!(option_reply(&mut socket), None);
}

/// A peer that is a string of bytes; what we say to it is forgotten.
struct Script(Cursor<Vec<u8>>);

impl Read for Script {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buf)
    }
}
impl Write for Script {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        Ok(buf.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Options and requests that are nearly right, with noise between them.
fn client_bytes() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![Just("rw".to_owned()), ".{0,8}"];
    let option = (0u32..12, name, proptest::collection::vec(any::<u8>(), 0..24), any::<bool>()).prop_map(
        |(option, name, noise, clean)| {
            let mut data = go_data(&name);
            if !clean {
                data.extend(noise);
            }
            wire::encode_option(option, if matches!(option, 3 | 5 | 8) && clean { &[] } else { &data })
        },
    );
    let offset = prop_oneof![0u64..70_000, any::<u64>()];
    let len = prop_oneof![0u32..70_000, any::<u32>()];
    let command = prop_oneof![0u16..9, Just(wire::command::HASHES), any::<u16>()];
    let request = (0u16..16, command, any::<u64>(), offset, len).prop_map(|(flags, command, cookie, offset, len)| {
        wire::Request { flags, command, cookie, offset, len }.encode().to_vec()
    });
    let noise = proptest::collection::vec(any::<u8>(), 0..64);
    let part = prop_oneof![4 => option, 4 => request, 1 => noise];
    proptest::collection::vec(part, 0..12).prop_map(|parts| {
        let mut bytes = 3u32.to_be_bytes().to_vec();
        bytes.extend(parts.concat());
        bytes
    })
}

fn server_bytes() -> impl Strategy<Value = Vec<u8>> {
    let chunk = (0u16..2, prop_oneof![0u16..8, Just(0x4742u16), any::<u16>()], 0u64..6, 0u32..80).prop_flat_map(
        |(flags, kind, cookie, len)| {
            (
                Just(wire::ChunkHeader { flags, kind, cookie, len }.encode().to_vec()),
                proptest::collection::vec(prop_oneof![3 => Just(0u8), 1 => any::<u8>()], len as usize),
            )
                .prop_map(|(header, payload)| [header, payload].concat())
        },
    );
    let reply = (0u32..12, 0u32..6, proptest::collection::vec(any::<u8>(), 0..24))
        .prop_map(|(option, kind, data)| wire::encode_option_reply(option, kind, &data));
    let simple = (0u32..3, 0u64..6).prop_map(|(error, cookie)| wire::encode_simple_reply(error, cookie).to_vec());
    let noise = proptest::collection::vec(any::<u8>(), 0..64);
    proptest::collection::vec(prop_oneof![4 => chunk, 2 => reply, 2 => simple, 1 => noise], 0..12)
        .prop_map(|parts| parts.concat())
}

/// The replies that bring a client to the transmission phase, with all contexts.
fn agreed() -> Vec<u8> {
    let context = |id: u32, name: &str| [&id.to_be_bytes()[..], name.as_bytes()].concat();
    let facts = [&0u16.to_be_bytes()[..], &65536u64.to_be_bytes(), &1u16.to_be_bytes()].concat();
    [
        wire::encode_option_reply(wire::option::STRUCTURED_REPLY, wire::reply::ACK, &[]),
        wire::encode_option_reply(
            wire::option::SET_META_CONTEXT,
            wire::reply::META_CONTEXT,
            &context(0, wire::CONTEXT_ALLOCATION),
        ),
        wire::encode_option_reply(
            wire::option::SET_META_CONTEXT,
            wire::reply::META_CONTEXT,
            &context(9, wire::CONTEXT_BLAKE3),
        ),
        wire::encode_option_reply(wire::option::SET_META_CONTEXT, wire::reply::ACK, &[]),
        wire::encode_option_reply(wire::option::GO, wire::reply::INFO, &facts),
        wire::encode_option_reply(wire::option::GO, wire::reply::ACK, &[]),
    ]
    .concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// The server takes any bytes for what they are: no panic, no endless loop, no more memory than the bounds.
    #[test]
    fn no_client_breaks_the_server(bytes in client_bytes(), needed in any::<bool>()) {
        struct Zeros;
        impl Export for Zeros {
            fn size_bytes(&self) -> u64 { 65536 }
            fn is_read_only(&self) -> bool { false }
            fn has_manifest(&self) -> bool { true }
            fn read(&self, _: u64, buf: &mut [u8]) -> godwit_volume::Result<()> { buf.fill(1); Ok(()) }
            fn write(&self, offset: u64, buf: &[u8]) -> godwit_volume::Result<()> {
                assert!(offset + buf.len() as u64 <= 65536);
                Ok(())
            }
            fn write_zeroes(&self, offset: u64, len: u64, _: bool) -> godwit_volume::Result<()> {
                assert!(offset + len <= 65536);
                Ok(())
            }
            fn discard(&self, offset: u64, len: u64) -> godwit_volume::Result<()> {
                assert!(offset + len <= 65536);
                Ok(())
            }
            fn flush(&self) -> godwit_volume::Result<()> { Ok(()) }
            fn extents(&self, _: u64, len: u64) -> godwit_volume::Result<Vec<godwit_volume::source::Extent>> {
                Ok(vec![godwit_volume::source::Extent { len, zero: false }])
            }
        }
        let export: Arc<dyn Export> = Arc::new(Zeros);
        let named = Named([("rw".to_owned(), Arc::clone(&export))].into());
        let mut script = Script(Cursor::new(bytes.clone()));
        if let Ok(no_zeroes) = greet(&mut script) {
            let tls = if needed { TlsState::Needed } else { TlsState::Off };
            let negotiation = Negotiation { exports: &named, peer: Peer::default(), tls, no_zeroes };
            let outcome = negotiation.run(&mut script);
            prop_assert!(!needed || !matches!(outcome, Ok(godwit_volume::nbd::negotiate::Outcome::Go(_))), "no GO before TLS");
            if let Ok(godwit_volume::nbd::negotiate::Outcome::Go(chosen)) = outcome {
                let _ = transmit::serve(&mut script, &chosen);
            }
        }
        let contexts = Contexts { allocation: true, hashes: true };
        let chosen = Chosen { export: named.open("rw", &Peer::default()).expect("there"), structured: true, contexts };
        let _ = transmit::serve(&mut Script(Cursor::new(bytes[4..].to_vec())), &chosen);
    }

    /// Nor does any server break the client; and a read that it calls good was filled to the last byte.
    #[test]
    fn no_server_breaks_the_client(bytes in server_bytes(), clean in any::<bool>()) {
        let script = if clean { [agreed(), bytes].concat() } else { bytes };
        if let Ok(mut client) = NbdClient::negotiate(Script(Cursor::new(script)), "rw") {
            let mut buf = vec![0xEE; 64];
            let mut hashes = Vec::new();
            let _ = client.read_with_hashes(0, &mut buf, &mut hashes);
            let _ = client.extents(0, 65536);
            let _ = client.hashes(0, 65536);
            let _ = client.flush();
        }
    }
}

/// A reply with a gap in it is an error, never zeros.
#[test]
fn a_read_with_a_gap_is_refused() {
    let data = |offset: u64, done: bool| {
        let flags = u16::from(done);
        let header = wire::ChunkHeader { flags, kind: wire::chunk::OFFSET_DATA, cookie: 1, len: 8 + 16 };
        [&header.encode()[..], &offset.to_be_bytes(), &[7; 16]].concat()
    };
    let try_read = |parts: &[Vec<u8>]| {
        let script = Script(Cursor::new([agreed(), parts.concat()].concat()));
        let mut client = NbdClient::negotiate(script, "rw").expect("agrees");
        client.read(0, &mut [0; 32])
    };
    try_read(&[data(16, false), data(0, true)]).expect("in any order");
    for parts in [vec![data(0, true)], vec![data(0, false), data(0, true)], vec![data(0, false), data(24, true)]] {
        assert!(matches!(try_read(&parts), Err(NbdError::Protocol(_))));
    }
}
