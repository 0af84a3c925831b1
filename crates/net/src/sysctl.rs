//! Owns the kernel settings of a namespace that forwarding needs.
//! Must not know why anything is forwarded.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::Error;
use crate::namespace::{self, Entry, io_error};

const FORWARD_V4: &str = "/proc/sys/net/ipv4/ip_forward";
const FORWARD_V6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
const INTERFACES_V6: &str = "/proc/sys/net/ipv6/conf";

/// What to forward.
#[derive(Clone, Copy)]
pub(crate) enum Families {
    V4,
    Both,
}

/// Lets `namespace` forward packets. Returns true when IPv4 forwarding was off before.
pub(crate) async fn enable_forwarding(namespace: &File, families: Families) -> Result<bool, Error> {
    let done = namespace::on_thread(Entry::Into(namespace), move || {
        let was_off = turn_on(FORWARD_V4)?;
        if let Families::Both = families {
            keep_router_advertisements()?;
            turn_on(FORWARD_V6)?;
        }
        Ok(was_off)
    });
    done.await
        .map_err(|source| io_error("enter", Path::new("the host's namespace"), source))?
}

/// Puts IPv4 forwarding back to off.
pub(crate) async fn disable_forwarding_v4(namespace: &File) -> Result<(), Error> {
    let path = Path::new(FORWARD_V4);
    namespace::on_thread(Entry::Into(namespace), move || fs::write(path, "0"))
        .await
        .and_then(|written| written)
        .map_err(|source| io_error("write", path, source))
}

fn turn_on(file: &'static str) -> Result<bool, Error> {
    let path = Path::new(file);
    let now = fs::read_to_string(path).map_err(|source| io_error("read", path, source))?;
    // Written only when needed: each write walks every interface.
    if now.trim() != "0" {
        return Ok(false);
    }
    fs::write(path, "1").map_err(|source| io_error("write", path, source))?;
    Ok(true)
}

/// A forwarding kernel ignores router advertisements unless told `accept_ra=2`; a
/// server whose default route comes from them would fall off the network.
fn keep_router_advertisements() -> Result<(), Error> {
    let dir = Path::new(INTERFACES_V6);
    let interfaces = fs::read_dir(dir).map_err(|source| io_error("list", dir, source))?;
    for interface in interfaces {
        let interface = interface.map_err(|source| io_error("list", dir, source))?;
        let file = interface.path().join("accept_ra");
        match fs::read_to_string(&file) {
            Ok(now) if now.trim() == "1" => {
                fs::write(&file, "2").map_err(|source| io_error("write", &file, source))?;
            }
            // Gone between listing and reading.
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("read", &file, e));
            }
            _ => {}
        }
    }
    Ok(())
}
