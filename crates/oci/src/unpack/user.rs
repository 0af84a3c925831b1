//! Who an image's `User` is (image-spec, config.md): `user`, `uid`, `user:group`,
//! `uid:gid`, `uid:group`, `user:gid`, looked up in the image's own /etc/passwd and
//! /etc/group, with links followed inside of the image only. The rules for what is not
//! said are Docker's.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::merged::Merged;
use crate::error::{Error, LayerFault};

/// Bytes of /etc/passwd or /etc/group that are read.
const MAX_ACCOUNT_FILE_BYTES: u64 = 1 << 20;
/// Highest id: all ones means "no change" to setuid(2).
const MAX_ID: u32 = u32::MAX - 1;

/// The ids that a process of the image runs under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id; 0 for a uid that /etc/passwd does not know.
    pub gid: u32,
    /// Supplementary groups, sorted; none when the group was given.
    pub additional_gids: Vec<u32>,
    /// Home folder, `/` where the image does not know better.
    pub home: String,
}

/// Resolves `user` (of the form `name|uid[:group|gid]`; empty means root) in the image
/// whose lower folders are given, top-most first.
pub fn resolve_user(lowers: &[PathBuf], user: &str) -> Result<User, Error> {
    let image = Merged::open(lowers).map_err(|fault| read_error("/", fault))?;
    let passwd = read(&image, "etc/passwd")?;
    let group = read(&image, "etc/group")?;
    resolve(&passwd, &group, user)
}

fn read_error(path: &str, fault: LayerFault) -> Error {
    let source = match fault {
        LayerFault::Io { source, .. } => source,
        other => std::io::Error::other(other),
    };
    Error::Io { action: "read in the image", path: path.into(), source }
}

/// The file's text; empty if the image has none (images from scratch do not).
fn read(image: &Merged, path: &str) -> Result<String, Error> {
    let file = image.open_file(Path::new(path)).map_err(|fault| read_error(path, fault))?;
    let Some(file) = file else { return Ok(String::new()) };
    let mut bytes = Vec::new();
    let read = File::from(file).take(MAX_ACCOUNT_FILE_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(Error::io("read in the image", path))?;
    if bytes.len() as u64 > MAX_ACCOUNT_FILE_BYTES {
        return Err(Error::Limit {
            what: format!("/{path} of the image"),
            limit: "MAX_ACCOUNT_FILE_BYTES",
            bound: MAX_ACCOUNT_FILE_BYTES,
        });
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The decision itself: two texts and a wish in, ids out.
fn resolve(passwd: &str, group: &str, user: &str) -> Result<User, Error> {
    let bad = |reason| Error::User { user: user.to_owned(), reason };
    let (who, which) = match user.split_once(':') {
        Some((who, which)) => (who, Some(which).filter(|which| !which.is_empty())),
        None => (user, None),
    };
    let who = if who.is_empty() { "0" } else { who };
    if which.is_some_and(|which| which.contains(':')) {
        return Err(bad("more than one colon"));
    }
    let uid = id(who).map_err(bad)?;
    let found = passwd.lines().filter_map(Account::parse).find(|account| match uid {
        Some(uid) => account.uid == uid || account.name == who,
        None => account.name == who,
    });
    let (name, uid, gid, home) = match (found, uid) {
        (Some(account), _) => (account.name, account.uid, account.gid, account.home),
        (None, Some(uid)) => ("", uid, 0, "/"),
        (None, None) => return Err(Error::NoUser { what: "user", name: who.to_owned() }),
    };
    let groups = || group.lines().filter_map(Group::parse);
    let (gid, additional_gids) = match which {
        Some(which) => {
            let wanted = id(which).map_err(bad)?;
            let by_name = groups().find(|group| group.name == which).map(|group| group.gid);
            let gid = by_name.or(wanted);
            (gid.ok_or_else(|| Error::NoUser { what: "group", name: which.to_owned() })?, Vec::new())
        }
        None => {
            let member = |group: &Group<'_>| !name.is_empty() && group.members.split(',').any(|m| m == name);
            let mut gids: Vec<u32> = groups().filter(member).map(|group| group.gid).filter(|&g| g != gid).collect();
            gids.sort_unstable();
            gids.dedup();
            (gid, gids)
        }
    };
    let home = if home.starts_with('/') { home } else { "/" };
    Ok(User { uid, gid, additional_gids, home: home.to_owned() })
}

/// A number, or `None` for a name.
fn id(text: &str) -> Result<Option<u32>, &'static str> {
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(id) if id <= MAX_ID => Ok(Some(id)),
        _ => Err("an id is out of range"),
    }
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Account<'a> {
    /// `name:password:uid:gid:gecos:home:shell` (passwd(5)); other lines are passed over.
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let home = fields.nth(1).unwrap_or("/");
        (!name.is_empty() && uid <= MAX_ID && gid <= MAX_ID).then_some(Self { name, uid, gid, home })
    }
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    /// `name:password:gid:members` (group(5)).
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let gid = fields.next()?.parse().ok()?;
        (!name.is_empty() && gid <= MAX_ID).then_some(Self { name, gid, members: fields.next().unwrap_or("") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\n# comment\nbroken\nweb:x:33:34:web:/srv:/bin/sh\nnohome:x:50:50\n\
                          x:x:4294967295:0:a:/:/\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nlogs:x:40:web,root\ndisk:x:41:web\nnone:x:42:webx\n";

    #[track_caller]
    fn check(user: &str, uid: u32, gid: u32, more: &[u32], home: &str) {
        let wanted = User { uid, gid, additional_gids: more.to_vec(), home: home.into() };
        assert_eq!(resolve(PASSWD, GROUP, user).unwrap(), wanted, "{user}");
    }

    #[test]
    fn every_form_of_the_spec() {
        check("", 0, 0, &[40], "/root");
        check("root", 0, 0, &[40], "/root");
        check("web", 33, 34, &[40, 41], "/srv");
        check("33", 33, 34, &[40, 41], "/srv");
        check("web:disk", 33, 41, &[], "/srv");
        check("web:7", 33, 7, &[], "/srv");
        check("99", 99, 0, &[], "/");
        check("99:disk", 99, 41, &[], "/");
        check("99:98", 99, 98, &[], "/");
        check(":disk", 0, 41, &[], "/root");
        check("nohome", 50, 50, &[], "/");
    }

    #[test]
    fn who_is_not_there_is_said() {
        let error = |user| resolve(PASSWD, GROUP, user).unwrap_err().to_string();
        assert_eq!(error("nobody"), "user `nobody` is not in the image");
        assert_eq!(error("web:nogroup"), "group `nogroup` is not in the image");
        assert!(error("4294967295").contains("out of range"));
        assert!(error("99999999999").contains("out of range"));
        assert!(error("a:b:c").contains("colon"));
        assert!(resolve("", "", "web").is_err());
        assert_eq!(resolve("", "", "").unwrap().home, "/");
    }
}
