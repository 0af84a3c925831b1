//! Pulling an image from a registry (distribution-spec, "Pull") into a content store.
//!
//! Each blob is fetched once: whoever else wants it at the same time waits for that one
//! download, and then finds the blob. What had arrived before a connection broke, or before
//! this process was restarted, is kept in the store's `partial/` and only the rest is asked
//! for.

mod blob;
mod retry;
mod transport;

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use http::header::{ACCEPT, HeaderMap, HeaderValue};
use hyper_util::client::legacy::connect::Connect;
use tokio::sync::Semaphore;

use self::retry::Tries;
use self::transport::{Transport, whole};
use crate::digest::Digest;
use crate::error::{Blame, Error};
use crate::limits::{MAX_CONFIG_BYTES, MAX_INDEX_DEPTH, MAX_MANIFEST_BYTES};
use crate::name::{ImageId, Reference};
use crate::progress::ProgressSink;
use crate::spec::{ConfigDocument, Descriptor, Index, Manifest, media_type};
use crate::store::ContentStore;

/// Blobs that one puller fetches at the same time.
pub const MAX_PARALLEL_BLOBS: usize = 4;

const ACCEPTED: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, \
                        application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// Pulls from one registry. Cheap to clone; clones share the bound on parallel downloads.
#[derive(Clone)]
pub struct Puller {
    transport: Transport,
    slots: Arc<Semaphore>,
}

impl Puller {
    /// A puller that speaks plain HTTP to `base_url` (`http://host[:port][/path]`, the part
    /// before `/v2/`), with `Authorization: Bearer` if a token is given.
    pub fn new(base_url: &str, bearer: Option<String>) -> Result<Self, Error> {
        Ok(Self::with(Transport::plain(base_url, bearer)?))
    }

    /// A puller over any connector: the place where TLS comes in.
    pub fn with_connector<C>(base_url: &str, bearer: Option<String>, connector: C) -> Result<Self, Error>
    where
        C: Connect + Clone + Send + Sync + 'static,
    {
        Ok(Self::with(Transport::over(base_url, bearer, connector)?))
    }

    fn with(transport: Transport) -> Self {
        Self { transport, slots: Arc::new(Semaphore::new(MAX_PARALLEL_BLOBS)) }
    }

    /// Brings the image `name@digest` into the store, whole and verified, or fails.
    ///
    /// If `digest` is an index, the image for this machine is brought and its digest
    /// returned: use the returned one from there on. Dropping the future leaves only what
    /// a later pull resumes from.
    pub async fn pull(
        &self,
        store: &Arc<ContentStore>,
        name: &str,
        digest: &Digest,
        progress: ProgressSink,
    ) -> Result<ImageId, Error> {
        let name = Reference::from_str(name)?.name;
        if let Some(image) = store.resolve(&format!("{name}@{digest}"))? {
            return Ok(image);
        }
        let (descriptor, document, _pinned) = self.manifest(store, &name, digest).await?;
        let what = format!("{name}@{digest}");
        let manifest: Manifest =
            serde_json::from_slice(&document).map_err(Error::document(format!("manifest {}", descriptor.digest)))?;
        manifest.check(&what, store.limits())?;
        let blobs = manifest.blobs().map(|blob| blob.digest);
        let _lease = store.lease(blobs.chain([descriptor.digest]));

        // The configuration first: whether the image fits is known before the layers come.
        self.blob(store, &name, "configuration", &manifest.config, &progress).await?;
        let config = manifest.config.digest;
        let bytes = blocking(store, move |store| {
            store.read_blob(&config, MAX_CONFIG_BYTES, "MAX_CONFIG_BYTES", "configuration")
        });
        let bytes = bytes.await?;
        let parsed: ConfigDocument =
            serde_json::from_slice(&bytes).map_err(Error::document(format!("configuration {config}")))?;
        parsed.check(manifest.layers.len(), &what)?;
        self.layers(store, &name, &manifest, &progress).await?;

        blocking(store, move |store| {
            store.put_document(&document)?;
            store.record(&name, None, &descriptor, &manifest)
        })
        .await
    }

    async fn layers(
        &self,
        store: &Arc<ContentStore>,
        name: &str,
        manifest: &Manifest,
        progress: &ProgressSink,
    ) -> Result<(), Error> {
        let of = manifest.layers.len();
        let mut fetches = Vec::new();
        let mut wanted = BTreeSet::new();
        for (index, layer) in manifest.layers.iter().enumerate() {
            // A layer may occur twice; it is one blob.
            if wanted.insert(layer.digest) {
                let role = format!("layer {} of {of}", index + 1);
                fetches.push(async move { self.blob(store, name, &role, layer, progress).await });
            }
        }
        stream::iter(fetches).buffer_unordered(MAX_PARALLEL_BLOBS).try_collect::<()>().await
    }

    /// The manifest that the digest leads to, verified, with leases for the documents on
    /// the way.
    async fn manifest(
        &self,
        store: &ContentStore,
        name: &str,
        digest: &Digest,
    ) -> Result<(Descriptor, Vec<u8>, Vec<crate::store::Lease>), Error> {
        let mut digest = *digest;
        let mut leases = Vec::new();
        for _ in 0..=MAX_INDEX_DEPTH {
            leases.push(store.lease([digest]));
            let document = self.document(name, &digest).await?;
            let found = Digest::of(&document);
            if found != digest {
                return Err(Error::WrongDigest { role: "manifest".into(), expected: digest, found });
            }
            let kind = kind(&document);
            if media_type::is_index(&kind) {
                let index: Index =
                    serde_json::from_slice(&document).map_err(Error::document(format!("index {digest}")))?;
                digest = index.for_this_machine()?.digest;
                continue;
            }
            if !media_type::is_manifest(&kind) {
                return Err(Error::NotAnImage {
                    what: format!("{name}@{digest}"),
                    reason: format!("it has media type `{kind}`"),
                });
            }
            let size = document.len() as u64;
            let descriptor =
                Descriptor { media_type: kind, digest, size, annotations: Default::default(), platform: None };
            return Ok((descriptor, document, leases));
        }
        Err(Error::NotAnImage {
            what: format!("{name}@{digest}"),
            reason: format!("its indexes nest deeper than {MAX_INDEX_DEPTH}"),
        })
    }

    async fn document(&self, name: &str, digest: &Digest) -> Result<Vec<u8>, Error> {
        let path = format!("/v2/{name}/manifests/{digest}");
        let mut tries = Tries::default();
        loop {
            let error = match self.document_once(&path).await {
                Ok(document) => return Ok(document),
                Err(error) => error,
            };
            match tries.failed(0).filter(|_| is_worth_retrying(&error)) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error),
            }
        }
    }

    async fn document_once(&self, path: &str) -> Result<Vec<u8>, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(ACCEPTED));
        let answer = self.transport.get(path, headers).await?;
        let url = || self.transport.url(path);
        let bytes = whole(answer.into_body(), MAX_MANIFEST_BYTES).await;
        let bytes =
            bytes.map_err(|source| Error::Transport { action: "the manifest broke off", url: url(), source })?;
        bytes.ok_or_else(|| Error::Limit {
            what: format!("the manifest at {}", url()),
            limit: "MAX_MANIFEST_BYTES",
            bound: MAX_MANIFEST_BYTES,
        })
    }
}

/// The document's own word for what it is; Docker and OCI both tell them apart by fields
/// where it has none.
fn kind(document: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Kind {
        #[serde(default)]
        media_type: String,
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
    }
    match serde_json::from_slice::<Kind>(document) {
        Ok(kind) if !kind.media_type.is_empty() => kind.media_type,
        Ok(kind) if kind.manifests.is_some() => media_type::INDEX.to_owned(),
        Ok(kind) if kind.layers.is_some() => media_type::MANIFEST.to_owned(),
        _ => String::new(),
    }
}

/// Whether the other side may do better in a moment. Our own disk will not.
fn is_worth_retrying(error: &Error) -> bool {
    error.blame() == Blame::Registry && error.may_retry()
}

/// Runs file-system work where it may block.
async fn blocking<T: Send + 'static>(
    store: &Arc<ContentStore>,
    work: impl FnOnce(&ContentStore) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let store = store.clone();
    tokio::task::spawn_blocking(move || work(&store)).await.map_err(|_| Error::TaskEnded)?
}
