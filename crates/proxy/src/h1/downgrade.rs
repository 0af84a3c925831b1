//! A head of HTTP/2 before it is written as one of HTTP/1.1: the same rules, since the same Machine reads it.
//!
//! HTTP/2 frames bodies by itself, so a length, an encoding or a line end that its head smuggles in does no harm
//! there, and all harm after the downgrade (RFC 9113 sections 8.2.2, 8.3.1 and 10.3). The `http` crate lets no
//! control character into names and values; what it lets pass is judged here.

use http::header::{CONTENT_LENGTH, HOST, HeaderMap, TE};
use http::{Method, Uri};

use super::grammar::is_target_char;
use super::head::length;
use super::host::is_authority;
use super::limits::{Limits, MAX_METHOD_BYTES};
use super::names::{Class, classify};
use super::refusal::Refusal;

/// Whether a request of HTTP/2 may go on. An extended CONNECT (RFC 8441) is the caller's to take out before.
pub fn check(method: &Method, uri: &Uri, headers: &HeaderMap, limits: &Limits) -> Result<(), Refusal> {
    if *method == Method::CONNECT || *method == Method::TRACE {
        return Err(Refusal::MethodNotAllowed);
    }
    if method.as_str().len() > MAX_METHOD_BYTES {
        return Err(Refusal::MethodTooLong);
    }
    check_target(method, uri, limits)?;
    check_host(uri, headers)?;
    if headers.len() > limits.fields {
        return Err(Refusal::TooManyFields);
    }
    for (name, value) in headers {
        if value.as_bytes().trim_ascii().len() != value.len() {
            return Err(Refusal::PaddedValue);
        }
        match classify(name.as_str().as_bytes()) {
            Class::TransferEncoding => return Err(Refusal::BadEncoding),
            Class::Expect if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => {}
            Class::Expect => return Err(Refusal::BadExpect),
            // The one that means something here, and only so.
            Class::Hop if name == TE && value.as_bytes().eq_ignore_ascii_case(b"trailers") => {}
            Class::Hop if name == TE => return Err(Refusal::BadConnection),
            Class::Connection | Class::Upgrade => return Err(Refusal::BadConnection),
            Class::Hop if matches!(name.as_str(), "keep-alive" | "proxy-connection") => {
                return Err(Refusal::BadConnection);
            }
            _ => {}
        }
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(stated) = lengths.next() {
        length(stated.as_bytes())?;
    }
    if lengths.next().is_some() { Err(Refusal::DuplicateLength) } else { Ok(()) }
}

fn check_target(method: &Method, uri: &Uri, limits: &Limits) -> Result<(), Refusal> {
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    if target.len() > limits.target_bytes {
        return Err(Refusal::TargetTooLong);
    }
    if !target.bytes().all(is_target_char) {
        return Err(Refusal::BadTarget);
    }
    let form = target.starts_with('/') || (target == "*" && *method == Method::OPTIONS);
    if form { Ok(()) } else { Err(Refusal::BadTarget) }
}

fn check_host(uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(HOST).iter();
    let field = hosts.next().map(|host| host.as_bytes());
    if hosts.next().is_some() {
        return Err(Refusal::DuplicateHost);
    }
    let authority = uri.authority().map(|authority| authority.as_str().as_bytes());
    match (authority, field) {
        (None, None) => Err(Refusal::NoHost),
        (Some(one), None) | (None, Some(one)) if is_authority(one) => Ok(()),
        (Some(_), None) | (None, Some(_)) => Err(Refusal::BadHost),
        (Some(authority), Some(field)) if !is_authority(authority) || !is_authority(field) => Err(Refusal::BadHost),
        (Some(authority), Some(field)) if authority.eq_ignore_ascii_case(field) => Ok(()),
        (Some(_), Some(_)) => Err(Refusal::HostMismatch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    fn judge(method: &str, uri: &str, fields: &[(&'static str, &'static str)]) -> Result<(), Refusal> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        check(&method, &uri.parse().unwrap(), &headers, &Limits::default())
    }

    #[test]
    fn what_http2_forgives_and_http1_would_not_goes_no_further() {
        const A: &str = "http://a/";
        for (fields, expected) in [
            (&[][..], Ok(())),
            (&[("host", "A")], Ok(())),
            (&[("te", "trailers")], Ok(())),
            (&[("expect", "100-Continue")], Ok(())),
            (&[("expect", "200-ok")], Err(Refusal::BadExpect)),
            (&[("content-length", "3")], Ok(())),
            (&[("host", "b")], Err(Refusal::HostMismatch)),
            (&[("host", "a"), ("host", "a")], Err(Refusal::DuplicateHost)),
            (&[("host", "a/b")], Err(Refusal::BadHost)),
            (&[("transfer-encoding", "chunked")], Err(Refusal::BadEncoding)),
            (&[("te", "trailers, chunked")], Err(Refusal::BadConnection)),
            (&[("connection", "close")], Err(Refusal::BadConnection)),
            (&[("keep-alive", "5")], Err(Refusal::BadConnection)),
            (&[("proxy-connection", "close")], Err(Refusal::BadConnection)),
            (&[("upgrade", "websocket")], Err(Refusal::BadConnection)),
            (&[("content-length", "3"), ("content-length", "3")], Err(Refusal::DuplicateLength)),
            (&[("content-length", "3, 3")], Err(Refusal::BadLength)),
            (&[("content-length", "+3")], Err(Refusal::BadLength)),
            (&[("content-length", "")], Err(Refusal::BadLength)),
        ] {
            assert_eq!(judge("POST", A, fields), expected, "{fields:?}");
        }
        assert_eq!(judge("TRACE", A, &[]), Err(Refusal::MethodNotAllowed));
        assert_eq!(judge("CONNECT", "a:1", &[]), Err(Refusal::MethodNotAllowed));
        assert_eq!(judge("GET", "http://u@a/", &[]), Err(Refusal::BadHost));
        assert_eq!(judge("GET", "/", &[]), Err(Refusal::NoHost));
        assert_eq!(judge("GET", "/\u{e9}", &[("host", "a")]), Err(Refusal::BadTarget));
        assert_eq!(judge(&"X".repeat(40), A, &[]), Err(Refusal::MethodTooLong));
        assert_eq!(judge("GET", &format!("http://a/{}", "x".repeat(20 << 10)), &[]), Err(Refusal::TargetTooLong));
    }

    /// Gateways behind us would take it for the length.
    #[test]
    fn a_disguise_is_never_written() {
        let mut headers = HeaderMap::new();
        headers.insert("content_length", HeaderValue::from_static("3"));
        headers.insert("x_forwarded_for", HeaderValue::from_static("6.6.6.6"));
        headers.insert("accept", HeaderValue::from_static("*/*"));
        let mut out = Vec::new();
        super::super::write::map_fields(&mut out, &headers);
        assert_eq!(out, b"accept: */*\r\n");
    }
}
