//! `--volume`: which volume goes where in a Machine, and whom a name means. Looks volumes up only when one is named.

use godwit_api::config::{MOUNTS_MAX, MachineConfig, Mount};
use godwit_api::{AppName, MachineId, VolumeId};

use crate::cli::context::Context;
use crate::cli::volumes::find;
use crate::error::{CliError, Result};

/// One `--volume`: VOLUME:/PATH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountSpec {
    /// An id or a name.
    volume: String,
    path: String,
}

impl std::str::FromStr for MountSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (volume, path) = text.split_once(':').unwrap_or((text, ""));
        if volume.is_empty() || !path.starts_with('/') || path.len() < 2 {
            return Err("say VOLUME:/PATH, with a path below / inside the Machine".to_owned());
        }
        if path.contains(':') {
            return Err("a mount has no options: say VOLUME:/PATH".to_owned());
        }
        Ok(Self { volume: volume.to_owned(), path: path.to_owned() })
    }
}

/// Lays mounts over a configuration: what stood at the same path, or of the same volume, gives way.
pub fn apply(specs: &[MountSpec], config: &mut MachineConfig) -> Result<()> {
    for (number, spec) in specs.iter().enumerate() {
        if specs[..number].iter().any(|other| other.path == spec.path) {
            return Err(CliError::usage(format!("two volumes cannot both be at {}", spec.path)));
        }
        if specs[..number].iter().any(|other| other.volume == spec.volume) {
            return Err(CliError::usage(format!("volume {} cannot be at two places", spec.volume)));
        }
        config.mounts.retain(|mount| mount.path != spec.path && mount.volume != spec.volume);
        config.mounts.push(Mount { volume: spec.volume.clone(), path: spec.path.clone(), ..Mount::default() });
    }
    if config.mounts.len() > MOUNTS_MAX {
        return Err(CliError::usage(format!("a Machine holds at most {MOUNTS_MAX} volumes")));
    }
    Ok(())
}

/// Puts ids where names stand, in what flags and files gave.
pub async fn resolve(
    context: &Context,
    app: &AppName,
    region: Option<&str>,
    machine: Option<&MachineId>,
    config: &mut MachineConfig,
) -> Result<()> {
    let is_named = |mount: &Mount| VolumeId::parse(&mount.volume).is_err();
    if !config.mounts.iter().any(is_named) {
        return Ok(());
    }
    let volumes = find::list(context, app).await?;
    let mut found: Vec<Mount> = Vec::new();
    for mount in config.mounts.iter_mut().filter(|mount| is_named(mount)) {
        // A file may say `name` where a flag can only say one thing.
        let name = if mount.volume.is_empty() { std::mem::take(&mut mount.name) } else { mount.volume.clone() };
        mount.volume = find::free_by_name(&volumes, app, &name, region, machine)?.to_string();
        mount.name.clear();
        found.push(mount.clone());
    }
    // Named anew, a volume that the Machine holds already moves to its new path.
    config.mounts.retain(|mount| !found.iter().any(|new| new.volume == mount.volume && new.path != mount.path));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_in_flyctls_form_and_laid_over_what_stands_there() {
        let spec = |text: &str| text.parse::<MountSpec>().unwrap();
        for bad in ["", "data", "data:", ":/data", "data:rel", "data:/", "data:/d:ro"] {
            assert!(bad.parse::<MountSpec>().is_err(), "{bad:?}");
        }
        let mut config: MachineConfig = toml::from_str(
            "image = 'x'\n[[mounts]]\nvolume = 'vol_00000000000001'\npath = '/data'\n\
             [[mounts]]\nvolume = 'vol_00000000000002'\npath = '/logs'\n",
        )
        .unwrap();
        apply(&[spec("vol_00000000000003:/data"), spec("other:/new")], &mut config).unwrap();
        let places: Vec<String> =
            config.mounts.iter().map(|mount| format!("{}:{}", mount.volume, mount.path)).collect();
        assert_eq!(places, ["vol_00000000000002:/logs", "vol_00000000000003:/data", "other:/new"]);
        assert!(apply(&[spec("a:/x"), spec("b:/x")], &mut config).is_err());
        assert!(apply(&[spec("a:/x"), spec("a:/y")], &mut config).is_err());
        let many: Vec<MountSpec> = (0..9).map(|n| spec(&format!("v{n}:/m{n}"))).collect();
        assert!(apply(&many, &mut MachineConfig::default()).is_err());
    }
}
