//! The authority that a request names: the Host field, and the one inside an absolute target.
//!
//! RFC 3986 section 3.2 allows user names, percent-encoding and punctuation there. No name that a user can have
//! here needs them, and parties that read them differently route differently: only plain names, addresses and ports
//! pass.

/// Bytes of a name (RFC 1035) and its port.
const MAX_AUTHORITY_BYTES: usize = 255 + 6;

/// `name`, `a.b.c.d` or `[v6]`, with or without `:port`.
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
    let digits = !bytes.is_empty() && bytes.len() <= 5 && bytes.iter().all(u8::is_ascii_digit);
    digits && bytes.iter().fold(0u32, |port, b| port * 10 + u32::from(b - b'0')) <= 65_535
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_addresses_and_ports_pass() {
        for good in
            ["a", "a.b.example", "app-1.localhost:8080", "10.0.0.1", "[::1]", "[2001:db8::1]:443", "a.b.", "a_b.c"]
        {
            assert!(is_authority(good.as_bytes()), "{good}");
        }
        for bad in [
            "", ":80", "a:", "a:b", "a:65536", "a:000080", "u@a", "a/b", "a b", "a,b", "a%41", "[::1", "::1", "[v1.x]",
            "[]", "a:1:2", ".", "a..b", "a\\b", "a?b", "a#b", "ä", "[::1]x",
        ] {
            assert!(!is_authority(bad.as_bytes()), "{bad}");
        }
        assert!(!is_authority(&[b'a'; 300]));
    }
}
