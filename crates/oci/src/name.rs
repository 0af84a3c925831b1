//! Image references: `name[:tag][@digest]` (distribution-spec, "Pulling manifests").
//!
//! Pure. A name here is a repository name; of a registry's host the port is dropped
//! (`localhost:5000/team/app` is `localhost/team/app`): where an image is pulled from is
//! the caller's affair, and a name with a port cannot stand in the path of a pull.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::digest::Digest;

/// The longest name. The distribution-spec notes that clients often stop at 255 with the
/// host; a name is also one file name in our index, with a suffix.
pub const MAX_NAME_BYTES: usize = 240;
/// The longest tag (distribution-spec: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`).
pub const MAX_TAG_BYTES: usize = 128;
/// The tag that is meant when none is given.
pub const DEFAULT_TAG: &str = "latest";

/// An image that the store holds: its name, pinned to the digest of its manifest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ImageId {
    /// Repository name, for example `apps/hello`.
    pub name: String,
    /// Digest of the image manifest (never of an index).
    pub digest: Digest,
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.digest)
    }
}

/// A parsed `name[:tag][@digest]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Repository name, in its short form (`docker.io/library/nginx` becomes `nginx`).
    pub name: String,
    /// The tag, if one was given.
    pub tag: Option<String>,
    /// The digest, if one was given; it then decides alone.
    pub digest: Option<Digest>,
}

/// Why a text is no image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an image reference name[:tag][@digest]: {reason}")]
pub struct ReferenceError {
    text: String,
    reason: &'static str,
}

impl Reference {
    /// The tag that this reference means when it has no digest.
    pub fn tag_or_default(&self) -> &str {
        self.tag.as_deref().unwrap_or(DEFAULT_TAG)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let wrong = |reason| ReferenceError { text: text.chars().take(300).collect(), reason };
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                let digest = digest.parse().map_err(|_| wrong("what follows @ is not a sha256 digest"))?;
                (rest, Some(digest))
            }
        };
        let rest = without_port(rest);
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) => (name, Some(tag)),
            None => (&*rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(wrong("the tag is not [a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}"));
        }
        let name = familiar(name);
        if !is_name(name) {
            return Err(wrong(
                "a name is made of lower-case letters, digits, `.`, `_`, `-` and `/` (at most 240 bytes)",
            ));
        }
        Ok(Self { name: name.to_owned(), tag: tag.map(str::to_owned), digest })
    }
}

/// Drops the port of a registry's host: digits between a colon in the first part and the slash after them.
fn without_port(text: &str) -> Cow<'_, str> {
    let port = text.split_once('/').and_then(|(first, path)| Some((first.split_once(':')?, path)));
    match port {
        Some(((host, port), path)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            Cow::Owned(format!("{host}/{path}"))
        }
        _ => Cow::Borrowed(text),
    }
}

/// Docker writes the images of its hub with or without their host; both mean the same.
fn familiar(name: &str) -> &str {
    match name.strip_prefix("docker.io/") {
        Some(path) => path.strip_prefix("library/").unwrap_or(path),
        None => name,
    }
}

/// Whether `text` is a repository name (distribution-spec, `<name>`):
/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*`.
pub fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME_BYTES && text.split('/').all(is_name_part)
}

fn is_name_part(part: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !plain(first) || !plain(last) {
        return false;
    }
    part.split(|c: char| plain(c as u8) && c.is_ascii())
        .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|b| b == b'-'))
}

/// Whether `text` is a tag.
pub fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= MAX_TAG_BYTES
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, name: &str, tag: Option<&str>, digest: bool) {
        let r: Reference = text.parse().unwrap();
        assert_eq!((r.name.as_str(), r.tag.as_deref(), r.digest.is_some()), (name, tag, digest));
    }

    #[test]
    fn references_as_people_write_them() {
        let d = Digest::of(b"x");
        check("nginx", "nginx", None, false);
        check("apps/hello:v1", "apps/hello", Some("v1"), false);
        check("docker.io/library/nginx:1.25", "nginx", Some("1.25"), false);
        check("registry.example.com/a/b_c--d", "registry.example.com/a/b_c--d", None, false);
        check("localhost:5000/team/app:v1", "localhost/team/app", Some("v1"), false);
        check("localhost:5000/a", "localhost/a", None, false);
        check("docker.io:443/library/nginx", "nginx", None, false);
        check(&format!("a:b@{d}"), "a", Some("b"), true);
        check(&format!("a@{d}"), "a", None, true);
    }

    #[test]
    fn what_is_no_reference() {
        let long = "a".repeat(241);
        for text in [
            "",
            ":",
            "a:",
            "@",
            "A",
            "a/",
            "/a",
            "a//b",
            "../a",
            "a/../b",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "localhost:port/a",
            "localhost:/a",
            "a/localhost:5000/b",
            "a:b:c",
            "a@sha256:00",
            "a:ä",
            "ä",
            "a b",
            "a:-x",
            long.as_str(),
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
