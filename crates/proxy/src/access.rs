//! One line of the access log: what a request was, who served it, and how long each part took. Pure.
//!
//! A line is one JSON object and a newline. Durations are microseconds, bytes are those of bodies (of both directions of
//! a connection that has switched protocols). A query is never written: it may hold what is secret.

use std::net::IpAddr;

use serde::Serialize;

/// Of a path or a name; what is longer is cut.
const MAX_TEXT_BYTES: usize = 1 << 10;

/// What is not known is `null`.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Line<'a> {
    /// RFC 3339, when the request's head was read.
    pub time: &'a str,
    pub request_id: &'a str,
    /// W3C trace context.
    pub trace_id: Option<&'a str>,
    pub parent_id: Option<&'a str>,
    pub app: Option<&'a str>,
    /// The Machine that answered, or was asked last.
    pub machine: Option<&'a str>,
    /// That Machine's host.
    pub host: Option<&'a str>,
    /// This edge's.
    pub region: &'a str,
    pub client: Option<IpAddr>,
    /// `http/1.1`, `h2`.
    pub protocol: &'static str,
    pub tls: bool,
    pub method: Option<&'a str>,
    pub http_host: Option<&'a str>,
    /// Without its query.
    pub path: Option<&'a str>,
    /// 499: its client went away, or broke HTTP inside its body, before there was an answer.
    pub status: u16,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Held for want of room.
    pub queue_us: u64,
    /// Held for the start of a Machine.
    pub wake_us: u64,
    /// From handing it to a door to the head of the answer, in the attempt that served.
    pub first_byte_us: Option<u64>,
    /// To the answer's last byte.
    pub total_us: u64,
    /// Sent again after an attempt that was lost.
    pub retries: u32,
    /// Sent on because a Machine said so.
    pub replays: u32,
    /// Why no Machine served it; `broken`: the answer ended before its time.
    pub reason: Option<&'a str>,
}

impl Line<'_> {
    pub fn to_bytes(&self) -> Vec<u8> {
        let cut = Line {
            method: self.method.map(cut),
            http_host: self.http_host.map(cut),
            path: self.path.map(cut),
            ..self.clone()
        };
        // Strings and numbers: there is nothing in it that JSON cannot say.
        let mut line = serde_json::to_vec(&cut).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_line_is_one_line_of_bounded_length_whatever_is_in_it(path in "\\PC{0,2000}", name in ".{0,40}") {
            let line = Line { path: Some(&path), http_host: Some(&name), method: Some("GET"), ..Line::default() };
            let bytes = line.to_bytes();
            prop_assert_eq!(bytes.iter().position(|&b| b == b'\n'), Some(bytes.len() - 1));
            prop_assert!(bytes.len() < 8 * MAX_TEXT_BYTES);
            let read: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            prop_assert!(path.starts_with(read["path"].as_str().unwrap()));
            prop_assert_eq!(read["http_host"].as_str().unwrap(), name);
        }
    }
}
