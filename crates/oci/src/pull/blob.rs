//! One blob: asked for once, resumed where it broke off, verified, adopted.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use hyper::body::Incoming;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

use super::retry::Tries;
use super::transport::next_chunk;
use super::{Puller, blocking, is_worth_retrying};
use crate::digest::Digest;
use crate::error::Error;
use crate::progress::{Progress, ProgressSink};
use crate::spec::Descriptor;
use crate::store::ContentStore;

/// Bytes of one write.
const WRITE_BYTES: usize = 1 << 20;
/// Bytes between two words of progress.
const PROGRESS_EVERY_BYTES: u64 = 1 << 20;

/// What has arrived of a blob.
struct Partial {
    file: tokio::fs::File,
    path: PathBuf,
    hash: Sha256,
    bytes: u64,
}

/// How a try ended that did not fail.
enum Ended {
    Whole(PathBuf),
    /// What an earlier try or process had left was not a beginning of the blob, or the rest
    /// was no end of it; both are gone.
    StartOver {
        found: Digest,
    },
}

impl Puller {
    /// Makes sure that the store has the blob.
    pub(super) async fn blob(
        &self,
        store: &Arc<ContentStore>,
        name: &str,
        role: &str,
        blob: &Descriptor,
        progress: &ProgressSink,
    ) -> Result<(), Error> {
        let turn = store.download(&blob.digest);
        let _turn = turn.lock().await;
        let digest = blob.digest;
        if let Some(there) = blocking(store, move |store| store.open_blob(&digest)).await? {
            return check_size(role, blob, there.size);
        }
        // Never closed: the semaphore lives as long as `self`.
        let _slot = self.slots.acquire().await.map_err(|_| Error::TaskEnded)?;
        let mut tries = Tries::default();
        let mut started_over = false;
        loop {
            let mut gained = 0;
            let error = match self.try_once(store, name, role, blob, progress, &mut gained).await {
                Ok(Ended::Whole(path)) => return blocking(store, move |store| store.adopt(&path, &digest)).await,
                Ok(Ended::StartOver { .. }) if !started_over => {
                    started_over = true;
                    continue;
                }
                Ok(Ended::StartOver { found }) => {
                    return Err(Error::WrongDigest { role: role.to_owned(), expected: digest, found });
                }
                Err(error) => error,
            };
            match tries.failed(gained).filter(|_| is_worth_retrying(&error)) {
                Some(pause) => {
                    tracing::debug!(blob = %digest, error = &error as &dyn std::error::Error, ?pause, "trying again");
                    tokio::time::sleep(pause).await;
                }
                None => return Err(error),
            }
        }
    }

    async fn try_once(
        &self,
        store: &Arc<ContentStore>,
        name: &str,
        role: &str,
        blob: &Descriptor,
        progress: &ProgressSink,
        gained: &mut u64,
    ) -> Result<Ended, Error> {
        let (path, size) = (store.partial_path(&blob.digest), blob.size);
        let mut partial = blocking(store, move |_| Partial::open(path, size)).await?;
        let resumed = partial.bytes;
        let mut fetched = Ok(());
        if partial.bytes < size || size == 0 {
            fetched = self.fetch(name, role, blob, progress, &mut partial).await;
            *gained = partial.bytes.saturating_sub(resumed);
        }
        // What has arrived is on disk before the next try looks at the file's length.
        partial.flush().await?;
        fetched?;
        let found = Digest::finish(partial.hash);
        if found == blob.digest {
            return Ok(Ended::Whole(partial.path));
        }
        tokio::fs::remove_file(&partial.path).await.map_err(Error::io("remove", &partial.path))?;
        match resumed {
            0 => Err(Error::WrongDigest { role: role.to_owned(), expected: blob.digest, found }),
            // Only part of it is the registry's word; the next try has none of ours in it.
            _ => Ok(Ended::StartOver { found }),
        }
    }

    async fn fetch(
        &self,
        name: &str,
        role: &str,
        blob: &Descriptor,
        progress: &ProgressSink,
        partial: &mut Partial,
    ) -> Result<(), Error> {
        let path = format!("/v2/{name}/blobs/{}", blob.digest);
        let broken = |source| Error::Transport { action: "the blob broke off", url: self.transport.url(&path), source };
        let mut headers = HeaderMap::new();
        if partial.bytes > 0 {
            let range = HeaderValue::try_from(format!("bytes={}-", partial.bytes));
            // Digits and ASCII signs only: always a header value.
            headers.extend(range.ok().map(|range| (RANGE, range)));
        }
        let answer = self.transport.get(&path, headers).await?;
        let continues = answer.status() == StatusCode::PARTIAL_CONTENT && starts_at(answer.headers(), partial.bytes);
        if !continues {
            // Everything again (the registry knows no ranges), or a part that we cannot use.
            partial.restart().await?;
            if answer.status() != StatusCode::OK {
                return Err(broken("the registry answered another range than the one asked for".into()));
            }
        }
        let mut body: Incoming = answer.into_body();
        let mut next_told = partial.bytes;
        while let Some(chunk) = next_chunk(&mut body).await.map_err(broken)? {
            let found = partial.bytes + chunk.len() as u64;
            if found > blob.size {
                // A longer blob is another blob; nothing of it is worth keeping.
                partial.restart().await?;
                return check_size(role, blob, found);
            }
            partial.write(chunk).await?;
            if partial.bytes >= next_told || partial.bytes == blob.size {
                next_told = partial.bytes + PROGRESS_EVERY_BYTES;
                let done_bytes = partial.bytes;
                progress(Progress::Blob { digest: Some(blob.digest), done_bytes, total_bytes: Some(blob.size) });
            }
        }
        match partial.bytes == blob.size {
            true => Ok(()),
            false => Err(broken(io::Error::from(io::ErrorKind::UnexpectedEof).into())),
        }
    }
}

impl Partial {
    /// Opens what there is and hashes it: after a crash its bytes may be anything, and the
    /// digest in the end tells.
    fn open(path: PathBuf, size: u64) -> Result<Self, Error> {
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = file.map_err(Error::io("open", &path))?;
        let mut hash = Sha256::new();
        let mut bytes = file.metadata().map_err(Error::io("read", &path))?.len();
        if bytes > size {
            file.set_len(0).map_err(Error::io("truncate", &path))?;
            bytes = 0;
        }
        let mut left = bytes;
        let mut buffer = vec![0; WRITE_BYTES];
        while left > 0 {
            let n = file.read(&mut buffer).map_err(Error::io("read", &path))?;
            if n == 0 {
                break;
            }
            hash.update(&buffer[..n]);
            left -= n as u64;
        }
        file.seek(SeekFrom::Start(bytes)).map_err(Error::io("seek in", &path))?;
        let mut file = tokio::fs::File::from_std(file);
        file.set_max_buf_size(WRITE_BYTES);
        Ok(Self { file, path, hash, bytes })
    }

    async fn write(&mut self, chunk: Bytes) -> Result<(), Error> {
        self.hash.update(&chunk);
        self.file.write_all(&chunk).await.map_err(Error::io("write", &self.path))?;
        self.bytes += chunk.len() as u64;
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Error> {
        self.file.flush().await.map_err(Error::io("write", &self.path))
    }

    async fn restart(&mut self) -> Result<(), Error> {
        self.flush().await?;
        self.file.set_len(0).await.map_err(Error::io("truncate", &self.path))?;
        self.file.seek(SeekFrom::Start(0)).await.map_err(Error::io("seek in", &self.path))?;
        self.hash = Sha256::new();
        self.bytes = 0;
        Ok(())
    }
}

/// Whether `Content-Range: bytes FIRST-LAST/SIZE` begins where we stopped.
fn starts_at(headers: &HeaderMap, bytes: u64) -> bool {
    let range = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let first = range.and_then(|range| range.strip_prefix("bytes ")?.split_once('-')?.0.parse::<u64>().ok());
    first == Some(bytes)
}

fn check_size(role: &str, blob: &Descriptor, found: u64) -> Result<(), Error> {
    match found == blob.size {
        true => Ok(()),
        false => Err(Error::WrongSize { role: role.to_owned(), digest: blob.digest, expected: blob.size, found }),
    }
}
