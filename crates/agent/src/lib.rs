//! The agent: a host's own head. It holds the journal, decides about its Machines, carries the decisions out through
//! the organs, and tells the fleet what is so. With control and the store gone it goes on alone.
//!
//! | file | what it owns |
//! |---|---|
//! | `engine` | every decision: `(event) -> (journal writes, effects, answers)` |
//! | `owner` | the one thread that feeds the engine, commits, and releases what follows |
//! | `effects`, `organs`, `spec` | carrying out steps by driver, network and images |
//! | `adopt` | finding Machines again after a start |
//! | `door` | the door's conversation with its agent |
//! | `api`, `view` | the host API, logs |
//! | `pull`, `facts` | desire comes down, fact goes up |
//! | `checks`, `reach` | health; how a process listens |
//! | `join`, `config`, `crash` | who this host is, how it is set up, how the lab kills it |
//! | `clean` | taking all of the platform off a host |
//! | `needs` | what the machine must have, and what is missing |

mod adopt;
mod api;
mod checks;
pub mod clean;
mod config;
pub mod crash;
mod door;
mod effects;
mod engine;
mod error;
mod exports;
mod facts;
mod join;
mod measure;
mod metrics;
mod needs;
mod organs;
mod owner;
mod pull;
mod reach;
mod spec;
mod view;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use godwit_api::keys;
use godwit_base::http::server::{bind_unix, serve_tcp, serve_unix};
use godwit_base::metrics::{self as exposition, Metrics};
use godwit_base::{Distrust, TaskGroup, clock, folder, secret};
use godwit_driver::Driver;
use godwit_store::journal::Journal;
use godwit_store::{RemoteStore, Store};

pub use config::{Config, DriverChoice, NetworkChoice, Raw};
pub use error::Error;
pub use needs::check;

/// How long what is under way may take to end when the agent stops. Machines are not among it.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs an agent until `group` is told to stop or the agent must give up. Its Machines run on either way.
pub async fn run(config: Config, group: TaskGroup) -> Result<(), Error> {
    run_with(config, None, group).await
}

/// The same with a driver of one's own instead of the configured one.
pub async fn run_with(config: Config, driver: Option<Arc<dyn Driver>>, group: TaskGroup) -> Result<(), Error> {
    needs::demand(&config)?;
    make_folders(&config)?;
    let identity = Arc::new(join::identify(&config, &group).await?);
    let organs = match driver {
        Some(driver) => organs::Organs::with_driver(&config, &identity, driver).await?,
        None => organs::Organs::new(&config, &identity).await?,
    };
    let config = Arc::new(config);
    let parts = Parts::build(config, identity, Arc::new(organs))?;
    parts.run(group).await
}

/// What this host keeps, its Machines' writable layers and secrets among it, is closed to other users.
fn make_folders(config: &Config) -> Result<(), Error> {
    folder::private(&config.data_dir).map_err(Error::io("make", &config.data_dir))?;
    let machines = config.data_dir.join("machines");
    folder::own(&machines).map_err(Error::io("make", &machines))?;
    folder::private_parent(&config.door_socket).map_err(Error::io("make the folder of", &config.door_socket))
}

/// Everything of an agent, before it runs.
struct Parts {
    config: Arc<Config>,
    identity: Arc<join::Identity>,
    journal: Journal,
    resumed: engine::Resumed,
    organs: Arc<organs::Organs>,
}

impl Parts {
    fn build(config: Arc<Config>, identity: Arc<join::Identity>, organs: Arc<organs::Organs>) -> Result<Self, Error> {
        let path = config.data_dir.join("journal.db");
        let unusable = |source| Error::Journal { path: path.clone(), source };
        let journal = Journal::open(&path).map_err(unusable)?;
        let loaded = journal.load().map_err(unusable)?;
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let settings = engine::Settings {
            host: identity.host.clone(),
            incarnation: identity.incarnation.clone(),
            capacity: measure::capacity(&config.capacity, &measure::whole(&config.data_dir)),
            boot_id: boot_id(&config.boot_id_file)?,
            drivers: vec![config.driver.name().to_owned()],
            host_fact_interval_ms: millis(config.host_fact_interval),
            collect_interval_ms: millis(config.collect_interval),
            drain_timeout_ms: millis(config.drain_timeout),
        };
        let draw = Box::new(secret::random_u128);
        let resumed = engine::Engine::resume(settings, loaded, draw, clock::unix_ms())?;
        Ok(Self { config, identity, journal, resumed, organs })
    }

    async fn run(self, group: TaskGroup) -> Result<(), Error> {
        let Self { config, identity, journal, resumed, organs } = self;
        adopt::sweep(&organs, &resumed.machines).await;
        let metrics = Metrics::new();
        let meters = metrics::Meters::new(&metrics);
        let distrust = Distrust::register(&metrics);
        let (inputs, receiver) = owner::Inputs::channel();
        let hub = door::Hub::new(resumed.edges, organs.network.ipv4s());
        let view = view::View::default();
        let outbox = facts::Outbox::default();
        resumed.facts.into_iter().for_each(|fact| outbox.put(fact));
        let soon = pull::PullSoon::default();
        let host = identity.host.clone();
        let effects =
            effects::Effects::new(organs, hub.clone(), config.clone(), host.clone(), inputs.clone(), group.clone());
        let reaches = effects.reaches().clone();
        let store: Arc<dyn Store> = Arc::new(RemoteStore::new(config.control_url.clone(), &identity.key));

        let listener =
            TcpListener::bind(config.listen).await.map_err(Error::io("listen at", config.listen.to_string()))?;
        let door_socket = bind_unix(&config.door_socket).map_err(Error::io("listen at", &config.door_socket))?;

        let rebooted = resumed.engine.is_rebooted();
        let outlets = owner::Outlets {
            effects: effects.clone(),
            hub: hub.clone(),
            view: view.clone(),
            outbox: outbox.clone(),
            meters: meters.clone(),
            moves: metrics::MoveMeters::new(&metrics),
        };
        let mut owner = owner::Owner::new(resumed.engine, journal, receiver, outlets).spawn(group.token())?;

        let leaving = view.clone();
        let api = api::HostApi {
            identity: identity.clone(),
            inputs: inputs.clone(),
            view,
            effects: effects.clone(),
            soon: soon.clone(),
            hub: hub.clone(),
            distrust: distrust.clone(),
            stopping: group.token(),
        };
        let router = api::router(api).merge(exposition::routes(metrics, || Ok(())));
        group.spawn(serve_tcp(listener, router, group.clone()));
        let door_router = door::server::router(hub, inputs.clone(), soon.clone(), reaches, group.token());
        group.spawn(serve_unix(door_socket, door_router, group.clone()));
        group.spawn_cancellable(tell(outbox, store.clone(), keys::facts_fence(&host), inputs.clone()));
        {
            let (effects, view) = (effects.clone(), leaving);
            group.spawn_cancellable(async move { effects.end_leases(view).await });
        }
        group.spawn_cancellable(measured(config.clone(), inputs.clone()));
        let puller = pull::Puller {
            store: store.clone(),
            host: host.clone(),
            control_key: identity.control_key.clone(),
            inputs: inputs.clone(),
            soon: soon.clone(),
            interval: config.pull_interval,
            meters,
            distrust,
        };
        group.spawn_cancellable(async move {
            // What is here is found again before anything new is asked for.
            adopt::adopt(effects, inputs.clone(), resumed.machines, rebooted).await;
            let edges = pull::watch_edges(store.clone(), inputs);
            let placements = pull::watch_placements(store, host, soon);
            tokio::join!(puller.run(), edges, placements);
        });
        tracing::info!(host = %identity.host, listen = %config.listen, "the agent is at work");

        let result = owner.ended().await;
        group.drain(DRAIN_TIMEOUT).await;
        result
    }
}

/// Tells what is in use of this machine, as often as that is published.
async fn measured(config: Arc<Config>, inputs: owner::Inputs) {
    let mut meter = measure::Meter::new(&config.data_dir);
    loop {
        inputs.send(engine::Input::Measured(meter.look())).await;
        tokio::time::sleep(config.host_fact_interval).await;
    }
}

/// Facts go up; the journal hears which have arrived.
async fn tell(outbox: facts::Outbox, store: Arc<dyn Store>, fence: String, inputs: owner::Inputs) {
    let (sender, mut arrived) = tokio::sync::mpsc::channel(1);
    let publishing = facts::publish(outbox, store, fence, sender);
    let noting = async {
        while let Some(facts) = arrived.recv().await {
            inputs.send(engine::Input::Published(facts)).await;
        }
    };
    tokio::join!(publishing, noting);
}

fn boot_id(path: &Path) -> Result<String, Error> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    Ok(text.trim().to_owned())
}
