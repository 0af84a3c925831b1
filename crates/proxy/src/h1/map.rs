//! Heads as the `http` crate's types, which HTTP/2 and everything behind the framing speak. Values share the read
//! buffer: none is copied.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, HeaderName, HeaderValue, UPGRADE};
use http::{HeaderMap, Method, StatusCode, Uri};

use super::framing::Framing;
use super::head::{Field, RequestHead, Span, Version};
use super::response::ResponseHead;

/// The target as it came, of a request whose URI had to be written otherwise: it goes on unchanged (RFC 9110 section
/// 7.7). An extension of the request.
#[derive(Debug, Clone)]
pub struct RawTarget(pub HeaderValue);

/// A head's parts cannot be what the `http` crate takes for them (a path of more than 64 KiB, say).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a head that cannot be mapped")]
pub struct Unmappable;

/// A client's request, without its body. Fields that concern the connection stay behind, but for the protocol that
/// the client asks for, which stands in Upgrade. `head` was parsed from `buf`.
pub fn request(head: &RequestHead, buf: &Bytes) -> Result<http::Request<()>, Unmappable> {
    let mut request = http::Request::new(());
    let method = head.method.in_buf(buf);
    if method != b"GET" {
        *request.method_mut() = Method::from_bytes(method).map_err(|_| Unmappable)?;
    }
    let mapped = match head.path_span() {
        Some(path) => Uri::from_maybe_shared(slice(buf, path)),
        None => Uri::try_from(head.path(buf)),
    };
    *request.uri_mut() = match mapped {
        Ok(uri) => uri,
        Err(_) => {
            let raw = HeaderValue::from_bytes(head.path(buf)).map_err(|_| Unmappable)?;
            request.extensions_mut().insert(RawTarget(raw));
            Uri::try_from(encoded(head.path(buf))).map_err(|_| Unmappable)?
        }
    };
    *request.version_mut() = match head.version {
        Version::V10 => http::Version::HTTP_10,
        Version::V11 => http::Version::HTTP_11,
    };
    let headers = request.headers_mut();
    headers.reserve(head.fields().len() + 2 + crate::headers::ADDED);
    headers.insert(HOST, value(buf, head.host)?);
    forwarded(headers, head.fields(), buf)?;
    if let Framing::Length(length) = head.framing {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    if let Some(protocol) = head.upgrade {
        headers.insert(UPGRADE, value(buf, protocol)?);
    }
    Ok(request)
}

/// The few visible characters that clients send, and that the `http` crate takes for none of a target.
fn encoded(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len() + 32);
    for &b in path {
        match b {
            b'"' => out.extend_from_slice(b"%22"),
            b'<' => out.extend_from_slice(b"%3C"),
            b'>' => out.extend_from_slice(b"%3E"),
            b'`' => out.extend_from_slice(b"%60"),
            _ => out.push(b),
        }
    }
    out
}

/// A Machine's answer, without its body.
pub fn response(head: &ResponseHead, buf: &Bytes) -> Result<http::Response<()>, Unmappable> {
    let mut response = http::Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status).map_err(|_| Unmappable)?;
    let headers = response.headers_mut();
    headers.reserve(head.fields().len() + 4);
    forwarded(headers, head.fields(), buf)?;
    if let Some(length) = head.length.filter(|_| !head.chunked && !head.is_interim() && head.status != 204) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    if let Some(protocol) = head.upgrade.filter(|_| matches!(head.status, 101 | 426)) {
        headers.insert(UPGRADE, value(buf, protocol)?);
    }
    Ok(response)
}

/// The fields of a trailer section that may be sent on.
pub fn trailers(section: &[u8]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in super::body::trailers(section) {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            map.append(name, value);
        }
    }
    map
}

fn forwarded(headers: &mut HeaderMap, fields: &[Field], buf: &Bytes) -> Result<(), Unmappable> {
    for field in fields.iter().filter(|field| field.class.is_forwarded()) {
        let name = HeaderName::from_bytes(field.name.in_buf(buf)).map_err(|_| Unmappable)?;
        headers.try_append(name, value(buf, field.value)?).map_err(|_| Unmappable)?;
    }
    Ok(())
}

fn slice(buf: &Bytes, span: Span) -> Bytes {
    buf.slice(span.range())
}

fn value(buf: &Bytes, span: Span) -> Result<HeaderValue, Unmappable> {
    HeaderValue::from_maybe_shared(slice(buf, span)).map_err(|_| Unmappable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::h1::Limits;

    /// What passes here must not fail there: HTTP/2 speaks in the `http` crate's types.
    #[test]
    fn every_target_that_passes_can_be_mapped() {
        let mut wrong = Vec::new();
        for b in 0x21..=0x7eu8 {
            for part in ["/a", "/?a"] {
                let bytes = format!("GET {part}{}x HTTP/1.1\r\nHost: a\r\n\r\n", b as char);
                let mut head = RequestHead::default();
                let Ok(Some(_)) = head.parse(bytes.as_bytes(), &mut 0, &Limits::default()) else { continue };
                if request(&head, &Bytes::from(bytes.clone())).is_err() {
                    wrong.push((part, b as char));
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}
