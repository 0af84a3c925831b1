//! What an endpoint is: one definition from which its route, its client call and its OpenAPI operation come.

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Post,
    Put,
    Delete,
}

impl Method {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
        }
    }
}

/// Stands where an endpoint has no query, no body or no answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, serde::Deserialize, JsonSchema)]
pub struct Empty {}

/// One call of an API. `PATH` is relative to `/v1` and names its parameters in braces, filled in order.
pub trait Endpoint {
    const ID: &'static str;
    const METHOD: Method;
    const PATH: &'static str;
    const SUCCESS: u16;
    const SUMMARY: &'static str;
    type Query: Serialize + DeserializeOwned + JsonSchema + Send + 'static;
    type Request: Serialize + DeserializeOwned + JsonSchema + Send + 'static;
    type Response: Serialize + DeserializeOwned + JsonSchema + Send + 'static;
}

/// Fills the parameters of an endpoint's path, percent-encoded, and puts `/v1` before it.
///
/// Panics when the number of parameters is not that of the path: a defect of the program, not of its input.
pub fn path_of<E: Endpoint>(parameters: &[&str]) -> String {
    let mut path = String::from("/v1");
    let mut values = parameters.iter();
    for segment in E::PATH.split('/').filter(|segment| !segment.is_empty()) {
        path.push('/');
        if segment.starts_with('{') {
            let value = values.next().unwrap_or_else(|| panic!("{}: too few path parameters", E::ID));
            percent_encode(value, &mut path);
        } else {
            path.push_str(segment);
        }
    }
    assert!(values.next().is_none(), "{}: too many path parameters", E::ID);
    path
}

/// RFC 3986 section 2.1: all but unreserved characters are encoded.
pub fn percent_encode(text: &str, into: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            into.push(byte as char);
        } else {
            into.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// An endpoint without its types: what `openapi` prints.
pub struct Operation {
    pub id: &'static str,
    pub method: Method,
    pub path: &'static str,
    pub success: u16,
    pub summary: &'static str,
    pub query: fn(&mut schemars::SchemaGenerator) -> schemars::Schema,
    pub request: Option<fn(&mut schemars::SchemaGenerator) -> schemars::Schema>,
    pub response: Option<fn(&mut schemars::SchemaGenerator) -> schemars::Schema>,
}

impl Operation {
    pub fn of<E: Endpoint>() -> Self {
        fn some_unless_empty<T: JsonSchema>() -> Option<fn(&mut schemars::SchemaGenerator) -> schemars::Schema> {
            (T::schema_name() != Empty::schema_name())
                .then_some(|generator: &mut schemars::SchemaGenerator| generator.subschema_for::<T>())
        }
        Self {
            id: E::ID,
            method: E::METHOD,
            path: E::PATH,
            success: E::SUCCESS,
            summary: E::SUMMARY,
            query: |generator| <E::Query as JsonSchema>::json_schema(generator),
            request: some_unless_empty::<E::Request>(),
            response: some_unless_empty::<E::Response>(),
        }
    }
}
