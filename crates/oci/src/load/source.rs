//! Where the bytes of an image to be loaded are: a layout folder, or an archive whose
//! members are staged in the store's `tmp/`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::decode::{Bounds, Decoded};
use crate::digest::Digest;
use crate::error::{Error, LayerFault};
use crate::progress::{Progress, ProgressSink};
use crate::store::ContentStore;
use crate::tarball::{Kind, Member, TarReader};
use crate::unpack::clean_member_name;

const COPY_BUFFER_BYTES: usize = 256 << 10;
/// Bytes between two words of progress.
const PROGRESS_EVERY_BYTES: u64 = 4 << 20;
/// Links followed from one member of an archive to the next.
const MAX_LINKS: usize = 8;

/// A file of the store's `tmp/` that is ready to become a blob.
#[derive(Debug, Clone)]
pub(super) struct Staged {
    pub path: PathBuf,
    pub digest: Digest,
    pub size: u64,
}

/// The images' bytes, by their path in the layout or archive.
pub(super) struct Source {
    place: Place,
    /// Removed, with what was not adopted, when the source is dropped.
    temp: tempfile::TempDir,
    max_blob_bytes: u64,
}

enum Place {
    Folder(PathBuf),
    Archive { files: HashMap<PathBuf, Staged>, links: HashMap<PathBuf, PathBuf> },
}

impl Source {
    pub(super) fn folder(store: &ContentStore, path: &Path) -> Result<Self, Error> {
        Ok(Self {
            place: Place::Folder(path.to_owned()),
            temp: store.temp_dir()?,
            max_blob_bytes: store.limits().max_blob_bytes,
        })
    }

    /// Stages every file of an archive, in whatever order they come.
    pub(super) fn archive(
        store: &ContentStore,
        stream: impl Read,
        what: &str,
        progress: &ProgressSink,
    ) -> Result<Self, Error> {
        let mut staging = Staging {
            temp: store.temp_dir()?,
            files: HashMap::new(),
            links: HashMap::new(),
            numbered: 0,
            done_bytes: 0,
            progress: progress.clone(),
            max_blob_bytes: store.limits().max_blob_bytes,
        };
        let fault = |path, source| Error::Archive { path, source: Box::new(source) };
        let decoded = Decoded::new(stream, Bounds::archive(store.limits())).map_err(|f| fault(None, f))?;
        let mut tar = TarReader::new(io::BufReader::with_capacity(COPY_BUFFER_BYTES, decoded));
        let mut members = 0;
        loop {
            let member = match tar.next() {
                Ok(Some(member)) => member,
                Ok(None) => break,
                // Not even one header: then it is no archive at all.
                Err(LayerFault::Tar(_) | LayerFault::Truncated) if members == 0 => {
                    return Err(Error::NotAnImage { what: what.to_owned(), reason: "it is not a tar archive".into() });
                }
                Err(error) => return Err(fault(tar.last_label(), error)),
            };
            members += 1;
            if members > store.limits().max_archive_members {
                let bound = store.limits().max_archive_members;
                return Err(fault(None, LayerFault::Limit { limit: "max_archive_members", bound }));
            }
            staging.take(&member, &mut tar).map_err(|error| fault(Some(member.label()), error))?;
        }
        // A stream that is cut off after the last member is cut off all the same.
        let last = tar.last_label();
        tar.into_inner().into_inner().finish().map_err(|error| fault(last, error))?;
        let Staging { temp, files, links, max_blob_bytes, .. } = staging;
        Ok(Self { place: Place::Archive { files, links }, temp, max_blob_bytes })
    }

    /// A small file's bytes, or `None` if there is none.
    pub(super) fn document(&self, path: &str, max_bytes: u64, limit: &'static str) -> Result<Option<Vec<u8>>, Error> {
        let Some(place) = self.find(Path::new(path))? else { return Ok(None) };
        let mut bytes = Vec::new();
        let file = File::open(&place).map_err(Error::io("open", &place))?;
        file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(Error::io("read", &place))?;
        if bytes.len() as u64 > max_bytes {
            return Err(Error::Limit { what: path.to_owned(), limit, bound: max_bytes });
        }
        Ok(Some(bytes))
    }

    /// A file with its digest, staged; `None` if there is none.
    pub(super) fn stage(&self, path: &str, progress: &ProgressSink) -> Result<Option<Staged>, Error> {
        let folder = match &self.place {
            Place::Archive { files, .. } => {
                return Ok(self.member(Path::new(path)).and_then(|path| files.get(&path)).cloned());
            }
            Place::Folder(folder) => folder,
        };
        let from = folder.join(path);
        let file = match File::open(&from) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("open", from)(error)),
        };
        let to = tempfile::NamedTempFile::new_in(self.temp.path())
            .map_err(Error::io("create a file in", self.temp.path()))?;
        // The folder's guard removes it.
        let (mut to, path) = to.keep().map_err(|error| Error::io("create", &from)(error.error))?;
        let mut limited = file.take(self.max_blob_bytes + 1);
        let mut told = Told { progress, done_bytes: 0, next_bytes: 0 };
        let (digest, size) =
            copy_hashed(|buf| limited.read(buf), &mut to, |n| told.add(n)).map_err(|error| match error {
                CopyError::Read(error) => Error::io("read", &from)(error),
                CopyError::Write(error) => Error::io("write", &path)(error),
            })?;
        match size <= self.max_blob_bytes {
            true => Ok(Some(Staged { path, digest, size })),
            false => Err(Error::Limit {
                what: from.display().to_string(),
                limit: "max_blob_bytes",
                bound: self.max_blob_bytes,
            }),
        }
    }

    /// Where a file of the source can be read.
    fn find(&self, path: &Path) -> Result<Option<PathBuf>, Error> {
        match &self.place {
            Place::Archive { files, .. } => {
                Ok(self.member(path).and_then(|path| files.get(&path)).map(|file| file.path.clone()))
            }
            Place::Folder(folder) => {
                let path = folder.join(path);
                let there = path.try_exists().map_err(Error::io("read", &path))?;
                Ok(there.then_some(path))
            }
        }
    }

    /// The member that holds the bytes: old `docker save` links equal layers.
    fn member(&self, path: &Path) -> Option<PathBuf> {
        let Place::Archive { files, links } = &self.place else { return None };
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            if files.contains_key(&path) {
                return Some(path);
            }
            path = links.get(&path)?.clone();
        }
        None
    }
}

struct Staging {
    temp: tempfile::TempDir,
    files: HashMap<PathBuf, Staged>,
    links: HashMap<PathBuf, PathBuf>,
    /// Files so far: each is named by its number.
    numbered: u64,
    done_bytes: u64,
    progress: ProgressSink,
    max_blob_bytes: u64,
}

impl Staging {
    fn take<R: Read>(&mut self, member: &Member, tar: &mut TarReader<R>) -> Result<(), LayerFault> {
        let name = clean_member_name(&member.name)?;
        let target = |base: &[u8]| clean_member_name(&[base, b"/", &member.link].concat());
        match member.kind {
            Kind::File => self.stage(name, member, tar),
            Kind::HardLink => {
                self.links.insert(name, target(b"")?);
                Ok(())
            }
            Kind::Symlink => {
                let parent = name.parent().unwrap_or(Path::new(""));
                let target = target(std::os::unix::ffi::OsStrExt::as_bytes(parent.as_os_str()))?;
                self.links.insert(name, target);
                Ok(())
            }
            Kind::Folder | Kind::Fifo | Kind::Device => Ok(()),
        }
    }

    fn stage<R: Read>(&mut self, name: PathBuf, member: &Member, tar: &mut TarReader<R>) -> Result<(), LayerFault> {
        if member.sparse.is_some() {
            return Err(LayerFault::Unsupported('S'));
        }
        if member.size > self.max_blob_bytes {
            return Err(LayerFault::Limit { limit: "max_blob_bytes", bound: self.max_blob_bytes });
        }
        self.numbered += 1;
        let path = self.temp.path().join(self.numbered.to_string());
        let mut file = File::create(&path).map_err(LayerFault::io("create a file"))?;
        let mut told = Told { progress: &self.progress, done_bytes: self.done_bytes, next_bytes: self.done_bytes };
        let copied = copy_hashed(|buf| tar.read(buf), &mut file, |n| told.add(n));
        let (digest, size) = copied.map_err(|error| match error {
            CopyError::Read(error) => LayerFault::from_read(error),
            CopyError::Write(source) => LayerFault::Io { action: "write a file", source },
        })?;
        self.done_bytes += size;
        // A second member of the same name replaces the first.
        self.files.insert(name, Staged { path, digest, size });
        Ok(())
    }
}

/// Tells progress now and then.
struct Told<'a> {
    progress: &'a ProgressSink,
    done_bytes: u64,
    next_bytes: u64,
}

impl Told<'_> {
    fn add(&mut self, bytes: u64) {
        self.done_bytes += bytes;
        if self.done_bytes >= self.next_bytes {
            self.next_bytes = self.done_bytes + PROGRESS_EVERY_BYTES;
            (self.progress)(Progress::Blob { digest: None, done_bytes: self.done_bytes, total_bytes: None });
        }
    }
}

enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

fn copy_hashed(
    mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
    to: &mut File,
    mut told: impl FnMut(u64),
) -> Result<(Digest, u64), CopyError> {
    let mut hash = Sha256::new();
    let mut size = 0;
    let mut buffer = vec![0; COPY_BUFFER_BYTES];
    loop {
        match read(&mut buffer) {
            Ok(0) => return Ok((Digest::finish(hash), size)),
            Ok(n) => {
                hash.update(&buffer[..n]);
                to.write_all(&buffer[..n]).map_err(CopyError::Write)?;
                size += n as u64;
                told(n as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(CopyError::Read(error)),
        }
    }
}
