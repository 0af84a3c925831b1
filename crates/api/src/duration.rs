//! Time spans on the wire. Clients of the Machines API send nanoseconds as a number or a text such as `"1m30s"`;
//! answers always carry the text.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A span of time with the wire's two spellings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A span of time: `\"1m30s\"`, `\"10\"` (seconds), or nanoseconds as a number.",
            "anyOf": [
                { "type": "string", "pattern": "^(([0-9]+(\\.[0-9]*)?|\\.[0-9]+)(ns|us|µs|ms|s|m|h))+$|^[0-9]+$" },
                { "type": "integer", "minimum": 0 },
            ],
        })
    }
}

impl Span {
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
    pub const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }
    pub fn as_millis(&self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }

    /// `None` for a span of nothing, by which clients that always send the member mean that it is not set. Less than a
    /// millisecond is nothing: a bare number is nanoseconds, and who writes `10` did not mean to kill at once.
    pub fn or_unset(self) -> Option<Self> {
        (self.as_millis() > 0).then_some(self)
    }

    /// Reads `"300ms"`, `"15s"`, `"1h2m3.5s"`, as Go's `time.ParseDuration` does (without a sign), and `"10"` as seconds.
    pub fn parse(text: &str) -> Option<Self> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().ok().map(Self::from_secs);
        }
        let mut rest = text;
        let mut nanos = 0u128;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
            let (number, tail) = rest.split_at(digits);
            let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_len);
            let unit_nanos: u128 = match unit {
                "ns" => 1,
                "us" | "µs" => 1_000,
                "ms" => 1_000_000,
                "s" => 1_000_000_000,
                "m" => 60_000_000_000,
                "h" => 3_600_000_000_000,
                _ => return None,
            };
            nanos = nanos.checked_add(decimal(number, unit_nanos)?)?;
            rest = tail;
        }
        (!text.is_empty()).then_some(())?;
        Some(Self(Duration::from_nanos(u64::try_from(nanos).ok()?)))
    }
}

/// `number` (with at most one dot) times `unit_nanos`, in whole nanoseconds.
fn decimal(number: &str, unit_nanos: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 18 {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    whole.checked_mul(unit_nanos)?.checked_add(part * unit_nanos / scale)
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.subsec_nanos();
        let seconds = self.0.as_secs();
        if seconds == 0 && nanos != 0 && nanos.is_multiple_of(1_000_000) {
            return write!(f, "{}ms", nanos / 1_000_000);
        }
        if seconds == 0 && nanos != 0 {
            return write!(f, "{nanos}ns");
        }
        let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        if h > 0 {
            write!(f, "{h}h")?;
        }
        if m > 0 {
            write!(f, "{m}m")?;
        }
        if nanos != 0 {
            let fraction = format!("{nanos:09}");
            return write!(f, "{s}.{}s", fraction.trim_end_matches('0'));
        }
        if s > 0 || (h == 0 && m == 0) {
            write!(f, "{s}s")?;
        }
        Ok(())
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Span;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"15s\", or nanoseconds as a number")
            }
            fn visit_u64<E: de::Error>(self, nanos: u64) -> Result<Span, E> {
                Ok(Span(Duration::from_nanos(nanos)))
            }
            fn visit_i64<E: de::Error>(self, nanos: i64) -> Result<Span, E> {
                u64::try_from(nanos)
                    .map(|nanos| Span(Duration::from_nanos(nanos)))
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(nanos), &self))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                Span::parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_read_and_text_is_written() {
        let cases = [
            ("15s", 15_000),
            ("1m30s", 90_000),
            ("300ms", 300),
            ("1.5s", 1_500),
            ("1h", 3_600_000),
            ("0", 0),
            ("10", 10_000),
        ];
        for (text, millis) in cases {
            let span: Span = serde_json::from_value(serde_json::json!(text)).unwrap();
            assert_eq!(span.as_millis(), millis, "{text}");
            let again: Span = serde_json::from_value(serde_json::to_value(span).unwrap()).unwrap();
            assert_eq!(again, span);
        }
        let nanos: Span = serde_json::from_str("15000000000").unwrap();
        assert_eq!(serde_json::to_string(&nanos).unwrap(), "\"15s\"");
        for bad in ["", "s", "5x", "-5s", "1..2s"] {
            assert_eq!(Span::parse(bad), None, "{bad:?}");
        }
    }
}
