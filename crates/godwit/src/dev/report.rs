//! `dev.json`: where the fleet is, for programs; and the words at its start, for people.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::error::Result;

const FILE: &str = "dev.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DevFile {
    /// Without `/v1`.
    pub api_url: String,
    pub token: String,
    pub http_addr: SocketAddr,
    pub https_addr: SocketAddr,
    /// Vouches for the names of this fleet's apps; drawn for this folder.
    pub ca_file: PathBuf,
    pub control_pid: i32,
    pub edge_pid: i32,
    pub hosts: Vec<DevHost>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DevHost {
    pub id: String,
    pub region: String,
    pub addr: String,
    pub netns: PathBuf,
    pub agent_pid: i32,
    pub door_pid: i32,
    pub data_dir: PathBuf,
}

impl DevFile {
    pub fn write(&self, dir: &Path) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(godwit_base::durable::write(&dir.join(FILE), &bytes, 0o600)?)
    }

    /// So that nobody takes the file of an earlier run for ours.
    pub fn remove(dir: &Path) -> Result<()> {
        match std::fs::remove_file(dir.join(FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    pub fn greeting(&self, dir: &Path, took: Duration) -> String {
        let hosts = self.hosts.len();
        let mut text = format!(
            "The fleet is ready: {hosts} host{} after {:.1} s.\n\n  API   {}\n  Apps  http://APP.localhost:{}  https://APP.localhost:{}\n  CA    {}  (curl --cacert; trust it nowhere else)\n",
            if hosts == 1 { "" } else { "s" },
            took.as_secs_f64(),
            self.api_url,
            self.http_addr.port(),
            self.https_addr.port(),
            self.ca_file.display(),
        );
        for host in &self.hosts {
            text.push_str(&format!("  Host  {}  {}  {}\n", host.id, host.region, host.addr));
        }
        let shown = dir.display();
        text.push_str(&format!(
            "\nIn another shell:\n  godwit config use-dev {shown}\n  godwit image load IMAGE.tar --name demo\n  \
             godwit apps create hello\n  godwit machine run demo -a hello --port 80:8080/tcp:http\n\n\
             Ctrl-C stops it; on the same folder it goes on where it stopped. `godwit dev --clean {shown}` removes it.\n"
        ));
        text
    }
}
