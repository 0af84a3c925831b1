//! What a driver and the shim that holds a Machine say to one another: length-prefixed JSON on a unix socket.
//!
//! ```text
//! frame   = length (u32, little endian, of the payload) payload (JSON, at most MAX_FRAME_BYTES)
//! client -> shim   Hello{newest}          shim -> client   Welcome{version,..} | Refused
//! client -> shim   one Request            shim -> client   one Reply        (repeated; Wait answers at the exit)
//! client -> shim   Session                shim -> client   Done, then the session's own bytes until the hang-up
//! ```
//!
//! Both sides speak the newest version that both know, and each side knows [`VERSIONS_BACK`] older ones: shims outlive
//! the agents that started them, and an agent may be taken back to an older release. This file knows no socket.

use serde::{Deserialize, Serialize};

use crate::handle::Exit;
use crate::session::SessionRequest;
use crate::spec::{ExecReply, ExecRequest};
use crate::volume_mount::VolumeMount;

/// The version that this program speaks best. Raise it with any change that an older reader would misread.
pub const VERSION: u32 = 2;
/// The first version that knows [`Request::Session`].
pub const SESSION_VERSION: u32 = 2;
/// How many older versions stay understood.
pub const VERSIONS_BACK: u32 = 2;
/// An exec's reply (two bounded streams in base64) is the largest frame.
pub const MAX_FRAME_BYTES: usize = 4 << 20;
/// Bytes of the length in front of each payload.
pub const PREFIX_BYTES: usize = 4;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    Hello {
        newest: u32,
    },
    State,
    Signal {
        signal: i32,
    },
    /// Answered with `Ended`, once every process is gone and the exit record is on disk.
    Kill,
    /// Answered with `Ended`.
    Wait,
    Exec {
        request: ExecRequest,
    },
    /// Answered with `Done`; from then on the connection carries the session's own bytes.
    Session {
        request: SessionRequest,
    },
}

/// What a shim is told that holds no Machine, and only copies files into or out of volumes that no Machine has: the one
/// frame that it reads on its standard input, a socket. It answers there as it does to `Session`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumesOrder {
    pub volumes: Vec<VolumeMount>,
    pub request: SessionRequest,
}

/// The argument by which it knows that.
pub const VOLUMES_ARGUMENT: &str = "volumes";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Reply {
    Welcome {
        version: u32,
        machine: String,
        instance: String,
    },
    State {
        state: ShimState,
    },
    Done,
    Ended {
        exit: Exit,
    },
    Exec {
        reply: ExecReply,
    },
    /// `user_fault`: the request or the Machine is to blame, not the host. `busy`: nobody is, later it may be done.
    Refused {
        reason: String,
        user_fault: bool,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        busy: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShimState {
    /// The container is being built; nothing of the image runs yet.
    Starting,
    Running,
    /// The main process is gone; what it left is being cleaned away.
    Ending,
}

/// The one line that a shim writes to its standard output when the start is decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Started {
    Ok { handle: crate::Handle },
    Failed { exit_code: Option<i32>, reason: String, user_fault: bool },
}

/// The version that two sides speak together, or `None` when the gap is too wide.
pub fn negotiate(mine: u32, theirs: u32) -> Option<u32> {
    let (older, newer) = (mine.min(theirs), mine.max(theirs));
    (older >= 1 && older + VERSIONS_BACK >= newer).then_some(older)
}

/// One frame. Fails when the value is larger than a frame may be.
pub fn encode<T: Serialize>(value: &T) -> std::io::Result<Vec<u8>> {
    let mut frame = vec![0; PREFIX_BYTES];
    serde_json::to_writer(&mut frame, value)?;
    let length = frame.len() - PREFIX_BYTES;
    if length > MAX_FRAME_BYTES {
        return Err(std::io::Error::other(format!("a frame of {length} bytes is too large")));
    }
    frame[..PREFIX_BYTES].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(frame)
}

/// Takes one frame from the front of `buffer`; `None` when it is not complete yet.
pub fn decode<T: serde::de::DeserializeOwned>(buffer: &mut Vec<u8>) -> std::io::Result<Option<T>> {
    let Some(length) = frame_bytes(buffer)? else { return Ok(None) };
    let end = PREFIX_BYTES + length;
    if buffer.len() < end {
        return Ok(None);
    }
    let value = serde_json::from_slice(&buffer[PREFIX_BYTES..end])?;
    buffer.drain(..end);
    Ok(Some(value))
}

/// The announced length of the frame at the front, once its prefix is there.
pub fn frame_bytes(buffer: &[u8]) -> std::io::Result<Option<usize>> {
    let Some(prefix) = buffer.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
    let length = u32::from_le_bytes(*prefix) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(std::io::Error::other(format!("a frame of {length} bytes was announced")));
    }
    Ok(Some(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_versions_back_are_spoken_and_no_further() {
        assert_eq!(negotiate(3, 3), Some(3));
        assert_eq!(negotiate(5, 3), Some(3));
        assert_eq!(negotiate(3, 5), Some(3));
        assert_eq!(negotiate(5, 2), None);
        assert_eq!(negotiate(1, 0), None);
    }

    #[test]
    fn a_frame_that_arrives_in_pieces_is_read_once_it_is_whole() {
        let frame = encode(&Request::Signal { signal: 15 }).unwrap();
        let mut buffer = Vec::new();
        for (i, byte) in frame.iter().enumerate() {
            assert!(decode::<Request>(&mut buffer).unwrap().is_none(), "after {i} bytes");
            buffer.push(*byte);
        }
        buffer.extend_from_slice(&encode(&Request::Wait).unwrap());
        assert_eq!(decode(&mut buffer).unwrap(), Some(Request::Signal { signal: 15 }));
        assert_eq!(decode(&mut buffer).unwrap(), Some(Request::Wait));
        assert!(buffer.is_empty());
    }

    #[test]
    fn an_announced_giant_is_refused_before_it_is_read() {
        let mut buffer = u32::MAX.to_le_bytes().to_vec();
        assert!(decode::<Request>(&mut buffer).is_err());
    }
}
