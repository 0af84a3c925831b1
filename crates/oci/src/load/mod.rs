//! Images from files: an OCI image layout (a folder), an archive of one, or what
//! `docker save` writes; the archives also packed with gzip or zstd.
//!
//! Everything is brought into the store's `tmp/` and verified there: digests, sizes,
//! DiffIDs, platform. Only when all images of the source are good are their blobs renamed
//! into place and their names written. So a source that is refused leaves nothing behind.

mod naming;
mod prepare;
mod source;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use tokio::io::AsyncRead;
use tokio_util::io::SyncIoBridge;

use self::naming::Naming;
use self::prepare::Prepared;
use self::source::Source;
use crate::error::Error;
use crate::name::ImageId;
use crate::progress::ProgressSink;
use crate::store::ContentStore;

impl ContentStore {
    /// Loads the images of an OCI layout folder, an OCI archive or a `docker save` archive.
    /// Blocking.
    ///
    /// `name` is `name[:tag]`. Without it the names of the source hold, or else the
    /// file's. Without a tag a single image becomes `latest`, and several keep their own.
    pub fn load_path(&self, path: &Path, name: Option<&str>, progress: &ProgressSink) -> Result<Vec<ImageId>, Error> {
        let naming = Naming::new(name, path.file_name())?;
        let what = path.display().to_string();
        let meta = path.metadata().map_err(Error::io("read", path))?;
        let source = match meta.is_dir() {
            true => Source::folder(self, path)?,
            false => {
                let file = File::open(path).map_err(Error::io("open", path))?;
                Source::archive(self, file, &what, progress)?
            }
        };
        self.load(source, &what, &naming, progress)
    }

    /// Loads the images of an archive that is read from a stream. Blocking; see
    /// [`ContentStore::load_path`]. A stream that breaks off is refused as truncated.
    pub fn load_stream(
        &self,
        stream: impl Read,
        name: Option<&str>,
        progress: &ProgressSink,
    ) -> Result<Vec<ImageId>, Error> {
        let naming = Naming::new(name, None)?;
        let what = "the archive";
        let source = Source::archive(self, stream, what, progress)?;
        self.load(source, what, &naming, progress)
    }

    /// [`ContentStore::load_stream`] of an async stream, such as the body of a request. The
    /// work runs on a blocking thread; it ends when the stream does.
    pub async fn load_async(
        self: &Arc<Self>,
        stream: impl AsyncRead + Send + Unpin + 'static,
        name: Option<String>,
        progress: ProgressSink,
    ) -> Result<Vec<ImageId>, Error> {
        let store = self.clone();
        let stream = SyncIoBridge::new(stream);
        let work = tokio::task::spawn_blocking(move || store.load_stream(stream, name.as_deref(), &progress));
        work.await.map_err(|_| Error::TaskEnded)?
    }

    fn load(
        &self,
        source: Source,
        what: &str,
        naming: &Naming,
        progress: &ProgressSink,
    ) -> Result<Vec<ImageId>, Error> {
        let prepared = prepare::all(self, &source, what, naming, progress)?;
        let mut loaded = Vec::new();
        for image in &prepared {
            for id in self.keep(image)? {
                if !loaded.contains(&id) {
                    loaded.push(id);
                }
            }
        }
        Ok(loaded)
    }

    fn keep(&self, image: &Prepared) -> Result<Vec<ImageId>, Error> {
        for (digest, file) in &image.files {
            // Another image of the same source may have brought it a moment ago.
            if !self.has_blob(digest) {
                self.adopt(file, digest)?;
            }
        }
        self.put_document(&image.document)?;
        let record = |(name, tag): &(String, String)| self.record(name, Some(tag), &image.descriptor, &image.manifest);
        image.names.iter().map(record).collect()
    }
}
