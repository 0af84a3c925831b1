//! The HTTP face: who is asked, what is refused, and what a wrong request is told.

use std::sync::{Arc, Mutex};

use godwit_store::{Authorize, Compare, Error, Op, Range, Refused, Store, StoreExt, Txn, Verb};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::bed::{Bed, serve, within};

type Asked = Arc<Mutex<Vec<(Verb, String)>>>;

/// Allows everything under `mine/`, and remembers what it was asked.
fn mine_only() -> (Authorize, Asked) {
    let asked = Asked::default();
    let seen = asked.clone();
    let authorize: Authorize = Arc::new(move |parts, verb, key| {
        seen.lock().expect("whole").push((verb, key.to_owned()));
        let token = parts.headers.get("authorization");
        if token.is_none_or(|token| token != "Bearer a-token") {
            return Err(Refused::Unauthenticated);
        }
        if verb == Verb::Identify || key.starts_with("mine/") {
            return Ok(());
        }
        let reason = format!("{key:?} is not yours");
        Err(Refused::Forbidden { reason })
    });
    (authorize, asked)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_key_of_a_transaction_is_asked_about() {
    let (authorize, asked) = mine_only();
    let bed = Bed::authorized(authorize).await;
    let txn = Txn::of([Op::put("mine/a", "1"), Op::get("mine/b"), Op::delete("mine/c")])
        .when(Compare::absent("mine/d"))
        .or_else(Op::put("mine/e", "1"));
    bed.store.txn(txn).await.expect("allowed");
    let asked = std::mem::take(&mut *asked.lock().expect("whole"));
    let expected = [
        (Verb::Read, "mine/d"),
        (Verb::Write, "mine/a"),
        (Verb::Read, "mine/b"),
        (Verb::Write, "mine/c"),
        (Verb::Write, "mine/e"),
    ];
    assert_eq!(asked, expected.map(|(verb, key)| (verb, key.to_owned())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_foreign_key_anywhere_refuses_the_whole() {
    let (authorize, _) = mine_only();
    let bed = Bed::authorized(authorize).await;
    let mine = || Txn::of([Op::put("mine/a", "1")]);
    let foreign = [
        mine().when(Compare::absent("yours/a")),
        mine().or_else(Op::get("yours/a")),
        mine().or_else(Op::delete("yours/a")),
        Txn::of([Op::put("mine/a", "1"), Op::put("minefield/a", "1")]),
    ];
    for txn in foreign {
        let refused = bed.store.txn(txn).await.expect_err("not allowed");
        assert!(matches!(refused, Error::Forbidden { .. }) && refused.is_callers_fault());
    }
    let read = bed.store.range(Range::prefix("")).await;
    assert!(matches!(read, Err(Error::Forbidden { .. })));
    let watch = bed.store.watch("yours/".to_owned(), 1).await;
    assert!(matches!(watch, Err(Error::Forbidden { .. })));
    let compact = bed.store.compact(0).await;
    assert!(matches!(compact, Err(Error::Forbidden { .. })));
    let untouched = bed.sqlite.list("").await.expect("listed");
    assert_eq!((untouched.rows.len(), untouched.revision), (0, 0));
    // Any caller with a name may know which store it talks to.
    bed.store.identity().await.expect("told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nameless_caller_learns_nothing() {
    let (authorize, _) = mine_only();
    let bed = Bed::authorized(authorize.clone()).await;
    let (_server, url) = serve(bed.sqlite.clone(), authorize).await;
    let stranger = godwit_store::RemoteStore::new(url, "another-token");
    let read = stranger.get("mine/a").await.expect_err("refused");
    assert!(matches!(read, Error::Unauthenticated));
    let identity = stranger.identity().await.expect_err("refused");
    assert!(matches!(identity, Error::Unauthenticated));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_request_is_told_what_is_wrong() {
    let bed = Bed::direct();
    let (_server, url) = serve(bed.sqlite.clone(), Arc::new(|_, _, _| Ok(()))).await;
    let address = url.trim_start_matches("http://").to_owned();
    let ask = async |path: &str, body: &str| -> String {
        let mut socket = tokio::net::TcpStream::connect(&address).await.expect("connected");
        let length = body.len();
        let request =
            format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
        // A refused body may not be read to its end.
        let _ = socket.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = within("an answer", socket.read_to_end(&mut answer)).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    let table = [
        ("/store/v1/txn", "{", "400", "invalid_request"),
        ("/store/v1/txn", r#"{"then":[{"drop":{"key":"a"}}]}"#, "400", "unknown variant"),
        ("/store/v1/txn", r#"{"than":[]}"#, "400", "unknown field"),
        ("/store/v1/txn", r#"{"then":[{"put":{"key":"a","value":"%"}}]}"#, "400", "invalid_request"),
        ("/store/v1/txn", r#"{"then":[{"put":{"key":"a b","value":""}}]}"#, "400", "invalid_key"),
        ("/store/v1/txn", r#"{"then":[{"get":{"key":"a"}},{"get":{"key":"a"}}]}"#, "400", "repeated_key"),
        ("/store/v1/range", r#"{"key":{"prefix":"a"}}"#, "400", "invalid_key"),
        ("/store/v1/range", r#"{"key":{"prefix":""},"at_revision":4}"#, "409", "future_revision"),
        ("/store/v1/watch", r#"{"prefix":"","from_revision":9}"#, "409", "future_revision"),
        ("/store/v1/compact", r#"{"revision":-1}"#, "400", "invalid_request"),
    ];
    for (path, body, status, word) in table {
        let answer = ask(path, body).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{body}: {answer}");
        assert!(answer.contains(word), "{body}: {answer}");
    }
    let huge = " ".repeat(5 * 1024 * 1024);
    let answer = ask("/store/v1/txn", &huge).await;
    // The kernel may drop the answer when we are still sending; what counts is that nothing was taken.
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert_eq!(bed.store.list("").await.expect("listed").revision, 0);
}
