//! Upgrades with real processes: this binary, started again as an edge or a door, takes the sockets of the one before, while
//! clients keep coming and WebSockets, streams and uploads stay open.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use godwit_api::MachineId;
use godwit_api::config::{Autostop, Service};
use godwit_api::machine::MachineState;
use godwit_base::TaskGroup;
use godwit_base::http::client::full;
use godwit_proxy::door::{BoundDoor, DoorConfig, RawDoorConfig};
use godwit_proxy::edge::{self, BoundEdge, EdgeConfig};
use http::Method;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use tungstenite::{Message, WebSocket};

use crate::client::{Browser, fed_body, payload, read, try_metric, until};
use crate::fleet::{Fleet, Host, Setup, edge_config, http_service, limited, one_running};
use crate::join::{Control, TOKEN, serve};
use crate::tls::{certify, connected, http2, request, trust};

const ROLE: &str = "GODWIT_TEST_ROLE";

/// What a process of its own shall be.
#[derive(Serialize, Deserialize)]
enum Role {
    Edge {
        folder: PathBuf,
        control: String,
        http: SocketAddr,
        https: SocketAddr,
        admin: SocketAddr,
        log: PathBuf,
    },
    /// Takes the sockets and never serves.
    NeverReady {
        folder: PathBuf,
        http: SocketAddr,
        https: SocketAddr,
        admin: SocketAddr,
    },
    Door {
        folder: PathBuf,
        agent: PathBuf,
        listen: SocketAddr,
        admin: SocketAddr,
    },
}

struct Process(Child);

impl Process {
    fn start(role: &Role) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "upgrade::a_process_of_its_own", "--nocapture"]);
        command.env(ROLE, serde_json::to_string(role).unwrap());
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    async fn ends_well(mut self) {
        let status = until("the process ends", async || self.0.try_wait().unwrap()).await;
        assert!(status.success(), "{status}");
    }

    fn terminate(&self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test by itself: what a process runs that the tests below have started.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_of_its_own() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let shutdown = CancellationToken::new();
    let stopping = shutdown.clone();
    tokio::spawn(async move {
        godwit_base::task::terminated().await;
        stopping.cancel();
    });
    let edge = |folder: &Path, http, https, admin| EdgeConfig {
        listen_http: vec![http],
        listen_https: vec![https],
        listen_admin: admin,
        join_token: Some(TOKEN.into()),
        take_over: true,
        ..edge_config(folder, &Setup::default())
    };
    match serde_json::from_str(&role).unwrap() {
        Role::Edge { folder, control, http, https, admin, log } => {
            let mut config = EdgeConfig { control_url: control, ..edge(&folder, http, https, admin) };
            config.live.access_log = Some(log);
            edge::run(config, shutdown, tokio::sync::mpsc::channel(1).1).await.unwrap();
        }
        Role::NeverReady { folder, http, https, admin } => {
            let _bound = BoundEdge::bind(edge(&folder, http, https, admin)).await.unwrap();
            std::fs::write(folder.join("never"), "").unwrap();
            std::future::pending().await
        }
        Role::Door { folder, agent, listen, admin } => {
            let raw = RawDoorConfig {
                listen: listen.to_string(),
                listen_admin: admin.to_string(),
                agent_socket: agent,
                data_dir: folder,
                upgrade_drain_ms: 60_000,
            };
            let config = DoorConfig { take_over: true, ..DoorConfig::try_from(raw).unwrap() };
            BoundDoor::bind(config).await.unwrap().serve(shutdown).await.unwrap();
        }
    }
}

/// Nobody listens there now.
fn free() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A fleet whose edge is a process of its own. The first Machine serves HTTP, the second one WebSockets.
struct Bed {
    _fleet: Fleet,
    _host: Host,
    folder: TempDir,
    control: String,
    _group: TaskGroup,
    http: SocketAddr,
    https: SocketAddr,
    admin: SocketAddr,
    edges: AtomicU64,
}

const FIRST: u64 = 1;
const SECOND: u64 = 2;

fn forced(id: u64) -> String {
    MachineId::from_bits(id).to_string()
}

impl Bed {
    async fn start() -> Self {
        let stays = |port| Service { autostop: Some(Autostop::Off), ..http_service(port) };
        let (fleet, host, _) = one_running(&Setup::default(), |port| vec![stays(port)]).await;
        let port = crate::tunnels::websocket_server();
        let id = MachineId::from_bits(SECOND);
        host.agent.add(id.clone(), &fleet.app, Host::epoch(1), port, vec![stays(port)]);
        host.agent.change(&id, |held| held.machine.state = MachineState::Started);
        fleet.publish(&[&host]).await;
        let (control, group) = serve(fleet.store.clone(), Arc::new(Control::default())).await;
        let folder = TempDir::new().unwrap();
        std::fs::create_dir_all(folder.path().join("certificates")).unwrap();
        let (http, https, admin) = (free(), free(), free());
        Self {
            _fleet: fleet,
            _host: host,
            folder,
            control,
            _group: group,
            http,
            https,
            admin,
            edges: AtomicU64::new(0),
        }
    }

    fn log(&self, number: u64) -> PathBuf {
        self.folder.path().join(format!("access-{number}.log"))
    }

    /// Starts the next edge, and waits until it answers requests.
    async fn edge_up(&self) -> Process {
        let number = self.edges.fetch_add(1, Ordering::SeqCst) + 1;
        let role = Role::Edge {
            folder: self.folder.path().to_owned(),
            control: self.control.clone(),
            http: self.http,
            https: self.https,
            admin: self.admin,
            log: self.log(number),
        };
        let mut process = Process::start(&role);
        until("the new edge serves", async || {
            assert!(!process.has_ended(), "it ended");
            if let Ok(mut raw) = tokio::net::TcpStream::connect(self.http).await {
                let head = format!(
                    "GET / HTTP/1.1\r\nhost: web.localhost\r\nfly-force-instance-id: {}\r\nconnection: close\r\n\r\n",
                    forced(FIRST)
                );
                raw.write_all(head.as_bytes()).await.unwrap();
                raw.read_to_end(&mut Vec::new()).await.unwrap();
            }
            std::fs::metadata(self.log(number)).is_ok_and(|log| log.len() > 0).then_some(())
        })
        .await;
        process
    }

    fn websocket(&self) -> WebSocket<std::net::TcpStream> {
        websocket(self.http)
    }
}

fn websocket(edge: SocketAddr) -> WebSocket<std::net::TcpStream> {
    use tungstenite::client::IntoClientRequest;
    let mut request = "ws://web.localhost/ws".into_client_request().unwrap();
    request.headers_mut().insert("fly-force-instance-id", forced(SECOND).parse().unwrap());
    let stream = std::net::TcpStream::connect(edge).unwrap();
    stream.set_read_timeout(Some(crate::client::PATIENCE)).unwrap();
    tungstenite::client(request, stream).unwrap().0
}

/// Blocks, for messages of a few bytes.
fn echoes(socket: &mut WebSocket<std::net::TcpStream>, text: &str) {
    tokio::task::block_in_place(|| {
        socket.send(Message::text(text)).unwrap();
        assert_eq!(socket.read().unwrap().into_text().unwrap().as_str(), text);
    });
}

/// Requests without end, each counted: on connections that are kept, and on fresh ones.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn begin(edge: SocketAddr) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let tasks = (0..6).map(|n| {
            let (stop, served) = (stop.clone(), served.clone());
            tokio::spawn(async move {
                let mut kept = Raw::default();
                while !stop.load(Ordering::SeqCst) {
                    let answer = if n % 2 == 0 { kept.get(edge).await } else { Raw::default().get(edge).await };
                    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
                    served.fetch_add(1, Ordering::SeqCst);
                }
            })
        });
        Self { stop: stop.clone(), served: served.clone(), tasks: tasks.collect() }
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.served.load(Ordering::SeqCst)
    }
}

/// A client that forgives nothing: a connection that ends without saying so before is a failure.
#[derive(Default)]
struct Raw(Option<tokio::net::TcpStream>);

impl Raw {
    async fn get(&mut self, edge: SocketAddr) -> String {
        let mut socket = match self.0.take() {
            Some(socket) => socket,
            None => tokio::net::TcpStream::connect(edge).await.unwrap(),
        };
        let head = format!("GET / HTTP/1.1\r\nhost: web.localhost\r\nfly-force-instance-id: {}\r\n\r\n", forced(FIRST));
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // The body is one digit.
        while answer.windows(4).position(|four| four == b"\r\n\r\n").is_none_or(|end| answer.len() <= end + 4) {
            assert!(
                socket.read_buf(&mut answer).await.unwrap() > 0,
                "it ended in {:?}",
                String::from_utf8_lossy(&answer)
            );
        }
        let answer = String::from_utf8(answer).unwrap();
        if !answer.contains("\r\nconnection: close") {
            self.0 = Some(socket);
        }
        answer
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_is_upgraded_under_load_and_what_is_open_ends_in_the_old_one() {
    let (rounds, each) = if std::env::var_os("GODWIT_SOAK").is_some() { (5, 40_000) } else { (2, 0) };
    let bed = Bed::start().await;
    let root = certify(&bed.folder.path().join("certificates"), "web.pem", &["web.localhost"]);
    let mut old = bed.edge_up().await;
    let load = Load::begin(bed.http);
    for round in 0..rounds {
        let mut socket = bed.websocket();
        echoes(&mut socket, "before");
        // A stream of HTTP/2 that is answered later, an upload of HTTP/2 and one of HTTP/1.1 that go on across the upgrade.
        let config = trust(&[&root], &[b"h2"]);
        let mut h2 = http2(connected(bed.https, &config, "web.localhost").await).await;
        let ask = |method, path: &str, body| {
            let mut request = request(method, &format!("https://web.localhost{path}"), body);
            request.headers_mut().insert("fly-force-instance-id", forced(FIRST).parse().unwrap());
            request
        };
        let (bytes, digest) = payload(round + 1, 300_000);
        let (feed_h2, body) = fed_body();
        let upload_h2 = tokio::spawn(h2.send_request(ask(Method::POST, "/echo", body)));
        let slow = tokio::spawn(h2.send_request(ask(Method::GET, "/sleep?ms=1000", full(""))));
        let (feed_h1, body) = fed_body();
        let browser = Browser::new(bed.http, "web.localhost");
        let upload_h1 = tokio::spawn(async move {
            let forced = forced(FIRST);
            read(browser.send(Method::POST, "/echo", body, &[("fly-force-instance-id", &forced)]).await).await
        });
        for feed in [&feed_h2, &feed_h1] {
            feed.send(bytes[..100_000].to_vec()).await.unwrap();
        }
        let new = bed.edge_up().await;
        // All of it is the old one's to the end.
        for part in [&bytes[100_000..200_000], &bytes[200_000..]] {
            for feed in [&feed_h2, &feed_h1] {
                feed.send(part.to_vec()).await.unwrap();
            }
            echoes(&mut socket, "across");
        }
        drop((feed_h2, feed_h1));
        let answer = read(upload_h2.await.unwrap().unwrap()).await;
        assert_eq!((answer.code, answer.text()), (200, digest.as_str()));
        let answer = upload_h1.await.unwrap();
        assert_eq!((answer.code, answer.text()), (200, digest.as_str()));
        assert_eq!(read(slow.await.unwrap().unwrap()).await.code, 200);
        assert!(!old.has_ended(), "a WebSocket is open there");
        echoes(&mut socket, "after");
        drop(socket);
        old.ends_well().await;
        old = new;
        while load.served.load(Ordering::SeqCst) < each * (round + 1) {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
    let served = load.end().await;
    println!("{rounds} upgrades, {served} requests, none failed");
    assert!(served > 100, "{served}");
    old.terminate();
    old.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_edge_that_never_gets_ready_changes_nothing() {
    let bed = Bed::start().await;
    let mut old = bed.edge_up().await;
    let load = Load::begin(bed.http);
    let mut socket = bed.websocket();
    let never =
        Role::NeverReady { folder: bed.folder.path().to_owned(), http: bed.http, https: bed.https, admin: bed.admin };
    for kill in [true, false] {
        let _ = std::fs::remove_file(bed.folder.path().join("never"));
        let hangs = Process::start(&never);
        until("it holds the sockets", async || bed.folder.path().join("never").exists().then_some(())).await;
        let before = load.served.load(Ordering::SeqCst);
        until("requests go on", async || (load.served.load(Ordering::SeqCst) > before + 50).then_some(())).await;
        echoes(&mut socket, "as if nothing were");
        assert!(!old.has_ended());
        if kill {
            drop(hangs);
            continue;
        }
        // While that one hangs, another one that works takes over.
        let new = bed.edge_up().await;
        drop(socket);
        old.ends_well().await;
        old = new;
        break;
    }
    assert!(load.end().await > 100);
    drop(old);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_is_upgraded_and_the_new_one_counts_what_the_old_one_still_has() {
    let fleet = Fleet::start(&Setup::default()).await;
    let mut host = Host::start("w1").await;
    host.door_down().await;
    let data = TempDir::new().unwrap();
    let (listen, admin) = (free(), free());
    host.door_addr = listen;
    let role = Role::Door { folder: data.path().to_owned(), agent: host.agent.socket.clone(), listen, admin };
    let id = MachineId::from_bits(FIRST);
    let port = crate::backend::free_port();
    host.agent.add(id.clone(), &fleet.app, Host::epoch(1), port, vec![http_service(port)]);
    host.agent.run(&id);
    // Room for two, and one of them is taken by a WebSocket.
    let second = MachineId::from_bits(SECOND);
    let port = crate::tunnels::websocket_server();
    host.agent.add(second.clone(), &fleet.app, Host::epoch(1), port, vec![limited(port, 1, 1)]);
    host.agent.change(&second, |held| held.machine.state = MachineState::Started);
    let mut old = Process::start(&role);
    until("the old door serves", async || tokio::net::TcpStream::connect(listen).await.ok()).await;
    fleet.publish(&[&host]).await;
    let edge = fleet.edge.addr;
    let mut socket = until("the route is known", async || {
        let answer =
            Browser::new(edge, "web.localhost").get_with("/", &[("fly-force-instance-id", &forced(FIRST))]).await;
        (answer.code == 200).then(|| tokio::task::block_in_place(|| websocket(edge)))
    })
    .await;
    echoes(&mut socket, "before");
    let load = Load::begin(edge);
    until("requests pass", async || (load.served.load(Ordering::SeqCst) > 100).then_some(())).await;
    let new = Process::start(&role);
    let mut last = 0.0;
    until("the new door has taken over", async || {
        // What it has counted begins anew.
        let now = try_metric(admin, "godwit_door_answers_total{class=\"2xx\"} ").await?;
        let fell = now < last;
        last = now;
        fell.then_some(())
    })
    .await;
    let before = load.served.load(Ordering::SeqCst);
    until("requests go on", async || (load.served.load(Ordering::SeqCst) > before + 100).then_some(())).await;
    assert!(!old.has_ended(), "a WebSocket is open there");
    echoes(&mut socket, "across");
    // The hard limit counts the WebSocket of the old door.
    until("the new one knows of it", async || {
        (try_metric(admin, "godwit_door_in_flight ").await? >= 1.0).then_some(())
    })
    .await;
    let refused = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(edge).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_millis(700))).unwrap();
        let head = format!(
            "GET /ws HTTP/1.1\r\nhost: web.localhost\r\nfly-force-instance-id: {}\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            forced(SECOND)
        );
        std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
        std::io::Read::read(&mut stream, &mut [0]).is_err()
    });
    assert!(refused.await.unwrap(), "there is no room beside the old door's WebSocket");
    // A stop drains and cuts off in both.
    let drained = host.agent.stop(&second, 200).await;
    assert!(drained.cut_off >= 1, "{drained:?}");
    tokio::task::block_in_place(|| while socket.read().is_ok() {});
    old.ends_well().await;
    assert!(load.end().await > 100);
    new.terminate();
    new.ends_well().await;
}
