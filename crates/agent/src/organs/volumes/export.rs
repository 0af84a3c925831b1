//! What another host reads of this host's volumes: one export process a volume, found again by its spec on disk. It must
//! not hand a block to anyone but the holder of the move's certificate.

use std::path::Path;

use godwit_api::ids::{Epoch, MachineId};
use godwit_api::ticket::ExportGrant;
use godwit_api::volume::PlacedVolume;
use godwit_volume::exporter::{ExportEntry, ExportSpec, ExportTls, ExporterStatus};
use godwit_volume::host;

use super::{POLL, PROCESS_ANSWERS_WITHIN, Pair, Result, Volumes, blocking, io, to_json, write};

impl Volumes {
    /// Serves the volume's blocks to the holder of the client's certificate, until `end_export`. Found again if it is
    /// served already, and at the same address even if everything of it died.
    pub async fn export(
        &self,
        volume: &MachineId,
        placed: &PlacedVolume,
        epoch: Epoch,
        migration: &str,
        client_certificate: &str,
    ) -> Result<ExportGrant> {
        let dir = self.dir(volume).join("export");
        let path = dir.join("export.json");
        let (raw, listen) = (self.raw(volume), self.config.listen);
        let ports = self.config.export_ports;
        let (placed_id, size_bytes) = (placed.id.clone(), placed.size_bytes);
        let (migration, client) = (migration.to_owned(), client_certificate.to_owned());
        let prepared = {
            let (dir, path) = (dir.clone(), path.clone());
            blocking(move || {
                std::fs::create_dir_all(&dir).map_err(io("make", &dir))?;
                let pair = Pair::read_or_draw(&dir.join("server.pem"), &dir.join("server.key"))?;
                write(&dir.join("client.pem"), &client)?;
                let known = if path.exists() { Some(ExportSpec::read(&path)?) } else { None };
                let spec = match known {
                    Some(spec) if spec.migration == migration => spec,
                    known => {
                        // Prepared for another move, which did not come.
                        if let Some(spec) = known {
                            host::export_stop(&spec)?;
                        }
                        let token = godwit_base::secret::new_key("gwx");
                        let volume = placed_id.as_str().to_owned();
                        let export = ExportEntry { volume, epoch, token, local: raw, size_bytes };
                        let spec = ExportSpec {
                            migration,
                            listen,
                            ports: Some(ports),
                            exports: vec![export],
                            tls: Some(ExportTls {
                                certificates: dir.join("server.pem"),
                                key: dir.join("server.key"),
                                trusted: dir.join("client.pem"),
                            }),
                            control: dir.join("export.sock"),
                        };
                        write(&path, &to_json(&spec))?;
                        spec
                    }
                };
                Ok((spec, pair))
            })
            .await?
        };
        let (mut spec, pair) = prepared;
        let status = match self.exporter(&spec).await? {
            Some(status) => status,
            None => {
                let child = self.spawn(&dir, "export", &path)?;
                self.await_exporter(&dir, &spec, child).await?
            }
        };
        if spec.listen != status.addr {
            // Whatever dies from here on, it comes back at this address.
            spec.listen = status.addr;
            let text = to_json(&spec);
            blocking(move || write(&path, &text)).await?;
        }
        let token = spec.exports.first().map(|export| export.token.clone()).unwrap_or_default();
        Ok(ExportGrant {
            volume: placed.id.clone(),
            addr: status.addr.to_string(),
            export: format!("{}@{epoch}+{token}", placed.id),
            server_certificate: pair.certificate,
        })
    }

    /// What is served to other hosts, and for which migrations.
    pub async fn exported(&self) -> Result<Vec<(MachineId, String)>> {
        let dir = self.config.dir.clone();
        blocking(move || {
            let mut found = Vec::new();
            let entries = match std::fs::read_dir(&dir) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
                entries => entries.map_err(io("list", &dir))?,
            };
            for entry in entries {
                let entry = entry.map_err(io("list", &dir))?;
                let spec = entry.path().join("export/export.json");
                if let Some(volume) = entry.file_name().to_str().and_then(|name| MachineId::parse(name).ok())
                    && spec.exists()
                {
                    found.push((volume, ExportSpec::read(&spec)?.migration));
                }
            }
            Ok(found)
        })
        .await
    }

    async fn exporter(&self, spec: &ExportSpec) -> Result<Option<ExporterStatus>> {
        let spec = spec.clone();
        blocking(move || Ok(host::export_status(&spec))).await
    }

    async fn await_exporter(
        &self,
        dir: &Path,
        spec: &ExportSpec,
        mut child: tokio::process::Child,
    ) -> Result<ExporterStatus> {
        let looking = async {
            loop {
                let ended = self.failed("exporter", dir, &mut child);
                if let Some(status) = self.exporter(spec).await?.filter(|status| status.server_pid != 0) {
                    return Ok(status);
                }
                ended?;
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(PROCESS_ANSWERS_WITHIN, looking)
            .await
            .unwrap_or_else(|_| Err(self.silent("exporter", dir)))
    }

    pub async fn end_export(&self, volume: &MachineId) -> Result<()> {
        let dir = self.dir(volume).join("export");
        blocking(move || {
            let path = dir.join("export.json");
            if path.exists() {
                host::export_stop(&ExportSpec::read(&path)?)?;
            }
            match std::fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("remove", &dir)(error)),
                _ => Ok(()),
            }
        })
        .await
    }
}
