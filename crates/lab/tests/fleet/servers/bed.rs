//! Bare servers: each a network, mount, pid and cgroup namespace of its own on one bridge, with empty `/var/lib`, `/var/log`, `/run`,
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
set -e
verb=$1; shift
start() {
    command=$(sed -n 's/^ExecStart=//p' "/etc/systemd/system/$1.service")
    test -n "$command" || { echo "no such unit: $1" >&2; exit 1; }
    setsid $command </dev/null >>"/var/log/$1.log" 2>&1 &
    echo $! >"/run/$1.pid"
}
stop() {
    pid=$(cat "/run/$1.pid")
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 300); do kill -0 "$pid" 2>/dev/null || return 0; sleep 0.1; done
    echo "$1 did not stop" >&2; exit 1
}
test "${1:-}" != --now || shift
for unit; do
    case $verb in
    enable|start) start "$unit" ;;
    disable|stop) stop "$unit" ;;
    restart) stop "$unit"; start "$unit" ;;
    reload)
        sed -n 's/^ExecReload=//p' "/etc/systemd/system/$unit.service" | sed 's/\$MAINPID/'"$(cat "/run/$unit.pid")/" | sh -e ;;
    *) echo "systemctl $verb: not played here" >&2; exit 1 ;;
    esac
done
"#;

/// Where cgroup hierarchies are mounted: one folder, or one each.
const HIERARCHIES: &str =
    "$(if [ -e /sys/fs/cgroup/cgroup.controllers ]; then echo /sys/fs/cgroup; else echo /sys/fs/cgroup/*; fi)";

/// A server sees its own cgroups alone: an agent that asks who is in a Machine's cgroup must not be told of processes of
/// the server next door, which has the Machine now.
const MOUNT_CGROUPS: &str = r#"if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
    awk '$5 ~ "^/sys/fs/cgroup/" { for (i = 7; $i != "-"; i++); print $5, $(i + 1), $(i + 3) }' /proc/self/mountinfo |
        while read -r folder kind options; do
            umount "$folder"
            mount -t "$kind" -o "${options#rw,}" "$kind" "$folder" 2>/dev/null || mount -t "$kind" "$kind" "$folder"
        done
fi"#;

/// The shell goes into the server's cgroups: into a leaf, for cgroup v2 has no processes beside groups with controllers.
/// With `root` it ends in the groups themselves, which then become the root of its namespace.
fn enter_cgroups(name: &str, root: bool) -> String {
    let place = if root { "" } else { "/leaf" };
    format!(
        "for d in {HIERARCHIES}; do
             mkdir -p $d/{name}
             if [ -e $d/cpuset.cpus ] && [ -e $d/{name}/cgroup.clone_children ]; then
                 cat $d/cpuset.cpus >$d/{name}/cpuset.cpus; cat $d/cpuset.mems >$d/{name}/cpuset.mems
                 echo 1 >$d/{name}/cgroup.clone_children
             fi
             mkdir -p $d/{name}/leaf
             echo $$ >$d/{name}{place}/cgroup.procs
         done
         "
    )
}

pub struct Server {
    /// Holds the namespaces; everything in them dies with it.
    holder: Child,
    /// Its pid namespace's first process, as seen from here.
    pub pid: i32,
    /// What lies on this server's disk.
    folder: PathBuf,
    pub address: &'static str,
    /// Its own in every hierarchy; the root of what it sees.
    cgroup: String,
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
        let cgroup = format!("godwit-servers-{}-{address}", std::process::id());
        let script = format!(
            "{}exec unshare --cgroup --net --mount --pid --fork --kill-child --mount-proc --propagation private \
             sh -c 'sleep infinity & wait'",
            enter_cgroups(&cgroup, true)
        );
        // Its first process must reap, as every server's does.
        let holder = Command::new("sh").args(["-ec", &script]).stdin(Stdio::null()).spawn()?;
        let (outer, mut pid) = (holder.id(), 0);
        let own = std::fs::read_link("/proc/self/ns/pid")?;
        until("the server's first process", || {
            let children = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"))?;
            pid = children.trim().parse().unwrap_or(0);
            let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let inside = std::fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|its| its != own);
            Ok(inside && command.trim() == "sh")
        })?;
        let number = self.servers.len();
        self.servers.push(Server { holder, pid, folder: folder.clone(), address, cgroup });
        let server = &self.servers[number];
        for name in ["lib", "log", "bin", "etc", "etc-work", "home", "backups"] {
            std::fs::create_dir_all(folder.join(name))?;
        }
        let (disk, dist) = (folder.display(), self.folder.path().join("dist"));
        let lib = folder.join("lib");
        server.script(&format!(
            "{MOUNT_CGROUPS}
             mount --bind {} /var/lib; mount --bind {disk}/log /var/log; mount --bind {disk}/bin /usr/local/bin
             mount --bind {disk}/backups /var/backups
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

    /// Runs the blocks that docs/operate.md gives for `place` (`<!-- run on PLACE -->`), on the server of that address.
    pub fn blocks(&self, place: &str, on: &str, ready: impl Fn(&Server, usize) -> Result<()>) -> Result<()> {
        for (number, block) in page_blocks(&format!("run on {place}"), "sh")?.iter().enumerate() {
            let server = self.server(on);
            ready(server, number)?;
            self.typed(server, block)?;
        }
        Ok(())
    }

    /// Runs the one block under this mark, word for word.
    pub fn block(&self, mark: &str, on: &str) -> Result<String> {
        self.typed(self.server(on), &page_blocks(mark, "sh")?.concat())
    }

    /// In the checkout, with what stands in for systemd and ssh.
    pub fn typed(&self, server: &Server, block: &str) -> Result<String> {
        server.script(&format!("cd {}; PATH=$PWD/played:$PATH\n{block}", self.folder.path().join("dist").display()))
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
            // They are empty when the namespace's last process has been reaped.
            let script = format!(
                "for _ in $(seq 50); do
                     for d in {HIERARCHIES}; do find $d/{0} -depth -type d -exec rmdir {{}} + 2>/dev/null || true; done
                     set -- $(ls -d /sys/fs/cgroup/{0} /sys/fs/cgroup/*/{0} 2>/dev/null); test $# = 0 && exit; sleep 0.1
                 done",
                server.cgroup
            );
            let _ = Command::new("sh").args(["-c", &script]).status();
        }
        let _ = self.switch.kill();
        let _ = self.switch.wait();
    }
}

impl Server {
    /// A process in this server's namespaces.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("sh");
        let enter = format!("{}exec nsenter \"$@\"", enter_cgroups(&self.cgroup, false));
        command.args([
            "-ec",
            &enter,
            "nsenter",
            "-t",
            &self.pid.to_string(),
            "-C",
            "-n",
            "-m",
            "-p",
            "--",
            "env",
            "-i",
        ]);
        command.args(["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "NO_COLOR=1"]);
        command.arg(format!("HOME={}", self.folder.join("home").display()));
        command.arg(program).stdin(Stdio::null());
        command
    }

    pub fn script(&self, script: &str) -> Result<String> {
        let output = self.command("sh").args(["-ec", script]).output()?;
        ok(output, script)
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

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the workspace")
}

/// The fenced blocks of docs/operate.md that follow the comment `<!-- MARK -->`.
pub fn page_blocks(mark: &str, language: &str) -> Result<Vec<String>> {
    let page = std::fs::read_to_string(root().join("docs/operate.md"))?;
    let mark = format!("<!-- {mark} -->\n```{language}\n");
    let blocks: Vec<String> =
        page.split(&mark).skip(1).filter_map(|rest| Some(rest.split_once("```")?.0.to_owned())).collect();
    ensure!(!blocks.is_empty(), "docs/operate.md has no block under {mark:?}");
    Ok(blocks)
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
