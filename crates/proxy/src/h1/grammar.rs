//! The strict grammar of a head, read byte by byte: it says which rule a head breaks first.
//!
//! `httparse` reads every head; it is fast and says little. When it objects, and when a head outgrows its limit, this
//! file finds the reason, always the first one in the order of the bytes, so that a head has the same reason however
//! it was cut into reads. It is also the second parser that tests compare with. (It runs once in a connection's life.)

use super::limits::{Limits, MAX_METHOD_BYTES};
use super::refusal::Refusal;

/// What a field name or a method consists of (RFC 9110 section 5.6.2).
pub fn is_tchar(b: u8) -> bool {
    b.is_ascii_alphanumeric()
        || matches!(
            b,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        )
}

/// What a target may consist of. Wider than RFC 3986, as browsers are, but visible ASCII, and never a fragment.
pub fn is_target_char(b: u8) -> bool {
    matches!(b, 0x21..=0x7e) && b != b'#'
}

/// Which head is read: a client's request is held to the letter; of a Machine's answer a line may end in LF and a
/// name in spaces (RFC 9112 sections 2.2 and 5.1), since what is sent on is written anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Request,
    Response,
}

/// Reads the head at the start of `buf`: its length if it is whole, nothing if more is needed, or the first thing
/// that is wrong with it.
pub fn read(buf: &[u8], side: Side, limits: &Limits) -> Result<Option<usize>, Refusal> {
    let Some((line, mut at)) = next_line(buf, 0, side)? else {
        first_line_so_far(buf, side, limits)?;
        return Ok(None);
    };
    match side {
        Side::Request => request_line(line, limits)?,
        Side::Response => status_line(line)?,
    }
    fields(buf, &mut at, side, limits)
}

/// The trailer section that starts at `buf`; the same rules as for a head's fields.
pub fn fields(buf: &[u8], at: &mut usize, side: Side, limits: &Limits) -> Result<Option<usize>, Refusal> {
    let mut count = 0;
    loop {
        let start = *at;
        let Some((line, next)) = next_line(buf, start, side)? else {
            field_so_far(&buf[start..], side)?;
            return Ok(None);
        };
        *at = next;
        if line.is_empty() {
            return Ok(Some(next));
        }
        field(line, side)?;
        count += 1;
        if count > limits.fields {
            return Err(Refusal::TooManyFields);
        }
    }
}

/// The line that starts at `at` without its end, and where the next one starts.
fn next_line(buf: &[u8], at: usize, side: Side) -> Result<Option<(&[u8], usize)>, Refusal> {
    let rest = &buf[at..];
    let Some(lf) = rest.iter().position(|&b| b == b'\n') else { return Ok(None) };
    let next = at + lf + 1;
    if lf > 0 && rest[lf - 1] == b'\r' {
        return Ok(Some((&rest[..lf - 1], next)));
    }
    if side == Side::Response {
        return Ok(Some((&rest[..lf], next)));
    }
    // What stands before the LF came first.
    let line = &rest[..lf];
    if at == 0 {
        request_line_so_far(line, None)?
    } else {
        field_so_far(line, side)?
    }
    Err(Refusal::BareLf)
}

fn control(b: u8) -> Refusal {
    match b {
        0 => Refusal::Nul,
        b'\r' => Refusal::BareCr,
        _ => Refusal::ControlCharacter,
    }
}

fn first_line_so_far(buf: &[u8], side: Side, limits: &Limits) -> Result<(), Refusal> {
    // The CR may be half of a line's end.
    let line = buf.strip_suffix(b"\r").unwrap_or(buf);
    match side {
        Side::Request => request_line_so_far(line, Some(limits)),
        Side::Response => Ok(()),
    }
}

/// Method and target as far as they go.
fn request_line_so_far(line: &[u8], limits: Option<&Limits>) -> Result<(), Refusal> {
    let mut parts = line.splitn(3, |&b| b == b' ');
    method(parts.next().unwrap_or_default())?;
    match parts.next() {
        Some(part) => target_bytes(part, limits.map_or(usize::MAX, |limits| limits.target_bytes)),
        None => Ok(()),
    }
}

fn method(bytes: &[u8]) -> Result<(), Refusal> {
    for (index, &b) in bytes.iter().enumerate() {
        if index == MAX_METHOD_BYTES {
            return Err(Refusal::MethodTooLong);
        }
        if !is_tchar(b) {
            return Err(match b {
                0 | b'\r' => control(b),
                _ => Refusal::BadMethod,
            });
        }
    }
    Ok(())
}

fn target_bytes(bytes: &[u8], limit: usize) -> Result<(), Refusal> {
    for (index, &b) in bytes.iter().enumerate() {
        if index == limit {
            return Err(Refusal::TargetTooLong);
        }
        if !is_target_char(b) {
            return Err(match b {
                b'\t' => Refusal::SpaceInTarget,
                0..=0x1f | 0x7f => control(b),
                _ => Refusal::BadTarget,
            });
        }
    }
    Ok(())
}

fn request_line(line: &[u8], limits: &Limits) -> Result<(), Refusal> {
    request_line_so_far(line, Some(limits))?;
    let mut parts = line.splitn(3, |&b| b == b' ');
    let (method, target, version) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    if method.is_empty() {
        return Err(Refusal::BadMethod);
    }
    let Some(target) = target else { return Err(Refusal::BadTarget) };
    match version {
        // `GET  / HTTP/1.1`
        Some(_) if target.is_empty() => Err(Refusal::SpaceInTarget),
        // Later minor versions are read as the last one known (RFC 9110 section 2.5).
        Some([b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0'..=b'9']) => Ok(()),
        Some(rest) if rest.contains(&b' ') => Err(Refusal::SpaceInTarget),
        Some(rest) => match rest.iter().find(|&&b| b == 0 || b == b'\r') {
            Some(&b) => Err(control(b)),
            None => Err(Refusal::BadVersion),
        },
        None if target.is_empty() => Err(Refusal::BadTarget),
        // HTTP/0.9
        None => Err(Refusal::BadVersion),
    }
}

fn status_line(line: &[u8]) -> Result<(), Refusal> {
    if !line.starts_with(b"HTTP/1.0") && !line.starts_with(b"HTTP/1.1") {
        return Err(Refusal::BadVersion);
    }
    match &line[8..] {
        [b' ', a @ b'0'..=b'9', b'0'..=b'9', b'0'..=b'9', rest @ ..] if (b'1'..=b'5').contains(a) => match rest {
            [] => Ok(()),
            [b' ', reason @ ..] => match reason.iter().find(|&&b| !is_value_byte(b)) {
                Some(&b) => Err(control(b)),
                None => Ok(()),
            },
            _ => Err(Refusal::BadStatus),
        },
        _ => Err(Refusal::BadStatus),
    }
}

fn is_value_byte(b: u8) -> bool {
    b == b'\t' || (b >= 0x20 && b != 0x7f)
}

/// One whole line of fields.
fn field(line: &[u8], side: Side) -> Result<(), Refusal> {
    field_bytes(line, side)?;
    if line.contains(&b':') { Ok(()) } else { Err(Refusal::NoColon) }
}

/// A line of fields as far as it goes.
fn field_so_far(line: &[u8], side: Side) -> Result<(), Refusal> {
    // The CR may be half of the line's end.
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() { Ok(()) } else { field_bytes(line, side) }
}

/// The bytes of a field line up to where it was read, in their order.
fn field_bytes(line: &[u8], side: Side) -> Result<(), Refusal> {
    match line[0] {
        b' ' | b'\t' => return Err(Refusal::ObsFold),
        b':' => return Err(Refusal::EmptyName),
        _ => {}
    }
    let end = line.iter().position(|&b| !is_tchar(b)).unwrap_or(line.len());
    let mut rest = &line[end..];
    if let [b' ' | b'\t', ..] = rest {
        let blank = rest.iter().position(|&b| b != b' ' && b != b'\t').unwrap_or(rest.len());
        match (side, rest.get(blank)) {
            (Side::Request, _) => return Err(Refusal::SpaceBeforeColon),
            (Side::Response, Some(b':')) => rest = &rest[blank..],
            (Side::Response, None) => return Ok(()),
            (Side::Response, Some(_)) => return Err(Refusal::BadName),
        }
    }
    match rest {
        [] => Ok(()),
        [b':', value @ ..] => match value.iter().find(|&&b| !is_value_byte(b)) {
            Some(&b) => Err(control(b)),
            None => Ok(()),
        },
        [b @ (0 | b'\r'), ..] => Err(control(*b)),
        _ => Err(Refusal::BadName),
    }
}
