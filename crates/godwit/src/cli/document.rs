//! Calls whose body is a document of the user's: sent as it is written, with what the API ignored in it told.

use godwit_api::endpoint::{Endpoint, path_of};
use godwit_api::fields::IGNORED_HEADER;
use godwit_base::http::client::{HEAD_TIMEOUT, full};
use http::HeaderMap;
use http_body_util::{BodyExt, Limited};
use serde_json::Value;

use super::context::Context;
use crate::error::{CliError, Result};

const ANSWER_LIMIT_BYTES: usize = 4 << 20;

/// Sends JSON to an endpoint, whatever its type takes, and warns of each field that nobody knows.
pub async fn send<E: Endpoint>(
    context: &Context,
    parameters: &[&str],
    document: &Value,
    headers: HeaderMap,
) -> Result<E::Response> {
    let mut request = http::Request::new(full(serde_json::to_vec(document)?));
    *request.method_mut() = E::METHOD.as_str().parse().map_err(|_| CliError::failed("no method of HTTP"))?;
    *request.headers_mut() = headers;
    let json = http::HeaderValue::from_static("application/json");
    request.headers_mut().insert(http::header::CONTENT_TYPE, json);
    let answer = context.client.send(&path_of::<E>(parameters), request, HEAD_TIMEOUT).await?;
    if let Some(ignored) = answer.headers().get(IGNORED_HEADER).and_then(|names| names.to_str().ok()) {
        context.output.warn(format!("these fields are unknown and were ignored: {ignored}"));
    }
    let body = Limited::new(answer.into_body(), ANSWER_LIMIT_BYTES).collect().await;
    let body = body.map_err(|error| CliError::failed(format!("the answer broke off: {error}")))?.to_bytes();
    Ok(serde_json::from_slice(&body)?)
}
