//! What a Machine and a client get to see of one another.

use godwit_base::http::client::empty;
use http::Method;

use crate::client::{Browser, read};
use crate::fleet::{Setup, http_service, one_running};

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_learns_about_its_client_from_the_edge_alone() {
    let (fleet, _host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let forged = [
        ("fly-client-ip", "6.6.6.6"),
        ("x-forwarded-for", "6.6.6.6"),
        ("godwit-machine", "x"),
        ("connection", "keep-alive, x-hop"),
        ("x-hop", "1"),
        ("te", "trailers"),
        ("authorization", "Bearer of-the-app"),
        ("x-mine", "kept"),
    ];
    let answer = fleet.browser().get_with("/head?a=b%20c", &forged).await;
    assert_eq!(answer.code, 200);
    let seen = answer.text();
    for line in [
        "GET /head?a=b%20c HTTP/1.1\n",
        "\nhost: web.localhost\n",
        "\nfly-client-ip: 127.0.0.1\n",
        "\nx-forwarded-for: 127.0.0.1\n",
        "\nx-forwarded-proto: http\n",
        "\nx-forwarded-port: 80\n",
        "\nfly-forwarded-port: 80\n",
        "\nfly-region: fra\n",
        "\nvia: 1.1 godwit\n",
        "\nauthorization: Bearer of-the-app\n",
        "\nx-mine: kept\n",
    ] {
        assert!(format!("\n{seen}").contains(line), "no {line:?} in\n{seen}");
    }
    for name in ["godwit-", "6.6.6.6", "x-hop", "\nte:", "\nexpect:"] {
        assert!(!seen.contains(name), "{name:?} in\n{seen}");
    }
    let id = answer.headers["fly-request-id"].to_str().unwrap();
    assert!(seen.contains(&format!("fly-request-id: {id}")) && id.ends_with("-fra"));
    assert_eq!(answer.headers["via"], "1.1 godwit");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_cannot_speak_as_a_door() {
    let (fleet, _host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let answer = fleet.browser().get("/forge").await;
    assert_eq!((answer.code, answer.text()), (200, "mine"));
    assert!(!answer.headers.keys().any(|name| name.as_str().starts_with("godwit-")), "{:?}", answer.headers);
    assert_eq!(answer.headers["x-own"], "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_a_body_stay_without_one() {
    let (fleet, _host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let browser = fleet.browser();
    let head = read(browser.send(Method::HEAD, "/", empty(), &[]).await).await;
    assert_eq!((head.code, head.body.len()), (200, 0));
    assert_eq!(head.headers["content-length"], "1", "as GET would say");
    assert_eq!(browser.get("/nothing").await.code, 204);
    let unchanged = browser.get("/unchanged").await;
    assert_eq!((unchanged.code, &unchanged.headers["etag"]), (304, &"\"1\"".parse().unwrap()));
    assert_eq!(browser.get("/").await.text(), "1", "and the connection is in step");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_lead_to_their_app_and_no_further() {
    let (fleet, _host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    for (host, code) in [
        ("web.localhost", 200),
        ("WEB.localhost:8080", 200),
        ("www.example.com", 200),
        ("other.localhost", 404),
        ("web.example.com", 404),
        ("a.web.localhost", 404),
        ("localhost", 404),
    ] {
        assert_eq!(Browser::new(fleet.edge.addr, host).get("/").await.code, code, "{host}");
    }
    let trace = fleet.browser().send(Method::TRACE, "/", empty(), &[]).await;
    assert_eq!(trace.status(), 405);
}

/// Whoever forwards an answer and has a clock adds the date (RFC 9110 section 6.6.1), over every version alike.
#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_dated_once() {
    use crate::raw::Raw;
    use crate::scripted::{OK, http2, says, stage};
    const OLD: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    let dated = format!("HTTP/1.1 200 OK\r\nDate: {OLD}\r\ncontent-length: 2\r\n\r\nok");
    let stage = stage(vec![says("/", OK), says("/dated", dated)]).await;
    let edge = &stage.fleet.edge;
    let ask = async |request: String| {
        let mut client = Raw::connect(edge.addr).await;
        client.send(request).await;
        client.rest().await
    };
    let get = |host: &str, path: &str| format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    for (request, status, date) in [
        (get("web.localhost", "/"), 200, None),
        (get("web.localhost", "/dated"), 200, Some(OLD)),
        (get("nobody.localhost", "/"), 404, None),
        (get("web.localhost", "/a b"), 400, None),
        ("TRACE / HTTP/1.1\r\nHost: web.localhost\r\n\r\n".to_owned(), 405, None),
        ("GET / HTTP/3.7\r\nHost: web.localhost\r\n\r\n".to_owned(), 505, None),
    ] {
        let answer = ask(request.clone()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
        let dates: Vec<_> = answer.split("\r\n").filter_map(|line| line.strip_prefix("date: ")).collect();
        let [one] = dates[..] else { panic!("{request}: {dates:?}") };
        let read = httpdate::parse_http_date(one).unwrap();
        assert!(date.is_none_or(|date| date == one), "{one}");
        assert!(date.is_some() || read.elapsed().unwrap().as_secs() < 300, "{one}");
    }
    let mut sender = http2(&stage.fleet).await;
    for (path, date) in [("/", None), ("/dated", Some(OLD))] {
        sender = sender.ready().await.unwrap();
        let request = http::Request::get(format!("https://web.localhost{path}")).body(()).unwrap();
        let (answer, _) = sender.send_request(request, true).unwrap();
        let answer = answer.await.unwrap();
        let dates: Vec<_> = answer.headers().get_all("date").iter().collect();
        assert!(dates.len() == 1 && date.is_none_or(|date| dates[0] == date), "{path}: {dates:?}");
    }
}

/// An answer that asks for another protocol says which (RFC 9110 section 15.5.22); HTTP/2 has no place for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_426_names_the_protocols_that_its_machine_wants() {
    use crate::raw::Raw;
    use crate::scripted::{http2, says, stage};
    let answer = |status: &str| {
        format!("HTTP/1.1 {status}\r\nConnection: Upgrade\r\nUpgrade: websocket, x/2\r\ncontent-length: 2\r\n\r\nok")
    };
    let stage = stage(vec![says("/old", answer("426 Upgrade Required")), says("/fine", answer("200 OK"))]).await;
    let mut client = Raw::connect(stage.fleet.edge.addr).await;
    let ask = |path: &str, fields: &str| format!("GET {path} HTTP/1.1\r\nHost: web.localhost\r\n{fields}\r\n");
    for (path, fields, names) in [
        ("/old", "", true),
        ("/old", "Connection: Upgrade\r\nUpgrade: other\r\n", true),
        // Nobody needs to know what else it could speak.
        ("/fine", "", false),
    ] {
        client.send(ask(path, fields)).await;
        let head = client.until("\r\n\r\n").await;
        client.until("ok").await;
        assert_eq!(head.contains("\r\nupgrade: websocket, x/2\r\n"), names, "{head}");
        assert_eq!(head.contains("\r\nconnection: upgrade\r\n"), names, "{head}");
        assert!(!head.contains("godwit-"), "{head}");
    }
    let mut sender = http2(&stage.fleet).await.ready().await.unwrap();
    let request = http::Request::get("https://web.localhost/old").body(()).unwrap();
    let (answer, _) = sender.send_request(request, true).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers().contains_key("upgrade")), (426, false));
}
