//! Images: a content store on disk, loading and pulling into it, serving from it, and
//! unpacking to the folders that overlayfs stacks.
//!
//! | file | what it owns |
//! |---|---|
//! | `digest`, `name`, `spec` | the words of the OCI image-spec and distribution-spec (pure) |
//! | `limits`, `progress`, `error` | bounds, progress, the one error (pure) |
//! | `store` | blobs, names, leases, collection |
//! | `decode`, `tarball` | a layer's bytes: compression, digests, bounds, tar |
//! | `load` | OCI layouts, OCI archives, `docker save` archives |
//! | `unpack` | layers to folders, the image's users |
//! | `routes` | the pull half of the distribution-spec's API |
//! | `pull` | its client |
//!
//! It knows nothing of Machines, hosts or who may do what: the role that serves
//! [`routes`] puts authentication around them.
#![warn(missing_docs)]

mod decode;
mod digest;
mod error;
mod limits;
mod load;
mod name;
mod progress;
mod pull;
mod routes;
pub mod spec;
mod store;
mod tarball;
mod unpack;

pub use digest::{Digest, DigestError};
pub use error::{Blame, Error, LayerFault};
pub use limits::{Limits, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES};
pub use name::{DEFAULT_TAG, ImageId, MAX_NAME_BYTES, MAX_TAG_BYTES, Reference, ReferenceError, is_name, is_tag};
pub use progress::{Progress, ProgressSink, no_progress};
pub use pull::{MAX_PARALLEL_BLOBS, Puller};
pub use routes::{asked_for, routes};
pub use spec::{ImageConfig, Manifest};
pub use store::{Blob, Collected, ContentStore, ImageInfo, Lease};
pub use unpack::{Unpacked, User, resolve_user};
