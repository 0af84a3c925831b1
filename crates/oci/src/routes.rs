//! The pull half of the distribution-spec's API ("Pull", "Listing Tags"), which the
//! registry will grow from.
//!
//! Who may pull is not decided here: the role that serves these routes puts its
//! authentication around them as a layer. What a name does not have is not served under
//! that name, so a layer that decides by the path is enough.

mod range;

use std::io::SeekFrom;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{
    ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE, LINK, RANGE,
};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use self::range::{Asked, asked};
use crate::digest::Digest;
use crate::error::Error;
use crate::limits::MAX_MANIFEST_BYTES;
use crate::name::{Reference, is_name, is_tag};
use crate::store::ContentStore;

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
/// Bytes read from disk at a time: measured as fast as larger ones.
const CHUNK_BYTES: usize = 512 << 10;
/// Tags in one answer (distribution-spec, "Listing Tags": `n` may ask for fewer).
const MAX_TAGS_PER_PAGE: usize = 1000;

/// `GET /v2/`, `GET|HEAD /v2/<name>/manifests/<tag|digest>`,
/// `GET|HEAD /v2/<name>/blobs/<digest>` with `Range`, `GET /v2/<name>/tags/list`.
///
/// Other methods are answered 405, other paths 404, both with the spec's error body.
pub fn routes(store: Arc<ContentStore>) -> Router {
    Router::new()
        .route("/v2", axum::routing::any(base))
        .route("/v2/", axum::routing::any(base))
        .route("/v2/{*rest}", axum::routing::any(pull))
        .with_state(store)
}

/// What a path below `/v2/` names. Names hold slashes, so it is read from the right.
#[derive(Debug, PartialEq, Eq)]
enum Endpoint<'a> {
    Manifest { name: &'a str, reference: &'a str },
    Blob { name: &'a str, digest: &'a str },
    Tags { name: &'a str },
}

fn endpoint(path: &str) -> Option<Endpoint<'_>> {
    let rest = path.strip_prefix("/v2/")?;
    if let Some(name) = rest.strip_suffix("/tags/list") {
        return Some(Endpoint::Tags { name });
    }
    let (front, last) = rest.rsplit_once('/')?;
    let (name, kind) = front.rsplit_once('/')?;
    match kind {
        "manifests" => Some(Endpoint::Manifest { name, reference: last }),
        "blobs" => Some(Endpoint::Blob { name, digest: last }),
        _ => None,
    }
}

/// The manifest or blob that a path asks for by its digest, for who decides who may pull it.
pub fn asked_for(path: &str) -> Option<Digest> {
    match endpoint(path)? {
        Endpoint::Manifest { reference: digest, .. } | Endpoint::Blob { digest, .. } => digest.parse().ok(),
        Endpoint::Tags { .. } => None,
    }
}

/// An error body (distribution-spec, "Error Codes").
struct Refusal(StatusCode, &'static str, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(status, code, message) = self;
        let body = serde_json::json!({ "errors": [{ "code": code, "message": message }] });
        (status, [(API_VERSION, "registry/2.0")], Json(body)).into_response()
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        // Paths and errno of this host are for its log, not for whoever pulls.
        tracing::error!(error = &error as &dyn std::error::Error, "an image cannot be served");
        Self(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", "the store cannot be read".into())
    }
}

fn not_found(code: &'static str, message: impl Into<String>) -> Refusal {
    Refusal(StatusCode::NOT_FOUND, code, message.into())
}

/// The answer to a method that only a registry with pushes would take.
fn refused_method(method: &Method) -> Option<Response> {
    match *method {
        Method::GET | Method::HEAD => None,
        _ => {
            let refusal = Refusal(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "only pulling is served here".into());
            Some(([(ALLOW, "GET, HEAD")], refusal).into_response())
        }
    }
}

/// "Determining Support": 200 says that this is a registry.
async fn base(method: Method) -> Response {
    refused_method(&method)
        .unwrap_or_else(|| ([(API_VERSION, "registry/2.0")], Json(serde_json::json!({}))).into_response())
}

async fn pull(State(store): State<Arc<ContentStore>>, method: Method, uri: Uri, headers: HeaderMap) -> Response {
    if let Some(refused) = refused_method(&method) {
        return refused;
    }
    let answer = match endpoint(uri.path()) {
        Some(Endpoint::Manifest { name, reference }) => manifest(store, name, reference, &headers).await,
        Some(Endpoint::Blob { name, digest }) => blob(store, name, digest, &method, &headers).await,
        Some(Endpoint::Tags { name }) => tags(&store, name, uri.query().unwrap_or_default()),
        None => Err(not_found("NAME_UNKNOWN", "no such endpoint")),
    };
    let mut response = answer.unwrap_or_else(IntoResponse::into_response);
    if method == Method::HEAD {
        // The headers stay, Content-Length among them.
        *response.body_mut() = Body::empty();
    }
    response
}

fn check_name(name: &str) -> Result<String, Refusal> {
    let invalid = || Refusal(StatusCode::BAD_REQUEST, "NAME_INVALID", "not a repository name".into());
    if !is_name(name) {
        return Err(invalid());
    }
    // The store knows Docker's long names by their short form.
    name.parse::<Reference>().map(|reference| reference.name).map_err(|_| invalid())
}

fn check_digest(text: &str) -> Result<Digest, Refusal> {
    let invalid = |_| Refusal(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "not a sha256 digest".into());
    text.parse().map_err(invalid)
}

async fn manifest(
    store: Arc<ContentStore>,
    name: &str,
    reference: &str,
    headers: &HeaderMap,
) -> Result<Response, Refusal> {
    let name = check_name(name)?;
    let text = match reference.contains(':') {
        true => format!("{name}@{}", check_digest(reference)?),
        false if is_tag(reference) => format!("{name}:{reference}"),
        false => return Err(not_found("MANIFEST_UNKNOWN", "not a tag")),
    };
    let unknown = || not_found("MANIFEST_UNKNOWN", "no such manifest");
    let image = store.resolve(&text).ok().flatten().ok_or_else(unknown)?;
    let (media_type, _) = store.manifest_record(&name, &image.digest).ok_or_else(unknown)?;
    if is_known(headers, &image.digest) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, etag(&image.digest))]).into_response());
    }
    let digest = image.digest;
    let read = move || store.read_blob(&digest, MAX_MANIFEST_BYTES, "MAX_MANIFEST_BYTES", "manifest");
    let bytes = tokio::task::spawn_blocking(read).await.map_err(|_| Error::TaskEnded)??;
    let headers = [
        (CONTENT_TYPE, media_type),
        (CONTENT_LENGTH, bytes.len().to_string()),
        (DOCKER_CONTENT_DIGEST, digest.to_string()),
        (ETAG, etag(&digest)),
        (API_VERSION, "registry/2.0".to_owned()),
    ];
    Ok((headers, bytes).into_response())
}

async fn blob(
    store: Arc<ContentStore>,
    name: &str,
    digest: &str,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, Refusal> {
    let (name, digest) = (check_name(name)?, check_digest(digest)?);
    let unknown = || not_found("BLOB_UNKNOWN", "no such blob in this repository");
    if !store.name_has_blob(&name, &digest) {
        return Err(unknown());
    }
    if is_known(headers, &digest) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, etag(&digest))]).into_response());
    }
    let opened =
        tokio::task::spawn_blocking(move || store.open_blob(&digest)).await.map_err(|_| Error::TaskEnded)??;
    let opened = opened.ok_or_else(unknown)?;
    let size = opened.size;
    // RFC 9110, 14.2: only GET has ranges; 13.1.5: If-Range must match or the whole is sent.
    let wants_range =
        method == Method::GET && headers.get(IF_RANGE).is_none_or(|known| known.as_bytes() == etag(&digest).as_bytes());
    let range = headers.get(RANGE).filter(|_| wants_range).and_then(|value| value.to_str().ok());
    let common = [
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (ACCEPT_RANGES, "bytes".to_owned()),
        (DOCKER_CONTENT_DIGEST, digest.to_string()),
        (ETAG, etag(&digest)),
    ];
    let (status, start, length) = match range.map_or(Asked::Whole, |range| asked(range, size)) {
        Asked::Whole => (StatusCode::OK, 0, size),
        Asked::Part { start, length } => (StatusCode::PARTIAL_CONTENT, start, length),
        Asked::Unsatisfiable => {
            let refusal =
                Refusal(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UNKNOWN", format!("the blob has {size} bytes"));
            return Ok(([(CONTENT_RANGE, format!("bytes */{size}"))], refusal).into_response());
        }
    };
    let mut file = tokio::fs::File::from_std(opened.file);
    file.set_max_buf_size(CHUNK_BYTES);
    file.seek(SeekFrom::Start(start)).await.map_err(Error::io("seek in", digest.hex()))?;
    let body = Body::from_stream(ReaderStream::with_capacity(file.take(length), CHUNK_BYTES));
    let mut response = (status, common, [(CONTENT_LENGTH, length.to_string())], body).into_response();
    if status == StatusCode::PARTIAL_CONTENT {
        let text = format!("bytes {start}-{}/{size}", start + length - 1);
        // Digits and ASCII signs only: always a header value.
        response.headers_mut().extend(text.parse().ok().map(|value| (CONTENT_RANGE, value)));
    }
    Ok(response)
}

fn etag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

/// `If-None-Match` (RFC 9110, 13.1.2): a digest that the client has never changes.
fn is_known(headers: &HeaderMap, digest: &Digest) -> bool {
    let known = headers.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or_default();
    known.split(',').map(|tag| tag.trim().trim_start_matches("W/")).any(|tag| tag == etag(digest))
}

/// Tags in order after `last`, at most `n`, with a `Link` to the next page.
fn tags(store: &ContentStore, name: &str, query: &str) -> Result<Response, Refusal> {
    let name = check_name(name)?;
    let all = store.tags(&name).ok_or_else(|| not_found("NAME_UNKNOWN", "no such repository"))?;
    let value = |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    let n = match value("n").map(str::parse::<usize>) {
        None => MAX_TAGS_PER_PAGE,
        Some(Ok(n)) => n.min(MAX_TAGS_PER_PAGE),
        Some(Err(_)) => {
            return Err(Refusal(StatusCode::BAD_REQUEST, "UNSUPPORTED", "n is not a number".into()));
        }
    };
    // Tags need no decoding: they have no characters that a query escapes.
    let after = value("last").unwrap_or_default();
    let mut rest = all.into_iter().filter(|tag| tag.as_str() > after);
    let page: Vec<String> = rest.by_ref().take(n).collect();
    let more = rest.next().is_some();
    let link =
        page.last().filter(|_| more).map(|last| format!("</v2/{name}/tags/list?n={n}&last={last}>; rel=\"next\""));
    let body = Json(serde_json::json!({ "name": name, "tags": page }));
    let mut response = ([(API_VERSION, "registry/2.0")], body).into_response();
    response.headers_mut().extend(link.and_then(|text| Some((LINK, text.parse().ok()?))));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_any_words_and_slashes() {
        let manifest = |name, reference| Some(Endpoint::Manifest { name, reference });
        assert_eq!(endpoint("/v2/a/manifests/v1"), manifest("a", "v1"));
        assert_eq!(endpoint("/v2/a/b/c/manifests/v1"), manifest("a/b/c", "v1"));
        assert_eq!(endpoint("/v2/manifests/blobs/manifests/v1"), manifest("manifests/blobs", "v1"));
        assert_eq!(endpoint("/v2/a/blobs/sha256:0"), Some(Endpoint::Blob { name: "a", digest: "sha256:0" }));
        assert_eq!(endpoint("/v2/a/tags/list"), Some(Endpoint::Tags { name: "a" }));
        for path in ["/v2/x", "/v2/manifests/v1", "/v2/a/other/x", "/v3/a/manifests/v1"] {
            assert_eq!(endpoint(path), None, "{path}");
        }
    }
}
