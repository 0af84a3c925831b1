//! Owns the promise that a change once begun is carried to its end. Must not know
//! what the change is.
//!
//! Threads in namespaces and requests on their way to the kernel cannot be called
//! back. A caller that drops its future must therefore not release the lock under
//! which they run: the next call would race with what the last one still does.

use std::future::Future;
use std::io;
use std::path::Path;

use crate::Error;
use crate::namespace::io_error;

/// Runs `work` as a task of its own; dropping the returned future leaves it running.
pub(crate) async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only when the runtime itself shuts down.
            Err(_) => {
                Err(io_error("finish the change of", Path::new("the network"), io::ErrorKind::Interrupted.into()))
            }
        },
    }
}
