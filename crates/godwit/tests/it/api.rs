//! An API whose answers a test lays out beforehand, on a real socket, so that the real binary can be sent to it.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

type Answers = BTreeMap<String, VecDeque<(u16, Value)>>;

#[derive(Default)]
struct Script {
    /// By `METHOD /path`; the last answer of each stands.
    answers: Mutex<Answers>,
    seen: Mutex<Vec<(String, Value)>>,
}

pub struct Api {
    pub url: String,
    script: Arc<Script>,
    /// Serves until it is dropped.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Api {
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let script = Arc::new(Script::default());
        let answering = script.clone();
        let router =
            Router::new().fallback(move |request: Request<axum::body::Body>| answer(answering.clone(), request));
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = runtime.block_on(tokio::net::TcpListener::bind(any)).expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { url, script, runtime: Some(runtime) }
    }

    /// What is answered to a call, one after the other; the last goes on being answered.
    pub fn on(&self, call: &str, answers: impl IntoIterator<Item = (u16, Value)>) -> &Self {
        let answers = answers.into_iter().collect();
        self.script.answers.lock().expect("no test panics here").insert(call.to_owned(), answers);
        self
    }

    /// The bodies that were sent with a call, in order.
    pub fn sent(&self, call: &str) -> Vec<Value> {
        let seen = self.script.seen.lock().expect("no test panics here");
        seen.iter().filter(|(name, _)| name == call).map(|(_, body)| body.clone()).collect()
    }

    /// Every call, in order.
    #[allow(dead_code, reason = "the command line's unit tests ask for it")]
    pub fn calls(&self) -> Vec<String> {
        let seen = self.script.seen.lock().expect("no test panics here");
        seen.iter().map(|(name, _)| name.clone()).collect()
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn answer(script: Arc<Script>, request: Request<axum::body::Body>) -> Response {
    let (head, body) = request.into_parts();
    let call = format!("{} {}", head.method, head.uri);
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap_or_else(|_| Bytes::new());
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    script.seen.lock().expect("no test panics here").push((call.clone(), body));
    let mut answers = script.answers.lock().expect("no test panics here");
    let next = answers
        .get_mut(&call)
        .and_then(|queue| if queue.len() > 1 { queue.pop_front() } else { queue.front().cloned() });
    let (code, value) = next
        .unwrap_or_else(|| (404, json!({ "error": format!("nothing is laid out for {call}"), "status": "not_found" })));
    let code = StatusCode::from_u16(code).expect("a test names a real code");
    (code, axum::Json(value)).into_response()
}
