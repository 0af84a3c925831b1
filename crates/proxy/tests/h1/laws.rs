//! What must hold for any bytes at all. Property tests and fuzz targets call these; they panic when it does not.

use godwit_proxy::h1::body::{Decoder, Piece};
use godwit_proxy::h1::framing::Framing;
use godwit_proxy::h1::head::Span;
use godwit_proxy::h1::limits::MAX_FIELDS;
use godwit_proxy::h1::{Limits, RequestHead, Side, read_grammar};

use crate::pipe::{Outcome, run};

/// The bytes in reads of the given sizes, over and over.
pub fn cut<'b>(mut bytes: &'b [u8], sizes: &[usize]) -> Vec<&'b [u8]> {
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

/// However requests are cut into reads, the same is understood, forwarded and refused.
pub fn any_cut_means_the_same(bytes: &[u8], sizes: &[usize]) {
    let at_once = run([bytes]);
    let in_reads = run(cut(bytes, sizes));
    assert!(
        same_but_for_what_was_begun(&at_once, &in_reads),
        "{:?}\nat once {at_once:?}\nin reads {in_reads:?}",
        String::from_utf8_lossy(bytes)
    );
}

/// What the fast parser takes the strict grammar takes, with the same end; what is taken is what a naive reading,
/// line by line, finds there; and plain `httparse`, which knows nothing of framing, finds no less.
pub fn two_parsers_agree(bytes: &[u8]) {
    let limits = Limits::default();
    let mut head = RequestHead::default();
    let strict = read_grammar(bytes, Side::Request, &limits);
    let length = match head.parse(bytes, &mut 0, &limits) {
        Ok(Some(length)) => length,
        // It may see later that a head is wrong, not that it is whole.
        Ok(None) => return assert!(!matches!(strict, Ok(Some(_)))),
        Err(refusal) => {
            // What the grammar lets pass is refused for what it means, not for its syntax.
            if let Err(reason) = strict {
                let noise = !bytes.first().is_some_and(u8::is_ascii_graphic);
                assert!(refusal == reason || noise || bytes.len() > limits.head_bytes, "{refusal} {reason}");
            }
            return;
        }
    };
    assert_eq!(strict, Ok(Some(length)));
    let text = &bytes[..length];
    let lines = split_lines(text);
    let mut naive = Vec::new();
    for line in &lines[1..lines.len() - 1] {
        let colon = line.iter().position(|&b| b == b':').unwrap();
        naive.push((line[..colon].to_vec(), line[colon + 1..].trim_ascii().to_vec()));
    }
    let part = |span: Span| span.in_buf(text).to_vec();
    let ours: Vec<_> = head.fields().iter().map(|field| (part(field.name), part(field.value))).collect();
    assert_eq!(ours, naive);
    let mut headers = [httparse::EMPTY_HEADER; MAX_FIELDS];
    // It knows no minor version beyond 1, and those are read as that.
    let mut known = bytes.to_vec();
    if let Some(minor @ b'2'..=b'9') = known.get_mut(lines[0].len() - 1) {
        *minor = b'1';
    }
    assert_eq!(httparse::Request::new(&mut headers).parse(&known), Ok(httparse::Status::Complete(length)));
}

/// A decoder that works on whole bodies, as simple as can be, against the one that works on cuts.
pub fn two_decoders_agree(bytes: &[u8], sizes: &[usize]) {
    let mut decoder = Decoder::new(Framing::Chunked, Side::Request);
    let (mut data, mut buf, mut reads) = (Vec::new(), Vec::new(), cut(bytes, sizes).into_iter());
    let mut total = 0;
    let ours = loop {
        let Ok((consumed, piece)) = decoder.next(&buf) else { break None };
        if let Piece::Data(range) = &piece {
            data.extend_from_slice(&buf[range.clone()]);
        }
        total += consumed;
        buf.drain(..consumed);
        match piece {
            Piece::End => break Some((data, total)),
            Piece::More => match reads.next() {
                Some(read) => buf.extend_from_slice(read),
                None => break None,
            },
            _ => {}
        }
    };
    let naive = naive_chunks(bytes);
    // The naive one knows no bounds and takes fewer names for trailers.
    if ours.is_some() || bytes.len() < 200 && bytes.iter().all(|b| b.is_ascii_graphic() || b"\r\n ".contains(b)) {
        assert!(agree(&ours, &naive, bytes), "{ours:?}\n{naive:?}\n{:?}", String::from_utf8_lossy(bytes));
    }
}

type Body = Option<(Vec<u8>, usize)>;

fn agree(ours: &Body, naive: &Body, bytes: &[u8]) -> bool {
    // Sixteen digits are a bound of ours.
    let long_size = bytes.windows(16).any(|run| run.iter().all(u8::is_ascii_hexdigit));
    ours == naive || (long_size && ours.is_none())
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
        let size = match parts.next() {
            Some(extension) if extension.iter().any(|&b| is_control(b)) => return None,
            Some(_) => size.trim_ascii_end(),
            None => size,
        };
        if size.is_empty() || !size.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let size = usize::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()?;
        if size > 0 {
            data.extend_from_slice(bytes.get(next..next.checked_add(size)?)?);
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
            if colon == 0
                || line[..colon].iter().any(|&b| !is_name_byte(b))
                || line[colon..].iter().any(|&b| is_control(b))
            {
                return None;
            }
        }
    }
}

fn is_name_byte(b: u8) -> bool {
    b.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&b)
}

fn is_control(b: u8) -> bool {
    b.is_ascii_control() && b != b'\t'
}
