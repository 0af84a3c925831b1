//! What an update changes, as a person reads it: the image by name and digest, each member before and after.

use godwit_api::config::MachineConfig;
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::ImagesList;
use godwit_api::fields;
use godwit_api::fleet::Image;
use godwit_api::machine::Machine;
use serde_json::{Value, json};

use super::spec::Config;
use crate::cli::context::Context;
use crate::cli::output::{short_digest, short_value};
use crate::error::Result;

/// A configuration as the API would answer it, so that two spellings of one thing do not differ. What does not fit
/// stays as it is: the API will say why.
pub fn normal(config: &Config) -> Config {
    let mut request = json!({ "config": config });
    fields::drop_nulls(&mut request);
    let typed = fields::expand_size(&mut request)
        .ok()
        .and_then(|()| serde_json::from_value::<MachineConfig>(request["config"].take()).ok())
        .and_then(|config| value_of(&config).ok());
    typed.unwrap_or_else(|| config.clone())
}

pub fn value_of(config: &MachineConfig) -> Result<Config> {
    match serde_json::to_value(config)? {
        Value::Object(members) => Ok(members),
        _ => Ok(Config::new()),
    }
}

/// What differs besides the image: `path: old → new`, `+ path: new`, `- path: old`.
pub fn difference(before: &Config, after: &Config) -> Vec<String> {
    let flat = |config: &Config| {
        let mut members = Vec::new();
        flatten("", &Value::Object(config.clone()), &mut members);
        members.retain(|(path, _)| path != "image" && !is_told(path));
        members
    };
    let (before, after) = (flat(before), flat(after));
    let mut lines: Vec<(&str, String)> = Vec::new();
    for (path, old) in &before {
        match after.iter().find(|(other, _)| other == path) {
            None => lines.push((path, format!("- {path}: {}", short_value(old)))),
            Some((_, new)) if new != old => {
                lines.push((path, format!("{path}: {} → {}", short_value(old), short_value(new))));
            }
            Some(_) => {}
        }
    }
    for (path, new) in &after {
        if !before.iter().any(|(other, _)| other == path) {
            lines.push((path, format!("+ {path}: {}", short_value(new))));
        }
    }
    lines.sort_by(|a, b| a.0.cmp(b.0));
    lines.into_iter().map(|(_, line)| line).collect()
}

/// Name and size of a volume come with an answer, and are no part of what is wanted.
fn is_told(path: &str) -> bool {
    path.strip_prefix("mounts.")
        .and_then(|rest| rest.split_once('.'))
        .is_some_and(|(_, member)| matches!(member, "name" | "size_gb"))
}

fn flatten(path: &str, value: &Value, members: &mut Vec<(String, Value)>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(object) => object.iter().for_each(|(name, value)| flatten(&below(name), value, members)),
        Value::Array(array) => {
            array.iter().enumerate().for_each(|(n, value)| flatten(&below(&n.to_string()), value, members));
        }
        value => members.push((path.to_owned(), value.clone())),
    }
}

/// The image's line, if another name is wanted, or the same name means another image now.
pub async fn of_image(context: &Context, machine: &Machine, after: &Config) -> Result<Option<String>> {
    let wanted = after.get("image").and_then(Value::as_str).unwrap_or_default();
    let now = &machine.image_ref.digest;
    let next = match digest_in(wanted) {
        Some(digest) => Some(digest.to_owned()),
        None => digest_of(&images(context).await?, wanted),
    };
    if next.as_ref() == Some(now) && (wanted == machine.config.image || digest_in(wanted).is_some()) {
        return Ok((wanted != machine.config.image).then(|| format!("image: {} → {wanted}", machine.config.image)));
    }
    if next.is_none() && wanted == machine.config.image {
        return Ok(None);
    }
    let name = if wanted == machine.config.image { "" } else { wanted };
    let next =
        next.map_or_else(|| "(not loaded)".to_owned(), |digest| short_digest(&digest).replacen("sha256:", "", 1));
    Ok(Some(format!("image: {} → {next} {name}", short_digest(now)).trim_end().to_owned()))
}

/// The newer image that stands under the Machine's tag, if there is one.
pub async fn moved_tag(context: &Context, machine: &Machine) -> Result<Option<String>> {
    if digest_in(&machine.config.image).is_some() {
        return Ok(None);
    }
    let next = digest_of(&images(context).await?, &machine.config.image);
    Ok(next.filter(|digest| *digest != machine.image_ref.digest))
}

async fn images(context: &Context) -> Result<Vec<Image>> {
    Ok(context.client.call::<ImagesList>(&[], &Empty {}, &Empty {}).await?)
}

fn digest_in(image: &str) -> Option<&str> {
    image.split_once('@').map(|(_, digest)| digest)
}

/// What a name means now. Without a tag it means `latest`.
fn digest_of(images: &[Image], wanted: &str) -> Option<String> {
    let has_tag = wanted.rsplit('/').next().is_some_and(|last| last.contains(':'));
    let full = if has_tag { wanted.to_owned() } else { format!("{wanted}:latest") };
    images.iter().find(|image| image.name == full).map(|image| image.digest.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_shows_what_changes_and_only_that() {
        let old = MachineConfig { image: "a".into(), ..Default::default() };
        let mut new = old.clone();
        new.guest.memory_mb = 512;
        new.env.insert("K".into(), "v".into());
        let lines = difference(&value_of(&old).unwrap(), &value_of(&new).unwrap());
        assert_eq!(lines, ["+ env.K: \"v\"", "guest.memory_mb: 256 → 512"]);
        assert!(difference(&value_of(&old).unwrap(), &value_of(&old).unwrap()).is_empty());
    }

    #[test]
    fn two_spellings_of_one_thing_do_not_differ() {
        let spelled = json!({ "image": "a", "env": null, "size": "shared-cpu-1x", "services": [{ "internal_port": 1, "autostop": "stop" }] });
        let answered = json!({ "image": "a", "guest": { "cpu_kind": "shared", "cpus": 1, "memory_mb": 256 }, "services": [{ "internal_port": 1, "autostop": true }] });
        let normal = |value: &Value| super::normal(value.as_object().expect("an object"));
        assert_eq!(normal(&spelled), normal(&answered));
    }
}
