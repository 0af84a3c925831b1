//! `machine cp`: files into and out of a Machine (of one that is stopped, its volumes), by the rules of `docker cp`. The archives are made and read
//! here and inside; this file knows tar and paths, not how they travel.

use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Component, Path, PathBuf};

use godwit_api::session::{CopyIn, Open};
use tokio::sync::mpsc;

use super::LeaseOption;
use crate::cli::context::{AppOption, Context};
use crate::cli::session::{Output, Plan, Session, our_stdin, written_by};
use crate::error::{CliError, Result};

/// Pieces of an archive that wait to be unpacked.
const PIECES_QUEUED: usize = 8;

/// Copy files between this machine and a Machine, or the volumes of a stopped one
///
/// One side is MACHINE:/PATH. A folder is copied whole; `FOLDER/.` copies what is in it. Into a folder that exists the
/// source keeps its name, otherwise it takes the target's. `-` is a tar archive on standard input or output. Modes and
/// times are kept; owners become root inside, or you outside, unless --archive keeps them.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    app: AppOption,
    /// What to copy: a path, MACHINE:/PATH, or - for a tar archive on standard input
    #[arg(value_name = "SOURCE")]
    source: String,
    /// Where to: a path, MACHINE:/PATH, or - for a tar archive on standard output
    #[arg(value_name = "TARGET")]
    target: String,
    /// Keep user and group ids
    #[arg(long)]
    archive: bool,
    /// Accepted for compatibility: directories are always copied recursively
    #[arg(short, long)]
    recursive: bool,
    #[command(flatten)]
    lease: LeaseOption,
}

/// `MACHINE:/path`; a local path with a colon in it is written as `./a:b`.
fn inside(text: &str) -> Option<(&str, &str)> {
    let (machine, path) = text.split_once(':')?;
    (!machine.is_empty() && !machine.contains('/') && !machine.starts_with('.')).then_some((machine, path))
}

pub async fn run(options: &Options, context: &Context) -> Result<()> {
    // Folders need no flag here.
    let _ = options.recursive;
    match (inside(&options.source), inside(&options.target)) {
        (Some((machine, path)), None) => out(options, context, machine, path).await,
        (None, Some((machine, path))) => into(options, context, machine, path).await,
        (Some(_), Some(_)) => Err(CliError::usage("one side must be on this machine: copy in two steps")),
        (None, None) => Err(CliError::usage("one side must be in a Machine")
            .hint("write it as MACHINE:/PATH, for example `godwit machine cp ID:/etc/hosts .`")),
    }
}

/// Paths inside are counted from the root, as `docker cp` does.
fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

async fn into(options: &Options, context: &Context, machine: &str, path: &str) -> Result<()> {
    let from_stdin = options.source == "-";
    if from_stdin && io::stdin().is_terminal() {
        return Err(CliError::usage("`-` reads a tar archive from a file or a pipe, not from a terminal"));
    }
    let source = PathBuf::from(&options.source);
    if !from_stdin {
        fs::symlink_metadata(&source)
            .map_err(|error| CliError::not_found(format!("{} cannot be read: {error}", source.display())))?;
    }
    let content_only = !from_stdin && ends_in_dot(&options.source);
    let (app, machine) = context.machine(&options.app, machine).await?;
    let wanted = CopyIn { path: absolute(path), into_folder: from_stdin, content_only, keep_owners: options.archive };
    let session = Session::open(context, &app, &machine.id, &options.lease.headers()?, Open::CopyIn(wanted)).await?;
    let stdin = match from_stdin {
        true => our_stdin(),
        false => written_by(move |out| pack(&source, out)),
    };
    let plan = Plan { stdin: Some(stdin), stdout: Output::Ours, terminal: false, timeout: None };
    session.attend(plan).await.map(|_| ())
}

fn ends_in_dot(path: &str) -> bool {
    path == "." || path.ends_with("/.") || path == ".." || path.ends_with("/..")
}

/// The last part of a path, also of one that ends in dots.
fn last_part(path: &Path) -> io::Result<OsString> {
    let real = match path.file_name() {
        Some(name) => return Ok(name.to_owned()),
        None => fs::canonicalize(path)?,
    };
    Ok(real.file_name().map_or_else(|| "root".into(), OsString::from))
}

fn pack(source: &Path, out: &mut dyn Write) -> io::Result<()> {
    let mut archive = tar::Builder::new(out);
    archive.follow_symlinks(false);
    // A target that is not there yet takes this entry's place, whatever its name.
    let name = PathBuf::from(last_part(source)?);
    // With a slash or a dot behind it, a link to a folder is the folder.
    if fs::symlink_metadata(source)?.is_dir() {
        archive.append_dir_all(&name, source)?;
    } else {
        archive.append_path_with_name(source, &name)?;
    }
    archive.into_inner()?.flush()
}

async fn out(options: &Options, context: &Context, machine: &str, path: &str) -> Result<()> {
    let to_stdout = options.target == "-";
    if to_stdout && io::stdout().is_terminal() {
        return Err(CliError::usage("`-` writes a tar archive to a file or a pipe, not to a terminal"));
    }
    let (folder, name) = if to_stdout { (PathBuf::new(), None) } else { place(&options.target, path)? };
    let (app, machine) = context.machine(&options.app, machine).await?;
    let wanted = Open::CopyOut { path: absolute(path), name };
    let session = Session::open(context, &app, &machine.id, &options.lease.headers()?, wanted).await?;
    if to_stdout {
        let plan = Plan { stdin: None, stdout: Output::Ours, terminal: false, timeout: None };
        return session.attend(plan).await.map(|_| ());
    }
    let (sender, pieces) = mpsc::channel(PIECES_QUEUED);
    let keep_owners = options.archive;
    let unpacking = tokio::task::spawn_blocking(move || unpack(&folder, keep_owners, Queue::new(pieces)));
    let plan = Plan { stdin: None, stdout: Output::To(sender), terminal: false, timeout: None };
    // The queue ends with the session; what the unpacking says is closer to the cause.
    let ended = session.attend(plan).await;
    let unpacked = unpacking.await.map_err(|error| CliError::failed(error.to_string()))?;
    match (unpacked, ended) {
        (Ok(()), ended) => ended.map(|_| ()),
        // Nothing whole came: why, the Machine's side says.
        (Err(error), Err(ended)) if error.kind() == io::ErrorKind::UnexpectedEof => Err(ended),
        (Err(error), _) => Err(CliError::failed(format!("cannot write the received data: {error}"))),
    }
}

/// The folder to unpack into, and the name that the source takes there (`None`: its own; empty: none).
fn place(target: &str, path: &str) -> Result<(PathBuf, Option<String>)> {
    let to = PathBuf::from(target);
    let content_only = ends_in_dot(path) || path.trim_end_matches('/').is_empty();
    if to.is_dir() {
        return Ok((to, content_only.then(String::new)));
    }
    if content_only {
        return Ok((to, Some(String::new())));
    }
    let parent = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    if target.ends_with('/') || !parent.is_dir() {
        let missing = if target.ends_with('/') { &to } else { &parent };
        return Err(
            CliError::not_found(format!("{} is not a folder here", missing.display())).hint("make it first: mkdir -p")
        );
    }
    let name = to.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| CliError::usage(format!("{target:?} names no file")))?;
    Ok((parent, Some(name.to_owned())))
}

/// The Machine is not trusted: nothing is written outside of `folder`, and no device is made.
fn unpack(folder: &Path, keep_owners: bool, input: Queue) -> io::Result<()> {
    let mut archive = tar::Archive::new(input);
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    archive.set_preserve_ownerships(keep_owners);
    let mut any = false;
    for entry in archive.entries()? {
        let mut entry = entry?;
        if !any {
            // Nothing is made here before something has come.
            fs::create_dir_all(folder)?;
            any = true;
        }
        let name = entry.path()?.into_owned();
        if name.components().any(|part| part == Component::ParentDir) || !entry.unpack_in(folder)? {
            return Err(io::Error::other(format!("{} would be outside of {}", name.display(), folder.display())));
        }
    }
    io::copy(&mut archive.into_inner(), &mut io::sink()).map(|_| ())
}

/// What comes, as a stream to read.
struct Queue {
    pieces: mpsc::Receiver<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl Queue {
    fn new(pieces: mpsc::Receiver<Vec<u8>>) -> Self {
        Self { pieces, piece: Vec::new(), at: 0 }
    }
}

impl Read for Queue {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            match self.pieces.blocking_recv() {
                Some(piece) => (self.piece, self.at) = (piece, 0),
                None => return Ok(0),
            }
        }
        let left = &self.piece[self.at..];
        let read = left.len().min(buffer.len());
        buffer[..read].copy_from_slice(&left[..read]);
        self.at += read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_in_a_machine_is_told_from_a_local_path() {
        assert_eq!(inside("m1:/etc/hosts"), Some(("m1", "/etc/hosts")));
        assert_eq!(inside("m1:"), Some(("m1", "")));
        for local in ["/etc/hosts", "./a:b", "a/b:c", "-", "file", ":x"] {
            assert_eq!(inside(local), None, "{local}");
        }
    }

    #[test]
    fn the_name_here_follows_the_rules_of_docker_cp() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let here = folder.path().to_str().unwrap();
        assert_eq!(place(here, "/etc/hosts").unwrap(), (folder.path().to_owned(), None));
        assert_eq!(place(&at("new"), "/etc/hosts").unwrap(), (folder.path().to_owned(), Some("new".into())));
        assert_eq!(place(&at("new"), "/etc/.").unwrap(), (folder.path().join("new"), Some(String::new())));
        assert_eq!(place(here, "/etc/.").unwrap(), (folder.path().to_owned(), Some(String::new())));
        assert!(place(&at("new/"), "/etc/hosts").is_err() && place(&at("no/such"), "/etc/hosts").is_err());
    }

    #[test]
    fn an_archive_that_would_write_elsewhere_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (outside, target) = (folder.path().join("outside"), folder.path().join("target"));
        fs::create_dir(&outside).unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        archive.append_link(&mut header, "way", &outside).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        header.set_mode(0o644);
        archive.append_data(&mut header, "way/file", &b"new"[..]).unwrap();
        let (sender, pieces) = mpsc::channel(1);
        let bytes = archive.into_inner().unwrap();
        let sending = std::thread::spawn(move || sender.blocking_send(bytes));
        assert!(unpack(&target, false, Queue::new(pieces)).is_err());
        sending.join().unwrap().unwrap();
        assert!(!outside.join("file").exists());
    }
}
