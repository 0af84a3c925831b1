//! What lives only as long as a container: libcontainer's state, the cgroup's children, a fresh root; and how it goes.

use std::fs;
use std::path::{Path, PathBuf};

use godwit_driver::cgroup::Cgroups;
use godwit_driver::container::layout::{Layout, Order};

/// Where libcontainer keeps its state and finds the configuration, while the container lives.
pub struct StateDir {
    pub dir: PathBuf,
}

impl StateDir {
    pub fn new(order: &Order) -> Self {
        Self { dir: order.state_dir.clone() }
    }
    /// The driver's run folder, which all Machines share.
    pub fn shared(&self) -> PathBuf {
        self.dir.parent().map_or_else(|| self.dir.clone(), Path::to_owned)
    }
    pub fn bundle(&self) -> PathBuf {
        self.dir.join("bundle")
    }
    pub fn configuration(&self) -> PathBuf {
        self.bundle().join("config.json")
    }
}

/// Removes what lived only as long as the container. Our own cgroup stays, for the next start or the driver's remove:
/// to move out of it would cost a grace period of the kernel's, for which a restart would wait.
pub fn clean_up(cgroups: &Cgroups, order: &Order) {
    cgroups.remove(&order.spec.machine);
    let _ = fs::remove_dir_all(StateDir::new(order).dir);
    let layout = Layout::new(&order.spec.dir);
    let _ = fs::remove_file(layout.socket());
    if order.spec.root == godwit_driver::RootPolicy::Fresh {
        // Room on the disk now, and a faster next start.
        let _ = fs::remove_dir_all(layout.upper());
        let _ = fs::remove_dir_all(layout.work());
    }
}
