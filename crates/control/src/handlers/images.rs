//! Images: taken in from archives, listed, and pinned by digest when a Machine is made of one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures_util::TryStreamExt;
use godwit_api::endpoints::{ImagesDelete, ImagesList};
use godwit_api::error::Status;
use godwit_api::fleet::Image;
use godwit_api::machine::ImageRef;
use godwit_api::{ApiError, error};
use godwit_base::http::Failure;
use godwit_base::{Verb, clock, telemetry};
use godwit_oci::{Blame, Digest, ImageId, ImageInfo, Reference, no_progress};
use tokio_util::io::StreamReader;

use crate::call::{Call, query};
use crate::control::Control;
use crate::view::REGISTRY;

/// An upload that brings no byte for so long is given up.
const UPLOAD_SILENCE: Duration = Duration::from_secs(60);
/// A pinned image is kept for so long whatever the rows say: a collection that had read them just before the
/// Machine's row was written must still find it.
const PIN_LINGER: Duration = Duration::from_secs(60);

pub async fn list(call: Call<ImagesList>) -> Result<Vec<Image>, ApiError> {
    let control = call.control;
    blocking(move || {
        let in_use = control.images_in_use();
        control.images.images().iter().flat_map(|info| shown(&control, info, &in_use)).collect()
    })
    .await
}

/// Takes a tag away, or with `name@digest` an image that has none and that no Machine runs. A Machine is pinned to a
/// digest, so it keeps its image whatever becomes of the tag; what nobody needs goes with the next collection.
pub async fn delete(call: Call<ImagesDelete>) -> Result<Image, ApiError> {
    let text = call.param("image_name").to_owned();
    let named: Reference =
        text.parse().map_err(|error: godwit_oci::ReferenceError| ApiError::unprocessable(error.to_string()))?;
    let control = call.control;
    blocking(move || remove(&control, &named, &text)).await?
}

fn remove(control: &Control, named: &Reference, text: &str) -> Result<Image, ApiError> {
    let missing = || ApiError::not_found(format!("there is no image {text}; `godwit image list` shows the images"));
    let known = control.images.images();
    let wanted = |info: &&ImageInfo| match (&named.digest, named.tag_or_default()) {
        (Some(digest), _) => info.id.name == named.name && info.id.digest == *digest,
        (None, tag) => info.id.name == named.name && info.tags.iter().any(|own| own == tag),
    };
    let info = known.iter().find(wanted).ok_or_else(missing)?;
    let in_use = control.images_in_use();
    let mut gone = entry(control, info, &in_use, text.to_owned());
    if named.digest.is_none() {
        gone.name = format!("{}:{}", named.name, named.tag_or_default());
        control.images.untag(&named.name, named.tag_or_default()).map_err(image_error)?.ok_or_else(missing)?;
    } else if !info.tags.is_empty() {
        let tags = info.tags.join(", ");
        return Err(ApiError::new(409, Status::Conflict, format!("{text} has names: remove these first: {tags}")));
    } else if gone.in_use {
        return Err(ApiError::new(409, Status::Conflict, format!("Machines run {text}; destroy them first")));
    } else {
        control.images.remove(&info.id).map_err(image_error)?;
    }
    Ok(gone)
}

/// One entry a tag; an image that Machines run and that lost its last tag shows its digest.
fn shown(control: &Control, info: &ImageInfo, in_use: &BTreeSet<String>) -> Vec<Image> {
    let digest = info.id.digest.to_string();
    let names = match info.tags.is_empty() {
        // Nothing is left to name it by, and nobody runs it: the next collection deletes it.
        true if !in_use.contains(&digest) => Vec::new(),
        true => vec![format!("{}@{digest}", info.id.name)],
        false => info.tags.iter().map(|tag| format!("{}:{tag}", info.id.name)).collect(),
    };
    names.into_iter().map(|name| entry(control, info, in_use, name)).collect()
}

fn entry(control: &Control, info: &ImageInfo, in_use: &BTreeSet<String>, name: String) -> Image {
    let digest = info.id.digest.to_string();
    let layers = control.images.manifest(&info.id.digest).map_or(0, |manifest| manifest.layers.len() as u64);
    let file = control.images.open_blob(&info.id.digest).ok().flatten();
    let modified = file.and_then(|blob| blob.file.metadata().ok()?.modified().ok());
    let since = modified.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default();
    let created_at = clock::rfc3339(u64::try_from(since.as_millis()).unwrap_or(0));
    Image { name, in_use: in_use.contains(&digest), digest, size_bytes: info.size_bytes, layers, created_at }
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct UploadQuery {
    name: Option<String>,
}

/// The body is the archive; it is read as fast as it is unpacked and checked.
pub async fn upload(State(control): State<Arc<Control>>, request: Request) -> Response {
    match take_in(&control, request).await {
        Ok(images) => axum::Json(images).into_response(),
        Err(error) => Failure(error).into_response(),
    }
}

async fn take_in(control: &Arc<Control>, request: Request) -> Result<Vec<Image>, ApiError> {
    control.allow(request.headers(), Verb::Operate, "")?;
    let wanted: UploadQuery = query(request.uri())?;
    let Ok(_place) = control.uploads.try_acquire() else {
        return Err(ApiError::unavailable("too many images are being loaded; try again", 2));
    };
    let stream = StreamReader::new(without_silence(request.into_body()));
    let loaded = control.images.load_async(Box::pin(stream), wanted.name, no_progress()).await;
    let loaded = loaded.map_err(image_error)?;
    let control = control.clone();
    blocking(move || {
        let in_use = control.images_in_use();
        let known = control.images.images();
        let infos = known.iter().filter(|info| loaded.contains(&info.id));
        infos.flat_map(|info| shown(&control, info, &in_use)).collect()
    })
    .await
}

/// The body's bytes; a peer that falls silent ends them with an error.
fn without_silence(body: Body) -> impl futures_util::Stream<Item = std::io::Result<bytes::Bytes>> + Send {
    let stream = body.into_data_stream().map_err(std::io::Error::other);
    futures_util::stream::try_unfold(Box::pin(stream), |mut stream| async move {
        match tokio::time::timeout(UPLOAD_SILENCE, stream.try_next()).await {
            Ok(next) => Ok(next?.map(|bytes| (bytes, stream))),
            Err(_) => Err(std::io::Error::other("the upload fell silent")),
        }
    })
}

pub(crate) fn image_error(error: godwit_oci::Error) -> ApiError {
    let text = telemetry::chain(&error);
    match error.blame() {
        Blame::Image => ApiError::unprocessable(text),
        Blame::Registry => ApiError::unavailable(text, 5),
        Blame::Host => {
            tracing::error!(error = text, "an image could not be stored");
            ApiError::new(
                500,
                error::Status::Unknown,
                "the image could not be stored; the log of control has the cause",
            )
        }
    }
}

impl Control {
    /// The image of a reference by digest whose name lacks the registry that the image is loaded under.
    fn by_digest(&self, wanted: &Reference) -> Option<ImageId> {
        let (digest, end) = (wanted.digest?, format!("/{}", wanted.name));
        self.images.images().into_iter().map(|info| info.id).find(|id| id.digest == digest && id.name.ends_with(&end))
    }

    /// Pins what a Machine's `image` names to a digest that control holds.
    pub(crate) async fn pin_image(&self, image: &str) -> Result<ImageRef, ApiError> {
        // As `image_ref` spells it: the registry that it names is this one.
        let plain = image.strip_prefix(REGISTRY).and_then(|rest| rest.strip_prefix('/')).unwrap_or(image);
        let reference: Reference =
            plain.parse().map_err(|error| ApiError::unprocessable(format!("config.image: {error}")))?;
        let missing = || {
            ApiError::new(
                422,
                Status::NotFound,
                format!("config.image: there is no image {image:?}; load it with `godwit image load`"),
            )
        };
        let found: Option<ImageId> =
            self.images.resolve(plain).map_err(|error| ApiError::unprocessable(format!("config.image: {error}")))?;
        let id = found.or_else(|| self.by_digest(&reference)).ok_or_else(missing)?;
        let lease = self.images.lease([id.digest]);
        tokio::spawn(async move {
            tokio::time::sleep(PIN_LINGER).await;
            drop(lease);
        });
        let images = self.images.clone();
        let digest: Digest = id.digest;
        let labels =
            blocking(move || images.config(&digest).map(|config| config.labels)).await?.map_err(image_error)?;
        Ok(ImageRef {
            registry: REGISTRY.into(),
            repository: id.name,
            tag: reference.tag.unwrap_or_else(|| if reference.digest.is_some() { "" } else { "latest" }.into()),
            digest: id.digest.to_string(),
            labels,
        })
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ApiError::internal("the work on images ended unexpectedly"))
}
