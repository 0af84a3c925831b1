//! The two ends of the line on which a host's pid 1 tells `godwit dev` which processes it started. Pids travel as
//! SCM_CREDENTIALS (unix(7)): the kernel translates them from the host's pid namespace into ours.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixCredentials, recvmsg,
    sendmsg, setsockopt, socketpair, sockopt,
};

/// The longest role name.
const ROLE_BYTES: usize = 32;

/// A role of a host was started.
#[derive(Debug, PartialEq, Eq)]
pub struct Started {
    pub role: String,
    /// As seen by the reader.
    pub pid: i32,
}

/// Our end (it does not block) and the host's.
pub fn pair() -> io::Result<(UnixDatagram, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC)?;
    setsockopt(&ours, sockopt::PassCred, &true)?;
    let ours = UnixDatagram::from(ours);
    ours.set_nonblocking(true)?;
    Ok((ours, theirs))
}

/// Tells that `pid`, of the sender's own pid namespace, is `role` now.
pub fn tell(line: RawFd, role: &str, pid: i32) -> io::Result<()> {
    let credentials = UnixCredentials::from(libc::ucred { pid, uid: 0, gid: 0 });
    let control = [ControlMessage::ScmCredentials(&credentials)];
    sendmsg::<()>(line, &[IoSlice::new(role.as_bytes())], &control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// The next message; `WouldBlock` when there is none yet.
pub fn next(line: &impl AsRawFd) -> io::Result<Started> {
    let mut bytes = [0u8; ROLE_BYTES];
    let mut space = cmsg_space!(UnixCredentials);
    let (length, pid) = {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let message = recvmsg::<()>(line.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty())?;
        let pid = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::ScmCredentials(credentials) => Some(credentials.pid()),
            _ => None,
        });
        (message.bytes, pid)
    };
    let pid = pid.ok_or_else(|| io::Error::other("a message without a pid"))?;
    Ok(Started { role: String::from_utf8_lossy(&bytes[..length]).into_owned(), pid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_read() {
        let (ours, theirs) = pair().unwrap();
        assert_eq!(next(&ours).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        // Only root may name another process than itself.
        let pid = std::process::id() as i32;
        tell(theirs.as_raw_fd(), "agent", pid).unwrap();
        assert_eq!(next(&ours).unwrap(), Started { role: "agent".into(), pid });
    }
}
