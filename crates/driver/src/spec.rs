//! The plain values that go into a driver and come out of it. It knows no IO, and no way of running anything.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

use crate::bind::{Bind, check_absolute, check_guest_path, has_dots};
use crate::error::{Error, Result};
use crate::volume_mount::{VolumeMount, check_volumes};

/// Longest Machine or instance id; both become file and cgroup names.
pub const MAX_ID_BYTES: usize = 64;
/// Most files that may be written into a root at start, and their largest total size.
pub const MAX_GUEST_FILES: usize = 256;
pub const MAX_GUEST_FILE_BYTES: usize = 4 << 20;
/// The kernel refuses more overlay layers than this (OVL_MAX_STACK).
pub const MAX_LOWERS: usize = 500;
/// Most bytes of argv plus environment: what execve(2) takes with the usual stack limit, with room to spare.
pub const MAX_PROCESS_BYTES: usize = 1 << 20;

/// One start of one Machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// The Machine's id: `[a-z0-9-]`, at most [`MAX_ID_BYTES`].
    pub machine: String,
    /// Unique per start (a ULID, say); the same alphabet, upper case allowed. A repeated `start` of it is a no-op.
    pub instance: String,
    /// The fencing epoch under which the Machine runs; carried whole, not interpreted.
    pub epoch: Epoch,
    pub hostname: String,
    /// The Machine's own folder, absolute. The driver makes and owns `upper/ work/ log/ run/` in it.
    pub dir: PathBuf,
    /// Folder that holds the read-only layers.
    pub lowers_base: PathBuf,
    /// Layers, top-most first: names relative to `lowers_base` (kept short, since all of a mount's options must fit
    /// in one page).
    pub lowers: Vec<PathBuf>,
    #[serde(default)]
    pub root: RootPolicy,
    pub process: Process,
    /// A network namespace to join, such as `/run/netns/x`; a new, empty one when absent.
    pub netns: Option<PathBuf>,
    #[serde(default)]
    pub limits: Limits,
    /// Written into the root at every start, in this order.
    #[serde(default)]
    pub files: Vec<GuestFile>,
    /// Contents of `/etc/resolv.conf` and `/etc/hosts`; empty leaves the image's own.
    #[serde(default)]
    pub resolv_conf: String,
    #[serde(default)]
    pub hosts: String,
    #[serde(default)]
    pub binds: Vec<Bind>,
    /// There before `files` are written and before `process.cwd` is made, so both may lie in one.
    #[serde(default)]
    pub volumes: Vec<VolumeMount>,
    #[serde(default)]
    pub log: LogLimits,
}

/// A life of a placement, whole: first by its generation, then by its number. Written by an older agent it was one number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "EpochForm")]
pub struct Epoch {
    pub generation: u64,
    pub n: u64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum EpochForm {
    Whole { generation: u64, n: u64 },
    Number(u64),
}

impl From<EpochForm> for Epoch {
    fn from(form: EpochForm) -> Self {
        match form {
            EpochForm::Whole { generation, n } => Self { generation, n },
            EpochForm::Number(n) => Self { generation: 0, n },
        }
    }
}

/// What happens to the writable layer of the last instance when the next one starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootPolicy {
    /// The root is the image's again, as users of the platform expect.
    #[default]
    Fresh,
    Keep,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Program and arguments. A program without a slash is looked up in the `PATH` of `env`.
    pub argv: Vec<String>,
    /// `PATH` and `HOME` are added when absent.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Made when it does not exist. Empty means `/`.
    #[serde(default)]
    pub cwd: String,
    /// As an image's `User`: empty, `name`, `uid`, `name:group`, `uid:gid`; names are looked up in the root's
    /// `/etc/passwd` and `/etc/group`, which give the further groups too.
    #[serde(default)]
    pub user: String,
}

/// Zero means "no limit" everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// 1000 = one whole cpu.
    pub cpu_quota_millis: u32,
    /// Weight against the neighbours, in the v1 unit (1024 is the kernel's default).
    pub cpu_shares: u32,
    pub memory_bytes: u64,
    pub pids_max: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestFile {
    /// Absolute, inside the Machine. Links are followed inside its root only.
    pub guest_path: String,
    #[serde(with = "crate::base64_bytes")]
    pub content: Vec<u8>,
    /// Permission bits, such as 0o644.
    pub mode: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    /// A file that has grown past this is rotated.
    pub file_bytes: u64,
    /// Files kept, the one being written included.
    pub files: u32,
}

/// So many files share what is kept: with each rotation no more than a part of this is lost.
const LOG_FILES: u32 = 32;
/// Least size of a file: a longest line is much shorter.
const LEAST_LOG_FILE_BYTES: u64 = 128 << 10;

impl LogLimits {
    /// Of a Machine's output its last `bytes`, or up to a part in 32 less.
    pub fn keeping(bytes: u64) -> Self {
        Self { file_bytes: (bytes / u64::from(LOG_FILES)).max(LEAST_LOG_FILE_BYTES), files: LOG_FILES }
    }
}

impl Default for LogLimits {
    fn default() -> Self {
        Self::keeping(256 << 20)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExecRequest {
    pub argv: Vec<String>,
    /// Added to the environment of the Machine's main process.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// As [`Process::user`]; absent means the main process's user.
    #[serde(default)]
    pub user: Option<String>,
    #[serde(default, with = "crate::base64_bytes")]
    pub stdin: Vec<u8>,
    pub timeout_ms: u64,
    /// Bound on stdout and on stderr, each; more is read and dropped, and `truncated` is set.
    pub output_limit_bytes: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExecReply {
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    #[serde(with = "crate::base64_bytes")]
    pub stdout: Vec<u8>,
    #[serde(with = "crate::base64_bytes")]
    pub stderr: Vec<u8>,
    pub truncated: bool,
    /// The deadline passed and the command was killed (then `signal` is 9).
    pub timed_out: bool,
}

/// One process inside, in the units of the API's `ps`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessStat {
    /// As the Machine itself sees it.
    pub pid: i32,
    /// Time in the kernel, in ms.
    pub stime_ms: u64,
    /// Time since it started, in ms.
    pub rtime_ms: u64,
    pub command: String,
    pub directory: String,
    /// Cpu time (user and kernel), in ms.
    pub cpu_ms: u64,
    pub rss_bytes: u64,
    pub listen_sockets: Vec<ListenSocket>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenSocket {
    /// `tcp`, `tcp6`, `udp` or `udp6`.
    pub proto: String,
    /// `address:port`, or `[address]:port`.
    pub address: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    pub cpu_ms: u64,
    pub throttled_ms: u64,
    pub memory_bytes: u64,
    pub memory_peak_bytes: u64,
    pub pids: u64,
    pub oom_kills: u64,
}

/// What a sweep removed, and what it must not touch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Swept {
    /// Ids of Machines of which something was removed.
    pub removed: Vec<String>,
    /// Ids that nobody knows, in which processes live.
    pub strangers: Vec<String>,
}

impl Spec {
    /// Refuses what no driver could run, naming the field.
    pub fn check(&self) -> Result<()> {
        check_id("machine", &self.machine, false)?;
        check_id("instance", &self.instance, true)?;
        check_hostname(&self.hostname)?;
        check_absolute("dir", &self.dir)?;
        check_absolute("lowers_base", &self.lowers_base)?;
        self.check_lowers()?;
        check_process(&self.process.argv, &self.process.env)?;
        if !self.process.cwd.is_empty() {
            check_guest_path("process.cwd", &self.process.cwd)?;
        }
        if let Some(netns) = &self.netns {
            check_absolute("netns", netns)?;
        }
        self.check_files()?;
        check_volumes(&self.volumes, &self.binds)?;
        if self.log.files == 0 || self.log.file_bytes == 0 {
            return Err(Error::invalid("log", "needs at least one file of at least one byte"));
        }
        Ok(())
    }

    fn check_lowers(&self) -> Result<()> {
        if self.lowers.is_empty() || self.lowers.len() > MAX_LOWERS {
            return Err(Error::invalid("lowers", format!("needs 1 to {MAX_LOWERS} layers")));
        }
        for lower in &self.lowers {
            // ':' and ',' and '\' have a meaning in overlay's options.
            let text = lower.to_str().unwrap_or("");
            if text.is_empty() || lower.is_absolute() || text.contains([':', ',', '\\', '\0']) || has_dots(lower) {
                return Err(Error::invalid("lowers", format!("{} is not a plain relative name", lower.display())));
            }
        }
        Ok(())
    }

    fn check_files(&self) -> Result<()> {
        if self.files.len() > MAX_GUEST_FILES {
            return Err(Error::invalid("files", format!("at most {MAX_GUEST_FILES}")));
        }
        if self.files.iter().map(|f| f.content.len()).sum::<usize>() > MAX_GUEST_FILE_BYTES {
            return Err(Error::invalid("files", format!("at most {MAX_GUEST_FILE_BYTES} bytes together")));
        }
        for file in &self.files {
            check_guest_path("files", &file.guest_path)?;
        }
        for bind in &self.binds {
            check_absolute("binds.source", &bind.source)?;
            check_guest_path("binds.guest_path", &bind.guest_path)?;
        }
        Ok(())
    }
}

impl ExecRequest {
    /// Most bytes of output and of stdin that one exec may ask for, so that a reply fits in one frame.
    pub const MAX_BYTES: u32 = 1 << 20;
    /// Longest that a command may run.
    pub const MAX_TIMEOUT_MS: u64 = 3_600_000;

    pub fn check(&self) -> Result<()> {
        check_process(&self.argv, &self.env)?;
        if self.output_limit_bytes > Self::MAX_BYTES || self.stdin.len() > Self::MAX_BYTES as usize {
            return Err(Error::invalid("output_limit_bytes, stdin", format!("at most {} bytes", Self::MAX_BYTES)));
        }
        if self.timeout_ms == 0 || self.timeout_ms > Self::MAX_TIMEOUT_MS {
            return Err(Error::invalid("timeout_ms", format!("must be 1 to {}", Self::MAX_TIMEOUT_MS)));
        }
        Ok(())
    }
}

pub(crate) fn check_id(field: &'static str, id: &str, upper: bool) -> Result<()> {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || (upper && b.is_ascii_uppercase());
    if id.is_empty() || id.len() > MAX_ID_BYTES || !id.bytes().all(legal) {
        return Err(Error::invalid(field, format!("{id:?} is not an id of letters, digits and '-'")));
    }
    Ok(())
}

fn check_hostname(name: &str) -> Result<()> {
    // The kernel takes any; `_` is what people write (moby 22057), and control takes it.
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(legal) {
        return Err(Error::invalid("hostname", format!("{name:?} is not a host name of at most 64 bytes")));
    }
    Ok(())
}

pub(crate) fn check_process(argv: &[String], env: &[(String, String)]) -> Result<()> {
    if argv.first().is_none_or(|program| program.is_empty()) {
        return Err(Error::invalid("argv", "names no program: the image has no entrypoint and no command"));
    }
    let sizes = argv.iter().map(String::len).chain(env.iter().map(|(k, v)| k.len() + v.len() + 2));
    if sizes.sum::<usize>() > MAX_PROCESS_BYTES {
        return Err(Error::invalid("argv, env", format!("more than {MAX_PROCESS_BYTES} bytes together")));
    }
    if argv.iter().any(|a| a.contains('\0')) {
        return Err(Error::invalid("argv", "holds a NUL byte"));
    }
    match env.iter().find(|(k, v)| k.is_empty() || k.contains(['=', '\0']) || v.contains('\0')) {
        Some((k, _)) => {
            Err(Error::invalid("env", format!("{k:?} is not a name of a variable, or its value holds NUL")))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_may_be_what_control_lets_owners_write() {
        for name in ["web", "my_host", "a.b-c_d", &"a".repeat(63)] {
            check_hostname(name).unwrap();
        }
        for name in ["", "a b", "a/b", &"a".repeat(65)] {
            assert!(check_hostname(name).is_err(), "{name:?}");
        }
    }
}
