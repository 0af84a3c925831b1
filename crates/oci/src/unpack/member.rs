//! What the name of a layer's member means: where it lands, or that it is a whiteout
//! (image-spec, layer.md "Whiteouts"). Pure: names in, decisions out.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::LayerFault;

/// Longest whole path; `PATH_MAX` less its NUL.
pub(crate) const MAX_PATH_BYTES: usize = 4095;
/// Most folders on the way to a member: keeps every recursion over a layer shallow.
pub(crate) const MAX_PATH_PARTS: usize = 200;
/// Longest file name on every file system that we would unpack to.
const MAX_PART_BYTES: usize = 255;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Notes of the old AUFS driver (`.wh..wh.plnk`, `.wh..wh.aufs`): no part of the image.
const AUFS_NOTE: &[u8] = b".wh..wh.";

/// What a member's name asks for. Paths are relative to the layer's root.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The root folder itself.
    Root,
    /// An ordinary entry.
    Entry(PathBuf),
    /// Hide this path of the lower layers.
    Whiteout(PathBuf),
    /// Hide all that lower layers have in this folder.
    Opaque(PathBuf),
    /// Nothing.
    Skip,
}

/// Makes a name relative to the root: no leading slash, no `.`, no `..`.
///
/// A leading slash is dropped, since every tool roots members in the image. `..` is
/// resolved by its text, as Go's `filepath.Clean` does; one that climbs above the root is
/// refused rather than clamped: nobody writes it by accident.
pub(crate) fn clean(name: &[u8]) -> Result<PathBuf, LayerFault> {
    if name.contains(&0) {
        return Err(LayerFault::BadName("it holds a NUL"));
    }
    if name.is_empty() {
        return Err(LayerFault::BadName("it is empty"));
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop().ok_or(LayerFault::LeavesRoot)?;
            }
            long if long.len() > MAX_PART_BYTES => {
                return Err(LayerFault::BadName("a part of it is longer than 255 bytes"));
            }
            part => parts.push(part),
        }
    }
    if parts.len() > MAX_PATH_PARTS {
        return Err(LayerFault::BadName("it is deeper than 200 folders"));
    }
    let path = parts.join(&b'/');
    if path.len() > MAX_PATH_BYTES {
        return Err(LayerFault::BadName("it is longer than 4095 bytes"));
    }
    Ok(PathBuf::from(std::ffi::OsString::from_vec(path)))
}

/// Decides what a member's name asks for.
pub(crate) fn role(name: &[u8]) -> Result<Role, LayerFault> {
    let path = clean(name)?;
    let Some(last) = path.file_name().map(OsStr::as_bytes) else {
        return Ok(Role::Root);
    };
    let parent = path.parent().unwrap_or(Path::new(""));
    for part in parent.iter().map(OsStr::as_bytes) {
        if part.starts_with(AUFS_NOTE) {
            return Ok(Role::Skip);
        }
        if part.starts_with(WHITEOUT) {
            return Err(LayerFault::BadName("a folder on its way is named like a whiteout"));
        }
    }
    if last == OPAQUE {
        return Ok(Role::Opaque(parent.to_owned()));
    }
    if last.starts_with(AUFS_NOTE) {
        return Ok(Role::Skip);
    }
    match last.strip_prefix(WHITEOUT) {
        None => Ok(Role::Entry(path)),
        // `.wh...` would hide the parent of the folder, `.wh..` the folder from within.
        Some(b"" | b"." | b"..") => Err(LayerFault::BadName("a whiteout of no name")),
        Some(hidden) => Ok(Role::Whiteout(parent.join(OsStr::from_bytes(hidden)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Component;

    #[track_caller]
    fn check(name: &str, role_wanted: Role) {
        assert_eq!(role(name.as_bytes()).unwrap(), role_wanted, "{name}");
    }

    #[test]
    fn names_and_whiteouts() {
        check("./", Role::Root);
        check("/", Role::Root);
        check("a/..", Role::Root);
        check("./usr//bin/./x", Role::Entry("usr/bin/x".into()));
        check("/etc/passwd", Role::Entry("etc/passwd".into()));
        check("a/../b", Role::Entry("b".into()));
        check("a/.wh.b", Role::Whiteout("a/b".into()));
        check(".wh.b", Role::Whiteout("b".into()));
        check("a/.wh..wh..opq", Role::Opaque("a".into()));
        check(".wh..wh..opq", Role::Opaque("".into()));
        check(".wh..wh.plnk/7.8", Role::Skip);
        check(".wh..wh.aufs", Role::Skip);
        check("a/.whatever", Role::Entry("a/.whatever".into()));
    }

    #[test]
    fn names_that_are_refused() {
        for name in ["..", "../x", "a/../../x", "/..", "./../etc"] {
            assert!(matches!(role(name.as_bytes()), Err(LayerFault::LeavesRoot)), "{name}");
        }
        let long = "x".repeat(256);
        let deep = "x/".repeat(2100);
        for name in ["", "a\0b", ".wh.", ".wh..", ".wh...", "a/.wh...", ".wh.a/b", &long, &deep] {
            assert!(matches!(role(name.as_bytes()), Err(LayerFault::BadName(_))), "{name}");
        }
    }

    fn names() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            Just(b"..".to_vec()),
            Just(b".".to_vec()),
            Just(b"".to_vec()),
            Just(b".wh.".to_vec()),
            Just(b".wh...".to_vec()),
            Just(b".wh..wh..opq".to_vec()),
            Just(b".wh.x".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..6),
        ];
        proptest::collection::vec(part, 0..8).prop_map(|parts| parts.join(&b'/'))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        /// Whatever the name, what it touches lies below the root and is a plain path.
        #[test]
        fn no_name_ever_leaves_the_root(name in names()) {
            let path = match role(&name) {
                Ok(Role::Entry(path) | Role::Whiteout(path)) => {
                    prop_assert!(path.file_name().is_some());
                    path
                }
                Ok(Role::Opaque(path)) => path,
                Ok(Role::Root | Role::Skip) | Err(_) => return Ok(()),
            };
            prop_assert!(path.is_relative());
            prop_assert!(path.components().all(|c| matches!(c, Component::Normal(_))));
            // No further reading changes it.
            if !path.as_os_str().is_empty() {
                prop_assert_eq!(clean(path.as_os_str().as_bytes()).unwrap(), path);
            }
        }

        /// The depth by text never goes below zero, or the name is refused.
        #[test]
        fn climbing_above_the_root_is_refused(name in names()) {
            let mut depth = 0i32;
            let mut above = false;
            for part in name.split(|&b| b == b'/') {
                match part { b"" | b"." => {}, b".." => depth -= 1, _ => depth += 1 }
                above |= depth < 0;
            }
            let refused = matches!(clean(&name), Err(LayerFault::LeavesRoot));
            prop_assert_eq!(refused, above && !name.contains(&0) && !name.is_empty());
        }
    }
}
