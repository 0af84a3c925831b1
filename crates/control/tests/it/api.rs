//! A client that checks what every answer has in common, and each against the schemas.

use std::time::{Duration, Instant};

use godwit_api::machine::{Machine, MachineState};
use godwit_base::http::client::{Client, full};
use http::HeaderMap;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::reference::{OURS, REFERENCE};

pub const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct Api {
    client: Client,
}

pub struct Answer {
    pub code: u16,
    pub headers: HeaderMap,
    pub body: Value,
    what: String,
}

impl Api {
    pub fn new(url: &str, token: Option<&str>) -> Self {
        Self { client: Client::tcp(url, token.map(str::to_owned)) }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, None, &[]).await
    }
    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.call("POST", path, Some(body.to_string().into_bytes()), &[]).await
    }
    pub async fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path, None, &[]).await
    }

    /// `path` is without `/v1`.
    pub async fn call(&self, method: &str, path: &str, body: Option<Vec<u8>>, headers: &[(&str, &str)]) -> Answer {
        let mut request = http::Request::builder().method(method);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(full(body.unwrap_or_default())).unwrap();
        let what = format!("{method} {path}");
        let response = self.client.send_raw(&format!("/v1{path}"), request, PATIENCE).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body: Value = match bytes.is_empty() {
            true => Value::Null,
            false => {
                serde_json::from_slice(&bytes).unwrap_or(Value::String(String::from_utf8_lossy(&bytes).into_owned()))
            }
        };
        let answer = Answer { code: parts.status.as_u16(), headers: parts.headers, body, what };
        answer.check_common(method, path.split('?').next().unwrap());
        answer
    }

    pub async fn machine(&self, app: &str, id: &str) -> Machine {
        let answer = self.get(&format!("/apps/{app}/machines/{id}")).await.expect(200);
        serde_json::from_value(answer).unwrap()
    }

    /// Waits, with a deadline, until the Machine is in a state.
    pub async fn until(&self, app: &str, id: &str, state: MachineState) -> Machine {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let machine = self.machine(app, id).await;
            if machine.state == state {
                return machine;
            }
            assert!(Instant::now() < deadline, "{id} stays {:?} instead of {state:?}", machine.state);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// An app and a Machine in it; its id.
    pub async fn app_with_machine(&self, app: &str, config: Value) -> String {
        self.post("/apps", json!({ "app_name": app, "org_slug": "personal" })).await.expect(201);
        self.new_machine(app, config).await
    }

    pub async fn new_machine(&self, app: &str, config: Value) -> String {
        let machine = self.post(&format!("/apps/{app}/machines"), json!({ "config": config })).await.expect(200);
        machine["id"].as_str().unwrap().to_owned()
    }
}

impl Answer {
    fn check_common(&self, method: &str, path: &str) {
        let id = self.headers.get("fly-request-id").unwrap_or_else(|| panic!("{}: no request id", self.what));
        assert_eq!(id.len(), 26, "{}", self.what);
        if self.code >= 400 {
            assert!(self.body["error"].as_str().is_some_and(|text| !text.is_empty()), "{}: {}", self.what, self.body);
            assert!(self.body["status"].is_string(), "{}: {}", self.what, self.body);
        }
        if self.code == 503 {
            assert!(self.headers.contains_key("retry-after"), "{}: no Retry-After", self.what);
        }
        REFERENCE.check(method, path, self.code, &self.body);
        OURS.check(method, path, self.code, &self.body);
    }

    /// The body, if the code is the one expected.
    #[track_caller]
    pub fn expect(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}: {}", self.what, self.body);
        self.body
    }

    /// An error whose text holds `words`.
    #[track_caller]
    pub fn refused(self, code: u16, words: &str) -> Value {
        assert_eq!(self.code, code, "{}: {}", self.what, self.body);
        let text = self.body["error"].as_str().unwrap();
        assert!(text.contains(words), "{}: {text:?} does not say {words:?}", self.what);
        self.body
    }
}
