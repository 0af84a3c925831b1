//! However the bytes are cut into reads, the same is understood; and two parsers understand the same.

use godwit_proxy::h1::body::{Decoder, Framing, Piece};
use godwit_proxy::h1::conn::{Client, Event};
use godwit_proxy::h1::head::{MAX_FIELDS, Span};
use godwit_proxy::h1::{Limits, RequestHead, Side};
use proptest::prelude::*;

use crate::pipe::{Outcome, run};
use crate::table::cases;

/// Requests as clients make them and as they should not: parts of the table, spliced, cut and with bytes changed.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let all: Vec<Vec<u8>> = cases().into_iter().map(|case| case.bytes).filter(|bytes| bytes.len() < 2000).collect();
    let one = (proptest::sample::select(all), any::<prop::sample::Index>(), any::<prop::sample::Index>());
    let change = (
        any::<prop::sample::Index>(),
        proptest::sample::select(b"\0\t\n\r :;,-_aAfF019/*\x7f\x80\xff".to_vec()),
        0..3u8,
    );
    (proptest::collection::vec(one, 1..4), proptest::collection::vec(change, 0..4)).prop_map(|(parts, changes)| {
        let mut bytes = Vec::new();
        for (part, from, to) in parts {
            // Most parts whole, some cut at either end.
            let from = from.index(part.len() * 4 + 1).saturating_sub(part.len() * 3).min(part.len());
            let to = part.len() - to.index(part.len() * 4 + 1).saturating_sub(part.len() * 3).min(part.len());
            bytes.extend_from_slice(part.get(from..to).unwrap_or(&part));
        }
        for (at, byte, kind) in changes {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => drop(bytes.remove(at)),
            }
        }
        bytes
    })
}

/// The bytes in reads of the given sizes, over and over.
fn cut<'b>(mut bytes: &'b [u8], sizes: &[usize]) -> Vec<&'b [u8]> {
    let mut reads = Vec::new();
    for size in sizes.iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let (read, rest) = bytes.split_at((*size).clamp(1, bytes.len()));
        reads.push(read);
        bytes = rest;
    }
    reads
}

fn same_but_for_what_was_begun(at_once: &Outcome, cut: &Outcome) -> bool {
    let begun = cut.forwarded.len() - cut.whole;
    at_once.refused == cut.refused
        && at_once.closed == cut.closed
        && at_once.whole == cut.whole
        && at_once.forwarded[..at_once.whole] == cut.forwarded[..cut.whole]
        && begun <= 1
}

/// A Machine's bytes as events, data joined.
fn answers(reads: &[&[u8]], to_head: bool) -> Vec<String> {
    let mut client = Client::new(Limits::default());
    client.begin(to_head, false);
    client.sent();
    let (mut events, mut data, mut buf) = (Vec::new(), Vec::new(), Vec::new());
    let mut reads = reads.iter();
    let mut ended = false;
    loop {
        let step = client.step(&buf, ended);
        match &step.event {
            Event::More if step.consumed > 0 => {}
            Event::More => match reads.next() {
                Some(read) => buf.extend_from_slice(read),
                None => {
                    assert!(!ended, "the end of the input is no event");
                    ended = true;
                }
            },
            Event::Data(range) => data.extend_from_slice(&buf[range.clone()]),
            Event::Trailers(range) => events.push(format!("{:?}", String::from_utf8_lossy(&buf[range.clone()]))),
            Event::Head | Event::Interim => events.push(format!("{} {:?}", client.head().status, client.framing())),
            last @ (Event::End | Event::Closed | Event::Refused(_) | Event::Switched | Event::Wait) => {
                events.push(format!("{last:?} {:?}", String::from_utf8_lossy(&data)));
                return events;
            }
        }
        buf.drain(..step.consumed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_cut_of_requests_means_the_same(bytes in hostile(), sizes in proptest::collection::vec(1usize..90, 1..6)) {
        let at_once = run([bytes.as_slice()]);
        let in_reads = run(cut(&bytes, &sizes));
        prop_assert!(
            same_but_for_what_was_begun(&at_once, &in_reads),
            "{:?}\nat once {at_once:?}\nin reads {in_reads:?}", String::from_utf8_lossy(&bytes)
        );
        let dripped = run(bytes.chunks(1));
        prop_assert!(same_but_for_what_was_begun(&at_once, &dripped), "{:?}\n{at_once:?}\n{dripped:?}", String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_cut_of_an_answer_means_the_same(
        interim in 0usize..2,
        status in 95u16..610,
        fields in proptest::collection::vec(proptest::sample::select(vec![
            "Content-Length: 5\r\n", "Content-Length: 6\r\n", "Transfer-Encoding: chunked\r\n", "A : b\r\n", "c: d\n",
            "Connection: close\r\n", "e:\r\n f\r\n", ":\r\n", "Transfer-Encoding: x\r\n", "Content-Length: 5, 5\r\n",
        ]), 0..4),
        body in proptest::sample::select(vec!["", "hello", "5\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\nx: y\r\n\r\n", "5\nhello", "hel"]),
        to_head: bool,
        sizes in proptest::collection::vec(1usize..40, 1..4),
    ) {
        let bytes = format!("{}HTTP/1.1 {status} Fine\r\n{}\r\n{body}", "HTTP/1.1 103 Early\r\nlink: x\r\n\r\n".repeat(interim), fields.concat());
        let at_once = answers(&[bytes.as_bytes()], to_head);
        prop_assert_eq!(&at_once, &answers(&cut(bytes.as_bytes(), &sizes), to_head));
        prop_assert_eq!(&at_once, &answers(&cut(bytes.as_bytes(), &[1]), to_head));
    }

    /// What the fast parser takes the strict grammar takes, with the same end; what is taken is what a naive reading,
    /// line by line, finds there.
    #[test]
    fn two_parsers_read_the_same_head(bytes in hostile()) {
        let limits = Limits::default();
        let mut head = RequestHead::default();
        let fast = head.parse(&bytes, &mut 0, &limits);
        let strict = godwit_proxy::h1::read_grammar(&bytes, Side::Request, &limits);
        match fast {
            Ok(Some(length)) => {
                prop_assert_eq!(strict, Ok(Some(length)));
                let text = &bytes[..length];
                let lines: Vec<&[u8]> = split_lines(text);
                let mut naive = Vec::new();
                for line in &lines[1..lines.len() - 1] {
                    let colon = line.iter().position(|&b| b == b':').unwrap();
                    naive.push((line[..colon].to_vec(), line[colon + 1..].trim_ascii().to_vec()));
                }
                let part = |span: Span| span.in_buf(text).to_vec();
                let ours: Vec<_> = head.fields().iter().map(|field| (part(field.name), part(field.value))).collect();
                prop_assert_eq!(ours, naive);
            }
            // It may see later that a head is wrong, not that it is whole.
            Ok(None) => prop_assert!(!matches!(strict, Ok(Some(_)))),
            // What the grammar lets pass is refused for what it means, not for its syntax.
            Err(refusal) => if let Err(reason) = strict {
                prop_assert!(refusal == reason || !bytes.first().is_some_and(u8::is_ascii_graphic), "{refusal} {reason}");
            },
        }
        // A third reader, which knows nothing of framing: it must find no less than we do.
        if let Ok(Some(length)) = fast {
            let mut headers = [httparse::EMPTY_HEADER; MAX_FIELDS];
            let mut request = httparse::Request::new(&mut headers);
            prop_assert_eq!(request.parse(&bytes), Ok(httparse::Status::Complete(length)));
        }
    }

    /// A decoder that works on whole bodies, as simple as can be, against the one that works on cuts.
    #[test]
    fn two_decoders_read_the_same_chunks(
        parts in proptest::collection::vec(proptest::sample::select(vec![
            "3\r\nabc\r\n", "0\r\n\r\n", "0\r\n", "a\r\n0123456789\r\n", "1;x\r\nz\r\n", "3", "\r\n", "\n", "\r", "abc", ";", " ", "x: y\r\n", "f",
        ]), 0..8),
        sizes in proptest::collection::vec(1usize..7, 1..4),
    ) {
        let bytes = parts.concat().into_bytes();
        let naive = naive_chunks(&bytes);
        for sizes in [&[usize::MAX][..], &sizes, &[1]] {
            let mut decoder = Decoder::new(Framing::Chunked, Side::Request);
            let (mut data, mut buf, mut reads) = (Vec::new(), Vec::new(), cut(&bytes, sizes).into_iter());
            let mut total = 0;
            let ours = loop {
                let Ok((consumed, piece)) = decoder.next(&buf) else { break None };
                if let Piece::Data(range) = &piece {
                    data.extend_from_slice(&buf[range.clone()]);
                }
                total += consumed;
                buf.drain(..consumed);
                match piece {
                    Piece::End => break Some((data.clone(), total)),
                    Piece::More => match reads.next() {
                        Some(read) => buf.extend_from_slice(read),
                        None => break None,
                    },
                    _ => {}
                }
            };
            prop_assert_eq!(&ours, &naive, "{:?}", String::from_utf8_lossy(&bytes));
        }
    }
}

fn split_lines(text: &[u8]) -> Vec<&[u8]> {
    let mut lines: Vec<&[u8]> =
        text.split(|&b| b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect();
    lines.pop();
    lines
}

/// The data and the length of a chunked body at the start of `bytes`, if it is whole and right.
fn naive_chunks(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut data, mut at) = (Vec::new(), 0);
    let line_at = |at: usize| {
        let end = at + bytes.get(at..)?.windows(2).position(|two| two == b"\r\n")?;
        let line = &bytes[at..end];
        (!line.contains(&b'\n') && !line.contains(&b'\r')).then_some((line, end + 2))
    };
    loop {
        let (line, next) = line_at(at)?;
        let mut parts = line.splitn(2, |&b| b == b';');
        let size = parts.next()?;
        let size = if parts.next().is_some() { size.trim_ascii_end() } else { size };
        if size.is_empty() || !size.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let size = usize::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()?;
        if size > 0 {
            data.extend_from_slice(bytes.get(next..next + size)?);
            at = next + size + 2;
            if bytes.get(next + size..at)? != b"\r\n" {
                return None;
            }
            continue;
        }
        at = next;
        loop {
            let (line, next) = line_at(at)?;
            at = next;
            if line.is_empty() {
                return Some((data, at));
            }
            let colon = line.iter().position(|&b| b == b':')?;
            if colon == 0 || line[..colon].iter().any(|b| !b.is_ascii_alphanumeric()) {
                return None;
            }
        }
    }
}
