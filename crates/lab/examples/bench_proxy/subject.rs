//! What is measured: our edge, our edge with its door, and the peers, each with its processes and where it listens.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use godwit_lab::fleet::Fleet;
use godwit_lab::plain;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

pub struct Subject {
    pub name: &'static str,
    pub http: SocketAddr,
    pub https: SocketAddr,
    /// Whose processor time and memory count.
    counted: Vec<u32>,
    /// Moved with the load: what it needs, but is not measured here.
    beside: Vec<u32>,
    /// Whom its clients trust.
    pub authority: CertificateDer<'static>,
    /// Before any load.
    pub fresh_kib: f64,
    _process: Option<Started>,
}

/// A peer that ends with its subject.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All threads of a process, to one core.
pub fn pin(process: u32, core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let thread: i32 = thread?.file_name().to_str().context("a thread's number")?.parse()?;
        match sched_setaffinity(Pid::from_raw(thread), &cores) {
            // It has ended meanwhile.
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(error) => return Err(error).context("cannot pin a thread"),
        }
    }
    Ok(())
}

impl Subject {
    /// Puts what is measured on one core, and the rest of it on another.
    pub fn place(&self, measured: usize, rest: usize) -> Result<()> {
        for process in &self.counted {
            pin(*process, measured)?;
        }
        for process in &self.beside {
            pin(*process, rest)?;
        }
        Ok(())
    }

    /// Of all its threads that live, to the nanosecond. Threads are few and stay.
    pub fn processor_time(&self) -> Result<Duration> {
        let mut sum = 0;
        for process in &self.counted {
            for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
                let Ok(text) = std::fs::read_to_string(thread?.path().join("schedstat")) else { continue };
                sum += text.split_whitespace().next().context("schedstat is empty")?.parse::<u64>()?;
            }
        }
        Ok(Duration::from_nanos(sum))
    }

    /// Its share of all pages (PSS).
    pub fn memory_kib(&self) -> Result<f64> {
        let mut sum = 0.0;
        for process in &self.counted {
            let text = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
            let pss = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
            sum += pss.trim().trim_end_matches(" kB").trim().parse::<f64>()?;
        }
        Ok(sum)
    }

    pub async fn until_it_answers(&self, host: &str) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let why = match plain::get(&self.http.to_string(), host, "/", Duration::from_secs(5)).await {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(answer) => format!("{} {}", answer.status, answer.text()),
                Err(error) => error.to_string(),
            };
            if Instant::now() > deadline {
                bail!("{} does not answer: {why}", self.name);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The edge alone, with its door on the load's core; and both, as a request passes them.
pub fn ours(fleet: &Fleet) -> Result<Vec<Subject>> {
    let dev = fleet.dev()?;
    let [edge, door] = [dev.edge_pid, dev.hosts[0].door_pid].map(|pid| pid.unsigned_abs());
    let authority = CertificateDer::from_pem_file(&dev.ca_file)?;
    let subject = |name, counted, beside| -> Result<Subject> {
        let (http, https) = (dev.http_addr.parse()?, dev.https_addr.parse()?);
        Ok(Subject { name, http, https, counted, beside, authority: authority.clone(), fresh_kib: 0.0, _process: None })
    };
    Ok(vec![subject("edge", vec![edge], vec![door])?, subject("edge + door", vec![edge, door], vec![])?])
}

/// nginx, haproxy and caddy in the network of the Machine's host, where the door is too.
pub fn peers(fleet: &Fleet, folder: &Path, upstream: &str) -> Result<Vec<Subject>> {
    let dev = fleet.dev()?;
    let host = &dev.hosts[0];
    let address: SocketAddr = host.addr.parse().or_else(|_| format!("[{}]:0", host.addr).parse())?;
    let pair = rcgen::generate_simple_self_signed(vec![super::HOST.to_owned()])?;
    let (certificate, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
    let path = folder.display().to_string();
    std::fs::write(folder.join("cert.pem"), &certificate)?;
    std::fs::write(folder.join("key.pem"), &key)?;
    std::fs::write(folder.join("both.pem"), certificate + &key)?;

    let mut found = Vec::new();
    for (number, name) in ["nginx", "haproxy", "caddy"].into_iter().enumerate() {
        let port = 9100 + 2 * u16::try_from(number)?;
        let [http, https] = [port, port + 1].map(|port| SocketAddr::new(address.ip(), port));
        let (config, arguments) = match name {
            "nginx" => (nginx(&path, http, https, upstream), vec!["-c", "@", "-p", &path]),
            "haproxy" => (haproxy(&path, http, https, upstream), vec!["-db", "-f", "@"]),
            _ => (caddy(&path, http, https, upstream), vec!["run", "--adapter", "caddyfile", "--config", "@"]),
        };
        let file = folder.join(name);
        std::fs::write(&file, config)?;
        let file = file.display().to_string();
        let arguments: Vec<&str> =
            arguments.into_iter().map(|word| if word == "@" { file.as_str() } else { word }).collect();
        let log = std::fs::File::create(folder.join(format!("{name}.log")))?;
        let child = Command::new("nsenter")
            .args(["-t", &host.door_pid.to_string(), "-n", name])
            .args(arguments)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", &path)
            .env("GOMAXPROCS", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let counted = vec![child.id()];
        let authority = CertificateDer::from_pem_file(folder.join("cert.pem"))?;
        let _process = Some(Started(child));
        found.push(Subject { name, http, https, counted, beside: Vec::new(), authority, fresh_kib: 0.0, _process });
    }
    Ok(found)
}

/// One process, which serves and is counted.
fn nginx(folder: &str, http: SocketAddr, https: SocketAddr, upstream: &str) -> String {
    format!(
        "worker_processes 1; daemon off; master_process off; error_log {folder}/nginx.err warn; pid {folder}/nginx.pid;
events {{ worker_connections 18000; }}
http {{ access_log off; keepalive_requests 100000000; keepalive_timeout 3600s; server_tokens off;
 client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
 uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
 map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
 upstream machine {{ server {upstream}; keepalive 256; keepalive_requests 100000000; }}
 server {{ listen {http} backlog=8192; listen {https} ssl http2 backlog=8192;
  ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem; ssl_protocols TLSv1.2 TLSv1.3;
  http2_max_concurrent_streams 256; client_max_body_size 0; proxy_request_buffering off; proxy_http_version 1.1;
  proxy_set_header Connection $connection_upgrade; proxy_set_header Upgrade $http_upgrade; proxy_set_header Host $host;
  proxy_read_timeout 3600s;
  location / {{ proxy_pass http://machine; }} }} }}
"
    )
}

fn haproxy(folder: &str, http: SocketAddr, https: SocketAddr, upstream: &str) -> String {
    format!(
        "global
  nbthread 1
  maxconn 10500
  no strict-limits
  tune.ssl.cachesize 20000
  ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
  mode http
  timeout connect 5s
  timeout client 3600s
  timeout server 3600s
  timeout tunnel 3600s
  option http-keep-alive
  http-reuse always
frontend all
  bind {http} backlog 8192
  bind {https} ssl crt {folder}/both.pem alpn h2,http/1.1 backlog 8192
  default_backend machine
backend machine
  server one {upstream} pool-max-conn 256
"
    )
}

fn caddy(folder: &str, http: SocketAddr, https: SocketAddr, upstream: &str) -> String {
    let proxied =
        format!("reverse_proxy {upstream} {{\n  transport http {{\n   keepalive_idle_conns_per_host 256\n  }}\n }}");
    let (ip, name) = (http.ip(), super::HOST);
    format!(
        "{{\n admin off\n auto_https off\n}}
http://{name}:{} {{\n bind {ip}\n {proxied}\n}}
https://{name}:{} {{\n bind {ip}\n tls {folder}/cert.pem {folder}/key.pem\n {proxied}\n}}
",
        http.port(),
        https.port()
    )
}
