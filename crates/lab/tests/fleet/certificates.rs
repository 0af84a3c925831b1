//! Certificates from a real authority (Pebble, Debian's package) through two edges: ordered by each kind of challenge,
//! served by both, renewed, refused with a reason. Control, edges and authority are processes of their own on loopback;
//! names lead where the authority's own name server says.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use godwit_base::http::client::Client;
use godwit_lab::fleet::{binary, eventually, free_port};
use godwit_lab::plain;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};

use crate::support::{PATIENCE, run};

/// Each edge has an address of its own and the ports of both are the same, as an authority expects it.
const EDGES: [&str; 2] = ["127.0.77.1", "127.0.77.2"];

/// Ends with the test, whatever becomes of it.
struct Process(Child);

impl Process {
    fn start(folder: &Path, name: &str, command: &mut Command) -> Self {
        let log = std::fs::File::create(folder.join(format!("{name}.log"))).expect("a log");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        Self(command.spawn().unwrap_or_else(|error| panic!("{name}: {error}")))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Ports {
    api: u16,
    http: u16,
    https: u16,
    acme: u16,
    acme_admin: u16,
    dns: u16,
    dns_admin: u16,
}

struct Bed {
    folder: tempfile::TempDir,
    ports: Ports,
    processes: Vec<Process>,
    token: String,
}

fn free() -> u16 {
    free_port().expect("a free port")
}

impl Bed {
    /// An authority whose certificates live for `life_s`, control that trusts it, and two edges.
    async fn start(life_s: u32, acme: Value) -> Self {
        let folder = tempfile::Builder::new().prefix("godwit-acme-").tempdir().expect("a folder");
        let ports = Ports {
            api: free(),
            http: free(),
            https: free(),
            acme: free(),
            acme_admin: free(),
            dns: free(),
            dns_admin: free(),
        };
        let mut bed = Self { folder, ports, processes: Vec::new(), token: String::new() };
        bed.authority(life_s);
        bed.control(acme);
        eventually("the authority is there", PATIENCE, async || Ok(bed.has_root().then_some(())))
            .await
            .unwrap_or_else(|error| panic!("{error:#}\n{}", bed.log("pebble")));
        let token = bed.path("admin-token");
        bed.token = eventually("control has a token", PATIENCE, async || Ok(std::fs::read_to_string(&token).ok()))
            .await
            .expect("control starts");
        bed.token.truncate(bed.token.trim_end().len());
        for (number, address) in EDGES.iter().enumerate() {
            bed.edge(number, address);
        }
        for (number, _) in EDGES.iter().enumerate() {
            eventually("an edge is ready", PATIENCE, async || {
                Ok(bed.path(&format!("edge{number}.json")).exists().then_some(()))
            })
            .await
            .expect("it joins");
        }
        bed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn spawn(&mut self, name: &str, command: &mut Command) {
        let process = Process::start(self.folder.path(), name, command);
        self.processes.push(process);
    }

    fn authority(&mut self, life_s: u32) {
        let own = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
        std::fs::write(self.path("pebble.pem"), own.cert.pem()).expect("written");
        std::fs::write(self.path("pebble.key"), own.signing_key.serialize_pem()).expect("written");
        let config = json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{}", self.ports.acme),
            "managementListenAddress": format!("127.0.0.1:{}", self.ports.acme_admin),
            "certificate": self.path("pebble.pem"), "privateKey": self.path("pebble.key"),
            "httpPort": self.ports.http, "tlsPort": self.ports.https, "certificateValidityPeriod": life_s,
        }});
        std::fs::write(self.path("pebble.json"), config.to_string()).expect("written");
        let (dns, admin) = (format!("127.0.0.1:{}", self.ports.dns), format!("127.0.0.1:{}", self.ports.dns_admin));
        let mut names = Command::new("pebble-challtestsrv");
        names.args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", "", "-defaultIPv4", ""]);
        self.spawn("names", names.args(["-dns01", &dns, "-management", &admin]));
        let mut pebble = Command::new("pebble");
        pebble.arg("-config").arg(self.path("pebble.json")).args(["-strict", "-dnsserver", &dns]);
        // Each order is looked at anew, at once, and by asking the edges.
        pebble.env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_AUTHZREUSE", "0").env_remove("PEBBLE_VA_ALWAYS_VALID");
        self.spawn("pebble", &mut pebble);
    }

    fn control(&mut self, acme: Value) {
        let mut config = json!({
            "data_dir": self.path("control"), "listen": format!("127.0.0.1:{}", self.ports.api),
            "admin_token_file": self.path("admin-token"), "join_token_file": self.path("join-token"),
            "public_addresses": EDGES, "check_http_port": self.ports.http,
            "acme": {
                "directory_url": format!("https://127.0.0.1:{}/dir", self.ports.acme),
                "contact": ["mailto:ops@shop.example"], "root_file": self.path("pebble.pem"),
                "spread_ms": 300, "retry_first_ms": 500,
            },
        });
        crate::support::merge(&mut config["acme"], acme);
        std::fs::write(self.path("control.toml"), toml::to_string(&config).expect("TOML")).expect("written");
        // In a mount namespace of its own, where a name of the test leads to the first edge.
        let hosts = format!("127.0.0.1 localhost\n{} checked.shop.example\n", EDGES[0]);
        std::fs::write(self.path("hosts"), hosts).expect("written");
        let script = "mount --bind \"$1\" /etc/hosts && exec \"$2\" run control --config \"$3\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, "sh"]).arg(self.path("hosts"));
        command.arg(binary("godwit").expect("godwit")).arg(self.path("control.toml"));
        self.spawn("control", &mut command);
    }

    fn edge(&mut self, number: usize, address: &str) {
        let config = json!({
            "listen_http": [format!("{address}:{}", self.ports.http)],
            "listen_https": [format!("{address}:{}", self.ports.https)],
            "listen_admin": format!("{address}:0"), "control_url": format!("http://127.0.0.1:{}", self.ports.api),
            "region": "fra", "name": format!("edge{number}"), "identity_file": self.path(&format!("edge{number}.json")),
            "join_token_file": self.path("join-token"), "snapshot_dir": self.path(&format!("edge{number}")),
        });
        let path = self.path(&format!("edge{number}.toml"));
        std::fs::write(&path, toml::to_string(&config).expect("TOML")).expect("written");
        let mut command = Command::new(binary("godwit").expect("godwit"));
        self.spawn(&format!("edge{number}"), command.args(["run", "edge", "--config"]).arg(path));
    }

    /// Says where the authority finds a name.
    async fn lead(&self, name: &str, address: &str) {
        let client = Client::tcp(&format!("http://127.0.0.1:{}", self.ports.dns_admin), None);
        for (path, wish) in
            [("/clear-a", json!({ "host": name })), ("/add-a", json!({ "host": name, "addresses": [address] }))]
        {
            let sent = eventually("the name server takes it", PATIENCE, async || {
                let body = godwit_base::http::client::full(wish.to_string());
                let mut request = http::Request::new(body);
                *request.method_mut() = http::Method::POST;
                let sent = client.send_raw(path, request, Duration::from_secs(5)).await?;
                Ok((sent.status() == 200).then_some(()))
            });
            sent.await.expect("it is there");
        }
    }

    fn cli(&self, arguments: &[&str]) -> std::process::Output {
        Command::new(binary("godwit").expect("godwit"))
            .args(arguments)
            .env("GODWIT_API_URL", format!("http://127.0.0.1:{}", self.ports.api))
            .envs([("GODWIT_TOKEN", self.token.as_str()), ("GODWIT_APP", "shop"), ("NO_COLOR", "1")])
            .stdin(Stdio::null())
            .output()
            .expect("godwit runs")
    }

    fn cli_ok(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}\n{}", self.log("control"));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn shown(&self, name: &str) -> Value {
        serde_json::from_str(&self.cli_ok(&["certs", "show", name, "--json"])).expect("JSON")
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    /// The root that this run of Pebble has drawn.
    fn root(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path("root.pem")).expect("a certificate")
    }

    fn has_root(&self) -> bool {
        let url = format!("https://127.0.0.1:{}/roots/0", self.ports.acme_admin);
        let mut curl = Command::new("curl");
        let got =
            curl.args(["-fsS", "--cacert"]).arg(self.path("pebble.pem")).arg("-o").arg(self.path("root.pem")).arg(url);
        got.stderr(Stdio::null()).status().expect("curl").success()
    }

    /// Shakes hands with an edge as a browser that trusts the authority; answers the leaf.
    async fn leaf(&self, root: &CertificateDer<'static>, edge: &str, name: &str) -> anyhow::Result<Vec<u8>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(root.clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = builder.with_root_certificates(roots).with_no_client_auth();
        let addr: SocketAddr = format!("{edge}:{}", self.ports.https).parse()?;
        let stream = tokio::net::TcpStream::connect(addr).await?;
        let name = ServerName::try_from(name.to_owned())?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).map(|leaf| leaf.to_vec());
        leaf.ok_or_else(|| anyhow::anyhow!("no certificate"))
    }

    async fn served(&self, root: &CertificateDer<'static>, name: &str) -> Vec<u8> {
        let mut leaves = Vec::new();
        for edge in EDGES {
            let leaf = eventually("the edge serves it", PATIENCE, async || self.leaf(root, edge, name).await.map(Some));
            leaves.push(leaf.await.expect("a handshake"));
        }
        leaves.dedup();
        assert_eq!(leaves.len(), 1, "both serve the same");
        leaves.remove(0)
    }
}

#[test]
fn an_authority_issues_and_renews_through_two_edges_by_each_kind_of_challenge() {
    run(async {
        for (kind, flag) in [("http-01", "http_configured"), ("tls-alpn-01", "alpn_configured")] {
            // Of a minute, three seconds are the part that a certificate may lose before it is renewed.
            let bed = Bed::start(60, json!({ "challenges": [kind], "renew_left_permille": 950 })).await;
            bed.cli_ok(&["apps", "create", "shop"]);
            let name = "www.shop.example";
            bed.lead(name, EDGES[0]).await;
            let added = bed.cli(&["certs", "add", name]);
            assert!(added.status.success(), "{}\n{}", String::from_utf8_lossy(&added.stderr), bed.log("control"));
            assert_eq!(String::from_utf8_lossy(&added.stdout), format!("{name}\n"));
            let shown = bed.shown(name);
            assert_eq!((&shown["status"], &shown["validation"][flag]), (&json!("active"), &json!(true)), "{shown}");
            assert_eq!(shown["certificates"][0]["source"], "acme");
            assert_eq!(shown["certificates"][0]["names"], json!([name]));
            let issued = &shown["certificates"][0]["issued"][0];
            assert_eq!(issued["type"], "ecdsa", "{shown}");
            assert_eq!(issued["certificate_authority"], shown["certificates"][0]["issuer"], "{shown}");
            let root = bed.root();
            let first = bed.served(&root, name).await;
            // The next one is asked of the other edge.
            bed.lead(name, EDGES[1]).await;
            let renewed = eventually("it is renewed", PATIENCE, async || {
                let now = bed.leaf(&root, EDGES[0], name).await?;
                Ok((now != first).then_some(now))
            });
            assert_ne!(renewed.await.expect("renewed"), first);
            assert!(!bed.log("control").contains("no certificate was issued"), "{}", bed.log("control"));
            // Nothing of an order is answered afterwards.
            let path = "/.well-known/acme-challenge/x";
            for edge in EDGES {
                let answer =
                    plain::get(&format!("{edge}:{}", bed.ports.http), name, path, PATIENCE).await.expect("HTTP");
                assert_ne!(answer.status, 200);
            }
        }
    });
}

#[test]
fn a_name_that_leads_elsewhere_is_refused_with_a_reason_and_tried_again() {
    run(async {
        let bed = Bed::start(3_600, json!({ "retry_first_ms": 3_600_000 })).await;
        bed.cli_ok(&["apps", "create", "shop"]);
        let name = "checked.shop.example";
        // Nobody listens there.
        bed.lead(name, "127.0.77.9").await;
        let refused = bed.cli(&["certs", "add", name]);
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{words}");
        assert!(words.contains("127.0.77.9") && words.contains("godwit certs check"), "{words}");
        let listed = bed.cli_ok(&["certs", "list"]);
        assert!(listed.contains("failed"), "{listed}");
        // It is mended, and a check does not wait for the hour: seen from here, the name leads to an edge.
        bed.lead(name, EDGES[1]).await;
        let checked: Value = serde_json::from_str(&bed.cli_ok(&["certs", "check", name, "--json"])).expect("JSON");
        let seen = &checked["validation"];
        assert_eq!((&seen["dns_configured"], &seen["addresses"]), (&json!(true), &json!([EDGES[0]])), "{checked}");
        let reached = eventually("an edge answers the check", PATIENCE, async || {
            let checked: Value = serde_json::from_str(&bed.cli_ok(&["certs", "check", name, "--json"]))?;
            Ok((checked["validation"]["http_configured"] == true).then_some(()))
        });
        reached.await.expect("reached");
        eventually("it is issued", PATIENCE, async || Ok((bed.shown(name)["status"] == "active").then_some(())))
            .await
            .unwrap_or_else(|error| panic!("{error:#}\n{}", bed.log("control")));
        bed.served(&bed.root(), name).await;
        let table = bed.cli_ok(&["certs", "show", name]);
        assert!(table.contains("acme (active, served)") && table.contains("left of"), "{table}");
        bed.cli_ok(&["certs", "remove", name, "--yes"]);
        let root = bed.root();
        let gone = eventually("no edge serves it", PATIENCE, async || {
            Ok(bed.leaf(&root, EDGES[1], name).await.is_err().then_some(()))
        });
        gone.await.expect("gone");
        assert_eq!(bed.cli(&["certs", "show", name]).status.code(), Some(3));
    });
}
