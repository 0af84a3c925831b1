//! Block devices for volumes: loop devices over sparse files, detached and gone at the end, also after a failure.

use godwit_driver::{VolumeFs, VolumeMount};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const SIZE_BYTES: u64 = 16 << 20;

pub struct Loop {
    pub device: PathBuf,
    image: PathBuf,
    _folder: tempfile::TempDir,
}

fn run(program: &str, args: &[&Path]) -> String {
    let done = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("these tests need {program}: {e}"));
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{program} {args:?}: {text}{}", String::from_utf8_lossy(&done.stderr));
    text
}

impl Loop {
    /// All zeros.
    pub fn blank() -> Self {
        Self::over(|_| {})
    }

    /// With an ext4 file system that asks for a panic of the kernel at its first error.
    pub fn ext4() -> Self {
        let options = ["-q", "-t", "ext4", "-F", "-e", "panic"].map(Path::new);
        Self::over(|image| {
            run("mke2fs", &[&options[..], &[image]].concat());
        })
    }

    fn over(fill: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("volume");
        std::fs::File::create(&image).unwrap().set_len(SIZE_BYTES).unwrap();
        fill(&image);
        let device = run("losetup", &["--find".as_ref(), "--show".as_ref(), &image]);
        Self { device: device.trim().into(), image, _folder: folder }
    }

    pub fn volume(&self, guest_path: &str, fstype: VolumeFs) -> VolumeMount {
        let (device, guest_path) = (self.device.clone(), guest_path.into());
        VolumeMount { device, guest_path, fstype, read_only: false, uid: None, gid: None }
    }

    /// Major and minor, as arguments.
    pub fn numbers(&self) -> [String; 2] {
        let id = std::fs::metadata(&self.device).unwrap().rdev();
        [libc::major(id), libc::minor(id)].map(|n| n.to_string())
    }

    /// Is the device still attached to this file? (Another may have taken its number.)
    pub fn attached(&self) -> bool {
        let name = self.device.file_name().unwrap();
        let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
        std::fs::read_to_string(backing).is_ok_and(|file| file.trim() == self.image.to_str().unwrap())
    }

    pub fn detach(&self) {
        if self.attached() {
            run("losetup", &["--detach".as_ref(), &self.device]);
        }
    }

    /// As the file system's own checker sees it, changing nothing.
    pub fn check(&self) {
        run("e2fsck", &["-fn".as_ref(), &self.image]);
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if self.attached() {
            let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
        }
    }
}
