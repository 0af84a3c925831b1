//! Configuration files: TOML, unknown fields refused, errors that name file and field.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration {path} is wrong")]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
}

/// Reads a raw configuration; its struct should say `#[serde(deny_unknown_fields)]`.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })
}
