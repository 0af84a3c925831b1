//! Owns the world of one test: a namespace that plays the internet, with a bridge
//! to hosts that are namespaces too. All of it lives on one thread with network and
//! mount namespaces of its own, so it is gone when the thread ends, panic or not.

use std::fs::File;
use std::future::Future;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use godwit_net::plan::{self, Prefix};
use godwit_net::{Fabric, FabricOptions, HostLink, HostNet, MachineNet, Options};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::io::AsyncWriteExt;

/// How long anything that must happen may take.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// How long something that must *not* happen is given to happen: a dial inside one
/// machine takes well under a millisecond.
pub const REFUSED_AFTER: Duration = Duration::from_millis(400);
/// Where the internet echoes.
pub const ECHO_PORT: u16 = 7;

pub struct World {
    pub dir: PathBuf,
    pub fabric: Fabric,
    /// The internet's own addresses.
    pub v6: IpAddr,
    pub v4: IpAddr,
}

pub struct Host {
    pub net: HostNet,
    pub link: HostLink,
}

/// Runs `body` in a fresh world.
pub fn run<F: Future<Output = ()>>(body: impl FnOnce(World) -> F + Send) {
    isolated(|dir| {
        runtime().block_on(async {
            body(World::new("test", dir).await).await;
        });
    });
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Runs `body` on a thread with network and mount namespaces of its own.
pub fn isolated(body: impl FnOnce(&Path) + Send) {
    // Outlives the thread: its mounts are gone when the folder is deleted.
    let dir = tempfile::tempdir().unwrap();
    let ended = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
                let all = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                mount(None::<&str>, "/", None::<&str>, all, None::<&str>).unwrap();
                body(dir.path());
            })
            .join()
    });
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

impl World {
    pub async fn new(fleet: &str, dir: &Path) -> Self {
        let fabric = Fabric::new(FabricOptions { fleet: fleet.to_owned(), dir: dir.join(fleet), egress_v4: true })
            .await
            .unwrap();
        let v6 = fabric.ensure().await.unwrap().into();
        // An address that is on nobody's link, as the world's are.
        let v4 = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));
        shell(None, "ip link set lo up && ip addr replace 203.0.113.1/32 dev lo");
        Self { dir: dir.to_owned(), fabric, v6, v4 }
    }

    pub async fn host(&self, name: &str, index: u16) -> Host {
        self.host_with(name, index, Vec::new()).await
    }

    pub async fn host_with(&self, name: &str, index: u16, denied: Vec<Prefix>) -> Host {
        let link = self.fabric.ensure_host_netns(name, index).await.unwrap();
        let net = open(&link.netns, &self.dir.join(name), denied).await;
        net.ensure_host().await.unwrap();
        Host { net, link }
    }

    /// Echo servers on both of the internet's addresses: each answers with the
    /// address that it sees.
    pub async fn echo(&self) {
        for address in [self.v6, self.v4] {
            echo(None, SocketAddr::new(address, ECHO_PORT)).await;
        }
    }
}

/// A HostNet of the namespace at `netns`; it stays with it, whoever calls it later.
pub async fn open(netns: &Path, state_dir: &Path, denied: Vec<Prefix>) -> HostNet {
    let options = Options { denied, ..Options::new(state_dir, "t") };
    let runtime = tokio::runtime::Handle::current();
    within(Some(netns), move || runtime.block_on(HostNet::new(options))).unwrap()
}

/// A Machine of network `network`; `number` makes its addresses.
pub fn machine(id: &str, network: &str, number: u32) -> MachineNet {
    let pool = Options::new("", "t").pool_v4;
    MachineNet {
        machine: id.to_owned(),
        v6: plan::machine_address(plan::network_prefix("test", network), u64::from(number) << 32),
        v4: pool.at(number).unwrap(),
    }
}

/// Runs `work` in a namespace, on a thread that ends with it.
pub fn within<T: Send>(netns: Option<&Path>, work: impl FnOnce() -> T + Send) -> T {
    let namespace = netns.map(|path| File::open(path).unwrap());
    std::thread::scope(|scope| {
        let entered = scope.spawn(move || {
            if let Some(namespace) = &namespace {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            }
            work()
        });
        entered.join().unwrap()
    })
}

/// Runs a shell line in a namespace, and returns what it printed.
pub fn shell(netns: Option<&Path>, line: &str) -> String {
    let done = within(netns, || Command::new("sh").arg("-ec").arg(line).output());
    let done = done.unwrap();
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{line}: {error}");
    String::from_utf8(done.stdout).unwrap()
}

/// Listens in a namespace until the test ends.
pub async fn echo(netns: Option<&Path>, address: SocketAddr) {
    let listener = within(netns, || TcpListener::bind(address)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, peer)) = listener.accept().await {
            let _ = stream.write_all(peer.ip().to_string().as_bytes()).await;
        }
    });
}

/// Dials from a namespace; the answer is the address that the other side sees.
pub fn dial(netns: Option<&Path>, to: IpAddr, port: u16) -> io::Result<IpAddr> {
    dial_for(netns, to, port, DEADLINE)
}

pub fn dial_for(netns: Option<&Path>, to: IpAddr, port: u16, limit: Duration) -> io::Result<IpAddr> {
    within(netns, || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, port), limit)?;
        stream.set_read_timeout(Some(limit))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        answer.parse().map_err(io::Error::other)
    })
}

/// A dial that must get nowhere.
pub fn assert_unreachable(netns: Option<&Path>, to: IpAddr, port: u16) {
    let reached = dial_for(netns, to, port, REFUSED_AFTER);
    assert!(reached.is_err(), "reached {to} port {port}");
}

/// Waits for UDP in a namespace.
pub fn udp(netns: Option<&Path>, address: SocketAddr) -> UdpSocket {
    let socket = within(netns, || UdpSocket::bind(address)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

pub fn next_datagram(socket: &UdpSocket) -> String {
    let mut buffer = [0; 64];
    let (len, _) = socket.recv_from(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..len]).into_owned()
}

/// Polls until `condition` holds.
pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "never: {what}");
        std::thread::yield_now();
    }
}

/// Names of the interfaces in a namespace, sorted.
pub fn interfaces(netns: Option<&Path>) -> Vec<String> {
    let text = shell(netns, "ip -o link");
    let mut names: Vec<String> = text
        .lines()
        .filter_map(|line| line.split(": ").nth(1))
        .map(|name| name.split('@').next().unwrap_or(name).to_owned())
        .collect();
    names.sort();
    names
}

/// Puts a link between the test's namespace and `netns`: when the kernel frees the
/// namespace, `name` disappears. It is how a leaked namespace shows.
pub fn canary(name: &str, netns: &Path) {
    let peer = format!("{name}p");
    shell(
        None,
        &format!("ip link add {name} type veth peer name {peer} && ip link set {peer} netns {}", netns.display()),
    );
}

pub fn canary_lives(name: &str) -> bool {
    interfaces(None).iter().any(|n| n == name)
}
