//! The agent as a process of its own, for tests that kill it: this test binary, started once more. Its driver is the
//! fake one with a ledger: each real start and each attempt at a second copy is a line in a file. While a file of the
//! same name ending in `.fail` lies beside it, programs cannot be executed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use godwit_agent::{Config, Raw};
use godwit_base::{TaskGroup, task};
use godwit_driver::fake::{FakeDriver, Knobs};
use godwit_driver::{BoxFuture, Driver, Error, ExecReply, ExecRequest, Exit, Found, Handle, ProcessStat, Result, Spec};
use godwit_driver::{Session, SessionRequest, Swept, Usage, VolumeMount, VolumesSession};

struct Ledger {
    fake: FakeDriver,
    file: PathBuf,
}

impl Ledger {
    fn note(&self, line: String) {
        let mut file = std::fs::File::options().create(true).append(true).open(&self.file).unwrap();
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

impl Driver for Ledger {
    fn start<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<Handle>> {
        Box::pin(async move {
            if self.file.with_extension("fail").exists() {
                let start_fails = Some((127, "no such program".to_owned()));
                self.fake.set(&spec.machine, Knobs { start_fails, ..Knobs::default() });
            }
            let before = self.fake.starts(&spec.machine);
            let started = self.fake.start(spec).await;
            if self.fake.starts(&spec.machine) > before {
                self.note(format!("start {}", spec.instance));
            }
            if matches!(started, Err(Error::OtherInstance { .. })) {
                self.note(format!("second-copy {}", spec.instance));
            }
            started
        })
    }
    fn find<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, Result<Found>> {
        self.fake.find(dir)
    }
    fn wait<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Exit>> {
        self.fake.wait(handle)
    }
    fn signal<'a>(&'a self, handle: &'a Handle, signal: i32) -> BoxFuture<'a, Result<()>> {
        self.fake.signal(handle, signal)
    }
    fn kill<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Exit>> {
        self.fake.kill(handle)
    }
    fn exec<'a>(&'a self, handle: &'a Handle, request: &'a ExecRequest) -> BoxFuture<'a, Result<ExecReply>> {
        self.fake.exec(handle, request)
    }
    fn session<'a>(&'a self, handle: &'a Handle, request: &'a SessionRequest) -> BoxFuture<'a, Result<Session>> {
        self.fake.session(handle, request)
    }
    fn volumes_session<'a>(
        &'a self,
        volumes: &'a [VolumeMount],
        request: &'a SessionRequest,
    ) -> BoxFuture<'a, Result<VolumesSession>> {
        self.fake.volumes_session(volumes, request)
    }
    fn processes<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Vec<ProcessStat>>> {
        self.fake.processes(handle)
    }
    fn listening<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Vec<std::net::SocketAddr>>> {
        self.fake.listening(handle)
    }
    fn usage<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Usage>> {
        self.fake.usage(handle)
    }
    fn remove<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, Result<()>> {
        self.fake.remove(dir)
    }
    fn sweep<'a>(&'a self, known: &'a [String]) -> BoxFuture<'a, Result<Swept>> {
        self.fake.sweep(known)
    }
}

#[test]
#[ignore = "the agent process that other tests start"]
fn the_agent_of_a_test() {
    let config = std::env::var_os("GODWIT_TEST_AGENT").map(PathBuf::from).unwrap();
    let file = std::env::var_os("GODWIT_TEST_COUNTS").map(PathBuf::from).unwrap();
    godwit_base::telemetry::init("agent", false);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let raw: Raw = godwit_base::config::read(&config).unwrap();
        let config = Config::try_from(raw).unwrap();
        let group = TaskGroup::new();
        let told = group.clone();
        tokio::spawn(async move {
            task::terminated().await;
            told.token().cancel();
        });
        let driver = Arc::new(Ledger { fake: FakeDriver::new(), file });
        godwit_agent::run_with(config, Some(driver), group).await.unwrap();
    });
}
