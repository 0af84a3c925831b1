//! `--volume`: which volume goes where in a Machine, and whom a name means. Looks volumes up only when one is named.

use godwit_api::config::MOUNTS_MAX;
use godwit_api::{AppName, MachineId, VolumeId};
use serde_json::{Value, json};

use super::spec::{Config, array};

use crate::cli::context::Context;
use crate::cli::volumes::find;
use crate::error::{CliError, Result};

/// One `--volume`: VOLUME:/PATH[,uid=N,gid=N,mode=OCTAL].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountSpec {
    /// An id or a name.
    volume: String,
    path: String,
    /// Owner and permissions of the root folder of a volume that is empty still.
    owner: Vec<(&'static str, u32)>,
}

impl std::str::FromStr for MountSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let (volume, path) = parts.next().unwrap_or_default().split_once(':').unwrap_or((text, ""));
        if volume.is_empty() || !path.starts_with('/') || path.len() < 2 {
            return Err("say VOLUME:/PATH, with a path below / inside the Machine".to_owned());
        }
        if path.contains(':') {
            return Err("say VOLUME:/PATH; options stand behind a comma: VOLUME:/PATH,uid=1000,gid=1000".to_owned());
        }
        let mut owner = Vec::new();
        for option in parts {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let (name, number) = match name {
                "uid" => ("uid", value.parse().ok()),
                "gid" => ("gid", value.parse().ok()),
                _ => return Err(format!("unknown volume option {option:?}; use uid=N or gid=N")),
            };
            owner.push((name, number.ok_or_else(|| format!("{option:?}: say {name}=1000"))?));
        }
        Ok(Self { volume: volume.to_owned(), path: path.to_owned(), owner })
    }
}

fn text<'a>(mount: &'a Value, member: &str) -> &'a str {
    mount.get(member).and_then(Value::as_str).unwrap_or_default()
}

/// Lays mounts over a configuration: what stood at the same path, or of the same volume, gives way.
pub fn apply(specs: &[MountSpec], config: &mut Config) -> Result<()> {
    if specs.is_empty() {
        return Ok(());
    }
    let mounts = array(config, "mounts")?;
    for (number, spec) in specs.iter().enumerate() {
        if specs[..number].iter().any(|other| other.path == spec.path) {
            return Err(CliError::usage(format!("two volumes cannot both be at {}", spec.path)));
        }
        if specs[..number].iter().any(|other| other.volume == spec.volume) {
            return Err(CliError::usage(format!("volume {} cannot be at two places", spec.volume)));
        }
        mounts.retain(|mount| text(mount, "path") != spec.path && text(mount, "volume") != spec.volume);
        let mut mount = json!({ "volume": spec.volume, "path": spec.path });
        for (name, number) in &spec.owner {
            mount[*name] = json!(number);
        }
        mounts.push(mount);
    }
    if mounts.len() > MOUNTS_MAX {
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
    config: &mut Config,
) -> Result<()> {
    let Some(mounts) = config.get_mut("mounts").and_then(Value::as_array_mut) else { return Ok(()) };
    // A file may say `name` where a flag can only say one thing. What says neither is for the API to refuse.
    let name = |mount: &Value| {
        let volume = if text(mount, "volume").is_empty() { text(mount, "name") } else { text(mount, "volume") };
        (!volume.is_empty() && VolumeId::parse(volume).is_err()).then(|| volume.to_owned())
    };
    if !mounts.iter().any(|mount| name(mount).is_some()) {
        return Ok(());
    }
    let volumes = find::list(context, app).await?;
    let mut found: Vec<(String, String)> = Vec::new();
    for mount in mounts.iter_mut() {
        let Some(name) = name(mount) else { continue };
        let id = find::free_by_name(&volumes, app, &name, region, machine)?.to_string();
        found.push((id.clone(), text(mount, "path").to_owned()));
        if let Some(members) = mount.as_object_mut() {
            members.insert("volume".into(), id.into());
            members.remove("name");
        }
    }
    // Named anew, a volume that the Machine holds already moves to its new path.
    mounts.retain(|mount| {
        !found.iter().any(|(volume, path)| volume == text(mount, "volume") && path != text(mount, "path"))
    });
    Ok(())
}

/// Takes away the mount of a volume, named by its id, by its name as the API shows it, or by its path.
pub fn remove(which: &str, config: &mut Config) -> Result<bool> {
    let mounts = array(config, "mounts")?;
    let before = mounts.len();
    mounts.retain(|mount| !["volume", "path", "name"].iter().any(|member| text(mount, member) == which));
    Ok(mounts.len() < before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_in_flyctls_form_and_laid_over_what_stands_there() {
        let spec = |text: &str| text.parse::<MountSpec>().unwrap();
        for bad in ["", "data", "data:", ":/data", "data:rel", "data:/", "data:/d:ro", "data:/d,ro", "data:/d,uid=x"] {
            assert!(bad.parse::<MountSpec>().is_err(), "{bad:?}");
        }
        let mut config: Config = toml::from_str(
            "image = 'x'\n[[mounts]]\nvolume = 'vol_00000000000001'\npath = '/data'\n\
             [[mounts]]\nvolume = 'vol_00000000000002'\npath = '/logs'\n",
        )
        .unwrap();
        apply(&[spec("vol_00000000000003:/data"), spec("other:/new,uid=1000,gid=50")], &mut config).unwrap();
        let mounts = config["mounts"].as_array().cloned().expect("a list");
        let places: Vec<String> =
            mounts.iter().map(|mount| format!("{}:{}", text(mount, "volume"), text(mount, "path"))).collect();
        assert_eq!((&mounts[2]["uid"], &mounts[2]["gid"]), (&json!(1000), &json!(50)));
        assert_eq!(places, ["vol_00000000000002:/logs", "vol_00000000000003:/data", "other:/new"]);
        assert!(apply(&[spec("a:/x"), spec("b:/x")], &mut config).is_err());
        assert!(apply(&[spec("a:/x"), spec("a:/y")], &mut config).is_err());
        let many: Vec<MountSpec> = (0..9).map(|n| spec(&format!("v{n}:/m{n}"))).collect();
        assert!(apply(&many, &mut Config::new()).is_err());
        assert!(remove("/logs", &mut config).unwrap() && remove("other", &mut config).unwrap());
        assert!(!remove("/logs", &mut config).unwrap(), "it is gone");
    }
}
