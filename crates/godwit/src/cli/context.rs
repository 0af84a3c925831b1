//! What every command of the API has at hand: the client, the way to speak, the way to ask, and the way to find which
//! app and Machine are meant.

use std::cell::RefCell;
use std::io::{BufRead, IsTerminal, Write};
use std::time::{Duration, Instant};

use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{AppsList, HostsList, ImagesList, MachinesList, MachinesShow, OrgQuery};
use godwit_api::machine::{ListMachines, Machine, MachineState};
use godwit_api::{ApiError, AppName, MachineId};
use godwit_base::http::client::{CallError, Client};

use super::guess::did_you_mean;
use super::output::{Output, Style};
use super::settings::Settings;
use crate::args::Global;
use crate::error::{CliError, Result};
use crate::exit::Exit;

/// How often a state is looked at while it is waited for.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(150);
/// A started Machine that is in none of these has failed to start.
pub const ON_THE_WAY_UP: [MachineState; 5] = [
    MachineState::Created,
    MachineState::Starting,
    MachineState::Restarting,
    MachineState::Replacing,
    MachineState::Stopping,
];

pub struct Context {
    pub client: Client,
    pub output: Output,
    pub yes: bool,
    default_app: Option<String>,
    asked: RefCell<Option<Asked>>,
}

/// What a call was about.
#[derive(Clone)]
pub enum Asked {
    App(String),
    Host(String),
    Image(String),
}

/// Which app a command means.
#[derive(clap::Args, Clone)]
pub struct AppOption {
    /// The app; default: GODWIT_APP, or the app set with `godwit config set app`
    #[arg(short, long, value_name = "APP")]
    pub app: Option<String>,
}

impl Context {
    pub fn new(global: &Global) -> Result<Self> {
        let settings = Settings::load(global)?;
        let (url, token) = (&settings.api_url.0, settings.token.map(|(token, _)| token));
        let client = match settings.ca_file {
            Some((file, _)) if url.starts_with("https://") => Client::trusting(url, token, file.as_ref())
                .map_err(|error| CliError::usage(error.to_string()).hint("see `godwit config show`"))?,
            _ => Client::tcp(url, token),
        };
        Ok(Self {
            client,
            output: Output {
                json: global.json,
                quiet: global.quiet,
                wide: global.wide,
                style: Style::for_stdout(global.color),
            },
            yes: global.yes,
            default_app: settings.app.map(|(app, _)| app),
            asked: RefCell::new(None),
        })
    }

    /// The named app, or the default.
    pub fn app(&self, option: &AppOption) -> Result<AppName> {
        let name = self.named_app(option).ok_or_else(|| {
            CliError::usage("no app was given")
                .hint("add --app NAME, or set GODWIT_APP or `godwit config set app NAME`")
        })?;
        let name = AppName::parse(&name).map_err(|error| CliError::usage(error.to_string()))?;
        self.about(Asked::App(name.to_string()));
        Ok(name)
    }

    /// The app that was named, in whatever way.
    pub fn named_app(&self, option: &AppOption) -> Option<String> {
        option.app.clone().or_else(|| self.default_app.clone())
    }

    /// The Machine of exactly this id or, within a named app, exactly this name. Without an app, all are looked at.
    pub async fn machine(&self, option: &AppOption, which: &str) -> Result<(AppName, Machine)> {
        if self.named_app(option).is_some() {
            let app = self.app(option)?;
            return match self.machine_of(&app, which).await? {
                Some(machine) => Ok((app, machine)),
                None => Err(self.no_machine(&app, which).await),
            };
        }
        let apps = self.client.call::<AppsList>(&[], &OrgQuery::default(), &Empty {}).await?;
        for app in apps.apps {
            let app = AppName::parse(&app.name).map_err(|error| CliError::failed(error.to_string()))?;
            // A name may stand in several apps, an id in one.
            if MachineId::parse(which).is_ok()
                && let Some(machine) = self.machine_of(&app, which).await?
            {
                return Ok((app, machine));
            }
        }
        Err(CliError::not_found(format!("there is no Machine {which}"))
            .hint("to use a name instead of an id, add --app"))
    }

    async fn no_machine(&self, app: &AppName, which: &str) -> CliError {
        let error = CliError::not_found(format!("app {app} has no Machine {which}"));
        let query = ListMachines::default();
        let machines =
            match self.client.call::<MachinesList>(&[app.as_str()], &query, &Empty {}).await.map_err(CliError::from) {
                Ok(machines) => machines,
                // It is the app that is not there.
                Err(other) if other.exit == Exit::NotFound => return other,
                Err(_) => return error,
            };
        let names: Vec<String> =
            machines.into_iter().flat_map(|machine| [machine.name, machine.id.to_string()]).collect();
        match did_you_mean(which, &names) {
            Some(guess) => error.hint(guess),
            None => error.hint(format!("`godwit machine list -a {app}` lists its Machines")),
        }
    }

    /// What an app, a host or an image that is not there may have been meant to be.
    pub async fn guess(&self, error: CliError) -> CliError {
        if error.exit != Exit::NotFound || error.hint.is_some() {
            return error;
        }
        let asked = self.asked.borrow().clone();
        let (names, list) = match &asked {
            Some(Asked::App(_)) => (self.app_names().await, "godwit apps list"),
            Some(Asked::Host(_)) => (self.host_names().await, "godwit host list"),
            Some(Asked::Image(_)) => (self.image_names().await, "godwit image list"),
            None => return error,
        };
        let (Ok(names), Some(Asked::App(wrong) | Asked::Host(wrong) | Asked::Image(wrong))) = (names, asked) else {
            return error;
        };
        // The thing itself is there: something else of it is not.
        if names.contains(&wrong) {
            return error;
        }
        match did_you_mean(&wrong, &names) {
            Some(guess) => error.hint(guess),
            None => error.hint(format!("`{list}` lists them")),
        }
    }

    /// Notes what a call is about, so that a 404 can be answered with a guess.
    pub fn about(&self, asked: Asked) {
        *self.asked.borrow_mut() = Some(asked);
    }

    pub async fn app_names(&self) -> Result<Vec<String>> {
        let apps = self.client.call::<AppsList>(&[], &OrgQuery::default(), &Empty {}).await?;
        Ok(apps.apps.into_iter().map(|app| app.name).collect())
    }

    /// An error with the nearest names if there is no such host.
    pub async fn known_host(&self, host: &str) -> Result<()> {
        let known = self.host_names().await?;
        if known.iter().any(|id| id == host) {
            return Ok(());
        }
        let error = CliError::not_found(format!("there is no host {host}"));
        Err(match did_you_mean(host, &known) {
            Some(guess) => error.hint(guess),
            None => error.hint("`godwit host list` shows the hosts"),
        })
    }

    /// An error of a call that named a host, or that there is no such host, if that is why.
    pub async fn or_unknown_host(&self, error: CliError, host: Option<&str>) -> CliError {
        let Some(host) = host.filter(|_| error.exit == Exit::Failed) else { return error };
        match self.known_host(host).await {
            Err(unknown) if unknown.exit == Exit::NotFound => unknown,
            _ => error,
        }
    }

    pub async fn host_names(&self) -> Result<Vec<String>> {
        let hosts = self.client.call::<HostsList>(&[], &Empty {}, &Empty {}).await?;
        Ok(hosts.into_iter().map(|host| host.id).collect())
    }

    /// With their tags and, where that is `latest`, without.
    pub async fn image_names(&self) -> Result<Vec<String>> {
        let images = self.client.call::<ImagesList>(&[], &Empty {}, &Empty {}).await?;
        let short = |name: &str| name.strip_suffix(":latest").map(str::to_owned);
        Ok(images.into_iter().flat_map(|image| [short(&image.name), Some(image.name)]).flatten().collect())
    }

    async fn machine_of(&self, app: &AppName, which: &str) -> Result<Option<Machine>> {
        if MachineId::parse(which).is_ok() {
            return match self.client.call::<MachinesShow>(&[app.as_str(), which], &Empty {}, &Empty {}).await {
                Ok(machine) => Ok(Some(machine)),
                Err(CallError::Answered(ApiError { code: 404, .. })) => Ok(None),
                Err(error) => Err(error.into()),
            };
        }
        let machines = self.client.call::<MachinesList>(&[app.as_str()], &ListMachines::default(), &Empty {}).await?;
        Ok(machines.into_iter().find(|machine| machine.name == which))
    }

    pub async fn show(&self, app: &AppName, id: &MachineId) -> Result<Machine> {
        Ok(self.client.call::<MachinesShow>(&[app.as_str(), id.as_str()], &Empty {}, &Empty {}).await?)
    }

    /// Waits until the Machine is in `wanted`; a state outside `on_the_way` (when given) is a failure at once.
    pub async fn wait_for(
        &self,
        app: &AppName,
        id: &MachineId,
        wanted: &[MachineState],
        on_the_way: Option<&[MachineState]>,
        timeout: Duration,
    ) -> Result<Machine> {
        let names: Vec<&str> = wanted.iter().map(|state| state.as_str()).collect();
        let names = names.join(" or ");
        let _progress = self.output.progress(format!("waiting until Machine {id} is {names}"));
        let deadline = Instant::now() + timeout;
        loop {
            let machine = tokio::select! {
                machine = self.show(app, id) => machine,
                _ = tokio::signal::ctrl_c() => return Err(detached(id)),
            };
            let state = match machine {
                Ok(machine) if wanted.contains(&machine.state) => return Ok(machine),
                Ok(machine) => {
                    if on_the_way.is_some_and(|states| !states.contains(&machine.state)) {
                        return Err(went_wrong(app, &machine, &names));
                    }
                    machine.state.as_str()
                }
                // A destroyed Machine is soon unknown.
                Err(error) if error.exit == Exit::NotFound => return Err(error),
                Err(error) if error.exit == Exit::Unreachable => "unknown: control does not answer",
                Err(error) => return Err(error),
            };
            if Instant::now() > deadline {
                let why = format!("Machine {id} is {state}, not {names}, after {} s", timeout.as_secs());
                return Err(CliError::new(Exit::TimedOut, why)
                    .hint(format!("it continues: `godwit machine wait {id} -a {app}` waits again")));
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                _ = tokio::signal::ctrl_c() => return Err(detached(id)),
            }
        }
    }

    /// Asks a question that `--yes` answers. Where nobody can be asked, that is an error.
    pub fn confirm(&self, question: &str) -> Result<()> {
        if self.yes {
            return Ok(());
        }
        if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            return Err(CliError::usage("this needs a confirmation, and there is no terminal to ask on: add --yes")
                .hint(question.to_owned()));
        }
        eprint!("{question} [y/N] ");
        std::io::stderr().flush()?;
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer)?;
        if matches!(answer.trim(), "y" | "Y" | "yes") {
            return Ok(());
        }
        Err(CliError::new(Exit::Declined, "Cancelled; nothing was changed."))
    }
}

fn detached(id: &MachineId) -> CliError {
    CliError::new(Exit::Interrupted, format!("stopped waiting; the operation on Machine {id} continues"))
}

fn went_wrong(app: &AppName, machine: &Machine, wanted: &str) -> CliError {
    let reason = machine.events.iter().find_map(|event| {
        let detail = event.request.as_ref()?;
        detail.reason.clone().or_else(|| {
            let exit = detail.exit_event.as_ref()?;
            Some(format!("its process {}", exit.words()))
        })
    });
    let why = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
    CliError::failed(format!("Machine {} is {}, not {wanted}{why}", machine.id, machine.state.as_str()))
        .hint(format!("`godwit logs -a {app} --machine {}` shows its output", machine.id))
}
