//! An edge that joins, and reads its routes from control with the key that it was given.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::post;
use axum::{Json, Router};
use godwit_api::fleet::{Join, JoinRole, Joined};
use godwit_api::ids::EdgeId;
use godwit_base::{Peer, TaskGroup, may};
use godwit_proxy::Error;
use godwit_proxy::edge::{self, EdgeConfig};
use godwit_store::{Refused, Store, Verb};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::client::{Browser, until};
use crate::fleet::{EDGE_KEY, Setup, edge_config, http_service, one_running};

pub const TOKEN: &str = "gwj_of_the_tests";

#[derive(Default)]
pub struct Control {
    joins: AtomicU64,
    incarnations: Mutex<Vec<String>>,
}

/// Loses its first answer, as a killed control would.
async fn join(
    State(control): State<Arc<Control>>,
    headers: HeaderMap,
    Json(join): Json<Join>,
) -> axum::response::Response {
    assert_eq!(join.role, JoinRole::Edge);
    if godwit_base::http::bearer(&headers) != Some(TOKEN) {
        let refused = godwit_api::ApiError::unauthenticated("this is not a join token");
        return godwit_base::http::Failure(refused).into_response();
    }
    control.incarnations.lock().unwrap().push(join.incarnation);
    if control.joins.fetch_add(1, Ordering::SeqCst) == 0 {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    Json(Joined { id: "edge-1".into(), key: EDGE_KEY.into(), control_key: String::new() }).into_response()
}

/// Serves what an edge asks of control, on the store of a fleet.
pub async fn serve(store: Arc<dyn Store>, control: Arc<Control>) -> (String, TaskGroup) {
    let authorize = Arc::new(|parts: &http::request::Parts, verb: Verb, key: &str| {
        if godwit_base::http::bearer(&parts.headers) != Some(EDGE_KEY) {
            return Err(Refused::Unauthenticated);
        }
        let verb = match verb {
            Verb::Read => godwit_base::Verb::Read,
            Verb::Write => godwit_base::Verb::Write,
            Verb::Watch => godwit_base::Verb::Watch,
            Verb::Identify => return Ok(()),
        };
        let edge = Peer::Edge(EdgeId::parse("edge-1").unwrap());
        may(&edge, verb, key).map_err(|error| Refused::Forbidden { reason: error.to_string() })
    });
    let router = Router::new().route("/v1/join", post(join)).with_state(control);
    let router = router.merge(godwit_store::router(store, authorize));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let group = TaskGroup::new();
    group.spawn(godwit_base::http::server::serve_tcp(listener, router, group.clone()));
    (url, group)
}

fn config(folder: &TempDir, url: &str, token: &str) -> EdgeConfig {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    EdgeConfig {
        control_url: url.to_owned(),
        join_token: Some(token.to_owned()),
        listen_http: vec![port],
        ..edge_config(folder.path(), &Setup::default())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_joins_once_and_serves_with_its_own_key() {
    let (fleet, _host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let control = Arc::new(Control::default());
    let (url, group) = serve(fleet.store.clone(), control.clone()).await;
    let folder = TempDir::new().unwrap();
    let serve_once = async || {
        let config = config(&folder, &url, TOKEN);
        let addr = config.listen_http[0];
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(edge::run(config, shutdown.clone(), tokio::sync::mpsc::channel(1).1));
        until("it listens", async || tokio::net::TcpStream::connect(addr).await.ok()).await;
        assert_eq!(Browser::new(addr, "web.localhost").get("/").await.code, 200);
        shutdown.cancel();
        running.await.unwrap().unwrap();
    };
    serve_once().await;
    // Asked twice because the first answer was lost, and both times as the same edge.
    let incarnations = control.incarnations.lock().unwrap().clone();
    assert_eq!(incarnations.len(), 2);
    assert_eq!(incarnations[0], incarnations[1]);
    serve_once().await;
    assert_eq!(control.joins.load(Ordering::SeqCst), 2, "a restart joins no more");
    group.drain(std::time::Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_with_a_wrong_token_says_so_and_ends() {
    let (fleet, _host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let (url, _group) = serve(fleet.store.clone(), Arc::default()).await;
    let folder = TempDir::new().unwrap();
    let ended =
        edge::run(config(&folder, &url, "gwj_wrong"), CancellationToken::new(), tokio::sync::mpsc::channel(1).1).await;
    assert!(matches!(ended, Err(Error::Join { .. })), "{ended:?}");
}
