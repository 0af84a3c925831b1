//! One line of the access log: what a request was, who served it, and how long each part took. Pure.
//!
//! A line is one JSON object and a newline. Durations are microseconds, bytes are those of bodies (of both directions of
//! a connection that has switched protocols). A query is never written: it may hold what is secret.

/// Of a path or a name; what is longer is cut.
const MAX_TEXT_BYTES: usize = 1 << 10;

/// What is not known is `null`. What `plain` writes below is of our own making and needs no escape.
#[derive(Debug, Default, Clone)]
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
    /// Its address.
    pub client: Option<&'a str>,
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
    pub reason: Option<&'static str>,
}

impl Line<'_> {
    pub fn write(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        let mut object = Object(out);
        object.plain("time", Some(self.time));
        object.plain("request_id", Some(self.request_id));
        object.plain("trace_id", self.trace_id);
        object.plain("parent_id", self.parent_id);
        object.plain("app", self.app);
        object.plain("machine", self.machine);
        object.plain("host", self.host);
        object.text("region", Some(self.region));
        object.plain("client", self.client);
        object.plain("protocol", Some(self.protocol));
        object.word("tls", if self.tls { "true" } else { "false" });
        object.text("method", self.method);
        object.text("http_host", self.http_host);
        object.text("path", self.path);
        object.number("status", Some(self.status.into()));
        object.number("bytes_in", Some(self.bytes_in));
        object.number("bytes_out", Some(self.bytes_out));
        object.number("queue_us", Some(self.queue_us));
        object.number("wake_us", Some(self.wake_us));
        object.number("first_byte_us", self.first_byte_us);
        object.number("total_us", Some(self.total_us));
        object.number("retries", Some(self.retries.into()));
        object.number("replays", Some(self.replays.into()));
        object.plain("reason", self.reason);
        out.extend_from_slice(b"}\n");
    }
}

/// The members of a JSON object, one behind the other. Each request pays for its line, so what is known to need no escape, all
/// names and most values, is copied; docs/benchmarks.md says what a general serializer and its memory cost.
struct Object<'a>(&'a mut Vec<u8>);

impl Object<'_> {
    fn word(&mut self, name: &'static str, word: &str) {
        if self.0.last() != Some(&b'{') {
            self.0.push(b',');
        }
        self.0.push(b'"');
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
        self.0.extend_from_slice(word.as_bytes());
    }

    fn number(&mut self, name: &'static str, value: Option<u64>) {
        match value {
            Some(value) => self.word(name, itoa::Buffer::new().format(value)),
            None => self.word(name, "null"),
        }
    }

    fn plain(&mut self, name: &'static str, value: Option<&str>) {
        let Some(value) = value else { return self.word(name, "null") };
        debug_assert!(value.bytes().all(|b| (b' '..=b'~').contains(&b) && !matches!(b, b'"' | b'\\')), "{value:?}");
        self.word(name, "\"");
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'"');
    }

    /// A client's own words.
    fn text(&mut self, name: &'static str, value: Option<&str>) {
        let Some(value) = value else { return self.word(name, "null") };
        self.word(name, "");
        // A string, into memory: nothing can fail.
        let _ = serde_json::to_writer(&mut *self.0, cut(value));
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
        fn a_line_is_one_line_of_bounded_length_whatever_is_in_it(path in "\\PC{0,2000}", name in ".{0,40}", us: u64, retries: u32) {
            let line = Line {
                time: "now", request_id: "id", app: Some("web"), client: Some("::1"), protocol: "h2", tls: true, region: "fra",
                path: Some(&path), http_host: Some(&name), method: Some("GET"), reason: Some("lost"), status: 499,
                total_us: us, first_byte_us: Some(us), retries, ..Line::default()
            };
            let mut bytes = Vec::new();
            line.write(&mut bytes);
            prop_assert_eq!(bytes.iter().position(|&b| b == b'\n'), Some(bytes.len() - 1));
            prop_assert!(bytes.len() < 8 * MAX_TEXT_BYTES);
            let read: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            prop_assert!(path.starts_with(read["path"].as_str().unwrap()));
            prop_assert_eq!(read["http_host"].as_str().unwrap(), name);
            let cut = read["path"].clone();
            let whole = serde_json::json!({
                "time": "now", "request_id": "id", "trace_id": null, "parent_id": null, "app": "web", "machine": null,
                "host": null, "region": "fra", "client": "::1", "protocol": "h2", "tls": true, "method": "GET",
                "http_host": read["http_host"], "path": cut, "status": 499, "bytes_in": 0, "bytes_out": 0, "queue_us": 0,
                "wake_us": 0, "first_byte_us": us, "total_us": us, "retries": retries, "replays": 0, "reason": "lost",
            });
            prop_assert_eq!(&read, &whole);
        }
    }
}
