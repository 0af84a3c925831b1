//! The authority of one dev fleet: drawn once for its folder, it vouches for `APP.localhost`. Its key stays in the folder
//! and is readable by root alone.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};

use crate::error::{CliError, Result};

/// Before now, for clients whose clock is behind.
const BACKDATED: Duration = Duration::from_secs(24 * 3_600);
/// A dev fleet's folder seldom gets so old; without its `edge/authority.pem` a new one is drawn.
const LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);

/// Certificate and key, for the edge.
pub fn authority(dir: &Path) -> PathBuf {
    dir.join("edge/authority.pem")
}

/// The certificate alone, for whoever is to trust it.
pub fn ca_file(dir: &Path) -> PathBuf {
    dir.join("ca.pem")
}

pub fn ensure(dir: &Path) -> Result<()> {
    if authority(dir).exists() && ca_file(dir).exists() {
        return Ok(());
    }
    let failed = |error: rcgen::Error| CliError::failed(format!("an authority cannot be made: {error}"));
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
    let now = SystemTime::now();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + LIFETIME).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::OrganizationName, "Godwit dev fleet");
    params.distinguished_name.push(DnType::CommonName, dir.display().to_string());
    let certificate = params.self_signed(&key).map_err(failed)?.pem();
    let both = format!("{certificate}{}", key.serialize_pem());
    let path = authority(dir);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    godwit_base::durable::write(&path, both.as_bytes(), 0o600)?;
    Ok(godwit_base::durable::write(&ca_file(dir), certificate.as_bytes(), 0o644)?)
}
