//! From an `Endpoint` definition to a route: names the caller, decodes path, query and body, judges the body's
//! fields, and turns what the handler returns into an answer.

use std::any::TypeId;
use std::future::Future;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, RawPathParams, State};
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use bytes::Bytes;
use godwit_api::endpoint::{Empty, Endpoint, percent_encode};
use godwit_api::error::Status;
use godwit_api::{ApiError, AppName, HostId, Hostname, MachineId, Method, MigrationId, VolumeId, fields};
use godwit_base::http::Failure;
use godwit_base::{Peer, Verb};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::control::Control;

/// A request's JSON may be as large.
pub const BODY_LIMIT_BYTES: usize = 512 << 10;
/// And is there by then.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);

/// Fields without effect, as the answer's header names them; a handler may add what it finds only when it acts.
#[derive(Clone, Default)]
pub(crate) struct Ignored(Arc<Mutex<Vec<String>>>);

impl Ignored {
    pub fn add(&self, field: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(field.to_owned());
    }
    pub fn remove(&self, field: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|known| known != field);
    }
    fn named(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A request of an endpoint, decoded.
pub(crate) struct Call<E: Endpoint> {
    pub control: Arc<Control>,
    pub peer: Peer,
    pub query: E::Query,
    pub body: E::Request,
    pub headers: HeaderMap,
    /// Fields of the body that have no effect: named in the answer's header.
    pub ignored: Ignored,
    path: Vec<(String, String)>,
}

impl<E: Endpoint> Call<E> {
    pub fn app(&self) -> Result<AppName, ApiError> {
        self.id("app_name")
    }
    pub fn machine(&self) -> Result<MachineId, ApiError> {
        self.id("machine_id")
    }
    pub fn volume(&self) -> Result<VolumeId, ApiError> {
        self.id("volume_id")
    }
    pub fn migration(&self) -> Result<MigrationId, ApiError> {
        self.id("migration_id")
    }
    pub fn host(&self) -> Result<HostId, ApiError> {
        self.id("host_id")
    }
    pub fn hostname(&self) -> Result<Hostname, ApiError> {
        self.id("hostname")
    }
    pub fn param(&self, name: &str) -> &str {
        self.path.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
    /// What is no id names nothing: 404, as for an id that is not taken.
    fn id<T: FromStr<Err = godwit_api::ids::InvalidId>>(&self, name: &str) -> Result<T, ApiError> {
        self.param(name).parse().map_err(|error: godwit_api::ids::InvalidId| ApiError::not_found(error.to_string()))
    }
}

/// Registers an endpoint's method and path.
pub(crate) fn route<E, F, A>(router: Router<Arc<Control>>, verb: Verb, handler: F) -> Router<Arc<Control>>
where
    E: Endpoint + 'static,
    F: Fn(Call<E>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Result<E::Response, ApiError>> + Send,
{
    let method = match E::METHOD {
        Method::Get => MethodFilter::GET,
        Method::Post => MethodFilter::POST,
        Method::Put => MethodFilter::PUT,
        Method::Delete => MethodFilter::DELETE,
    };
    let serve = move |State(control): State<Arc<Control>>, params: RawPathParams, request: Request<Body>| {
        let handler = handler.clone();
        async move {
            match decode::<E>(control, params, request, verb).await {
                Ok(call) => {
                    let ignored = call.ignored.clone();
                    answer::<E>(handler(call).await, &ignored.named())
                }
                Err(error) => Failure(error).into_response(),
            }
        }
    };
    router.route(&format!("/v1{}", E::PATH), on(method, serve))
}

async fn decode<E: Endpoint>(
    control: Arc<Control>,
    params: RawPathParams,
    request: Request<Body>,
    verb: Verb,
) -> Result<Call<E>, ApiError>
where
    E::Request: 'static,
{
    let (parts, body) = request.into_parts();
    let peer = control.allow(&parts.headers, verb, "")?;
    let query = query::<E::Query>(&parts.uri)?;
    let (body, ignored) = match TypeId::of::<E::Request>() == TypeId::of::<Empty>() {
        // Clients send `{}`, `null` or nothing where nothing is asked; whatever it is, it is not read.
        true => (json(b"{}")?, Vec::new()),
        false => judged::<E>(&read(body).await?)?,
    };
    let path = params.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let ignored = Ignored(Arc::new(Mutex::new(ignored)));
    Ok(Call { control, peer, query, body, headers: parts.headers, ignored, path })
}

fn judged<E: Endpoint>(bytes: &[u8]) -> Result<(E::Request, Vec<String>), ApiError> {
    // A body left out is an empty one.
    let bytes = if bytes.iter().all(u8::is_ascii_whitespace) { b"{}" } else { bytes };
    let mut value: Value = serde_json::from_slice(bytes)
        .map_err(|error| ApiError::bad_request(format!("the body is not JSON: {error}")))?;
    if !value.is_object() {
        return Err(ApiError::bad_request("the body is not a JSON object"));
    }
    let ignored = fields::judge(E::ID, &value)?;
    fields::drop_nulls(&mut value);
    fields::drop_unset(E::ID, &mut value);
    fields::expand_size(&mut value)?;
    // Our own tree of values always serialises.
    let bytes = serde_json::to_vec(&value).unwrap_or_default();
    Ok((json(&bytes)?, ignored))
}

/// Reads JSON; the error names the place in it.
fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    match axum::Json::<T>::from_bytes(bytes) {
        Ok(axum::Json(value)) => Ok(value),
        Err(rejection) => {
            let chain = godwit_base::telemetry::chain(&rejection);
            let words = chain.rsplit_once("target type: ").map_or(chain.as_str(), |(_, words)| words);
            // The position is that of our own copy of the body, not of the caller's.
            let words = words.split(" at line ").next().unwrap_or(words);
            Err(ApiError::bad_request(format!("the body is not valid: {words}")))
        }
    }
}

async fn read(body: Body) -> Result<Bytes, ApiError> {
    let read = Limited::new(body, BODY_LIMIT_BYTES).collect();
    match tokio::time::timeout(BODY_TIMEOUT, read).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let text = format!("the body is larger than {BODY_LIMIT_BYTES} bytes");
            Err(ApiError::new(413, Status::InvalidArgument, text))
        }
        Ok(Err(_)) => Err(ApiError::bad_request("the body broke off")),
        Err(_) => Err(ApiError::new(408, Status::Timeout, "the body did not arrive in time")),
    }
}

/// Reads a query; a name that stands repeatedly means its values joined by commas.
pub(crate) fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, ApiError> {
    let wrong = |error: String| ApiError::bad_request(format!("the query does not fit: {error}"));
    let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|error| wrong(error.body_text()))?.0;
    let mut merged: Vec<(String, String)> = Vec::new();
    for (name, value) in pairs {
        match merged.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => {
                values.push(',');
                values.push_str(&value);
            }
            None => merged.push((name, value)),
        }
    }
    let mut text = String::from("/?");
    for (name, value) in merged.iter().filter(|(_, value)| !value.is_empty()) {
        percent_encode(name, &mut text);
        text.push('=');
        percent_encode(value, &mut text);
        text.push('&');
    }
    let uri: Uri = text.trim_end_matches('&').parse().map_err(|_| wrong("it is too long".into()))?;
    let parsed = Query::<T>::try_from_uri(&uri).map_err(|error| {
        let text = error.body_text();
        wrong(text.rsplit_once("query string: ").map_or(text.clone(), |(_, words)| words.to_owned()))
    })?;
    Ok(parsed.0)
}

fn answer<E: Endpoint>(outcome: Result<E::Response, ApiError>, ignored: &[String]) -> Response
where
    E::Response: 'static,
{
    let mut response = match outcome {
        Err(error) => Failure(error).into_response(),
        Ok(value) => {
            let code = StatusCode::from_u16(E::SUCCESS).unwrap_or(StatusCode::OK);
            match TypeId::of::<E::Response>() == TypeId::of::<Empty>() {
                true => code.into_response(),
                false => (code, axum::Json(value)).into_response(),
            }
        }
    };
    if !ignored.is_empty()
        && let Ok(names) = HeaderValue::from_str(&fields::ignored_header(ignored))
    {
        response.headers_mut().insert(fields::IGNORED_HEADER, names);
    }
    response
}

#[cfg(test)]
mod tests {
    use godwit_api::machine::{ListMachines, WaitQuery};

    use super::*;

    #[test]
    fn queries_are_read_as_clients_write_them() {
        let uri: Uri = "/x?include_deleted=true&metadata.a=b&metadata.c=d%20e&region=".parse().unwrap();
        let list: ListMachines = query(&uri).unwrap();
        assert_eq!((list.include_deleted, list.region), (Some(true), None));
        assert_eq!(list.rest["metadata.c"], "d e");
        let wait: WaitQuery = query(&"/x?state=stopped&state=started&timeout=5".parse().unwrap()).unwrap();
        assert_eq!((wait.state.as_deref(), wait.timeout), (Some("stopped,started"), Some(5)));
        let wrong = query::<WaitQuery>(&"/x?timeout=soon".parse().unwrap()).unwrap_err();
        assert!(wrong.code == 400 && wrong.error.contains("timeout"), "{wrong}");
    }
}
