//! Copies what a volume holds while its Machine still runs elsewhere, in a process of its own. It must not show anybody
//! what was copied: only the handoff's check makes it count.

use godwit_api::ids::MachineId;
use godwit_api::ticket::ExportGrant;
use godwit_api::volume::PlacedVolume;
use godwit_volume::host;
use godwit_volume::pace::Limits;
use godwit_volume::precopy::{self, PrecopySpec, PrecopyStatus};

use super::{Result, Volumes, blocking, io, to_json, write};

/// Each copies what was written during the one before; it ends early when there was nothing.
const PRECOPY_PASSES: u32 = 4;

impl Volumes {
    /// Begins to copy what a volume holds while its Machine still runs elsewhere, unless that is under way. `None`: it is
    /// under way already, and its end is known by its silence alone.
    pub async fn copy_ahead(
        &self,
        volume: &MachineId,
        placed: &PlacedVolume,
        export: &ExportGrant,
        limits: Limits,
    ) -> Result<Option<tokio::process::Child>> {
        let dir = self.dir(volume);
        let spec = PrecopySpec {
            source: self.source_of(volume, export)?,
            local: self.raw(volume),
            size_bytes: placed.size_bytes,
            limits,
            passes: PRECOPY_PASSES,
            control: dir.join("precopy.sock"),
        };
        let (path, text, server) = (dir.join("precopy.json"), to_json(&spec), export.server_certificate.clone());
        let runs = {
            let (dir, path) = (dir.clone(), path.clone());
            blocking(move || {
                if host::precopy_status(&spec).is_some() {
                    return Ok(true);
                }
                write(&dir.join("server.pem"), &server)?;
                write(&path, &text)?;
                Ok(false)
            })
        };
        match runs.await? {
            true => Ok(None),
            false => self.spawn(&dir, "precopy", &path).map(Some),
        }
    }

    /// How far the copying ahead has come; `None`: it has ended.
    pub async fn ahead(&self, volume: &MachineId) -> Result<Option<PrecopyStatus>> {
        let path = self.dir(volume).join("precopy.json");
        blocking(move || match path.exists() {
            true => Ok(host::precopy_status(&PrecopySpec::read(&path)?)),
            false => Ok(None),
        })
        .await
    }

    /// What the copying ahead did in all, once it has ended well.
    pub async fn copied_ahead(&self, volume: &MachineId) -> Result<Option<PrecopyStatus>> {
        let path = self.dir(volume).join("precopy.json");
        blocking(move || match path.exists() {
            true => Ok(host::precopy_result(&PrecopySpec::read(&path)?)),
            false => Ok(None),
        })
        .await
    }

    /// Nothing of it writes any more.
    pub async fn end_copy_ahead(&self, volume: &MachineId) -> Result<()> {
        let path = self.dir(volume).join("precopy.json");
        blocking(move || {
            if !path.exists() {
                return Ok(());
            }
            let spec = PrecopySpec::read(&path)?;
            host::precopy_stop(&spec)?;
            precopy::forget_result(&spec.control)?;
            std::fs::remove_file(&path).map_err(io("remove", &path))
        })
        .await
    }
}
