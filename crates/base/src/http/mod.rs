//! HTTP served and called: over TCP, with or without TLS, and over unix sockets. TLS joins at two places: where `server`
//! accepts and where `client` connects.

pub mod client;
pub mod server;
pub mod tls;
pub mod upgrade;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use godwit_api::ApiError;

/// The header that names a request on every answer and in every log line about it.
pub const REQUEST_ID: &str = "fly-request-id";

/// An `ApiError` as an answer: its code, its body, its `Retry-After`.
pub struct Failure(pub ApiError);

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let code = StatusCode::from_u16(self.0.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.0.retry_after_s;
        let mut response = (code, Json(self.0)).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// The bearer of a request: `Authorization: Bearer X`; `FlyV1 X`, as older clients send it, counts too.
pub fn bearer(headers: &axum::http::HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("flyv1")).then(|| token.trim())
}
