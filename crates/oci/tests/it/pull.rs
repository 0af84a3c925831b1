//! Pulling from a real server that breaks off, lies, or is in no hurry.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use godwit_oci::{ContentStore, Digest, Error, Limits, Progress, Puller, no_progress, routes};

use crate::support::*;

/// What the server does to answers, and what it has seen.
#[derive(Default)]
pub struct Faults {
    /// Blobs are cut after so many bytes, so many times.
    cut: Mutex<(usize, u32)>,
    /// Blob answers get a wrong byte, so many times.
    corrupt: Mutex<u32>,
    /// Answers to be given 503 first.
    busy: Mutex<u32>,
    token: Mutex<Option<String>>,
    ignore_ranges: Mutex<bool>,
    /// Path → the `Range` of each request.
    seen: Mutex<HashMap<String, Vec<Option<String>>>>,
}

impl Faults {
    fn set<T>(place: &Mutex<T>, value: T) {
        *place.lock().unwrap() = value;
    }

    /// Takes one from a count.
    fn take(count: &mut u32) -> bool {
        let some = *count > 0;
        *count = count.saturating_sub(1);
        some
    }

    fn ranges(&self, digest: &Digest) -> Vec<Option<String>> {
        let seen = self.seen.lock().unwrap();
        seen.iter()
            .filter(|(path, _)| path.ends_with(&digest.to_string()))
            .flat_map(|(_, ranges)| ranges.clone())
            .collect()
    }
}

async fn faulty(State(faults): State<Arc<Faults>>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let range = request.headers().get(header::RANGE).map(|range| range.to_str().unwrap().to_owned());
    faults.seen.lock().unwrap().entry(path.clone()).or_default().push(range);
    let token = faults.token.lock().unwrap().clone();
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if token.is_some_and(|token| given != Some(&format!("Bearer {token}"))) {
        let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you?"}]}"#;
        return (StatusCode::UNAUTHORIZED, body).into_response();
    }
    if Faults::take(&mut faults.busy.lock().unwrap()) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if *faults.ignore_ranges.lock().unwrap() {
        request.headers_mut().remove(header::RANGE);
    }
    let response = next.run(request).await;
    if !path.contains("/blobs/") || !response.status().is_success() {
        return response;
    }
    let keep = {
        let mut cut = faults.cut.lock().unwrap();
        Faults::take(&mut cut.1).then_some(cut.0)
    };
    let wrong = Faults::take(&mut faults.corrupt.lock().unwrap());
    let (head, body) = response.into_parts();
    let mut left = keep;
    let stream = body.into_data_stream().map(move |chunk| {
        let mut chunk = chunk.map_err(std::io::Error::other)?.to_vec();
        if wrong {
            chunk[0] ^= 1;
        }
        match &mut left {
            Some(0) => return Err(std::io::Error::other("cut")),
            Some(left) => {
                chunk.truncate(*left);
                *left -= chunk.len();
            }
            None => {}
        }
        Ok(bytes::Bytes::from(chunk))
    });
    // An error in the body makes the server drop the connection.
    let stream = stream.flat_map(move |chunk| {
        let ends = keep.is_some();
        let more = ends.then(|| Err(std::io::Error::other("cut")));
        futures_util::stream::iter(std::iter::once(chunk).chain(more))
    });
    Response::from_parts(head, Body::from_stream(stream))
}

/// A registry on a free port of the loopback, until it is dropped.
pub struct Server {
    pub address: SocketAddr,
    pub faults: Arc<Faults>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    pub async fn start(store: Arc<ContentStore>) -> Self {
        let faults = Arc::<Faults>::default();
        let app = routes(store).layer(from_fn_with_state(faults.clone(), faulty));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, faults, task }
    }

    fn puller(&self) -> Puller {
        Puller::new(&format!("http://{}", self.address), None).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A server with an image of two layers, the first of them some megabytes.
struct Setup {
    server: Server,
    digest: Digest,
    big: Digest,
    _from: TestStore,
    to: TestStore,
}

const BIG_BYTES: usize = 5 << 20;

async fn setup() -> Setup {
    let from = TestStore::new();
    let noise: Vec<u8> = (0..BIG_BYTES as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let image = Image::new([Layer::new().file("big", &noise).done(), Layer::new().file("small", b"x").done()])
        .packed(Packing::Plain);
    let digest = from.store.load_stream(&image.archive()[..], Some("apps/x:v1"), &no_progress()).unwrap()[0].digest;
    let big = from.store.manifest(&digest).unwrap().layers[0].digest;
    Setup { server: Server::start(from.store.clone()).await, digest, big, _from: from, to: TestStore::new() }
}

fn check_whole(test: &TestStore, digest: &Digest) {
    let unpacked = test.store.unpack_blocking(digest, &no_progress()).unwrap();
    assert_eq!(find(&unpacked, "big").unwrap().metadata().unwrap().len(), BIG_BYTES as u64);
    assert!(test.leftovers().iter().all(|path| !path.starts_with("partial/") && !path.starts_with("tmp/")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_and_each_blob_asked_for_once() {
    let Setup { server, digest, to, _from, .. } = setup().await;
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = {
        let told = told.clone();
        Arc::new(move |progress| told.lock().unwrap().push(progress))
    };
    let image = server.puller().pull(&to.store, "apps/x", &digest, sink).await.unwrap();
    assert_eq!((image.name.as_str(), image.digest), ("apps/x", digest));
    assert_eq!(to.store.resolve(&image.to_string()).unwrap(), Some(image.clone()));
    check_whole(&to, &digest);
    let whole = |progress: &Progress| matches!(progress, Progress::Blob { done_bytes, total_bytes: Some(total), .. } if done_bytes == total && *total > BIG_BYTES as u64);
    assert!(told.lock().unwrap().iter().any(whole));
    // Again: nothing is asked for.
    let asked = || server.faults.seen.lock().unwrap().values().map(Vec::len).sum::<usize>();
    assert_eq!(asked(), 4);
    server.puller().pull(&to.store, "apps/x", &digest, no_progress()).await.unwrap();
    assert_eq!(asked(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_at_the_same_time_share_one_download() {
    let Setup { server, digest, big, to, _from } = setup().await;
    let pulls = (0..8).map(|_| {
        // Pullers of their own, as two Machines starting at once have.
        let (puller, store) = (server.puller(), to.store.clone());
        tokio::spawn(async move { puller.pull(&store, "apps/x", &digest, no_progress()).await })
    });
    for pull in pulls.collect::<Vec<_>>() {
        pull.await.unwrap().unwrap();
    }
    assert_eq!(server.faults.ranges(&big), [None]);
    check_whole(&to, &digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_in_a_blob_is_resumed_where_it_was() {
    let Setup { server, digest, big, to, _from } = setup().await;
    Faults::set(&server.faults.cut, (1 << 20, 3));
    server.puller().pull(&to.store, "apps/x", &digest, no_progress()).await.unwrap();
    check_whole(&to, &digest);
    let ranges = server.faults.ranges(&big);
    let starts: Vec<u64> = ranges
        .iter()
        .skip(1)
        .map(|range| range.as_deref().unwrap()[6..].trim_end_matches('-').parse().unwrap())
        .collect();
    assert!(ranges.len() >= 2 && ranges[0].is_none(), "{ranges:?}");
    assert!(starts.is_sorted() && starts[0] > 0, "{ranges:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_is_resumed_after_a_restart_of_the_process() {
    let Setup { server, digest, big, to: TestStore { store, dir }, _from } = setup().await;
    Faults::set(&server.faults.cut, (1 << 20, 1));
    // Dropped at the first megabyte, as when the process is killed.
    let enough = Arc::new(tokio::sync::Notify::new());
    let sink = {
        let enough = enough.clone();
        Arc::new(move |progress| {
            if matches!(progress, Progress::Blob { total_bytes: Some(total), .. } if total > 1 << 20) {
                enough.notify_one()
            }
        })
    };
    let puller = server.puller();
    tokio::select! {
        pulled = puller.pull(&store, "apps/x", &digest, sink) => panic!("{pulled:?}"),
        () = enough.notified() => {}
    }
    assert_eq!(store.resolve(&format!("apps/x@{digest}")).unwrap(), None);
    // The file is written by a thread of the runtime; the store closes when it is done.
    let path = dir.path().join("store");
    let partial = path.join("partial").join(big.hex());
    wait_for(|| partial.metadata().is_ok_and(|meta| meta.len() > 0));
    drop((puller, store));
    let store = reopen(&path);
    let to = TestStore { store, dir };
    server.faults.seen.lock().unwrap().clear();
    server.puller().pull(&to.store, "apps/x", &digest, no_progress()).await.unwrap();
    let ranges = server.faults.ranges(&big);
    assert!(matches!(ranges.as_slice(), [Some(range)] if range.starts_with("bytes=")), "{ranges:?}");
    check_whole(&to, &digest);
}

/// Waits for a condition, with a deadline.
fn wait_for(mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "waited in vain");
        std::thread::yield_now();
    }
}

fn reopen(path: &std::path::Path) -> Arc<ContentStore> {
    let mut store = None;
    wait_for(|| {
        store = match ContentStore::open(path, Limits::default()) {
            Ok(store) => Some(store),
            Err(Error::StoreInUse(_)) => None,
            Err(error) => panic!("{error}"),
        };
        store.is_some()
    });
    Arc::new(store.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_ranges_is_asked_from_the_start() {
    let Setup { server, digest, to, _from, .. } = setup().await;
    Faults::set(&server.faults.cut, (1 << 20, 2));
    Faults::set(&server.faults.ignore_ranges, true);
    server.puller().pull(&to.store, "apps/x", &digest, no_progress()).await.unwrap();
    check_whole(&to, &digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_that_are_no_beginning_of_the_blob_are_thrown_away() {
    let Setup { server, digest, big, to, _from } = setup().await;
    let partial = to.dir.path().join("store/partial").join(big.hex());
    for garbage in [vec![7; 1 << 20], vec![7; BIG_BYTES + 2048], vec![7; BIG_BYTES * 2]] {
        std::fs::write(&partial, &garbage).unwrap();
        server.puller().pull(&to.store, "apps/x", &digest, no_progress()).await.unwrap();
        check_whole(&to, &digest);
        let image = to.store.images()[0].id.clone();
        to.store.remove(&image).unwrap();
        to.store.collect(&Default::default(), std::time::SystemTime::now(), std::time::Duration::ZERO).unwrap();
        assert_eq!(to.leftovers(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_refused_and_not_kept() {
    let Setup { server, digest, to, _from, .. } = setup().await;
    Faults::set(&server.faults.corrupt, 100);
    let error = server.puller().pull(&to.store, "apps/x", &digest, no_progress()).await.unwrap_err();
    assert!(matches!(error, Error::WrongDigest { .. }), "{error}");
    assert!(to.store.images().is_empty());
    assert_eq!(to.leftovers(), Vec::<String>::new());
    // Cuts and lies together end as well.
    Faults::set(&server.faults.cut, (100, 1000));
    Faults::set(&server.faults.corrupt, 1000);
    let error = server.puller().pull(&to.store, "apps/x", &digest, no_progress()).await.unwrap_err();
    assert!(matches!(error, Error::WrongDigest { .. } | Error::Transport { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_registry_is_asked_again_and_a_refusal_is_not() {
    let Setup { server, digest, to, _from, .. } = setup().await;
    Faults::set(&server.faults.busy, 3);
    Faults::set(&server.faults.token, Some("secret".into()));
    let asked = || server.faults.seen.lock().unwrap().values().map(Vec::len).sum::<usize>();
    let error = server.puller().pull(&to.store, "apps/x", &digest, no_progress()).await.unwrap_err();
    assert!(chain(&error).contains("answered 401: UNAUTHORIZED who are you?"), "{}", chain(&error));
    assert!(!error.may_retry());
    assert_eq!(asked(), 1);
    let puller = Puller::new(&format!("http://{}/", server.address), Some("secret".into())).unwrap();
    let error = puller.pull(&to.store, "apps/x", &Digest::of(b"unknown"), no_progress()).await.unwrap_err();
    assert!(matches!(error, Error::Registry { status: 404, .. }), "{error}");
    puller.pull(&to.store, "apps/x", &digest, no_progress()).await.unwrap();
    check_whole(&to, &digest);
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_an_error_in_bounded_time() {
    // Bound and closed again: nobody listens there.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let to = TestStore::new();
    let puller = Puller::new(&format!("http://{address}"), None).unwrap();
    let error = puller.pull(&to.store, "a", &Digest::of(b"x"), no_progress()).await.unwrap_err();
    assert!(matches!(error, Error::Transport { .. }) && error.may_retry(), "{error}");
    for bad in ["", "127.0.0.1", "http://", "http://a/?q=1"] {
        assert!(Puller::new(bad, None).is_err(), "{bad}");
    }
    assert!(Puller::new("http://a", Some("line\nbreak".into())).is_err());
}
