//! Field names that mean something to a proxy, told apart without an allocation.
//!
//! Gateways behind us (CGI, WSGI, PHP) fold `-` and `_` into one name, so `Content_Length` would frame a message, and
//! `X_Forwarded_For` would speak for us, behind our back: a name that becomes one of these by folding is a
//! *masquerade* and never sent on.

/// What a field is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Meant for the other end.
    Plain,
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    Upgrade,
    Expect,
    /// Concerns one connection (RFC 9110 section 7.6.1), or was nominated by Connection.
    Hop,
    /// Set by the platform or not at all.
    Platform,
    /// One of the above, in disguise.
    Masquerade,
    /// Meant for the other end, so much that Connection may not take it away.
    EndToEnd,
}

impl Class {
    /// Whether a field of this class is sent on as it came. The rest is left out, or written anew.
    pub const fn is_forwarded(self) -> bool {
        matches!(self, Self::Plain | Self::EndToEnd)
    }

    /// The same in a head that is understood already: what it says of its host and its body is true.
    pub const fn is_passed(self) -> bool {
        self.is_forwarded() || matches!(self, Self::Host | Self::ContentLength)
    }
}

/// `lower` in any case, `_` taken for `-`. `lower` has lower-case letters, digits and `-` only.
#[inline]
fn folds_to(name: &[u8], lower: &[u8]) -> bool {
    // Setting bit 5 makes a letter lower case, leaves `-` and digits as they are, and makes no other token
    // character one of those.
    name.len() == lower.len() && name.iter().zip(lower).all(|(&b, &l)| b | 0x20 == l || (b == b'_' && l == b'-'))
}

/// `lower` in any case.
#[inline]
pub fn same(name: &[u8], lower: &[u8]) -> bool {
    name.len() == lower.len() && name.iter().zip(lower).all(|(&b, &l)| b | 0x20 == l)
}

/// The first byte and the length leave at most a few names to compare with, for most fields none.
pub fn classify(name: &[u8]) -> Class {
    let Some(&first) = name.first() else { return Class::Plain };
    let known: &[(&[u8], Class)] = match (first | 0x20, name.len()) {
        (b'h', 4) => &[(b"host", Class::Host)],
        (b'c', 14) => &[(b"content-length", Class::ContentLength)],
        (b't', 17) => &[(b"transfer-encoding", Class::TransferEncoding)],
        (b'c', 10) => &[(b"connection", Class::Connection)],
        (b'u', 7) => &[(b"upgrade", Class::Upgrade)],
        (b'e', 6) => &[(b"expect", Class::Expect)],
        (b'k', 10) => &[(b"keep-alive", Class::Hop)],
        (b'p', 16) => &[(b"proxy-connection", Class::Hop)],
        (b'p', 18) => &[(b"proxy-authenticate", Class::Hop)],
        (b'p', 19) => &[(b"proxy-authorization", Class::Hop)],
        (b't', 2) => &[(b"te", Class::Hop)],
        (b't', 7) => &[(b"trailer", Class::Hop)],
        (b'h', 14) => &[(b"http2-settings", Class::Hop)],
        (b'a', 13) => &[(b"authorization", Class::EndToEnd)],
        (b'c', 6) => &[(b"cookie", Class::EndToEnd)],
        (b's', 10) => &[(b"set-cookie", Class::EndToEnd)],
        (b'c', 12) => &[(b"content-type", Class::EndToEnd)],
        (b'c', 13) => &[(b"content-range", Class::EndToEnd), (b"cache-control", Class::EndToEnd)],
        (b'c', 16) => &[(b"content-encoding", Class::EndToEnd)],
        (b'x', 15) => &[(b"x-forwarded-for", Class::Platform), (b"x-forwarded-ssl", Class::Platform)],
        (b'x', 16) => &[(b"x-forwarded-port", Class::Platform)],
        (b'x', 17) => &[(b"x-forwarded-proto", Class::Platform)],
        (b'f', 10) => &[(b"fly-region", Class::Platform)],
        (b'f', 13) => &[(b"fly-client-ip", Class::Platform)],
        (b'f', 14) => &[(b"fly-request-id", Class::Platform), (b"fly-replay-src", Class::Platform)],
        (b'f', 18) => &[(b"fly-forwarded-port", Class::Platform)],
        (b'g', 7..) => {
            return match name.get(..7) {
                Some(prefix) if same(prefix, b"godwit-") => Class::Platform,
                Some(prefix) if folds_to(prefix, b"godwit-") => Class::Masquerade,
                _ => Class::Plain,
            };
        }
        _ => return Class::Plain,
    };
    for (lower, class) in known {
        if same(name, lower) {
            return *class;
        }
        if folds_to(name, lower) {
            return Class::Masquerade;
        }
    }
    Class::Plain
}

/// Whether a field may stand in a trailer section. What frames, routes, authenticates or changes how the message is
/// read must come before it (RFC 9110 section 6.5.1).
pub fn may_trail(name: &[u8]) -> bool {
    const HEAD_ONLY: [&[u8]; 9] =
        [b"age", b"date", b"expires", b"location", b"max-forwards", b"pragma", b"range", b"vary", b"www-authenticate"];
    classify(name) == Class::Plain
        && !HEAD_ONLY.iter().any(|lower| folds_to(name, lower))
        && !name.get(..3).is_some_and(|prefix| same(prefix, b"if-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_in_any_case_and_disguises_are_seen() {
        for (name, class) in [
            ("Host", Class::Host),
            ("hOST", Class::Host),
            ("CONTENT-LENGTH", Class::ContentLength),
            ("Content_Length", Class::Masquerade),
            ("transfer_encoding", Class::Masquerade),
            ("X_Forwarded-For", Class::Masquerade),
            ("x-forwarded-for", Class::Platform),
            ("godwit-anything", Class::Platform),
            ("Godwit_Machine", Class::Masquerade),
            ("godwits", Class::Plain),
            ("my_own_name", Class::Plain),
            ("hos", Class::Plain),
            ("content-lengt\x0d", Class::Plain),
            ("accept-ranges", Class::Plain),
            ("Authorization", Class::EndToEnd),
            ("", Class::Plain),
        ] {
            assert_eq!(classify(name.as_bytes()), class, "{name:?}");
        }
    }

    #[test]
    fn what_frames_or_routes_cannot_trail() {
        for name in ["Content-Length", "host", "Cookie", "content_length", "If-Match", "Range", "x-forwarded-for", "Te"]
        {
            assert!(!may_trail(name.as_bytes()), "{name}");
        }
        for name in ["grpc-status", "Server-Timing", "x-checksum"] {
            assert!(may_trail(name.as_bytes()), "{name}");
        }
    }
}
