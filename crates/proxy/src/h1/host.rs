//! The authority that a request names: the Host field, and the one inside an absolute target.
//!
//! RFC 3986 section 3.2 allows user names, percent-encoding and punctuation there. No name that a user can have
//! here needs them, and parties that read them differently route differently: only plain names, addresses and ports
//! pass.

/// Bytes of a name (RFC 1035) and its port.
const MAX_AUTHORITY_BYTES: usize = 255 + 6;

/// `name`, `a.b.c.d` or `[v6]`, with or without `:port`. The port may be empty (RFC 3986 section 3.2.3).
pub fn is_authority(bytes: &[u8]) -> bool {
    if bytes.is_empty() || bytes.len() > MAX_AUTHORITY_BYTES {
        return false;
    }
    let (host_is_fine, rest) = if bytes[0] == b'[' {
        let Some(end) = bytes.iter().position(|&b| b == b']') else { return false };
        (is_v6(&bytes[1..end]), &bytes[end + 1..])
    } else {
        let end = bytes.iter().position(|&b| b == b':').unwrap_or(bytes.len());
        (is_name(&bytes[..end]), &bytes[end..])
    };
    host_is_fine && (rest.is_empty() || (rest[0] == b':' && is_port(&rest[1..])))
}

/// Whether two authorities are one, though only one may state the default port. Both are authorities.
pub fn same_authority(a: &[u8], b: &[u8], default_port: &[u8]) -> bool {
    let split = |bytes: &'_ [u8]| {
        let colon = bytes.iter().rposition(|&b| b == b':').filter(|_| bytes.last() != Some(&b']'));
        colon.unwrap_or(bytes.len())
    };
    let ((host_a, port_a), (host_b, port_b)) = (a.split_at(split(a)), b.split_at(split(b)));
    let port = |port: &[u8]| matches!(port, [] | [b':']) || port[1..] == *default_port;
    let same_port = port_a == port_b || (port(port_a) && port(port_b));
    host_a.eq_ignore_ascii_case(host_b) && same_port
}

/// Letters, digits, `-`, `.`, and `_`, which DNS names in use have.
fn is_name(bytes: &[u8]) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    !bytes.is_empty()
        && bytes[0] != b'.'
        && bytes.iter().all(|&b| plain(b))
        && !bytes.windows(2).any(|two| two == b"..")
}

fn is_v6(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok())
}

fn is_port(bytes: &[u8]) -> bool {
    let digits = bytes.len() <= 5 && bytes.iter().all(u8::is_ascii_digit);
    digits && bytes.iter().fold(0u32, |port, b| port * 10 + u32::from(b - b'0')) <= 65_535
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_port_makes_no_other_authority() {
        for (a, b, expected) in [
            ("a", "A:80", true),
            ("a:", "a:80", true),
            ("a:80", "a", true),
            ("a:81", "a:81", true),
            ("a", "a:443", false),
            ("a", "a:81", false),
            ("a", "b", false),
            ("[::1]", "[::1]:80", true),
            ("[::1]:80", "[::2]:80", false),
            ("[::80]", "[:", false),
        ] {
            assert_eq!(same_authority(a.as_bytes(), b.as_bytes(), b"80"), expected, "{a} {b}");
        }
    }

    #[test]
    fn only_plain_names_addresses_and_ports_pass() {
        for good in [
            "a",
            "a.b.example",
            "app-1.localhost:8080",
            "10.0.0.1",
            "[::1]",
            "[2001:db8::1]:443",
            "a.b.",
            "a_b.c",
            "a:",
            "[::1]:",
        ] {
            assert!(is_authority(good.as_bytes()), "{good}");
        }
        for bad in [
            "", ":80", ":", "a::", "a:b", "a:65536", "a:000080", "u@a", "a/b", "a b", "a,b", "a%41", "[::1", "::1",
            "[v1.x]", "[]", "a:1:2", ".", "a..b", "a\\b", "a?b", "a#b", "ä", "[::1]x",
        ] {
            assert!(!is_authority(bad.as_bytes()), "{bad}");
        }
        assert!(!is_authority(&[b'a'; 300]));
    }
}
