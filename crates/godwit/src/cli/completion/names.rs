//! The names that a command's argument may take, asked of the fleet that the command means, within a bounded time.
//! What an argument takes is told by its value's name in the help, so that help and completions agree.

use std::time::Duration;

use clap::{ArgMatches, FromArgMatches};
use futures_util::StreamExt;
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{CertificatesList, HostsList, ImagesList, MachinesList, MigrationsList, VolumesList};
use godwit_api::machine::ListMachines;
use godwit_api::migration::ListMigrations;

use super::line::FILES;
use crate::args::Global;
use crate::cli::context::{AppOption, Context};
use crate::cli::settings::UserFile;
use crate::error::Result;

/// A shell waits for no more than this and the start of our process.
const TIME: Duration = Duration::from_millis(700);
/// So many apps are asked for their Machines when none was named, so many at once.
const APPS_MAX: usize = 64;
const APPS_AT_ONCE: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    App,
    Machine,
    /// `MACHINE:/PATH`, or a local path.
    MachinePath,
    Volume,
    /// `VOLUME:/PATH`.
    Mount,
    Host,
    Region,
    Image,
    Hostname,
    Migration,
    Context,
    File,
}

impl Kind {
    /// By the name of an argument's value.
    pub fn of(value_name: &str) -> Option<Self> {
        Some(match value_name {
            "APP" => Self::App,
            "MACHINE" => Self::Machine,
            "SOURCE" | "TARGET" => Self::MachinePath,
            "VOLUME" | "VOLUME|/PATH" => Self::Volume,
            "VOLUME:/PATH" => Self::Mount,
            "HOST" => Self::Host,
            "REGION" => Self::Region,
            "IMAGE" => Self::Image,
            "HOSTNAME" => Self::Hostname,
            "MIGRATION" => Self::Migration,
            "CONTEXT" => Self::Context,
            "FILE" | "DIR" | "PATH" | "FILE|JSON" => Self::File,
            _ => return None,
        })
    }
}

/// A name, and what a person may want to know of it.
pub type Named = (String, String);

/// All names of a kind that begin with `current`, as far as they could be had in time; nothing where they could not.
pub fn find(kind: Kind, current: &str, matches: &ArgMatches) -> Vec<Named> {
    let mut found = Vec::new();
    match kind {
        Kind::File => found.push((FILES.to_owned(), String::new())),
        Kind::MachinePath if current.starts_with(['.', '/', '~']) => found.push((FILES.to_owned(), String::new())),
        Kind::Context => {
            let names = UserFile::read().map(|file| file.names()).unwrap_or_default();
            found.extend(names.into_iter().map(|name| (name, String::new())));
        }
        _ => ask_in_time(kind, current, matches, &mut found),
    }
    found.retain(|(name, _)| name == FILES || name.starts_with(current));
    found.sort();
    found.dedup_by(|a, b| a.0 == b.0);
    found
}

fn ask_in_time(kind: Kind, current: &str, matches: &ArgMatches, found: &mut Vec<Named>) {
    let Ok(global) = Global::from_arg_matches(matches) else { return };
    let Ok(context) = Context::new(&global) else { return };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    let app = matches.try_get_one::<String>("app").ok().flatten().cloned();
    let asking = Asking { context, app: AppOption { app }, current };
    // What was found by then is offered; what failed is nobody's business while a line is written.
    let _ = runtime.block_on(async { tokio::time::timeout(TIME, asking.names(kind, found)).await });
    // A resolver that hangs is not waited for.
    runtime.shutdown_background();
}

struct Asking<'a> {
    context: Context,
    app: AppOption,
    current: &'a str,
}

impl Asking<'_> {
    async fn names(&self, kind: Kind, found: &mut Vec<Named>) -> Result<()> {
        let client = &self.context.client;
        match kind {
            Kind::App => found.extend(self.context.app_names().await?.into_iter().map(|name| (name, String::new()))),
            Kind::Machine => self.machines(found).await?,
            Kind::MachinePath => {
                self.machines(found).await?;
                found.iter_mut().for_each(|(name, _)| name.push(':'));
            }
            Kind::Volume | Kind::Mount => self.volumes(kind == Kind::Mount, found).await?,
            Kind::Host | Kind::Region => {
                let hosts = client.call::<HostsList>(&[], &Empty {}, &Empty {}).await?;
                found.extend(hosts.into_iter().map(|host| match kind {
                    Kind::Host => (host.id, format!("{}, {}", host.region, host.state)),
                    _ => (host.region, String::new()),
                }));
            }
            Kind::Image => {
                let images = client.call::<ImagesList>(&[], &Empty {}, &Empty {}).await?;
                let short = |name: String| name.strip_suffix(":latest").map(str::to_owned).unwrap_or(name);
                found.extend(images.into_iter().map(|image| (short(image.name), String::new())));
            }
            Kind::Hostname => {
                let app = self.context.app(&self.app)?;
                let page = client.call::<CertificatesList>(&[app.as_str()], &Default::default(), &Empty {}).await?;
                found.extend(page.certificates.into_iter().map(|row| (row.hostname, row.status)));
            }
            Kind::Migration => {
                let query = ListMigrations { all: Some(true), ..Default::default() };
                let all = client.call::<MigrationsList>(&[], &query, &Empty {}).await?;
                found.extend(all.into_iter().map(|migration| (migration.id.to_string(), String::new())));
            }
            Kind::Context | Kind::File => {}
        }
        Ok(())
    }

    /// Within an app names count, and ids once one is begun; without one, only ids name a Machine.
    async fn machines(&self, found: &mut Vec<Named>) -> Result<()> {
        let query = ListMachines::default();
        if self.context.named_app(&self.app).is_some() {
            let app = self.context.app(&self.app)?;
            for machine in self.context.client.call::<MachinesList>(&[app.as_str()], &query, &Empty {}).await? {
                let about = format!("{} on {}", machine.state.as_str(), machine.host_id);
                if !self.current.is_empty() && machine.id.as_str().starts_with(self.current) {
                    found.push((machine.id.to_string(), format!("{}, {about}", machine.name)));
                }
                found.push((machine.name, about));
            }
            return Ok(());
        }
        let apps = self.context.app_names().await?;
        let lists = apps.into_iter().take(APPS_MAX).map(|app| {
            let query = &query;
            async move {
                let list = self.context.client.call::<MachinesList>(&[app.as_str()], query, &Empty {}).await;
                (app, list.unwrap_or_default())
            }
        });
        let mut lists = futures_util::stream::iter(lists).buffer_unordered(APPS_AT_ONCE);
        while let Some((app, machines)) = lists.next().await {
            found.extend(machines.into_iter().map(|machine| {
                let about = format!("{} of {app}, {}", machine.name, machine.state.as_str());
                (machine.id.to_string(), about)
            }));
        }
        Ok(())
    }

    /// Those that a Machine could be given are not held by another.
    async fn volumes(&self, to_mount: bool, found: &mut Vec<Named>) -> Result<()> {
        let app = self.context.app(&self.app)?;
        let colon = if to_mount { ":" } else { "" };
        for volume in self.context.client.call::<VolumesList>(&[app.as_str()], &Empty {}, &Empty {}).await? {
            if to_mount && volume.attached_machine_id.is_some() {
                continue;
            }
            let about = format!("{} GB in {}", volume.size_gb, volume.region);
            if !self.current.is_empty() && volume.id.as_str().starts_with(self.current) {
                found.push((format!("{}{colon}", volume.id), format!("{}, {about}", volume.name)));
            }
            found.push((format!("{}{colon}", volume.name), about));
        }
        Ok(())
    }
}
