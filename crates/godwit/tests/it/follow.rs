//! `logs --follow` over breaks: an API whose log streams end when a test says so.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;

use serde_json::{Value, json};

use crate::cli::{godwit_with, home, stderr, stdout};
use crate::volumes::{MACHINE, machine};

/// What a stream of the log sends before it breaks off.
type Stream = Vec<Value>;

fn line(stamp: u32, stream: &str, text: &str) -> Value {
    json!({ "timestamp": format!("2026-01-01T00:00:00.{stamp:06}Z"), "stream": stream, "message": text })
}

fn respond(mut socket: TcpStream, streams: &mut std::vec::IntoIter<Stream>, asked: &mpsc::Sender<String>) {
    let mut head = BufReader::new(socket.try_clone().expect("a socket")).lines().map_while(Result::ok);
    let Some(first) = head.next() else { return };
    head.take_while(|line| !line.is_empty()).for_each(drop);
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let whole = |code: &str, body: String| {
        format!(
            "HTTP/1.1 {code}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
    };
    let text = if path.contains("/logs?") {
        asked.send(path).expect("the test listens");
        match streams.next() {
            Some(lines) => {
                let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
                // A chunk, and no end: the connection breaks in the middle of the body.
                format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{lines}\r\n", lines.len())
            }
            None => whole("503 Service Unavailable", json!({ "error": "away", "status": "unavailable" }).to_string()),
        }
    } else {
        let state = if streams.as_slice().is_empty() { "destroyed" } else { "started" };
        let mut shown = machine(json!({ "image": "img" }));
        shown["state"] = state.into();
        whole("200 OK", shown.to_string())
    };
    let _ = socket.write_all(text.as_bytes());
}

#[test]
fn a_followed_log_goes_on_after_a_break_without_a_line_twice() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let streams: Vec<Stream> = vec![
        vec![line(1, "stdout", "a"), line(2, "platform", "started"), line(3, "stdout", "b"), line(3, "stdout", "b")],
        // It shows again what has the last stamp, as hosts do, and older lines as an older host would.
        vec![
            line(1, "stdout", "a"),
            line(2, "platform", "started"),
            line(3, "stdout", "b"),
            line(3, "stdout", "b"),
            line(3, "stdout", "b"),
            line(4, "stderr", "c"),
        ],
        vec![line(4, "stderr", "c"), line(5, "stdout", "d")],
    ];
    let (sender, asked) = mpsc::channel();
    std::thread::spawn(move || {
        let mut streams = streams.into_iter();
        for socket in listener.incoming().map_while(Result::ok) {
            respond(socket, &mut streams, &sender);
        }
    });
    let arguments = ["logs", "--follow", "--machine", MACHINE, "--tail", "7", "--json"];
    let output = godwit_with(home().path(), &arguments, &[("GODWIT_API_URL", &url), ("GODWIT_APP", "shop")]);
    // The Machine is destroyed after its last line: the log has ended, and that is no error.
    assert!(output.status.success(), "{}", stderr(&output));
    let told: Vec<String> = stdout(&output)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["message"].as_str().expect("a text").to_owned())
        .collect();
    assert_eq!(told, ["a", "started", "b", "b", "b", "c", "d"]);
    assert!(stderr(&output).contains("reconnecting"), "{}", stderr(&output));
    let asked: Vec<String> = asked.try_iter().collect();
    assert!(asked[0].contains("tail=7") && !asked[0].contains("since"), "{asked:?}");
    assert!(asked[1].contains("since=2026-01-01T00%3A00%3A00.000003Z"), "{asked:?}");
    assert_eq!(asked.len(), 3, "{asked:?}");
}
