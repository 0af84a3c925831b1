//! From the order on disk to a held Machine: everything that must be true before the holder's loop begins, and what
//! the driver is told.
//!
//! ```text
//! lock -> has this instance run already? -> nobody of an older one lives -> socket -> handle -> hold
//! ```
//! The order matters: the lock first, so that nobody else kills what we start; the handle before anything of the image
//! runs, so that whoever comes later knows that there was an instance.

use godwit_driver::cgroup::Cgroups;
use godwit_driver::container::layout::{Layout, Order};
use godwit_driver::container::lock;
use godwit_driver::protocol::{self, Started};
use godwit_driver::{Handle, boot_id, start_time_ticks};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::ShimError;
use crate::holder::Holder;
use crate::logs::LogFiles;
use crate::server::Server;
use crate::state_dir::clean_up;
use crate::sys;

/// How long the shim of an older instance may take to clean up after it has told its end.
const LOCK_TIMEOUT_MS: u64 = 20_000;
const LOCK_POLL_MS: u64 = 2;

/// The whole life of the shim.
pub fn run(dir: &Path, heap: sys::HeapMark) -> Result<(), ShimError> {
    let layout = Layout::new(dir);
    // Fails when we lead a group already, as somebody who starts us by hand from a shell does: no harm.
    let _ = nix::unistd::setsid();
    // Held until all is over, a failure's clean-up included: nobody else may start into that.
    let _lock = take_lock(&layout)?;
    let order = layout.order().map_err(ShimError::io("cannot read the order"))?;
    let order = order.ok_or_else(|| ShimError::State("there is no order".into()))?;
    let spec = &order.spec;
    spec.check().map_err(|e| ShimError::State(e.to_string()))?;
    if spec.dir != dir {
        return Err(ShimError::State(format!("the order is for {}", spec.dir.display())));
    }
    if let Some(handle) = already_run(&layout, &spec.instance)? {
        report(&Started::Ok { handle });
        return Ok(());
    }
    let cgroups = Cgroups::detect(&order.cgroup_parent).map_err(ShimError::io("cannot use cgroups"))?;
    let me = std::process::id() as i32;
    cgroups
        .kill_all(&spec.machine, me)
        .map_err(|pids| ShimError::State(format!("an older instance lives on: {pids:?}")))?;
    // Counters of an instance whose shim was killed must not be taken for this one's.
    cgroups.remove(&spec.machine);
    sys::adopt_orphans().map_err(ShimError::io("cannot become a subreaper"))?;
    let server = Server::bind(&layout.socket(), &spec.machine, &spec.instance);
    let server = server.map_err(ShimError::io("cannot listen"))?;
    let handle = write_handle(&layout, &order, me)?;
    let logs = LogFiles::open(&layout.log(), spec.log).map_err(ShimError::io("cannot open the logs"))?;
    let holder = Holder::new(order, layout.clone(), cgroups.clone(), server, logs, heap);
    let outcome = holder.and_then(|holder| holder.hold(|| report(&Started::Ok { handle: handle.clone() })));
    if let Err(error) = outcome {
        abandon(&layout, &cgroups, &handle, me);
        return Err(error);
    }
    Ok(())
}

/// A start that failed leaves nothing: no process, no cgroup, no handle to find.
fn abandon(layout: &Layout, cgroups: &Cgroups, handle: &Handle, me: i32) {
    if let Err(pids) = cgroups.kill_all(&handle.machine, me) {
        // The handle stays: whoever looks next must try again before anything else is started.
        eprintln!("godwit-shim: {pids:?} cannot be killed");
        return;
    }
    if let Ok(Some(order)) = layout.order() {
        clean_up(cgroups, &order);
    }
    if let Err(e) = layout.forget_handle() {
        eprintln!("godwit-shim: the handle cannot be removed: {e}");
    }
}

fn take_lock(layout: &Layout) -> Result<File, ShimError> {
    let deadline = Instant::now() + Duration::from_millis(LOCK_TIMEOUT_MS);
    loop {
        match lock::try_take(&layout.lock()).map_err(ShimError::io("cannot take the lock"))? {
            Some(file) => return Ok(file),
            None if Instant::now() >= deadline => return Err(ShimError::State("another shim holds the lock".into())),
            None => std::thread::sleep(Duration::from_millis(LOCK_POLL_MS)),
        }
    }
}

/// An instance is run once: its handle means that it was begun, by a shim that is gone now (we hold its lock).
fn already_run(layout: &Layout, instance: &str) -> Result<Option<Handle>, ShimError> {
    let handle = layout.handle().map_err(ShimError::io("cannot read the handle"))?;
    Ok(handle.filter(|handle| handle.instance == instance))
}

fn write_handle(layout: &Layout, order: &Order, me: i32) -> Result<Handle, ShimError> {
    let started = start_time_ticks(me).ok_or_else(|| ShimError::State("/proc does not show this process".into()))?;
    let handle = Handle {
        machine: order.spec.machine.clone(),
        instance: order.spec.instance.clone(),
        dir: order.spec.dir.clone(),
        boot_id: boot_id().map_err(ShimError::io("cannot read the boot id"))?,
        pid: me,
        start_time_ticks: started,
        socket: layout.socket(),
        protocol_version: protocol::VERSION,
    };
    layout.write_handle(&handle).map_err(ShimError::io("cannot write the handle"))?;
    Ok(handle)
}

/// Tells the driver, once, and lets go of its pipe. A driver that is gone does not matter: it asks again.
fn report(started: &Started) {
    let mut line = serde_json::to_vec(started).unwrap_or_default();
    line.push(b'\n');
    let _ = io::stdout().write_all(&line).and_then(|()| io::stdout().flush());
    if let Ok(null) = fs::OpenOptions::new().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(&null);
    }
}

pub fn report_failure(error: &ShimError) {
    let started = match error {
        ShimError::User { exit_code, reason } => {
            Started::Failed { exit_code: *exit_code, reason: reason.clone(), user_fault: true }
        }
        other => Started::Failed { exit_code: None, reason: crate::error::chain(other), user_fault: false },
    };
    report(&started);
}
