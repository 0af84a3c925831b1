//! Bare servers: each a network, mount and pid namespace of its own on one bridge, with empty `/var/lib`, `/var/log`, `/run`,
//! `/usr/local/bin` and an `/etc` without a trace of the platform. Blocks of docs/operate.md run there as a person would
//! type them; `systemctl`, `scp` and `ssh` are played by scripts that do what those would, and no more.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use godwit_lab::fleet::binary;

const PATIENCE: Duration = Duration::from_secs(60);

/// What systemd does with a unit, as far as the page's blocks need it.
const SYSTEMCTL: &str = r#"#!/bin/sh
case "$1" in
daemon-reload) exit 0 ;;
enable) shift 2 ;;
*) echo "systemctl $*: not played here" >&2; exit 1 ;;
esac
for unit; do
    start=$(sed -n 's/^ExecStart=//p' "/etc/systemd/system/$unit.service")
    test -n "$start" || { echo "no such unit: $unit" >&2; exit 1; }
    setsid $start </dev/null >"/var/log/$unit.log" 2>&1 &
    echo $! >"/run/$unit.pid"
done
"#;

pub struct Server {
    /// Holds the namespaces; everything in them dies with it.
    holder: Child,
    /// Its pid namespace's first process, as seen from here.
    pub pid: i32,
    /// What lies on this server's disk.
    folder: PathBuf,
    pub address: &'static str,
}

pub struct Servers {
    switch: Child,
    pub servers: Vec<Server>,
    /// Last: it is removed when nobody is left in it.
    folder: tempfile::TempDir,
}

impl Servers {
    pub fn start(addresses: &[&'static str]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("godwit-servers-").tempdir()?;
        checkout(folder.path())?;
        let switch = Command::new("unshare").args(["--net", "sleep", "infinity"]).stdin(Stdio::null()).spawn()?;
        let mut servers = Self { switch, servers: Vec::new(), folder };
        // `unshare` is in its new namespace once it has become `sleep`.
        let own = std::fs::read_link("/proc/self/ns/net")?;
        let switch = servers.switch.id();
        until("the switch", || Ok(std::fs::read_link(format!("/proc/{switch}/ns/net"))? != own))?;
        servers.on_switch("ip link add br0 type bridge && ip link set br0 up")?;
        for address in addresses {
            servers.add(address)?;
        }
        Ok(servers)
    }

    fn on_switch(&self, script: &str) -> Result<()> {
        let pid = self.switch.id().to_string();
        ok(Command::new("nsenter").args(["-t", &pid, "-n", "sh", "-ec", script]).output()?, script).map(drop)
    }

    fn add(&mut self, address: &'static str) -> Result<()> {
        let folder = self.folder.path().join(address);
        let holder = Command::new("unshare")
            .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"])
            // Its first process must reap, as every server's does.
            .args(["sh", "-c", "sleep infinity & wait"])
            .stdin(Stdio::null())
            .spawn()?;
        let (outer, mut pid) = (holder.id(), 0);
        until("the server's first process", || {
            let children = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"))?;
            pid = children.trim().parse().unwrap_or(0);
            let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            Ok(command.trim() == "sh")
        })?;
        let number = self.servers.len();
        self.servers.push(Server { holder, pid, folder: folder.clone(), address });
        let server = &self.servers[number];
        for name in ["lib", "log", "bin", "etc", "etc-work", "home"] {
            std::fs::create_dir_all(folder.join(name))?;
        }
        let (disk, dist) = (folder.display(), self.folder.path().join("dist"));
        let lib = folder.join("lib");
        server.script(&format!(
            "mount --bind {} /var/lib; mount --bind {disk}/log /var/log; mount --bind {disk}/bin /usr/local/bin
             mount -t overlay -o lowerdir=/etc,upperdir={disk}/etc,workdir={disk}/etc-work overlay /etc
             mount -t tmpfs -o mode=755 tmpfs /run
             mkdir -p /etc/systemd/system
             ! test -e /etc/godwit && ! test -e /var/lib/godwit && ! command -v godwit",
            lib.display()
        ))?;
        self.on_switch(&format!(
            "ip link add p{number} type veth peer name eth0 netns {pid} && ip link set p{number} master br0 up"
        ))?;
        server.script(&format!("ip addr add {address}/24 dev eth0; ip link set eth0 up; ip link set lo up"))?;
        ensure!(dist.exists(), "the checkout");
        Ok(())
    }

    pub fn server(&self, address: &str) -> &Server {
        self.servers.iter().find(|server| server.address == address).expect("a server of that address")
    }

    /// Runs the blocks that docs/operate.md gives for `place`, on the server of that address, word for word.
    pub fn blocks(&self, place: &str, on: &str, ready: impl Fn(&Server, usize) -> Result<()>) -> Result<()> {
        let page = std::fs::read_to_string(root().join("docs/operate.md"))?;
        let blocks = blocks(&page, place);
        ensure!(!blocks.is_empty(), "docs/operate.md has no block for {place}");
        for (number, block) in blocks.iter().enumerate() {
            let server = self.server(on);
            ready(server, number)?;
            server.typed(&self.folder.path().join("dist"), block)?;
        }
        Ok(())
    }

    pub fn logs(&self) -> String {
        let mut text = String::new();
        for server in &self.servers {
            for entry in std::fs::read_dir(server.folder.join("log")).into_iter().flatten().flatten() {
                let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let last = lines[lines.len().saturating_sub(25)..].join("\n");
                text.push_str(&format!("--- {} {}\n{last}\n", server.address, entry.file_name().to_string_lossy()));
            }
        }
        text
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        for server in &mut self.servers {
            let _ = server.holder.kill();
            let _ = server.holder.wait();
        }
        let _ = self.switch.kill();
        let _ = self.switch.wait();
    }
}

impl Server {
    /// A process in this server's namespaces.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid.to_string(), "-n", "-m", "-p", "--", "env", "-i"]);
        command.args(["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "NO_COLOR=1"]);
        command.arg(format!("HOME={}", self.folder.join("home").display()));
        command.arg(program).stdin(Stdio::null());
        command
    }

    pub fn script(&self, script: &str) -> Result<String> {
        let output = self.command("sh").args(["-ec", script]).output()?;
        ok(output, script)
    }

    /// In the checkout, with what stands in for systemd and ssh.
    fn typed(&self, dist: &Path, block: &str) -> Result<String> {
        self.script(&format!("cd {}; PATH=$PWD/played:$PATH\n{block}", dist.display()))
    }

    pub fn cli(&self, arguments: &[&str]) -> Result<Output> {
        Ok(self.command("godwit").args(arguments).output()?)
    }

    pub fn cli_ok(&self, arguments: &[&str]) -> Result<String> {
        ok(self.cli(arguments)?, &format!("godwit {}", arguments.join(" ")))
    }

    /// A socket of this server that listens, held by the test.
    pub fn listen(&self, address: &'static str) -> Result<std::net::TcpListener> {
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.pid))?;
        // A thread of its own: the namespace is a thread's, and this one ends with its errand.
        let bound = std::thread::spawn(move || -> Result<std::net::TcpListener> {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
            Ok(std::net::TcpListener::bind(address)?)
        });
        bound.join().map_err(|_| anyhow::anyhow!("the thread ended"))?
    }

    /// A file of this server, as a path from here. Not through its root: links of the server would lead astray.
    pub fn file(&self, path: &str) -> PathBuf {
        match path.strip_prefix("/var/lib/") {
            Some(below) => self.folder.join("lib").join(below),
            None => match path.strip_prefix("/etc/") {
                Some(below) => self.folder.join("etc").join(below),
                None => {
                    self.folder.join("log").join(path.strip_prefix("/var/log/").expect("a path that is known here"))
                }
            },
        }
    }
}

/// What a person has on each server: the built programs, the docs, and the scripts that play systemd and ssh.
fn checkout(folder: &Path) -> Result<()> {
    let (dist, played) = (folder.join("dist"), folder.join("dist/played"));
    std::fs::create_dir_all(dist.join("target/release"))?;
    std::fs::create_dir_all(&played)?;
    std::os::unix::fs::symlink(root().join("docs"), dist.join("docs"))?;
    for name in ["godwit", "godwit-shim"] {
        std::os::unix::fs::symlink(binary(name)?, dist.join("target/release").join(name))?;
    }
    let disk = folder.display();
    let scripts = [
        ("systemctl", SYSTEMCTL.to_owned()),
        // `scp HOST:/var/lib/… FILE`
        ("scp", format!("#!/bin/sh\nhost=${{1%%:*}}; path=${{1#*:/var/lib/}}\ncp {disk}/$host/lib/$path $2\n")),
        // `ssh HOST cat /var/lib/…`
        ("ssh", format!("#!/bin/sh\ncat {disk}/$1/lib/${{3#/var/lib/}}\n")),
    ];
    for (name, text) in scripts {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(played.join(name), text)?;
        std::fs::set_permissions(played.join(name), std::fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the workspace")
}

/// The fenced blocks that follow a comment `<!-- run on PLACE -->`.
fn blocks(page: &str, place: &str) -> Vec<String> {
    let mark = format!("<!-- run on {place} -->\n```sh\n");
    page.split(&mark).skip(1).filter_map(|rest| Some(rest.split_once("```")?.0.to_owned())).collect()
}

pub fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let last = match holds() {
            Ok(true) => return Ok(()),
            Ok(false) => String::new(),
            Err(error) => format!(": {error:#}"),
        };
        if Instant::now() > deadline {
            bail!("{what} did not come to hold{last}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn ok(output: Output, what: &str) -> Result<String> {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}\n{what}\n{out}{err}", output.status);
    String::from_utf8(output.stdout).context("UTF-8")
}
