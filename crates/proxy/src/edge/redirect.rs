//! Where a plain request is sent that should have come over TLS. Pure.

use http::{HeaderValue, Method, StatusCode, Uri};

use crate::headers::without_port;

/// GET and HEAD are repeated by any client; others keep their method and body (RFC 9110 section 15.4.9).
pub fn code(method: &Method) -> StatusCode {
    match *method {
        Method::GET | Method::HEAD => StatusCode::MOVED_PERMANENTLY,
        _ => StatusCode::PERMANENT_REDIRECT,
    }
}

/// `https://HOST[:PORT]/PATH?QUERY`.
pub fn location(host: &str, port: u16, uri: &Uri) -> Option<HeaderValue> {
    let host = without_port(host);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let path = if path.starts_with('/') { path } else { "/" };
    let text = if port == 443 { format!("https://{host}{path}") } else { format!("https://{host}:{port}{path}") };
    HeaderValue::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_keeps_name_path_and_query_and_never_the_plain_port() {
        let to = |host: &str, port, uri: &str| {
            location(host, port, &uri.parse().unwrap()).map(|to| to.to_str().unwrap().to_owned())
        };
        assert_eq!(to("a.example", 443, "/x?y=z").as_deref(), Some("https://a.example/x?y=z"));
        assert_eq!(to("a.example:8080", 443, "/").as_deref(), Some("https://a.example/"));
        assert_eq!(to("[::1]:8080", 8443, "/").as_deref(), Some("https://[::1]:8443/"));
        assert_eq!(to("a.example", 443, "*").as_deref(), Some("https://a.example/"));
        assert_eq!(to("a.example", 443, "http://a.example/x").as_deref(), Some("https://a.example/x"));
        assert_eq!(
            (code(&Method::GET), code(&Method::POST)),
            (StatusCode::MOVED_PERMANENTLY, StatusCode::PERMANENT_REDIRECT)
        );
    }
}
