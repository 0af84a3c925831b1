//! The shim's end of the builder: its process, its report, what it made.

use godwit_driver::cgroup::Cgroups;
use godwit_driver::container::layout::Order;
use godwit_driver::container::monotonic_ns;
use nix::unistd::ForkResult;
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use crate::builder;
use crate::error::{BuildError, ShimError, chain};
use crate::sys;

/// Largest report of a builder.
const MAX_REPORT_BYTES: usize = 64 << 10;

/// A container that is being made, or has been.
pub struct Construction {
    /// Open until the builder has said everything.
    report: Option<OwnedFd>,
    text: Vec<u8>,
    init_pid: Option<i32>,
    error: Option<(bool, String)>,
    spans: Vec<(String, u64)>,
}

impl Construction {
    /// Forks the builder. It and the container get the inner ends of the output pipes and of the socket of words.
    pub fn begin(
        order: &Order,
        cgroups: &Cgroups,
        outputs: [OwnedFd; 2],
        telling: OwnedFd,
        heap: sys::HeapMark,
    ) -> Result<Self, ShimError> {
        let forked_at = monotonic_ns();
        let (report, reporting) = sys::pipe().map_err(ShimError::io("cannot make a pipe"))?;
        if let ForkResult::Child = fork_tracked(order, cgroups)? {
            let _ = sys::die_with_parent();
            let kept = sys::keep_only([&outputs[0], &outputs[1], &telling, &reporting]);
            std::mem::forget((outputs, telling, reporting));
            // The driver reads its pipe until everybody has let go of it.
            if let Ok(null) = File::options().write(true).open("/dev/null") {
                let _ = nix::unistd::dup2_stdout(&null);
            }
            let [stdout, stderr, telling, reporting] = kept;
            let outcome = builder::build(order, cgroups, stdout, stderr, &telling, heap);
            let text = report_text(&outcome, forked_at);
            let _ = File::from(reporting).write_all(text.to_string().as_bytes());
            sys::exit_now(0)
        }
        Ok(Self { report: Some(report), text: Vec::new(), init_pid: None, error: None, spans: Vec::new() })
    }

    pub fn watch(&self) -> Option<libc::pollfd> {
        self.report.as_ref().map(|report| sys::watch(report, sys::READABLE))
    }

    /// Reads what the builder says; at its end, what was said counts.
    pub fn read(&mut self) {
        let Some(report) = &self.report else { return };
        let mut chunk = [0; 4096];
        match nix::unistd::read(report, &mut chunk) {
            Ok(0) => {}
            Ok(read) if self.text.len() < MAX_REPORT_BYTES => {
                self.text.extend_from_slice(&chunk[..read]);
                return;
            }
            Err(nix::Error::EINTR) => return,
            Ok(_) | Err(_) => {}
        }
        self.report = None;
        self.conclude();
    }

    fn conclude(&mut self) {
        let said: Value = serde_json::from_slice(&self.text).unwrap_or_default();
        self.text = Vec::new();
        let pid = said["init_pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        self.init_pid = pid.filter(|pid| *pid > 1);
        if self.init_pid.is_none() {
            let reason = said["reason"].as_str().unwrap_or("the builder died without a word");
            self.error = Some((said["user_fault"].as_bool().unwrap_or(false), reason.to_owned()));
        }
        for span in said["spans"].as_array().into_iter().flatten() {
            if let (Some(name), Some(at)) = (span[0].as_str(), span[1].as_u64()) {
                self.spans.push((name.to_owned(), at));
            }
        }
    }

    /// Pid 1 of the container, as this process sees it; a child of this process.
    pub fn init_pid(&self) -> Option<i32> {
        self.init_pid
    }

    pub fn error(&self) -> Option<ShimError> {
        let (user_fault, reason) = self.error.clone()?;
        Some(match user_fault {
            true => ShimError::User { exit_code: None, reason },
            false => ShimError::State(reason),
        })
    }

    /// When each step was done.
    pub fn spans(&self) -> &[(String, u64)] {
        &self.spans
    }
}

/// Forks, with the child in the Machine's shim cgroup: whatever it leaves behind can be found there.
fn fork_tracked(order: &Order, cgroups: &Cgroups) -> Result<ForkResult, ShimError> {
    let machine = &order.spec.machine;
    let target = cgroups.fork_target(machine).map_err(ShimError::io("cannot make the shim's cgroup"))?;
    // Refused by kernels before 5.7, and where the hierarchy is v1: then we go in ourselves and fork there.
    if let Some(forked) = target.and_then(|target| sys::fork_into(&target).ok()) {
        return Ok(forked);
    }
    cgroups.enter_as_shim(machine).map_err(ShimError::io("cannot enter the shim's cgroup"))?;
    sys::fork().map_err(ShimError::io("cannot fork the builder"))
}

fn report_text(outcome: &Result<(i32, builder::Spans), BuildError>, forked_at: u64) -> Value {
    match outcome {
        Ok((pid, spans)) => {
            let all: Vec<_> = [("fork", forked_at)].iter().chain(spans).map(|(n, at)| json!([n, at])).collect();
            json!({"init_pid": pid, "spans": all})
        }
        Err(error) => json!({"reason": chain(error), "user_fault": matches!(error, BuildError::User(_))}),
    }
}
