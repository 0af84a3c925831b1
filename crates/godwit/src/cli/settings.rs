//! Where control is and by which token we name ourselves: flag, then environment, then the user's file, then the
//! default. Knows the origin of each value, so that `config show` can tell it. The file holds one fleet in plain settings,
//! the context `default`, and others by name; a value never comes from two of them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::guess::did_you_mean;
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
    /// The context in use; the plain settings if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub contexts: BTreeMap<String, Fleet>,
}

/// The context that the plain settings are.
pub const DEFAULT_CONTEXT: &str = "default";

/// What is known of one fleet: the members of `UserFile`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fleet {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
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
    pub context: (String, Origin),
    pub api_url: (String, Origin),
    pub token: Option<(String, Origin)>,
    pub ca_file: Option<(String, Origin)>,
    pub app: Option<(String, Origin)>,
}

impl Settings {
    pub fn load(global: &Global) -> Result<Self> {
        Self::of(UserFile::read()?, global, std::env::var("GODWIT_APP").ok())
    }

    fn of(file: UserFile, global: &Global, app: Option<String>) -> Result<Self> {
        let context = file.chosen(global);
        let fleet = file.fleet(&context.0)?;
        let choose = |flag: &Option<String>, file: Option<String>| {
            let flag = flag.clone().filter(|text| !text.is_empty()).map(|text| (text, Origin::FlagOrEnvironment));
            flag.or_else(|| file.map(|text| (text, Origin::File)))
        };
        let settings = Self {
            context,
            api_url: choose(&global.api_url, fleet.api_url)
                .unwrap_or_else(|| (DEFAULT_API_URL.to_owned(), Origin::Default)),
            token: choose(&global.token, fleet.token),
            ca_file: choose(&global.ca_file, fleet.ca_file),
            app: choose(&app, fleet.app),
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
    Err(CliError::usage(format!("{url:?} is not a valid API address"))
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
            CliError::usage(format!("{} is wrong: {error}", path.display())).hint("fix it, or delete it")
        })
    }

    /// The context that is meant, and who said so.
    pub fn chosen(&self, global: &Global) -> (String, Origin) {
        let flag = global.context.clone().filter(|name| !name.is_empty());
        let flag = flag.map(|name| (name, Origin::FlagOrEnvironment));
        let file = || self.context.clone().map(|name| (name, Origin::File));
        flag.or_else(file).unwrap_or_else(|| (DEFAULT_CONTEXT.to_owned(), Origin::Default))
    }

    pub fn fleet(&self, context: &str) -> Result<Fleet> {
        if context == DEFAULT_CONTEXT {
            let Self { api_url, token, ca_file, app, .. } = self.clone();
            return Ok(Fleet { api_url, token, ca_file, app });
        }
        self.contexts.get(context).cloned().ok_or_else(|| {
            let error = CliError::not_found(format!("there is no context {context:?}"));
            error.hint(
                did_you_mean(context, &self.names()).unwrap_or_else(|| {
                    "`godwit config list` lists them, `godwit config use NAME` chooses one".to_owned()
                }),
            )
        })
    }

    pub fn set_fleet(&mut self, context: &str, fleet: Fleet) {
        if context == DEFAULT_CONTEXT {
            let Fleet { api_url, token, ca_file, app } = fleet;
            (self.api_url, self.token, self.ca_file, self.app) = (api_url, token, ca_file, app);
        } else {
            self.contexts.insert(context.to_owned(), fleet);
        }
    }

    pub fn names(&self) -> Vec<String> {
        std::iter::once(DEFAULT_CONTEXT.to_owned()).chain(self.contexts.keys().cloned()).collect()
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Arguments;

    fn settings(file: &str, words: &[&str]) -> Result<Settings> {
        let line = ["godwit"].iter().chain(words).chain(&["status"]);
        let mut global = Arguments::try_parse_from(line).expect("parses").global;
        // The environment of who runs the tests is no part of them.
        if words.is_empty() {
            global.context = None;
        }
        (global.api_url, global.token, global.ca_file) = (None, None, None);
        Settings::of(toml::from_str(file).expect("a file"), &global, None)
    }

    const FILE: &str = "api_url = 'http://dev:1'\ntoken = 'dev'\napp = 'shop'\n\
        context = 'prod'\n[contexts.prod]\napi_url = 'https://prod:2'\n[contexts.test]\napi_url = 'https://test:3'\ntoken = 't'\n";

    #[test]
    fn a_context_is_whole_and_no_setting_of_another_slips_in() {
        let prod = settings(FILE, &[]).unwrap();
        assert_eq!((prod.context.0.as_str(), prod.api_url.0.as_str()), ("prod", "https://prod:2"));
        assert!(prod.token.is_none() && prod.app.is_none(), "those are the default context's");
        let test = settings(FILE, &["--context", "test"]).unwrap();
        assert_eq!((test.api_url.0.as_str(), test.token.unwrap().0.as_str()), ("https://test:3", "t"));
        assert_eq!(test.context, ("test".to_owned(), Origin::FlagOrEnvironment));
        let plain = settings(FILE, &["--context", "default"]).unwrap();
        assert_eq!((plain.api_url.0.as_str(), plain.token.unwrap().0.as_str()), ("http://dev:1", "dev"));
        let wrong = settings(FILE, &["--context", "prood"]).err().expect("there is none");
        assert!(wrong.hint.unwrap().contains("prod"));
    }

    #[test]
    fn a_file_of_before_is_the_default_context_and_what_is_written_is_read() {
        let old = settings("api_url = 'http://dev:1'\n", &[]).unwrap();
        assert_eq!(old.context, (DEFAULT_CONTEXT.to_owned(), Origin::Default));
        let mut file: UserFile = toml::from_str(FILE).unwrap();
        let fleet = Fleet { api_url: Some("http://new:4".into()), ..Fleet::default() };
        file.set_fleet("new", fleet.clone());
        let again: UserFile = toml::from_str(&toml::to_string(&file).unwrap()).unwrap();
        assert_eq!(again.fleet("new").unwrap(), fleet);
        assert_eq!(again.names(), ["default", "new", "prod", "test"]);
    }
}
