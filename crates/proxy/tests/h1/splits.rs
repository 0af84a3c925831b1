//! However the bytes are cut into reads, the same is understood; and two parsers understand the same.

use godwit_proxy::h1::Limits;
use godwit_proxy::h1::conn::{Client, Event};
use proptest::prelude::*;

use crate::laws::{self, cut};
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
                    assert!(!ended, "the end of the input is not an event");
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
        laws::any_cut_means_the_same(&bytes, &sizes);
        laws::any_cut_means_the_same(&bytes, &[1]);
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

    #[test]
    fn two_parsers_read_the_same_head(bytes in hostile()) {
        laws::two_parsers_agree(&bytes);
    }

    #[test]
    fn two_decoders_read_the_same_chunks(
        parts in proptest::collection::vec(proptest::sample::select(vec![
            "3\r\nabc\r\n", "0\r\n\r\n", "0\r\n", "a\r\n0123456789\r\n", "1;x\r\nz\r\n", "3", "\r\n", "\n", "\r", "abc", ";", " ", "x: y\r\n", "f",
        ]), 0..8),
        sizes in proptest::collection::vec(1usize..7, 1..4),
    ) {
        let bytes = parts.concat().into_bytes();
        for sizes in [&[usize::MAX][..], &sizes, &[1]] {
            laws::two_decoders_agree(&bytes, sizes);
        }
    }
}
