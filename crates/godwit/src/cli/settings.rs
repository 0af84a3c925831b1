//! Where control is and by which token we name ourselves: flag, then environment, then the user's file, then the
//! default. Knows the origin of each value, so that `config show` can tell it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::args::Global;
use crate::error::{CliError, Result};

/// Where `godwit dev` serves its API unless told otherwise.
pub const DEFAULT_API_URL: &str = "http://127.0.0.1:4280";

/// `~/.config/godwit/config.toml`, readable by its owner alone.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserFile {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// PEM of the authorities that `https://` addresses are trusted by, instead of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// The app that commands mean when they name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    FlagOrEnvironment,
    File,
    Default,
}

impl Origin {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FlagOrEnvironment => "flag or environment",
            Self::File => "file",
            Self::Default => "default",
        }
    }
}

pub struct Settings {
    pub api_url: (String, Origin),
    pub token: Option<(String, Origin)>,
    pub ca_file: Option<(String, Origin)>,
    pub app: Option<(String, Origin)>,
}

impl Settings {
    pub fn load(global: &Global) -> Result<Self> {
        let file = UserFile::read()?;
        let choose = |flag: &Option<String>, file: Option<String>| {
            let flag = flag.clone().filter(|text| !text.is_empty()).map(|text| (text, Origin::FlagOrEnvironment));
            flag.or_else(|| file.map(|text| (text, Origin::File)))
        };
        let app = std::env::var("GODWIT_APP").ok();
        let settings = Self {
            api_url: choose(&global.api_url, file.api_url)
                .unwrap_or_else(|| (DEFAULT_API_URL.to_owned(), Origin::Default)),
            token: choose(&global.token, file.token),
            ca_file: choose(&global.ca_file, file.ca_file),
            app: choose(&app, file.app),
        };
        check_url(&settings.api_url.0)?;
        Ok(settings)
    }
}

/// `http://host:port` or `https://host:port`.
pub fn check_url(url: &str) -> Result<()> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let fits = rest.is_some_and(|rest| !rest.is_empty() && rest.parse::<http::uri::Authority>().is_ok());
    if fits {
        return Ok(());
    }
    Err(CliError::usage(format!("{url:?} is no address of an API"))
        .hint("write it as http://HOST:PORT or https://HOST:PORT, without a path"))
}

pub fn user_file_path() -> Result<PathBuf> {
    let folder = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = folder.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
    let folder = folder.ok_or_else(|| CliError::failed("neither HOME nor XDG_CONFIG_HOME is set"))?;
    Ok(folder.join("godwit/config.toml"))
}

impl UserFile {
    /// Empty when there is none.
    pub fn read() -> Result<Self> {
        let Ok(path) = user_file_path() else { return Ok(Self::default()) };
        let Some(bytes) = godwit_base::durable::read(&path)? else { return Ok(Self::default()) };
        let text = String::from_utf8_lossy(&bytes);
        toml::from_str(&text).map_err(|error| {
            CliError::usage(format!("{} is wrong: {error}", path.display())).hint("mend it, or delete it")
        })
    }

    pub fn write(&self) -> Result<PathBuf> {
        let path = user_file_path()?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let text = toml::to_string(self).map_err(|error| CliError::failed(error.to_string()))?;
        godwit_base::durable::write(&path, text.as_bytes(), 0o600)?;
        Ok(path)
    }
}
