//! Who a Machine's process is: an image's `User` looked up in the texts of the root's passwd and group files. Pure.

/// The ids to run under, and the home folder that goes with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    pub home: String,
}

/// Most further groups that count.
const MAX_GROUPS: usize = 1024;

/// `wanted` is empty (root), `name`, `uid`, `name:group` or `uid:gid`, as in an image's configuration. A number needs
/// no entry; a name does.
pub fn look_up(wanted: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let entries = || passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|f| f.len() >= 6);
    let number: Option<u32> = user.parse().ok();
    let entry = entries().find(|f| f[0] == user || (number.is_some() && f[2].parse().ok() == number));
    let uid = match (&entry, number) {
        (Some(fields), _) => fields[2].parse().map_err(|_| format!("the entry of user {user:?} holds no number"))?,
        (None, Some(number)) => number,
        (None, None) => return Err(format!("user {user:?} is unknown: the image's /etc/passwd has no such entry")),
    };
    let gid = match wanted_group {
        Some(name) => group_id(name, group)?,
        None => entry.as_ref().and_then(|f| f[3].parse().ok()).unwrap_or(0),
    };
    // As Docker does: a group that was asked for stands alone.
    let additional_gids = match (&entry, wanted_group) {
        (Some(fields), None) => memberships(fields[0], group),
        _ => Vec::new(),
    };
    let home = entry.map(|f| f[5].to_owned()).filter(|home| !home.is_empty()).unwrap_or_else(|| "/".to_owned());
    Ok(Identity { uid, gid, additional_gids, home })
}

fn group_id(name: &str, group: &str) -> Result<u32, String> {
    let entry = group.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| f.len() >= 3 && f[0] == name);
    match (entry.and_then(|f| f[2].parse().ok()), name.parse()) {
        (Some(gid), _) | (None, Ok(gid)) => Ok(gid),
        (None, Err(_)) => Err(format!("group {name:?} is unknown: the image's /etc/group has no such entry")),
    }
}

fn memberships(user: &str, group: &str) -> Vec<u32> {
    let groups = group.lines().map(|l| l.split(':').collect::<Vec<_>>()).filter(|f| f.len() >= 4);
    let mine = groups.filter(|f| f[3].split(',').any(|member| member == user));
    mine.filter_map(|f| f[2].parse().ok()).take(MAX_GROUPS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:100:101:App:/home/app:/bin/sh\n";
    const GROUP: &str = "root:x:0:\napp:x:101:\nwheel:x:10:root,app\n";

    #[test]
    fn every_form_that_an_image_may_use_is_understood() {
        let check = |wanted: &str, uid, gid, groups: &[u32], home: &str| {
            let found = look_up(wanted, PASSWD, GROUP).unwrap();
            let home = home.to_owned();
            assert_eq!(found, Identity { uid, gid, additional_gids: groups.to_vec(), home }, "{wanted:?}");
        };
        check("", 0, 0, &[10], "/root");
        check("app", 100, 101, &[10], "/home/app");
        check("100", 100, 101, &[10], "/home/app");
        check("app:wheel", 100, 10, &[], "/home/app");
        check("5:6", 5, 6, &[], "/");
        check("5", 5, 0, &[], "/");
    }

    #[test]
    fn a_name_that_nobody_bears_is_named_in_the_error() {
        assert!(look_up("ghost", PASSWD, GROUP).unwrap_err().contains("\"ghost\" is unknown"));
        assert!(look_up("app:ghosts", PASSWD, GROUP).unwrap_err().contains("group \"ghosts\""));
        assert!(look_up("app", "", "").is_err());
    }
}
