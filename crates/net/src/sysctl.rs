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

/// Lets `namespace` forward packets.
pub(crate) async fn enable_forwarding(namespace: &File, families: Families) -> Result<(), Error> {
    inside(namespace, move || {
        turn_on(FORWARD_V4)?;
        if let Families::Both = families {
            keep_router_advertisements()?;
            turn_on(FORWARD_V6)?;
        }
        Ok(())
    })
    .await
}

/// True when IPv4 is forwarded already.
pub(crate) async fn forwards_v4(namespace: &File) -> Result<bool, Error> {
    inside(namespace, || is_on(FORWARD_V4)).await
}

/// Puts IPv4 forwarding back to off.
pub(crate) async fn disable_forwarding_v4(namespace: &File) -> Result<(), Error> {
    inside(namespace, || write(Path::new(FORWARD_V4), "0")).await
}

/// `/proc/sys/net` shows the settings of the reading thread's namespace.
async fn inside<T: Send + 'static>(
    namespace: &File,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    namespace::on_thread(Entry::Into(namespace), work)
        .await
        .map_err(|source| io_error("enter", Path::new("the network namespace"), source))?
}

fn is_on(file: &str) -> Result<bool, Error> {
    let path = Path::new(file);
    let now = fs::read_to_string(path).map_err(|source| io_error("read", path, source))?;
    Ok(now.trim() != "0")
}

fn turn_on(file: &str) -> Result<(), Error> {
    // Written only when needed: each write walks every interface.
    if is_on(file)? {
        return Ok(());
    }
    write(Path::new(file), "1")
}

fn write(path: &Path, value: &str) -> Result<(), Error> {
    fs::write(path, value).map_err(|source| io_error("write", path, source))
}

/// A forwarding kernel ignores router advertisements unless told `accept_ra=2`; a
/// server whose default route comes from them would fall off the network.
fn keep_router_advertisements() -> Result<(), Error> {
    let dir = Path::new(INTERFACES_V6);
    let interfaces = fs::read_dir(dir).map_err(|source| io_error("list", dir, source))?;
    for interface in interfaces {
        let interface = interface.map_err(|source| io_error("list", dir, source))?;
        // Only interfaces that exist: with a changed default, every Machine's link
        // would be born listening to the Machine's advertisements.
        if interface.file_name() == "all" || interface.file_name() == "default" {
            continue;
        }
        let file = interface.path().join("accept_ra");
        match fs::read_to_string(&file) {
            Ok(now) if now.trim() == "1" => {
                write(&file, "2")?;
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
