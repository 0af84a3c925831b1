//! A driver with a cgroup parent and folders of its own, gone without a trace at the end, also after a failure.

use godwit_driver::cgroup::Cgroups;
use godwit_driver::container::{ContainerDriver, Options};
use godwit_driver::{Driver, ExecReply, ExecRequest, Exit, Handle, Limits, Process, Spec, log_files, parse_log_line};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Generous, because the machine may be busy: it is the bound of a failure, not of a success.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Fleet {
    pub driver: ContainerDriver,
    pub parent: String,
    pub folder: PathBuf,
    owned: Option<tempfile::TempDir>,
}

/// The guest program, compiled once: a root holds nothing else.
fn guest() -> &'static Path {
    static GUEST: OnceLock<PathBuf> = OnceLock::new();
    GUEST.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/guest.c");
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest");
        let changed = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
        if changed(&program) <= changed(&source) {
            let fresh = program.with_extension(std::process::id().to_string());
            let built = Command::new("cc").args(["-static", "-O1", "-o"]).arg(&fresh).arg(source).status();
            assert!(built.expect("these tests need a C compiler (cc)").success(), "cc -static failed");
            std::fs::rename(fresh, &program).unwrap();
        }
        program
    })
}

impl Fleet {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let parent = format!("godwit-test-{}-{}/host-1", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let owned = tempfile::tempdir().unwrap();
        let folder = owned.path().to_owned();
        Self::lay_layers(&folder);
        Self { driver: driver(&parent, &folder), parent, folder, owned: Some(owned) }
    }

    /// The fleet that another process made, and cleans away.
    pub fn at(parent: &str, folder: &Path) -> Self {
        Self { driver: driver(parent, folder), parent: parent.into(), folder: folder.into(), owned: None }
    }

    /// Two layers: the program, and the files that say who is who.
    fn lay_layers(folder: &Path) {
        let (program, files) = (folder.join("layers/program"), folder.join("layers/files"));
        for sub in ["bin", "etc"] {
            std::fs::create_dir_all(program.join(sub)).unwrap();
        }
        std::fs::create_dir_all(files.join("etc")).unwrap();
        std::fs::create_dir_all(files.join("tmp")).unwrap();
        std::fs::copy(guest(), program.join("bin/guest")).unwrap();
        std::fs::write(program.join("bin/plain"), "no program").unwrap();
        let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:100:101:App:/home/app:/bin/sh\n";
        std::fs::write(files.join("etc/passwd"), passwd).unwrap();
        std::fs::write(files.join("etc/group"), "root:x:0:\napp:x:101:\nwheel:x:10:app\n").unwrap();
    }

    pub fn spec(&self, machine: &str, instance: &str, argv: &[&str]) -> Spec {
        Spec {
            machine: machine.into(),
            instance: instance.into(),
            epoch: godwit_driver::Epoch { generation: 1, n: 1 },
            hostname: machine.into(),
            dir: self.folder.join("machines").join(machine),
            lowers_base: self.folder.join("layers"),
            lowers: vec!["program".into(), "files".into()],
            root: Default::default(),
            process: Process {
                argv: argv.iter().map(|s| s.to_string()).collect(),
                env: vec![("GREETING".into(), "hello".into())],
                cwd: String::new(),
                user: String::new(),
            },
            netns: None,
            limits: Limits::default(),
            files: vec![],
            resolv_conf: "nameserver ::1\n".into(),
            hosts: "::1 localhost\n".into(),
            binds: vec![],
            volumes: vec![],
            log: Default::default(),
        }
    }

    pub async fn start(&self, machine: &str, argv: &[&str]) -> Handle {
        self.driver.start(&self.spec(machine, "i1", argv)).await.unwrap()
    }

    /// Starts, waits for the end, and answers it with what was printed.
    pub async fn run(&self, spec: &Spec) -> (Exit, String) {
        let handle = self.driver.start(spec).await.unwrap();
        let exit = tokio::time::timeout(PATIENCE, self.driver.wait(&handle)).await.unwrap().unwrap();
        (exit, output(&spec.dir))
    }

    pub async fn exec(&self, handle: &Handle, argv: &[&str]) -> ExecReply {
        self.driver.exec(handle, &exec_request(argv)).await.unwrap()
    }
}

pub fn exec_request(argv: &[&str]) -> ExecRequest {
    ExecRequest {
        argv: argv.iter().map(|s| s.to_string()).collect(),
        env: vec![],
        user: None,
        stdin: vec![],
        timeout_ms: 30_000,
        output_limit_bytes: 100_000,
    }
}

pub fn shim() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_godwit-shim"))
}

fn driver(parent: &str, folder: &Path) -> ContainerDriver {
    let options = Options { shim: shim(), cgroup_parent: parent.into(), run_dir: folder.join("run") };
    ContainerDriver::new(options).unwrap()
}

/// The text of a Machine's log, without stamps.
pub fn output(dir: &Path) -> String {
    let mut text = String::new();
    for file in log_files(dir) {
        let bytes = std::fs::read(file).unwrap_or_default();
        for line in bytes.split(|b| *b == b'\n').filter_map(parse_log_line) {
            text.push_str(&String::from_utf8_lossy(line.text));
            text.push_str(if line.partial { "" } else { "\n" });
        }
    }
    text
}

/// Polls until the condition holds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Does this process live (zombies do not)?
pub fn lives(pid: i32) -> bool {
    godwit_driver::start_time_ticks(pid).is_some()
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if self.owned.is_none() {
            return;
        }
        let cgroups = Cgroups::detect(&self.parent).unwrap();
        for machine in cgroups.machines() {
            let _ = cgroups.kill_all(&machine, 0);
            cgroups.remove(&machine);
        }
        cgroups.remove_parents();
    }
}
