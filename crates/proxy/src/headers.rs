//! What is taken from and added to the heads that pass: hop-by-hop headers and our own names go, what users know of
//! the platform comes. Pure.
//!
//! RFC 9110 section 7.6.1 (connection options), 7.6.3 (Via); the `Fly-*` names are the platform's.

use std::net::IpAddr;
use std::sync::Arc;

use godwit_api::door::header as ours;
use http::Method;
use http::header::{CONNECTION, DATE, HOST, HeaderMap, HeaderName, HeaderValue, VIA};

use crate::h1::names::classify;

pub const FLY_CLIENT_IP: HeaderName = HeaderName::from_static("fly-client-ip");
pub const FLY_FORWARDED_PORT: HeaderName = HeaderName::from_static("fly-forwarded-port");
pub const FLY_REGION: HeaderName = HeaderName::from_static("fly-region");
pub const FLY_REQUEST_ID: HeaderName = HeaderName::from_static("fly-request-id");
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");

/// Names that a Connection header must not take out of a message: without them it would mean something else.
const NOT_OPTIONS: [&str; 5] = ["host", "content-length", "authorization", "cookie", "content-type"];

const OUR_PREFIX: &str = "godwit-";

/// Takes out of a head whatever is not meant for the other end: what concerns one connection only, with what Connection
/// names, what only the platform says, and what becomes one of these behind us (`h1::names`).
pub fn strip(headers: &mut HeaderMap) {
    strip_options(headers);
    take_out(headers, |name| !classify(name.as_bytes()).is_passed());
}

/// Takes out every name that belongs to edge and door, also those that no version knows yet.
pub fn strip_ours(headers: &mut HeaderMap) {
    debug_assert!(ours::ALL.iter().all(|name| name.starts_with(OUR_PREFIX)));
    take_out(headers, |name| name.starts_with(OUR_PREFIX));
}

/// Most heads have none of what goes: one look at each name is all that they cost.
fn take_out(headers: &mut HeaderMap, goes: impl Fn(&str) -> bool) {
    if !headers.keys().any(|name| goes(name.as_str())) {
        return;
    }
    let names: Vec<HeaderName> = headers.keys().filter(|name| goes(name.as_str())).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// What Connection names.
fn strip_options(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|text| text.split(','))
            .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
            .filter(|name| !NOT_OPTIONS.contains(&name.as_str()))
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
}

/// What an edge adds to a request, with what names the Machine to its door: room for it is made once.
pub const ADDED: usize = 14;

/// A value that stands in one message alone: HTTP/2 does not keep it in its table (RFC 7541 section 6.2.3), where it would
/// push out those that come again.
pub fn never_again(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

/// Values that are the same for every request of a listener, made once.
#[derive(Debug, Clone)]
pub struct Stamp {
    pub region: HeaderValue,
    pub proto: HeaderValue,
    pub port: HeaderValue,
    pub via: HeaderValue,
}

impl Stamp {
    /// `via`: the client's protocol and our name (RFC 9110 section 7.6.3).
    pub fn new(region: &str, proto: &'static str, via: &'static str, port: u16) -> Self {
        Self {
            // Regions are checked when the configuration is read; a value that cannot stand in a header stays empty.
            region: HeaderValue::from_str(region).unwrap_or(HeaderValue::from_static("")),
            proto: HeaderValue::from_static(proto),
            port: HeaderValue::from(port),
            via: HeaderValue::from_static(via),
        }
    }
}

/// Who is at the other end of a connection, and how requests are told.
#[derive(Debug, Clone)]
pub struct Client {
    ip: HeaderValue,
    /// Whom it shook hands with, over TLS.
    server_name: Option<Arc<str>>,
}

impl Client {
    pub fn new(ip: IpAddr) -> Self {
        // Digits, dots, colons: always a valid value.
        let ip = HeaderValue::from_str(&ip.to_canonical().to_string()).unwrap_or(HeaderValue::from_static(""));
        Self { ip, server_name: None }
    }

    /// The same over TLS.
    pub fn shaken(ip: IpAddr, server_name: Option<&str>) -> Self {
        Self { server_name: server_name.map(Arc::from), ..Self::new(ip) }
    }

    pub fn server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    /// Its address.
    pub fn as_str(&self) -> &str {
        self.ip.to_str().unwrap_or("")
    }
}

/// What a Machine gets to know about its client. What the client said itself is stripped already.
pub fn stamp_request(headers: &mut HeaderMap, stamp: &Stamp, client: &Client, request_id: &HeaderValue) {
    headers.insert(X_FORWARDED_FOR, client.ip.clone());
    headers.insert(FLY_CLIENT_IP, client.ip.clone());
    headers.insert(FLY_FORWARDED_PORT, stamp.port.clone());
    headers.insert(X_FORWARDED_PORT, stamp.port.clone());
    headers.insert(X_FORWARDED_PROTO, stamp.proto.clone());
    headers.insert(FLY_REGION, stamp.region.clone());
    headers.insert(FLY_REQUEST_ID, request_id.clone());
    headers.append(VIA, stamp.via.clone());
}

/// What a client gets to know about its answer. `now` is the Date of an answer that came without one.
pub fn stamp_answer(headers: &mut HeaderMap, request_id: &HeaderValue, now: impl FnOnce() -> HeaderValue) {
    headers.insert(FLY_REQUEST_ID, request_id.clone());
    // Machines speak HTTP/1.1.
    headers.append(VIA, HeaderValue::from_static("1.1 godwit"));
    // Whoever has a clock adds what is missing (RFC 9110 section 6.6.1).
    headers.entry(DATE).or_insert_with(now);
}

/// Methods that a second time does no harm (RFC 9110 section 9.2.2).
pub fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
}

/// The Host header's name without its port, or nothing if there is not exactly one.
pub fn host_of(headers: &HeaderMap) -> Option<&str> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next()?.to_str().ok()?;
    if hosts.next().is_some() {
        return None;
    }
    Some(without_port(host))
}

/// `name:port` → `name`; `[addr]:port` → `[addr]`.
pub fn without_port(host: &str) -> &str {
    if host.starts_with('[') {
        return host.find(']').map_or(host, |end| &host[..=end]);
    }
    host.split_once(':').map_or(host, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn what_connection_names_goes_but_never_what_frames_the_message() {
        let mut headers = map(&[
            ("connection", "close, X-Secret, content-length, host"),
            ("x-secret", "1"),
            ("content-length", "3"),
            ("host", "a"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("accept", "*/*"),
        ]);
        strip(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "content-length", "host"]);
    }

    #[test]
    fn nothing_from_outside_speaks_for_the_platform() {
        let mut headers = map(&[
            ("godwit-machine", "m"),
            ("godwit-new-name", "m"),
            ("fly-client-ip", "6.6.6.6"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-ssl", "on"),
            ("x_forwarded_host", "a"),
            ("x_forwarded_for", "6.6.6.6"),
            ("fly-region", "mars"),
        ]);
        strip(&mut headers);
        let stamp = Stamp::new("fra", "http", "1.1 godwit", 80);
        let id = HeaderValue::from_static("id");
        stamp_request(&mut headers, &stamp, &Client::new("::ffff:10.0.0.9".parse().unwrap()), &id);
        assert!(!headers.keys().any(|name| name.as_str().starts_with("godwit-")));
        assert_eq!(headers["fly-client-ip"], "10.0.0.9");
        assert_eq!(headers["x-forwarded-for"], "10.0.0.9");
        assert_eq!(headers["fly-region"], "fra");
        assert_eq!(headers["x-forwarded-port"], "80");
        assert!(!headers.contains_key("x-forwarded-ssl"));
        assert!(headers.contains_key("x_forwarded_host") && !headers.contains_key("x_forwarded_for"));
    }

    #[test]
    fn a_host_is_read_without_its_port() {
        assert_eq!(host_of(&map(&[("host", "a.localhost:8080")])), Some("a.localhost"));
        assert_eq!(host_of(&map(&[("host", "[::1]:8080")])), Some("[::1]"));
        assert_eq!(host_of(&map(&[("host", "a"), ("host", "b")])), None);
        assert_eq!(host_of(&map(&[])), None);
    }
}
