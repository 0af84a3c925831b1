//! Log lines as they travel, one JSON object a line, written and read by the million: what stands before a message is made
//! once and kept for the lines that share it (those that a Machine wrote at one moment), and a message that needs no escapes
//! is copied as it is. The bytes are those that serde makes of a [`LogLine`]; every other form of them is read too.

use std::sync::Arc;

use crate::host::LogLine;

/// When a line was written and where to: what neighbours share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub timestamp: String,
    pub stream: String,
}

impl Head {
    /// All of a line's JSON that stands before its message's text.
    pub fn json(&self) -> Vec<u8> {
        let mut out = b"{\"timestamp\":".to_vec();
        push_quoted(&self.timestamp, &mut out);
        out.extend_from_slice(b",\"stream\":");
        push_quoted(&self.stream, &mut out);
        out.extend_from_slice(b",\"message\":\"");
        out
    }
}

/// A line that shares its head with its neighbours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub head: Arc<Head>,
    pub message: String,
    pub partial: bool,
}

/// Appends the message and the end of a line whose head was appended before. Bytes that are not UTF-8 become U+FFFD.
pub fn push_message(text: &[u8], partial: bool, out: &mut Vec<u8>) {
    if text.iter().all(|byte| is_plain(*byte)) {
        out.extend_from_slice(text);
        out.push(b'"');
    } else {
        // The quotation mark that opens it stands there already.
        let start = out.len() - 1;
        out.truncate(start);
        push_quoted(&String::from_utf8_lossy(text), out);
    }
    out.extend_from_slice(if partial { b",\"partial\":true}\n" } else { b"}\n" });
}

/// Stands in JSON's text as it is (RFC 8259 section 7), and is UTF-8 by itself.
fn is_plain(byte: u8) -> bool {
    matches!(byte, 0x20..=0x7e) && byte != b'"' && byte != b'\\'
}

fn push_quoted(text: &str, out: &mut Vec<u8>) {
    // A text always becomes JSON.
    out.extend(serde_json::to_vec(text).unwrap_or_default());
}

/// Reads lines, one after another.
#[derive(Debug, Default)]
pub struct Reader {
    /// That of the last line, and its bytes.
    last: Option<(Arc<Head>, Vec<u8>)>,
}

impl Reader {
    /// A line without its newline.
    pub fn read(&mut self, line: &[u8]) -> serde_json::Result<Line> {
        if let Some(line) = self.like_the_last(line) {
            return Ok(line);
        }
        let LogLine { timestamp, stream, message, partial } = serde_json::from_slice(line)?;
        let head = Arc::new(Head { timestamp, stream });
        self.last = Some((head.clone(), head.json()));
        Ok(Line { head, message, partial })
    }

    /// `None` when it differs in more than its plain message.
    fn like_the_last(&self, line: &[u8]) -> Option<Line> {
        let (head, bytes) = self.last.as_ref()?;
        let message = line.strip_prefix(bytes.as_slice())?.strip_suffix(b"\"}")?;
        if !message.iter().all(|byte| is_plain(*byte)) {
            return None;
        }
        let message = String::from_utf8(message.to_vec()).ok()?;
        Some(Line { head: head.clone(), message, partial: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lines_are_the_bytes_that_serde_makes_and_come_back(
            lines in proptest::collection::vec((0_u8..3, "[ab\"\\\\]{0,2}", "[ -~]{0,20}|\\PC{0,9}|[\\x00-\\x7f]{0,9}", any::<bool>()), 0..20),
        ) {
            let mut reader = Reader::default();
            for (second, stream, message, partial) in lines {
                let head = Head { timestamp: format!("2026-01-01T00:00:0{second}.000000Z"), stream };
                let mut out = head.json();
                push_message(message.as_bytes(), partial, &mut out);
                let same = LogLine { timestamp: head.timestamp.clone(), stream: head.stream.clone(), message, partial };
                let written = out.strip_suffix(b"\n").expect("its end");
                let of_serde = serde_json::to_string(&same).unwrap();
                prop_assert_eq!(of_serde.as_bytes(), written);
                let read = reader.read(written).unwrap();
                prop_assert_eq!((&*read.head, &read.message, read.partial), (&head, &same.message, partial));
            }
        }
    }

    #[test]
    fn other_forms_of_the_same_json_are_read_and_what_is_none_is_refused() {
        let mut reader = Reader::default();
        let first = r#"{"timestamp":"t","stream":"stdout","message":"a"}"#;
        assert_eq!(reader.read(first.as_bytes()).unwrap().message, "a");
        let other = r#"{ "message": "b", "stream": "stdout", "timestamp": "t", "partial": false, "new": 1 }"#;
        assert_eq!(reader.read(other.as_bytes()).unwrap().message, "b");
        // Begins as the last one does, and goes on otherwise.
        let longer = r#"{"timestamp":"t","stream":"stdout","message":"a","more":"x"}"#;
        assert_eq!(reader.read(longer.as_bytes()).unwrap().message, "a");
        assert!(reader.read(br#"{"timestamp":"t","stream":"stdout","message":"a""#).is_err());
        assert_eq!(reader.read(br#"{"timestamp":"t","stream":"stdout","message":"\u00e9"}"#).unwrap().message, "é");
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_as_such() {
        let mut out = Head { timestamp: "t".into(), stream: "stdout".into() }.json();
        push_message(b"a\xffb", true, &mut out);
        let line: LogLine = serde_json::from_slice(&out).unwrap();
        assert_eq!((line.message.as_str(), line.partial), ("a\u{fffd}b", true));
    }
}
