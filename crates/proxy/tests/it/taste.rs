//! Rows that do harm when they are read: an edge leaves them alone, serves on, and hears everything else.

use std::time::{Duration, Instant};

use godwit_api::keys;
use godwit_proxy::edge::taste;
use godwit_store::{Op, Store as _, Txn};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::backend::{echo, free_port};
use crate::client::{Browser, metric, until};
use crate::fleet::{REGION, Setup, http_service, one_running, start_edge};
use crate::tunnels::{connect, raw_service};

const TASTER: &str = "GODWIT_TEST_TASTER";
const POISONED: &str = "godwit_edge_poisoned_rows_total ";

/// Not a test by itself: what an edge of the tests below starts. It reads as the real one does, but for three words that
/// stand for what a reader may be wrong about.
#[test]
fn a_taster_of_its_own() {
    if std::env::var(TASTER).is_err() {
        return;
    }
    let provider = taste::provider();
    let read = |key: &str, value: &[u8]| {
        let has = |word: &str| value.windows(word.len()).any(|part| part == word.as_bytes());
        if has("makes-it-panic") {
            panic!("as a wrong index would");
        } else if has("makes-it-spin") {
            loop {
                std::hint::spin_loop();
            }
        } else if has("makes-it-hungry") {
            let mut all: Vec<Vec<u8>> = Vec::new();
            loop {
                all.push(vec![1; 64 << 20]);
            }
        }
        taste::read(key, value, &provider);
    };
    taste::serve(std::io::stdin().lock(), std::io::stdout().lock(), read).unwrap();
}

fn taster() -> Vec<String> {
    let program = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
    let test = ["--exact", "taste::a_taster_of_its_own", "--nocapture"].map(str::to_owned);
    // `env` gives what only the taster shall see.
    let env = ["/usr/bin/env".to_owned(), format!("{TASTER}=1"), program];
    env.into_iter().chain(test).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_does_harm_is_left_out_and_everything_else_goes_on() {
    let (fleet, host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let setup = Setup { taster: Some(taster()), ..Setup::default() };
    let folder = tempfile::TempDir::new().unwrap();
    let edge = start_edge(folder.path(), fleet.store.clone(), &setup).await;
    let browser = Browser::new(edge.addr, "web.localhost");
    assert_eq!(browser.get("/").await.code, 200);

    let route = keys::route(REGION, &fleet.app);
    let put = async |key: &str, value: String| {
        fleet.store.txn(Txn::of([Op::put(key, value.into_bytes())])).await.unwrap();
    };
    for (number, word) in ["makes-it-panic", "makes-it-spin", "makes-it-hungry"].into_iter().enumerate() {
        // It would take the app's only Machine away, if it were believed.
        put(&route, format!(r#"{{"app":"web","region":"{REGION}","machines":[],"note":"{word}"}}"#)).await;
        let begun = Instant::now();
        let mut slowest = Duration::ZERO;
        until("it is left out", async || {
            let asked = Instant::now();
            assert_eq!(browser.get("/").await.code, 200, "{word}");
            slowest = slowest.max(asked.elapsed());
            (metric(edge.admin, POISONED).await == (number + 1) as f64).then_some(())
        })
        .await;
        println!("{word}: left out after {:?}; the slowest request meanwhile took {slowest:?}", begun.elapsed());
        assert_eq!(browser.get("/").await.code, 200);
        // What is told after it is heard.
        let name = format!("after-{number}.example.org");
        put(
            &format!("{}{name}", keys::HOSTNAMES),
            r#"{"app":"web","hostname":"NAME","created_at_ms":0,"updated_at_ms":0}"#.replace("NAME", &name),
        )
        .await;
        let other = Browser::new(edge.addr, &name);
        until("the new name is served", async || (other.get("/").await.code == 200).then_some(())).await;
    }

    // An edge that finds it there from the beginning comes up all the same.
    let kept = tempfile::TempDir::new().unwrap();
    let fresh = start_edge(kept.path(), fleet.store.clone(), &setup).await;
    let browser = Browser::new(fresh.addr, "web.localhost");
    assert_eq!(browser.get("/").await.code, 503, "no Machine is known");
    until("it has tried all rows", async || (metric(fresh.admin, POISONED).await == 1.0).then_some(())).await;
    fleet.publish(&[&host]).await;
    until("the good row is believed", async || (browser.get("/").await.code == 200).then_some(())).await;
    assert_eq!(metric(fresh.admin, "godwit_edge_untried_rows_total ").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_whose_row_does_harm_is_served_on() {
    let (inside, public, other) = (echo().await, free_port(), free_port());
    let setup = Setup { taster: Some(taster()), listen_tcp: true, ..Setup::default() };
    let (fleet, _host, _) = one_running(&setup, |_| vec![raw_service(inside, public)]).await;
    fleet.serve_port(public).await;
    until("the port is open", async || Some(connect(public).await)).await;
    let poisoned = Op::put(keys::port(public), br#"{"app":"web","note":"makes-it-panic"}"#.to_vec());
    fleet.store.txn(Txn::of([poisoned])).await.unwrap();
    until("it is left out", async || (metric(fleet.edge.admin, POISONED).await == 1.0).then_some(())).await;
    // What is told after it is about ports too, and opens another one.
    fleet.serve_port(other).await;
    until("the other port is open", async || TcpStream::connect(("127.0.0.1", other)).await.ok()).await;
    let mut stream = connect(public).await;
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut heard = String::new();
    stream.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_taster_rows_are_read_all_the_same() {
    let (fleet, _host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let setup = Setup { taster: Some(vec!["/nowhere/at/all".into()]), ..Setup::default() };
    let folder = tempfile::TempDir::new().unwrap();
    let edge = start_edge(folder.path(), fleet.store.clone(), &setup).await;
    assert_eq!(Browser::new(edge.addr, "web.localhost").get("/").await.code, 200);
    assert!(metric(edge.admin, "godwit_edge_untried_rows_total ").await > 0.0);
}
