//! What a role finds when it looks at its configuration and its machine before it starts: one line a look, with what to
//! do. The looks that every role needs stand here; a role adds its own. Nothing here changes anything.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::http::client::{self, Client};
use crate::telemetry::chain;

/// Control that does not answer `/healthz` by then is not there.
const REACH_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// The role starts; something of it may not work.
    Warning,
    /// The role does not start, or does not work at all.
    Error,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at: a key of the configuration, or a part of the machine.
    pub check: String,
    pub level: Level,
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Check {
    pub fn ok(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self { check: check.into(), level: Level::Ok, found: found.into(), hint: None }
    }
    pub fn warning(check: impl Into<String>, found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { check: check.into(), level: Level::Warning, found: found.into(), hint: Some(hint.into()) }
    }
    pub fn error(check: impl Into<String>, found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { level: Level::Error, ..Self::warning(check, found, hint) }
    }
}

/// A folder of the role's own data: it stands, or it can be made.
pub fn folder(check: &str, path: &Path) -> Check {
    let shown = path.display();
    match std::fs::metadata(path) {
        Ok(found) if !found.is_dir() => {
            Check::error(check, format!("{shown} is not a folder"), format!("name another one, or remove {shown}"))
        }
        Ok(_) if !may_write(path) => {
            Check::error(check, format!("{shown} is not writable"), "let the user that runs this role own it")
        }
        Ok(found) if found.permissions().mode() & 0o077 != 0 => Check::warning(
            check,
            format!("{shown} is open to other users (mode {:o})", found.permissions().mode() & 0o7777),
            format!("chmod 700 {shown}"),
        ),
        Ok(_) => Check::ok(check, format!("{shown} is there")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // The nearest that stands is where the rest is made.
            let above = path.ancestors().skip(1).find(|above| above.exists());
            match above.filter(|above| above.is_dir() && may_write(above)) {
                Some(_) => Check::ok(check, format!("{shown} will be made at the first start")),
                None => Check::error(
                    check,
                    format!("{shown} does not exist and cannot be made"),
                    "make it, and let the user that runs this role own it",
                ),
            }
        }
        Err(error) => Check::error(check, format!("cannot look at {shown}: {error}"), "check the folders above it"),
    }
}

fn may_write(path: &Path) -> bool {
    use nix::unistd::{AccessFlags, access};
    access(path, AccessFlags::W_OK | AccessFlags::X_OK).is_ok()
}

/// An address to listen on: is it this machine's, and free?
pub fn listen(check: &str, address: SocketAddr) -> Check {
    let Err(error) = TcpListener::bind(address) else { return Check::ok(check, format!("{address} is free")) };
    let port = address.port();
    match error.kind() {
        io::ErrorKind::AddrInUse => Check::warning(
            check,
            format!("{address} is in use"),
            format!("fine if this role runs already; `ss -ltnp sport = :{port}` shows who holds it"),
        ),
        io::ErrorKind::AddrNotAvailable => Check::error(
            check,
            format!("{} is not an address of this machine", address.ip()),
            "`ip address` lists its Machines; 0.0.0.0 or [::] listens on all of them",
        ),
        io::ErrorKind::PermissionDenied => Check::error(
            check,
            format!("{address} needs more rights"),
            "ports below 1024 need root or AmbientCapabilities=CAP_NET_BIND_SERVICE",
        ),
        _ => Check::error(check, format!("cannot listen on {address}: {error}"), "choose another address"),
    }
}

/// Control, as a host or an edge calls it.
pub async fn control(url: &str, client: Client) -> Check {
    let check = "control_url";
    let asked = client.send_raw("/healthz", http::Request::new(client::empty()), REACH_TIMEOUT).await;
    match asked {
        Ok(answer) if answer.status().is_success() => Check::ok(check, format!("control answers at {url}")),
        Ok(answer) => Check::warning(
            check,
            format!("{url} answers /healthz with {}", answer.status()),
            "look at control's log; is this control's address?",
        ),
        // A role waits for control by itself.
        Err(error) => Check::warning(
            check,
            chain(&error),
            "is control running, and does a firewall let this server reach that port? This role waits for it",
        ),
    }
}

/// Who this server is in the fleet, or the token by which it will join.
pub fn identity(identity: &Path, token: Option<&str>, token_file: Option<&Path>) -> Check {
    let check = "join_token_file";
    if has_key(identity) {
        return Check::ok(check, format!("joined already: {}", identity.display()));
    }
    match (token, token_file) {
        (Some(_), _) => Check::ok("join_token", "stands in the configuration"),
        (None, Some(path)) => match crate::join_token::read(path) {
            Ok(_) => Check::ok(check, format!("{} holds a token", path.display())),
            Err(error) => Check::error(check, chain(&error), "install -m 600 join-token, as docs/operate.md shows"),
        },
        (None, None) => Check::error(
            check,
            "this server has not joined yet, and neither join_token_file nor join_token is set",
            "copy control's join-token here and name it by join_token_file",
        ),
    }
}

/// A file without a key is one of a server that has begun to join.
fn has_key(identity: &Path) -> bool {
    let bytes = std::fs::read(identity).unwrap_or_default();
    serde_json::from_slice::<serde_json::Value>(&bytes).is_ok_and(|kept| kept["key"].is_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_there_will_be_made_or_says_why_not() {
        let top = tempfile::tempdir().unwrap();
        std::fs::set_permissions(top.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(folder("data_dir", top.path()).level, Level::Ok);
        let new = folder("data_dir", &top.path().join("a/b/c"));
        assert!(new.level == Level::Ok && new.found.contains("will be made"), "{new:?}");
        std::fs::set_permissions(top.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let open = folder("data_dir", top.path());
        assert!(open.level == Level::Warning && open.hint.unwrap().starts_with("chmod 700"));
        std::fs::write(top.path().join("file"), "").unwrap();
        assert_eq!(folder("data_dir", &top.path().join("file")).level, Level::Error);
        assert_eq!(folder("data_dir", &top.path().join("file/below")).level, Level::Error);
    }

    #[test]
    fn an_address_is_free_in_use_or_another_machines() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = held.local_addr().unwrap();
        let found = listen("listen", address);
        assert!(found.level == Level::Warning && found.hint.unwrap().contains(&format!("sport = :{}", address.port())));
        drop(held);
        assert_eq!(listen("listen", address).level, Level::Ok);
        // TEST-NET-1 (RFC 5737) is nobody's.
        assert_eq!(listen("listen", "192.0.2.1:4280".parse().unwrap()).level, Level::Error);
    }

    #[tokio::test]
    async fn control_that_is_away_is_a_warning() {
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let url = format!("http://{nobody}");
        let found = control(&url, Client::tcp(&url, None)).await;
        assert!(found.level == Level::Warning && found.found.contains(&url), "{found:?}");
    }

    #[test]
    fn who_has_joined_needs_no_token() {
        let top = tempfile::tempdir().unwrap();
        let (kept, token) = (top.path().join("identity.json"), top.path().join("join-token"));
        assert_eq!(identity(&kept, None, None).level, Level::Error);
        assert_eq!(identity(&kept, None, Some(&token)).level, Level::Error);
        assert_eq!(identity(&kept, Some("gwj_1"), None).level, Level::Ok);
        std::fs::write(&token, "gwj_1").unwrap();
        assert_eq!(identity(&kept, None, Some(&token)).level, Level::Ok);
        std::fs::remove_file(&token).unwrap();
        std::fs::write(&kept, r#"{"incarnation": "1", "key": null}"#).unwrap();
        assert_eq!(identity(&kept, None, Some(&token)).level, Level::Error, "it has begun to join");
        std::fs::write(&kept, r#"{"key": "gwe_1"}"#).unwrap();
        assert_eq!(identity(&kept, None, Some(&token)).level, Level::Ok);
    }
}
