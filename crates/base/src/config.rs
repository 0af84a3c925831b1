//! Configuration files: TOML, unknown keys refused, errors that name file, line and key, and the key that was meant.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration {path} is wrong")]
    Parse { path: PathBuf, source: Box<Mistake> },
}

/// What is wrong in a file, in one line.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct Mistake {
    /// The first one is 1.
    pub line: usize,
    pub what: String,
}

/// Reads a raw configuration; its struct should say `#[serde(deny_unknown_fields)]`.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        let what = explain(error.message());
        ConfigError::Parse { path: path.to_owned(), source: Box::new(Mistake { line, what }) }
    })
}

/// serde's words for an unknown key list all known ones: the near one says more.
fn explain(message: &str) -> String {
    let Some(rest) = message.strip_prefix("unknown field `") else { return message.replace('\n', "; ") };
    let Some((unknown, rest)) = rest.split_once('`') else { return message.to_owned() };
    // Each known key stands between two backticks.
    let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
    match nearest(unknown, &known) {
        Some(near) => format!("unknown key `{unknown}`; did you mean `{near}`?"),
        None => format!("unknown key `{unknown}`; known here: {}", known.join(", ")),
    }
}

/// Of words that a person may have mistyped: the nearest, if it is near enough to be meant.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    const LEAST: f64 = 0.85;
    let distance = |candidate: &&str| strsim::jaro_winkler(word, candidate);
    known.iter().copied().filter(|one| distance(one) >= LEAST).max_by(|a, b| distance(a).total_cmp(&distance(b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Raw {
        #[serde(rename = "listen")]
        _listen: String,
        #[serde(rename = "control_url", default)]
        _control_url: String,
        #[serde(rename = "driver", default)]
        _driver: Driver,
    }

    #[derive(Debug, Default, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Driver {
        #[serde(rename = "run_dir")]
        _run_dir: String,
    }

    #[test]
    fn a_mistake_is_one_line_that_names_the_line_and_the_key_that_was_meant() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("role.toml");
        let said = |text: &str| {
            std::fs::write(&path, text).unwrap();
            crate::telemetry::chain(&read::<Raw>(&path).unwrap_err())
        };
        let name = path.display().to_string();
        let near = said("listen = 'x'\n\nconrol_url = 'y'\n");
        assert!(near.contains(&name) && near.contains("line 3: unknown key `conrol_url`; did you mean `control_url`?"));
        assert!(
            said("listen = 'x'\n[driver]\nrundir = 'y'")
                .contains("line 3: unknown key `rundir`; did you mean `run_dir`?")
        );
        assert!(said("listen = 'x'\ncolour = 'y'").contains("known here: listen, control_url, driver"));
        assert!(said("control_url = 'x'").contains("missing field `listen`"));
        assert!(said("listen = 3").contains("line 1: invalid type"));
        assert!(said("listen = ").contains("line 1"));
        for text in ["listen = ", "listen = [", "= 3", "listen = 'x'\n[driver"] {
            assert_eq!(said(text).lines().count(), 1, "{text:?}");
        }
        let missing = folder.path().join("none.toml");
        assert!(crate::telemetry::chain(&read::<Raw>(&missing).unwrap_err()).contains("none.toml"));
    }
}
