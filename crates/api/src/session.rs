//! What a client and the inside of a Machine say to one another while a command runs, or files are copied: frames on
//! one byte stream, after an HTTP upgrade (RFC 9110, section 7.8) to [`PROTOCOL`]. Pure; it knows no socket.
//!
//! ```text
//! frame = kind (u8) length (u32, big endian, of the payload) payload
//! client -> Machine   Open, then Stdin*, StdinEnd, Resize*, Signal*
//! Machine -> client   Ready, then Stdout*, Stderr*, Taken*, and one Exit; or Failed instead of any of them
//! ```
//!
//! **Nothing but an `Exit` is success**: a stream that ends without one was cut. A client that hangs up ends its
//! command. At most [`STDIN_WINDOW_BYTES`] of stdin may be on the way: `Taken` gives back what the command has read,
//! so a command that reads nothing never keeps a signal or a hang-up from arriving. Output needs no window: who does
//! not read it slows the command down, as a pipe does.

use serde::{Deserialize, Serialize};

use crate::error::Status;

/// The name in the `Upgrade` header.
pub const PROTOCOL: &str = "godwit-session/1";
/// Bytes of kind and length.
pub const HEADER_BYTES: usize = 5;
/// Largest piece of a stream in one frame.
pub const MAX_DATA_BYTES: usize = 64 << 10;
/// Largest payload of any other frame (a command with its arguments and environment).
pub const MAX_OPEN_BYTES: usize = 512 << 10;
/// Stdin that may be under way at once.
pub const STDIN_WINDOW_BYTES: usize = 256 << 10;

/// What a session is for; its first frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Open {
    Exec(Exec),
    /// A tar archive of `path` comes on stdout. `name` stands in place of the last part of the path; empty: what is in
    /// the folder comes without it.
    CopyOut {
        path: String,
        #[serde(default)]
        name: Option<String>,
    },
    /// A tar archive goes to stdin and is unpacked.
    CopyIn(CopyIn),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    pub command: Vec<String>,
    /// Added to the Machine's environment.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// `name`, `uid`, `name:group`; the main process's user if absent.
    #[serde(default)]
    pub user: Option<String>,
    /// Run on a terminal of this size: stdout and stderr are one then.
    #[serde(default)]
    pub terminal: Option<Size>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyIn {
    /// Into this folder if it is one; otherwise the archive's one top-level entry gets this name.
    pub path: String,
    /// `path` must be a folder, and every entry keeps its name.
    #[serde(default)]
    pub into_folder: bool,
    /// Into a folder that exists goes what is in the archive's one top-level folder, without that folder.
    #[serde(default)]
    pub content_only: bool,
    /// Owners are those in the archive, not root.
    #[serde(default)]
    pub keep_owners: bool,
}

/// Of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    pub rows: u16,
    pub columns: u16,
}

/// How a command ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 0 to 255; absent when a signal ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The program was not executed at all: it is missing, or no program; `code` is 127 or 126, as a shell's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub not_executed: bool,
}

impl Exit {
    /// As a shell counts: a signal is 128 and its number.
    pub fn shell_code(&self) -> u8 {
        let code = self.code.unwrap_or_else(|| self.signal.map_or(1, |signal| 128 + signal));
        u8::try_from(code & 0xff).unwrap_or(1)
    }
}

/// Why a session could not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    pub error: String,
    pub status: Status,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Open(Open),
    Stdin(Vec<u8>),
    StdinEnd,
    Resize(Size),
    /// To the command, by its Linux number.
    Signal(i32),
    /// It has begun.
    Ready,
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    /// So many bytes of stdin are read, or not wanted any more.
    Taken(u32),
    Exit(Exit),
    Failed(Failed),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of kind {0} is not known")]
    Kind(u8),
    #[error("a frame of kind {kind} with {bytes} bytes is too large")]
    Large { kind: u8, bytes: usize },
    #[error("a frame of kind {kind} cannot be read: {why}")]
    Payload { kind: u8, why: String },
}

const OPEN: u8 = 0;
const STDIN: u8 = 1;
const STDIN_END: u8 = 2;
const RESIZE: u8 = 3;
const SIGNAL: u8 = 4;
const READY: u8 = 16;
const STDOUT: u8 = 17;
const STDERR: u8 = 18;
const TAKEN: u8 = 19;
const EXIT: u8 = 20;
const FAILED: u8 = 21;

impl Frame {
    /// Appends its bytes. Pieces of streams must be at most [`MAX_DATA_BYTES`]: [`encode_data`] cuts them.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[self.kind(), 0, 0, 0, 0]);
        match self {
            Self::Stdin(bytes) | Self::Stdout(bytes) | Self::Stderr(bytes) => out.extend_from_slice(bytes),
            Self::StdinEnd | Self::Ready => {}
            Self::Resize(size) => {
                out.extend_from_slice(&size.rows.to_be_bytes());
                out.extend_from_slice(&size.columns.to_be_bytes());
            }
            Self::Signal(number) => out.extend_from_slice(&number.to_be_bytes()),
            Self::Taken(bytes) => out.extend_from_slice(&bytes.to_be_bytes()),
            Self::Open(open) => json_into(out, open),
            Self::Exit(exit) => json_into(out, exit),
            Self::Failed(failed) => json_into(out, failed),
        }
        set_length(out, start);
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Open(_) => OPEN,
            Self::Stdin(_) => STDIN,
            Self::StdinEnd => STDIN_END,
            Self::Resize(_) => RESIZE,
            Self::Signal(_) => SIGNAL,
            Self::Ready => READY,
            Self::Stdout(_) => STDOUT,
            Self::Stderr(_) => STDERR,
            Self::Taken(_) => TAKEN,
            Self::Exit(_) => EXIT,
            Self::Failed(_) => FAILED,
        }
    }

    /// The frame at the front of `bytes`, and how many bytes it takes; `None` when it is not whole yet.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, FrameError> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let (kind, length) = (header[0], u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize);
        if length > max_bytes(kind)? {
            return Err(FrameError::Large { kind, bytes: length });
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        Ok(Some((Self::read(kind, payload)?, HEADER_BYTES + length)))
    }

    fn read(kind: u8, payload: &[u8]) -> Result<Self, FrameError> {
        let wrong = |why: &str| FrameError::Payload { kind, why: why.to_owned() };
        let four = || <[u8; 4]>::try_from(payload).map_err(|_| wrong("it has not 4 bytes"));
        Ok(match kind {
            OPEN => Self::Open(json_from(kind, payload)?),
            STDIN => Self::Stdin(payload.to_vec()),
            STDIN_END => Self::StdinEnd,
            RESIZE => {
                let [a, b, c, d] = four()?;
                Self::Resize(Size { rows: u16::from_be_bytes([a, b]), columns: u16::from_be_bytes([c, d]) })
            }
            SIGNAL => Self::Signal(i32::from_be_bytes(four()?)),
            READY => Self::Ready,
            STDOUT => Self::Stdout(payload.to_vec()),
            STDERR => Self::Stderr(payload.to_vec()),
            TAKEN => Self::Taken(u32::from_be_bytes(four()?)),
            EXIT => Self::Exit(json_from(kind, payload)?),
            FAILED => Self::Failed(json_from(kind, payload)?),
            other => return Err(FrameError::Kind(other)),
        })
    }
}

/// Appends `bytes` as frames of one stream, in pieces that fit. `make` is `Frame::Stdin`, say; nothing makes no frame.
pub fn encode_data(make: fn(Vec<u8>) -> Frame, bytes: &[u8], out: &mut Vec<u8>) {
    for piece in bytes.chunks(MAX_DATA_BYTES) {
        make(piece.to_vec()).encode(out);
    }
}

fn max_bytes(kind: u8) -> Result<usize, FrameError> {
    Ok(match kind {
        STDIN | STDOUT | STDERR => MAX_DATA_BYTES,
        OPEN | EXIT | FAILED => MAX_OPEN_BYTES,
        RESIZE | SIGNAL | TAKEN => 4,
        STDIN_END | READY => 0,
        other => return Err(FrameError::Kind(other)),
    })
}

fn set_length(out: &mut [u8], start: usize) {
    let length = u32::try_from(out.len() - start - HEADER_BYTES).unwrap_or(u32::MAX);
    out[start + 1..start + HEADER_BYTES].copy_from_slice(&length.to_be_bytes());
}

fn json_into<T: Serialize>(out: &mut Vec<u8>, value: &T) {
    // Plain data of ours always becomes JSON.
    out.extend(serde_json::to_vec(value).unwrap_or_default());
}

fn json_from<'a, T: Deserialize<'a>>(kind: u8, payload: &'a [u8]) -> Result<T, FrameError> {
    serde_json::from_slice(payload).map_err(|error| FrameError::Payload { kind, why: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_frame() -> impl Strategy<Value = Frame> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..300);
        let size = (any::<u16>(), any::<u16>()).prop_map(|(rows, columns)| Size { rows, columns });
        let words = || proptest::collection::vec(".{0,9}", 0..4);
        let exec = (words(), proptest::option::of(size.clone()), proptest::option::of(".{0,5}"));
        prop_oneof![
            exec.prop_map(|(command, terminal, user)| Frame::Open(Open::Exec(Exec {
                command,
                terminal,
                user,
                env: vec![("TERM".into(), "xterm".into())],
            }))),
            (".{0,9}", proptest::option::of(".{0,9}"))
                .prop_map(|(path, name)| Frame::Open(Open::CopyOut { path, name })),
            (".{0,9}", any::<bool>(), any::<bool>()).prop_map(|(path, into_folder, keep_owners)| {
                Frame::Open(Open::CopyIn(CopyIn { path, into_folder, content_only: !into_folder, keep_owners }))
            }),
            bytes().prop_map(Frame::Stdin),
            bytes().prop_map(Frame::Stdout),
            bytes().prop_map(Frame::Stderr),
            Just(Frame::StdinEnd),
            Just(Frame::Ready),
            size.prop_map(Frame::Resize),
            any::<i32>().prop_map(Frame::Signal),
            any::<u32>().prop_map(Frame::Taken),
            (proptest::option::of(0..256), proptest::option::of(1..65), any::<bool>())
                .prop_map(|(code, signal, not_executed)| Frame::Exit(Exit { code, signal, not_executed })),
            ".{0,20}".prop_map(|error| Frame::Failed(Failed { error, status: Status::Conflict })),
        ]
    }

    proptest! {
        #[test]
        fn frames_arrive_as_they_were_sent_however_the_stream_is_cut(
            frames in proptest::collection::vec(any_frame(), 1..8),
            step in 1_usize..700,
        ) {
            let mut wire = Vec::new();
            frames.iter().for_each(|frame| frame.encode(&mut wire));
            let (mut buffer, mut read) = (Vec::new(), Vec::new());
            for piece in wire.chunks(step) {
                buffer.extend_from_slice(piece);
                while let Some((frame, taken)) = Frame::decode(&buffer).unwrap() {
                    read.push(frame);
                    buffer.drain(..taken);
                }
            }
            prop_assert!(buffer.is_empty());
            prop_assert_eq!(read, frames);
        }

        #[test]
        fn what_is_no_frame_is_an_error_or_waits_and_never_more(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Some((_, taken))) = Frame::decode(&bytes) {
                prop_assert!(taken <= bytes.len());
            }
        }
    }

    #[test]
    fn a_frame_that_is_too_large_is_refused_before_it_is_read() {
        let header = |kind: u8, length: u32| [&[kind][..], &length.to_be_bytes()].concat();
        for (kind, length) in [(STDIN, MAX_DATA_BYTES), (OPEN, MAX_OPEN_BYTES), (SIGNAL, 4), (READY, 0)] {
            let length = u32::try_from(length).unwrap() + 1;
            assert!(matches!(Frame::decode(&header(kind, length)), Err(FrameError::Large { .. })), "kind {kind}");
        }
        assert_eq!(Frame::decode(&header(99, 0)), Err(FrameError::Kind(99)));
    }

    #[test]
    fn large_pieces_are_cut_and_nothing_is_no_frame() {
        let (mut wire, bytes) = (Vec::new(), vec![7; MAX_DATA_BYTES * 2 + 1]);
        encode_data(Frame::Stdout, &bytes, &mut wire);
        let (mut joined, mut at) = (Vec::new(), 0);
        while let Some((Frame::Stdout(piece), taken)) = Frame::decode(&wire[at..]).unwrap() {
            joined.extend(piece);
            at += taken;
        }
        assert_eq!((joined.len(), at), (bytes.len(), wire.len()));
        let mut none = Vec::new();
        encode_data(Frame::Stdin, &[], &mut none);
        assert!(none.is_empty());
    }

    #[test]
    fn a_signal_counts_as_a_shell_counts_it() {
        let exit = |code, signal| Exit { code, signal, not_executed: false }.shell_code();
        assert_eq!((exit(Some(0), None), exit(Some(255), None), exit(None, Some(9))), (0, 255, 137));
    }
}
