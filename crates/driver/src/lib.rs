//! The organ that runs Machines: one trait, and each way of running one behind it.
//!
//! It owns what "start", "find again", "prove dead" and "forget" mean for a process tree or a virtual machine. It
//! must not know apps, placements, images' references, journals or the API: the agent hands in a finished [`Spec`]
//! and keeps the [`Handle`] that comes back.
//!
//! Every verb is idempotent, and may be repeated after the caller was killed at any instant:
//! - `start` of an instance that lives answers its handle; it never makes a second copy;
//! - `find` needs only the Machine's folder, so a caller that lost its memory can ask what became of it;
//! - `kill` and `find` answer only after the kernel has shown that nothing of a former instance lives.

mod base64_bytes;
mod bind;
pub mod cgroup;
pub mod container;
mod durable;
mod error;
pub mod fake;
mod handle;
mod log;
pub mod protocol;
mod session;
mod spec;
pub mod volume;
mod volume_mount;

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;

pub use bind::Bind;
pub use error::{Error, Fault, Result};
pub use handle::{Exit, Found, Handle, Lost, boot_id, start_time_ticks};
pub use log::{LOG_NAME, LogLine, LogStream, MAX_LINE_BYTES, RawLogLine, current_log, log_files};
pub use log::{parse_log_line, push_log_line, rotated_name, split_log_line};
pub use session::{Session, SessionRequest, SessionStream, VolumesSession};
pub use spec::{Epoch, ExecReply, ExecRequest, GuestFile, Limits, ListenSocket, LogLimits, Process, ProcessStat};
pub use spec::{RootPolicy, Spec, Swept, Usage};
pub use volume_mount::{MAX_VOLUMES, VolumeFs, VolumeMount};

/// What every verb returns: boxed, so that `dyn Driver` works and roles can choose a driver by configuration.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One way of running Machines.
pub trait Driver: Send + Sync {
    /// Starts `spec` and answers once its process has been executed. When the same instance already lives, its handle
    /// is answered and nothing changes; when another instance of the Machine lives, [`Error::OtherInstance`].
    /// [`Error::StartFailed`] means that the Machine's own image or configuration is at fault: nothing is left running.
    fn start<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<Handle>>;

    /// What became of the Machine whose folder is `dir`. Before it answers `Exited` or `Nothing` it makes sure that no
    /// process of a former instance lives (and kills what a dead holder left behind).
    fn find<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, Result<Found>>;

    /// Waits, without a bound, until the instance has ended. Works for Machines that another process started.
    fn wait<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Exit>>;

    /// Sends a signal (its Linux number) to the Machine's main process.
    fn signal<'a>(&'a self, handle: &'a Handle, signal: i32) -> BoxFuture<'a, Result<()>>;

    /// Ends every process of the instance at once. When it returns, they are proven dead and the exit is on disk.
    fn kill<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Exit>>;

    /// Runs one more command inside, bounded in time and output.
    fn exec<'a>(&'a self, handle: &'a Handle, request: &'a ExecRequest) -> BoxFuture<'a, Result<ExecReply>>;

    /// Opens a session: a command or a copy whose bytes stream for as long as both sides like. Dropping the stream
    /// ends what runs. Only the holder's refusal is an error here; what happens inside is told in the stream.
    fn session<'a>(&'a self, handle: &'a Handle, request: &'a SessionRequest) -> BoxFuture<'a, Result<Session>>;

    /// Opens a copy into or out of volumes that no Machine has, which are seen at their guest paths and nothing else
    /// besides. They must be attached, and stay so until it says that they are released. A device that anything else
    /// holds is refused.
    fn volumes_session<'a>(
        &'a self,
        volumes: &'a [VolumeMount],
        request: &'a SessionRequest,
    ) -> BoxFuture<'a, Result<VolumesSession>>;

    /// The processes inside, as the API's `ps` shows them.
    fn processes<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Vec<ProcessStat>>>;

    /// Where the instance's network namespace listens for TCP, in no order. Cheap enough to be asked every second.
    fn listening<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Vec<SocketAddr>>>;

    /// What the instance uses now.
    fn usage<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Usage>>;

    /// Forgets everything about the Machine: its writable layer, logs, run files, cgroups. Refuses with
    /// [`Error::Running`] while it lives; a folder that is gone is success.
    fn remove<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, Result<()>>;

    /// Removes what crashes left behind for Machines that are not in `known` (exact ids), and, when `known` is empty,
    /// the parent cgroups. It kills nothing: strangers that live are reported.
    fn sweep<'a>(&'a self, known: &'a [String]) -> BoxFuture<'a, Result<Swept>>;
}
