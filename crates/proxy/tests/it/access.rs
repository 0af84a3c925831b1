//! What an operator reads of requests: one line each in the access log, their trace, and counts by app.

use std::path::Path;

use godwit_base::http::client::full;
use http::Method;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::{Browser, metric, metric_or_zero, read, until};
use crate::fleet::{Setup, http_service, limited, one_machine, one_running};
use crate::tls::{certify, connected, trust};

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // The last one may be half written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The line of the one request with this path.
async fn line(path: &Path, of: &str) -> Value {
    until(&format!("a line of {of}"), async || {
        let mut found: Vec<_> = lines(path).into_iter().filter(|line| line["path"] == of).collect();
        assert!(found.len() < 2, "{found:?}");
        found.pop()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_has_one_line_that_says_who_served_it_and_how_long_it_took() {
    let (fleet, host, id) = one_machine(&Setup::default(), |port| vec![http_service(port)]).await;
    let (browser, log) = (fleet.browser(), &fleet.edge.access_log);
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let answer = browser.get_with("/head?token=secret", &[("traceparent", parent), ("tracestate", "a=1")]).await;
    assert!(answer.text().contains(&format!("\ntraceparent: {parent}\n")), "{}", answer.text());
    assert!(answer.text().contains("\ntracestate: a=1\n"));
    let woke = line(log, "/head").await;
    assert_eq!(woke["request_id"], answer.headers["fly-request-id"].to_str().unwrap());
    assert_eq!(woke["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(woke["parent_id"], "00f067aa0ba902b7");
    for (name, value) in [
        ("app", "web"),
        ("machine", id.as_str()),
        ("host", host.id.as_str()),
        ("region", "fra"),
        ("client", "127.0.0.1"),
        ("protocol", "http/1.1"),
        ("method", "GET"),
        ("http_host", "web.localhost"),
    ] {
        assert_eq!(woke[name], value, "{name} of {woke}");
    }
    assert_eq!((woke["status"].as_u64(), woke["tls"].as_bool()), (Some(200), Some(false)));
    assert_eq!(woke["bytes_out"].as_u64(), Some(answer.body.len() as u64));
    let us = |name: &str| woke[name].as_u64().unwrap();
    assert!(us("wake_us") > 0 && us("first_byte_us") > 0 && us("total_us") >= us("wake_us"), "{woke}");
    assert!(godwit_base::clock::parse_rfc3339(woke["time"].as_str().unwrap()).is_some());
    assert!(!std::fs::read_to_string(log).unwrap().contains("secret"), "a query is not written");

    let sent = browser.send(Method::POST, "/echo", full(vec![7u8; 100_000]), &[]).await;
    assert_eq!(read(sent).await.code, 200);
    let posted = line(log, "/echo").await;
    assert_eq!(posted["bytes_in"].as_u64(), Some(100_000));
    assert_eq!(posted["wake_us"].as_u64(), Some(0));

    // A trace that cannot be read is begun anew, its state forgotten.
    let odd = [("traceparent", "00-xyz"), ("tracestate", "b=2")];
    let answer = browser.send(Method::PUT, "/head", full("x"), &odd).await;
    let text = read(answer).await;
    assert!(!text.text().contains("tracestate") && !text.text().contains("00-xyz"), "{}", text.text());
    assert!(text.text().contains("\ntraceparent: 00-"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_turned_away_broke_off_or_spoke_no_http_stands_there_too() {
    let setup = Setup { gate_deadline_ms: 300, ..Setup::default() };
    let (fleet, _host, _) = one_running(&setup, |port| vec![limited(port, 1, 1)]).await;
    let (browser, log) = (fleet.browser(), fleet.edge.access_log.clone());
    assert_eq!(Browser::new(fleet.edge.addr, "nobody.localhost").get("/unknown").await.code, 404);
    let unknown = line(&log, "/unknown").await;
    assert_eq!((unknown["reason"].as_str(), unknown["app"].as_str()), (Some("unknown_app"), None));

    let mut raw = tokio::net::TcpStream::connect(fleet.edge.addr).await.unwrap();
    raw.write_all(b"GET /long HTTP/1.1\r\nhost: web.localhost\r\nx : y\r\n\r\n").await.unwrap();
    let _ = raw.read_to_end(&mut Vec::new()).await;
    until("the refused head", async || {
        let found = lines(&log).into_iter().find(|line| line["reason"] == "space_before_colon")?;
        assert_eq!((found["status"].as_u64(), found["path"].as_str()), (Some(400), None));
        Some(())
    })
    .await;

    // One goes away while it is served; who comes meanwhile waits for room in vain.
    let mut raw = tokio::net::TcpStream::connect(fleet.edge.addr).await.unwrap();
    raw.write_all(b"GET /sleep?ms=1500 HTTP/1.1\r\nhost: web.localhost\r\n\r\n").await.unwrap();
    until("it is under way", async || {
        (metric(fleet.edge.admin, "godwit_edge_app_in_flight{app=\"web\"} ").await == 1.0).then_some(())
    })
    .await;
    assert_eq!(browser.get("/late").await.code, 503);
    raw.set_zero_linger().unwrap();
    drop(raw);
    let late = line(&log, "/late").await;
    assert_eq!(late["reason"], "deadline");
    assert!(late["queue_us"].as_u64().unwrap() >= 200_000, "{late}");
    let gone = line(&log, "/sleep").await;
    assert_eq!((gone["status"].as_u64(), gone["reason"].as_str()), (Some(499), Some("client_gone")));
    until("the broken answer", async || {
        let mut raw = tokio::net::TcpStream::connect(fleet.edge.addr).await.unwrap();
        raw.write_all(b"GET /break HTTP/1.1\r\nhost: web.localhost\r\n\r\n").await.unwrap();
        let _ = raw.read_to_end(&mut Vec::new()).await;
        lines(&log).into_iter().find(|line| line["path"] == "/break" && line["reason"] == "broken")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_has_one_line_at_its_end_with_what_passed() {
    let server = crate::tunnels::websocket_server();
    let (fleet, _host, _) = one_running(&Setup::default(), |_| vec![http_service(server)]).await;
    let (edge, log) = (fleet.edge.addr, fleet.edge.access_log.clone());
    tokio::task::spawn_blocking(move || {
        let stream = std::net::TcpStream::connect(edge).unwrap();
        let (mut socket, _) = tungstenite::client("ws://web.localhost/ws", stream).unwrap();
        socket.send(tungstenite::Message::text("hello")).unwrap();
        assert_eq!(socket.read().unwrap().into_text().unwrap().as_str(), "hello");
        assert!(lines(&log).iter().all(|line| line["path"] != "/ws"), "it is not over");
    })
    .await
    .unwrap();
    let ended = line(&fleet.edge.access_log, "/ws").await;
    assert_eq!(ended["status"].as_u64(), Some(101));
    let bytes = |name: &str| ended[name].as_u64().unwrap();
    assert!(bytes("bytes_in") >= 11 && bytes("bytes_out") >= 7, "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_has_lines_and_the_log_is_switched_while_it_is_served() {
    let (fleet, _host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let root = certify(&fleet.edge.certificates, "web.pem", &["web.localhost"]);
    let config = trust(&[&root], &[b"h2"]);
    let stream = connected(fleet.edge.https, &config, "web.localhost").await;
    let mut sender = crate::tls::http2(stream).await;
    let mut get = async |path: &str| {
        let request = crate::tls::request(Method::GET, &format!("https://web.localhost{path}"), full(""));
        assert_eq!(read(sender.send_request(request).await.unwrap()).await.code, 200);
    };
    get("/head").await;
    let log = fleet.edge.access_log.clone();
    let first = line(&log, "/head").await;
    assert_eq!((first["protocol"].as_str(), first["tls"].as_bool()), (Some("h2"), Some(true)));

    // Moved away and told: the next line stands in a new file.
    let moved = log.with_extension("1");
    std::fs::rename(&log, &moved).unwrap();
    fleet.edge.settings.send_modify(|_| {});
    until("a new file", async || log.exists().then_some(())).await;
    get("/").await;
    line(&log, "/").await;
    assert_eq!(lines(&moved).len(), 1);

    // Switched off: no line more.
    fleet.edge.settings.send_modify(|live| live.access_log = None);
    let written = "godwit_edge_access_lines_total ";
    until("it is off", async || {
        let before = metric(fleet.edge.admin, written).await;
        get("/").await;
        (metric(fleet.edge.admin, written).await == before).then_some(())
    })
    .await;
    assert_eq!(metric_or_zero(fleet.edge.admin, "godwit_edge_access_lines_dropped_total ").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_app_has_its_rate_its_errors_and_its_durations() {
    let (fleet, _host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let browser = fleet.browser();
    for _ in 0..3 {
        browser.get("/").await;
    }
    browser.get("/missing").await;
    let admin = fleet.edge.admin;
    for (line, value) in [
        ("godwit_edge_requests_total{app=\"web\",class=\"2xx\"} ", 3.0),
        ("godwit_edge_requests_total{app=\"web\",class=\"4xx\"} ", 1.0),
        ("godwit_edge_request_seconds_count{app=\"web\"} ", 4.0),
        ("godwit_edge_request_seconds_bucket{le=\"+Inf\",app=\"web\"} ", 4.0),
        ("godwit_edge_app_in_flight{app=\"web\"} ", 0.0),
    ] {
        until(line, async || (metric_or_zero(admin, line).await == value).then_some(())).await;
    }
}
