//! HTTP upgrades (RFC 9110, section 7.8): a request that becomes a stream of bytes in both directions, asked for and
//! granted. What the bytes mean is none of this file's business.

use std::io;
use std::time::Duration;

use axum::body::Body as AxumBody;
use axum::extract::Request as AxumRequest;
use axum::response::Response as AxumResponse;
use godwit_api::ApiError;
use godwit_api::error::Status;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};

use super::client::{CallError, Client, empty};

/// Buffer of one direction while bytes are passed on: what a slow reader holds up is bounded by it.
const RELAY_BYTES: usize = 64 << 10;

/// A connection after its upgrade.
pub type Stream = TokioIo<Upgraded>;

impl Client {
    /// Asks for an upgrade to `protocol`. `timeout` bounds the wait for the answer, not the stream.
    pub async fn upgrade(
        &self,
        path: &str,
        protocol: &'static str,
        headers: &HeaderMap,
        timeout: Duration,
    ) -> Result<Stream, CallError> {
        let mut request = Request::new(empty());
        *request.headers_mut() = headers.clone();
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        request.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(protocol));
        let response = self.send(path, request, timeout).await?;
        let garbled = |why: String| CallError::Garbled { url: format!("{}{path}", self.peer()), why };
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(garbled(format!("it does not speak {protocol}: HTTP {}", response.status().as_u16())));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| garbled(error.to_string()))?;
        Ok(TokioIo::new(upgraded))
    }
}

/// The upgrade that a request asks for, which must be to `protocol`. Call it before anything is begun for the request.
pub fn asked(request: &mut AxumRequest, protocol: &str) -> Result<OnUpgrade, ApiError> {
    let wanted = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok());
    if !wanted.is_some_and(|wanted| wanted.eq_ignore_ascii_case(protocol)) {
        let text = format!("this is not a plain request: send `Connection: upgrade` and `Upgrade: {protocol}`");
        return Err(ApiError::new(426, Status::InvalidArgument, text));
    }
    request
        .extensions_mut()
        .remove::<OnUpgrade>()
        .ok_or_else(|| ApiError::new(426, Status::InvalidArgument, format!("an upgrade to {protocol} needs HTTP/1.1")))
}

/// The answer that grants it. The stream is there once this has been sent.
pub fn granted(protocol: &'static str) -> AxumResponse {
    let mut response = AxumResponse::new(AxumBody::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(protocol));
    response
}

/// Passes bytes on in both directions, untouched, until both have ended; an end of one is passed on alone. A stream
/// that breaks takes the other with it.
pub async fn relay(
    mut one: impl AsyncRead + AsyncWrite + Unpin,
    mut other: impl AsyncRead + AsyncWrite + Unpin,
) -> io::Result<()> {
    copy_bidirectional_with_sizes(&mut one, &mut other, RELAY_BYTES, RELAY_BYTES).await.map(|_| ())
}
