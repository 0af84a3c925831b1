//! What streams between a caller and the inside of a Machine: a command with its terminal, or a copy of files. The
//! bytes themselves (frames) are the caller's and the holder's: a driver passes them on and reads none of them.

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::BoxFuture;
use crate::error::{Error, Result};
use crate::spec::check_process;

/// Longest path of a copy.
const MAX_PATH_BYTES: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SessionRequest {
    /// One more command. It has no time limit: its caller's hang-up ends it.
    Exec {
        argv: Vec<String>,
        #[serde(default)]
        env: Vec<(String, String)>,
        /// As [`crate::Process::user`]; absent means the main process's user.
        #[serde(default)]
        user: Option<String>,
        /// Rows and columns of the terminal to run on.
        #[serde(default)]
        terminal: Option<(u16, u16)>,
    },
    /// A tar archive of a path comes out; `name` stands for its last part.
    CopyOut {
        path: String,
        #[serde(default)]
        name: Option<String>,
    },
    /// A tar archive goes in.
    CopyIn { path: String, into_folder: bool, content_only: bool, keep_owners: bool },
}

impl SessionRequest {
    /// Where a copy begins or ends; a command has no such place.
    pub fn copies(&self) -> Option<&str> {
        match self {
            Self::Exec { .. } => None,
            Self::CopyOut { path, .. } | Self::CopyIn { path, .. } => Some(path),
        }
    }

    pub fn check(&self) -> Result<()> {
        match self {
            Self::Exec { argv, env, .. } => check_process(argv, env),
            Self::CopyOut { path, name } => {
                check_path(path)?;
                match name.as_deref() {
                    Some(name) if name.contains(['/', '\0']) || matches!(name, "." | "..") => {
                        Err(Error::invalid("name", format!("{name:?} is not a name of a file")))
                    }
                    _ => Ok(()),
                }
            }
            Self::CopyIn { path, .. } => check_path(path),
        }
    }
}

fn check_path(path: &str) -> Result<()> {
    if !path.starts_with('/') || path.contains('\0') || path.len() > MAX_PATH_BYTES {
        return Err(Error::invalid(
            "path",
            format!("{path:?} is not an absolute path of at most {MAX_PATH_BYTES} bytes"),
        ));
    }
    Ok(())
}

/// Both directions of a session.
pub trait SessionStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> SessionStream for T {}

/// A session that has begun.
pub struct Session {
    /// What the inside said before anybody listened.
    pub first: Vec<u8>,
    pub stream: Box<dyn SessionStream>,
}

/// A copy into or out of volumes that no Machine has, which has begun.
pub struct VolumesSession {
    pub session: Session,
    /// Resolves when nothing holds the volumes any more; that is soon after the stream is dropped.
    pub released: BoxFuture<'static, ()>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_names_are_names() {
        let out = |path: &str, name: Option<&str>| {
            SessionRequest::CopyOut { path: path.into(), name: name.map(str::to_owned) }.check().is_ok()
        };
        assert!(out("/", Some("")) && out("/a/../b", None) && out("/a", Some("b")));
        assert!(!out("a", None) && !out("", None) && !out("/a\0", None));
        assert!(!out("/a", Some("..")) && !out("/a", Some("b/c")));
        let exec = |argv: &[&str]| SessionRequest::Exec {
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            env: vec![],
            user: None,
            terminal: None,
        };
        assert!(exec(&["sh"]).check().is_ok() && exec(&[]).check().is_err());
    }
}
